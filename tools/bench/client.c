/* client SERVICE USER ANSWER THINK_MS
 *
 * A PAM host that makes one login. It answers the first prompt after THINK_MS milliseconds, and later prompts at once.
 * It prints two times in nanoseconds: the login without that pause, and the part from the answer to the result. The
 * second time is the time of the whole login if no prompt was shown. The exit status is 1 if the login is refused.
 */
#define _GNU_SOURCE
#include <security/pam_appl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char *answer;
static long pause_ms;
static long long paused, answered; /* nanoseconds */

static long long now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int converse(int count, const struct pam_message **messages, struct pam_response **responses, void *data)
{
    (void)data;
    *responses = calloc(count, sizeof **responses);
    if (*responses == NULL)
        return PAM_BUF_ERR;
    for (int i = 0; i < count; i++) {
        if (messages[i]->msg_style != PAM_PROMPT_ECHO_OFF && messages[i]->msg_style != PAM_PROMPT_ECHO_ON)
            continue;
        if (answered == 0) {
            const struct timespec time = {pause_ms / 1000, pause_ms % 1000 * 1000000};
            long long before = now();
            nanosleep(&time, NULL);
            answered = now();
            paused = answered - before;
        }
        (*responses)[i].resp = strdup(answer);
    }
    return PAM_SUCCESS;
}

int main(int count, char **arguments)
{
    if (count != 5)
        return 2;
    answer = arguments[3];
    pause_ms = atol(arguments[4]);
    const struct pam_conv conversation = {.conv = converse};
    pam_handle_t *pamh = NULL;
    long long begun = now();
    if (pam_start(arguments[1], arguments[2], &conversation, &pamh) != PAM_SUCCESS)
        return 3;
    int result = pam_authenticate(pamh, 0);
    long long decided = now();
    pam_end(pamh, result);
    printf("%lld %lld\n", now() - begun - paused, decided - (answered == 0 ? begun : answered));
    return result != PAM_SUCCESS;
}
