/* A PAM application that logs in often, from many threads, and reports leaks.
 *
 * host CONFDIR SERVICE USER ANSWER LOGINS THREADS default|ignore|handle
 *
 * The program prints five numbers:
 * - successful logins
 * - refused logins
 * - growth of the heap in bytes
 * - growth of the number of open descriptors
 * - zombie children
 * The program measures growth from the end of the first tenth of the logins. The program aborts if a login or a
 * thread cannot start.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <security/pam_appl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static const char *confdir, *service, *user, *answer;
static atomic_int in, out;

static int converse(int count, const struct pam_message **messages, struct pam_response **responses, void *data)
{
    (void)data;
    *responses = calloc(count, sizeof **responses);
    for (int i = 0; i < count; i++)
        if (messages[i]->msg_style == PAM_PROMPT_ECHO_OFF || messages[i]->msg_style == PAM_PROMPT_ECHO_ON)
            (*responses)[i].resp = strdup(answer);
    return PAM_SUCCESS;
}

static void no_delay(int result, unsigned delay, void *data)
{
    (void)result, (void)delay, (void)data;
}

static void *log_in(void *logins)
{
    const struct pam_conv conversation = {.conv = converse};
    for (int i = 0; i < *(int *)logins; i++) {
        pam_handle_t *pamh = NULL;
        int result = pam_start_confdir(service, user, &conversation, confdir, &pamh);
        if (result != PAM_SUCCESS)
            abort();
        pam_set_item(pamh, PAM_FAIL_DELAY, (const void *)no_delay);
        result = pam_authenticate(pamh, 0);
        (*(result == PAM_SUCCESS ? &in : &out))++;
        pam_end(pamh, result);
    }
    return NULL;
}

static void log_in_by(int threads, int logins)
{
    pthread_t thread[64];
    int each = logins / threads;
    for (int i = 0; i < threads; i++)
        if (pthread_create(&thread[i], NULL, log_in, &each) != 0)
            abort();
    for (int i = 0; i < threads; i++)
        pthread_join(thread[i], NULL);
}

static int descriptors(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

static void reap(int number)
{
    int before = errno;
    (void)number;
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
    errno = before;
}

int main(int argc, char **argv)
{
    if (argc != 8)
        return 1;
    confdir = argv[1], service = argv[2], user = argv[3], answer = argv[4];
    int logins = atoi(argv[5]), threads = atoi(argv[6]);
    if (strcmp(argv[7], "ignore") == 0)
        signal(SIGCHLD, SIG_IGN);
    else if (strcmp(argv[7], "handle") == 0)
        signal(SIGCHLD, reap);

    log_in_by(threads, logins / 10);
    size_t bytes = mallinfo2().uordblks;
    int open = descriptors();
    log_in_by(threads, logins - logins / 10);
    long grown = (long)mallinfo2().uordblks - (long)bytes;
    open = descriptors() - open;
    int children = 0;
    siginfo_t one = {0};
    while (waitid(P_ALL, 0, &one, WEXITED | WNOHANG) == 0 && one.si_pid != 0) {
        children++;
        one.si_pid = 0;
    }
    printf("%d %d %ld %d %d\n", in, out, grown, open, children);
    return 0;
}
