/* A PAM application that makes one login, and keeps no copy of the answer. A test then searches the memory of the
 * application.
 *
 * host CONFDIR SERVICE USER
 *
 * The application reads the answer from standard input, and gives it at each prompt. It sets PAM_AUTHTOK to the answer
 * at a message of pam_echo, like an earlier module. It prints the result, and waits for the end of standard input.
 */
#define _GNU_SOURCE
#include <security/pam_appl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char answer[1024];
static pam_handle_t *pamh;

static int converse(int count, const struct pam_message **messages, struct pam_response **responses, void *data)
{
    (void)data;
    *responses = calloc(count, sizeof **responses);
    for (int i = 0; i < count; i++)
        if (messages[i]->msg_style == PAM_PROMPT_ECHO_OFF)
            (*responses)[i].resp = strdup(answer);
        else if (messages[i]->msg_style == PAM_TEXT_INFO)
            pam_set_item(pamh, PAM_AUTHTOK, answer);
    return PAM_SUCCESS;
}

int main(int count, char **arguments)
{
    const struct pam_conv conversation = {.conv = converse};
    if (count != 4 || read(0, answer, sizeof answer - 1) <= 0)
        return 2;
    if (pam_start_confdir(arguments[2], arguments[3], &conversation, arguments[1], &pamh) != PAM_SUCCESS)
        return 3;
    int result = pam_authenticate(pamh, 0);
    pam_end(pamh, result);
    explicit_bzero(answer, sizeof answer);
    printf("%d\n", result);
    fflush(stdout);
    return read(0, answer, 1) != 0;
}
