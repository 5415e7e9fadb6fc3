/* pam_totp.so: carries one PAM login to the Python service, and the decision back.
 *
 * Rules:
 * - The relay does not decide on answers. It reads message types and four module arguments.
 * - The relay returns PAM_SUCCESS only for the exact message "r0". Any unexpected event denies, and is logged.
 * - The relay connects to a service, or starts a program, only if no untrusted account could have replaced it.
 * - The host is the program that loaded the relay. The host may be setuid, multi-threaded, or have descriptors 0-2
 *   closed. The relay leaves the host's signal dispositions, environment, descriptors, children and static state
 *   unchanged.
 *   The exception is a helper that still runs after END_LIMIT (`leave_behind`).
 * - Every wait for another process has a limit.
 * - The relay wipes an answer right after it has sent the answer. The relay never logs an answer.
 *
 * The protocol (AF_UNIX SOCK_SEQPACKET, one message a packet, the first byte is the type):
 *   to the service     H hello: NUL-separated key=value   A answer   N no answer
 *   from the service   p prompt, echo off   P prompt, echo on   g get PAM_AUTHTOK      each gets one A or N
 *                      i information   e error   s set PAM_AUTHTOK                     no reply
 *                      r result, a decimal PAM code                                    then both close
 *                      f full, as the first message only                               then both close
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include <security/pam_ext.h>
#include <security/pam_modules.h>

#if !defined INTERPRETER || !defined HELPER
#error "INTERPRETER and HELPER must be absolute paths (see the Makefile)"
#endif
#ifndef BUILDER
#define BUILDER 0 /* uid that owns the built tree; 0 for an installed relay */
#endif
#ifndef ACCOUNT
#define ACCOUNT "pam_totp" /* the account under which `pam-totp serve` runs */
#endif
#ifndef CONNECT_LIMIT
#define CONNECT_LIMIT 1000 /* ms: the relay starts a helper if the queue of the service stays full for longer */
#endif
#ifndef TURN_LIMIT
#define TURN_LIMIT 10000 /* ms: the service waits up to 5 s for the store's lock, and a helper takes time to start */
#endif
#ifndef END_LIMIT
#define END_LIMIT 1000 /* ms: the relay waits this long for the end of a killed helper */
#endif

enum {
    PACKET_MAX = 4096,    /* bytes of one message, its type included */
    ANSWER_MAX = 512,     /* bytes of an answer: a long password and three codes */
    TURNS_MAX = 64,       /* messages from the service in one login: a few prompts and notices, with slack */
    LINKS_MAX = 40,       /* symbolic links in one path, as in the kernel */
    WITH_CHILDREN = 4,    /* PIDFD_SIGNAL_PROCESS_GROUP: a helper has a separate process group */
    NO_PIDFD_PAUSE = 1,   /* ms between two checks of a helper if the kernel has no pidfd */
    FAIL_DELAY = 2000000, /* microseconds */
    UNDECIDED = -1,       /* not a PAM code */
    FULL = -2,            /* not a PAM code: the service has reached its limit of logins from root programs */
};

#define HELPERS "pam_totp.helpers" /* the cgroup of helpers that root starts, below the root cgroup */

static const char DEFAULT_SOCKET[] = "/run/pam_totp/socket";

/* The only valid results of a service, compared byte for byte. */
#define DECIMAL(number) #number
#define RESULT(code) {DECIMAL(code), code}
static const struct {
    const char *text;
    int code;
} RESULTS[] = {
    RESULT(PAM_SUCCESS),          RESULT(PAM_SERVICE_ERR), RESULT(PAM_AUTH_ERR),
    RESULT(PAM_AUTHINFO_UNAVAIL), RESULT(PAM_CONV_ERR),    RESULT(PAM_IGNORE),
};

struct settings {
    const char *socket; /* NULL: always start a helper */
    const char *helper;
    const char *malformed; /* the malformed argument, or NULL */
    bool nodelay;
};

struct packet {
    size_t size;
    char bytes[PACKET_MAX + 1]; /* the last byte is for a terminating NUL */
};

struct service {
    int channel;
    pid_t pid; /* of the helper that was started for this login, or 0 */
    int pidfd; /* identifies that helper even if the host ignores SIGCHLD and the pid is reused; or -1 */
};

/* ---- utilities --------------------------------------------------------------------------------------------- */

__attribute__((format(printf, 3, 4))) static int deny(pam_handle_t *pamh, int result, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    pam_vsyslog(pamh, LOG_ERR, format, values);
    va_end(values);
    return result;
}

static const void *item(const pam_handle_t *pamh, int type)
{
    const void *value = NULL;
    return pam_get_item(pamh, type, &value) == PAM_SUCCESS ? value : NULL;
}

static long long milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* Move a descriptor to a number above 3. A host with 0-2 closed might still write to them, and a helper uses 0-3.
 * Return -1 if `descriptor` is -1, or if no descriptor is free. */
static int aside(int descriptor)
{
    if (descriptor < 0 || descriptor > 3)
        return descriptor;
    int moved = fcntl(descriptor, F_DUPFD_CLOEXEC, 4);
    close(descriptor);
    return moved;
}

/* ---- module arguments -------------------------------------------------------------------------------------- */

/* Return the value in `argument` if it begins with `key`, which ends with "="; otherwise NULL. */
static const char *value_of(const char *argument, const char *key)
{
    size_t length = strlen(key);
    return strncmp(argument, key, length) == 0 ? argument + length : NULL;
}

/* Read all arguments, so that `nodelay` works even if another argument is malformed. The service checks the arguments
 * that the relay does not use. */
static struct settings parse(int argc, const char **argv)
{
    struct settings settings = {.socket = DEFAULT_SOCKET, .helper = HELPER};
    bool in_home = false;
    for (int i = 0; i < argc; i++) {
        const char *value;
        if ((value = value_of(argv[i], "socket=")) != NULL) {
            settings.socket = value;
            if (strcmp(value, "none") == 0)
                settings.socket = NULL;
            else if (value[0] != '/' || strlen(value) >= sizeof((struct sockaddr_un *)0)->sun_path)
                settings.malformed = argv[i];
        } else if ((value = value_of(argv[i], "helper=")) != NULL) {
            settings.helper = value;
            if (value[0] != '/')
                settings.malformed = argv[i];
        } else if (value_of(argv[i], "secret=") != NULL) {
            in_home = true; /* only a helper can open the user's file, because the service never runs as that user */
        } else if (strcmp(argv[i], "nodelay") == 0) {
            settings.nodelay = true;
        }
    }
    if (in_home)
        settings.socket = NULL;
    return settings;
}

/* ---- trust in a path --------------------------------------------------------------------------------------- */

enum trust { TRUSTED, MISSING, FOREIGN, WRITABLE, WINDING, UNFIT };

static const char *const DISTRUST[] = {
    [MISSING] = "not found",
    [FOREIGN] = "must belong to a trusted user",
    [WRITABLE] = "must not be writable by other users",
    [WINDING] = "must have at most 40 links and 4095 bytes",
    [UNFIT] = "has the wrong file type, or is not executable",
};

static bool trusted_owner(uid_t uid, bool of_service)
{
    if (uid == 0 || uid == (uid_t)BUILDER || uid == geteuid())
        return true;
    if (!of_service)
        return false;
    char room[4096];
    struct passwd entry, *found = NULL;
    return getpwnam_r(ACCOUNT, &entry, room, sizeof room, &found) == 0 && found != NULL && found->pw_uid == uid;
}

/* Other users can add files to a sticky folder, but cannot replace files of a trusted owner. The mode of a link has no
 * effect. On a socket, write permission only allows a connection. */
static bool writable_by_others(mode_t mode)
{
    if (S_ISLNK(mode) || S_ISSOCK(mode) || (S_ISDIR(mode) && (mode & S_ISVTX)))
        return false;
    return mode & (geteuid() == 0 ? S_IWGRP | S_IWOTH : S_IWOTH);
}

struct place {
    char path[PATH_MAX];
    struct stat status;
    int links; /* symbolic links followed so far */
};

/* Check every folder and link on an absolute path, and the file at its end. Return TRUSTED if all belong to trusted
 * owners, and only these owners can write there: no other user can then replace the file. `at` is the last path that
 * was checked. */
static enum trust visit(const char *path, bool of_service, struct place *at)
{
    for (size_t end = 1;; end += strcspn(path + end, "/")) { /* path[0 … end-1] is "/", then "/usr", "/usr/bin" … */
        if (end >= sizeof at->path)
            return WINDING;
        memcpy(at->path, path, end);
        at->path[end] = '\0';
        if (lstat(at->path, &at->status) < 0)
            return MISSING;
        if (!trusted_owner(at->status.st_uid, of_service))
            return FOREIGN;
        if (writable_by_others(at->status.st_mode))
            return WRITABLE;
        if (S_ISLNK(at->status.st_mode)) {
            char next[PATH_MAX]; /* the link's folder, then its target */
            size_t folder = strrchr(at->path, '/') + 1 - at->path;
            memcpy(next, at->path, folder);
            ssize_t length = readlink(at->path, next + folder, sizeof next - folder);
            if (++at->links > LINKS_MAX || length <= 0 || folder + length >= sizeof next)
                return WINDING;
            next[folder + length] = '\0';
            enum trust beyond = visit(next[folder] == '/' ? next + folder : next, of_service, at);
            if (beyond != TRUSTED)
                return beyond;
        }
        if (path[end] == '\0')
            return TRUSTED;
        end += path[end] == '/';
    }
}

/* Return true if a path is trusted, and leads to a file with the type and the mode bits of `mode`. Otherwise log the
 * reason, except for a missing socket, because most hosts run no service. */
static bool usable(pam_handle_t *pamh, const char *path, mode_t mode)
{
    struct place at = {.links = 0};
    enum trust trust = visit(path, S_ISSOCK(mode), &at);
    if (trust == TRUSTED && (at.status.st_mode & (S_IFMT | mode)) != mode)
        trust = UNFIT;
    if (trust != TRUSTED && !(trust == MISSING && S_ISSOCK(mode)))
        pam_syslog(pamh, LOG_ERR, "refusing %s: %s %s", path, at.path, DISTRUST[trust]);
    return trust == TRUSTED;
}

/* ---- reaching a service ------------------------------------------------------------------------------------ */

/* Return true if a trusted user called listen() on the socket at the other end. */
static bool trusted_peer(int channel)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(channel, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && trusted_owner(peer.uid, true);
}

/* Return a channel to the service at `path`, or -1. */
static int connect_to(pam_handle_t *pamh, const char *path)
{
    const struct timeval limit = {.tv_sec = CONNECT_LIMIT / 1000, .tv_usec = CONNECT_LIMIT % 1000 * 1000};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!usable(pamh, path, S_IFSOCK))
        return -1;
    strcpy(address.sun_path, path); /* `parse` has checked the length of the path */
    int channel = aside(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (channel < 0)
        return -1;
    if (setsockopt(channel, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0 &&
        connect(channel, (const struct sockaddr *)&address, sizeof address) == 0) {
        if (trusted_peer(channel))
            return channel;
        pam_syslog(pamh, LOG_ERR, "refusing %s: the listener runs as an untrusted user", path);
    }
    close(channel);
    return -1;
}

/* Start a helper without the state of the host. The helper has /dev/null on 0-2, the channel on 3, and no other
 * descriptor; an empty environment, default signals and the folder "/". The helper has a new session, so the terminal's
 * Ctrl-C does not reach the helper. The helper sets its umask. Return 0 or an errno value. */
static int spawn(const char *helper, int channel, pid_t *pid)
{
    char *const argv[] = {INTERPRETER, "-I", "-S", (char *)helper, NULL};
    char *const environment[] = {NULL};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t every, none;
    sigfillset(&every);
    sigemptyset(&none);
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    bool ready = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDWR, 0) == 0 &&
                 posix_spawn_file_actions_adddup2(&actions, 0, 1) == 0 &&
                 posix_spawn_file_actions_adddup2(&actions, 0, 2) == 0 &&
                 posix_spawn_file_actions_adddup2(&actions, channel, 3) == 0 &&
                 posix_spawn_file_actions_addclosefrom_np(&actions, 4) == 0 &&
                 posix_spawn_file_actions_addchdir_np(&actions, "/") == 0 &&
                 posix_spawnattr_setsigdefault(&attributes, &every) == 0 &&
                 posix_spawnattr_setsigmask(&attributes, &none) == 0 &&
                 posix_spawnattr_setflags(
                     &attributes, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID) == 0;
    int error = ready ? posix_spawn(pid, INTERPRETER, &actions, &attributes, argv, environment) : ENOMEM;
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    return error;
}

/* Move a process to root's cgroup HELPERS, which has the default weight, below the root cgroup of the cgroup2 at
 * `mount`. In the root cgroup itself, each thread would weigh as much as a group. Return 0 or an errno value. */
static int enter_cgroup(const char *mount, pid_t pid)
{
    char path[PATH_MAX];
    struct statfs system;
    if (statfs(mount, &system) < 0 || system.f_type != CGROUP2_SUPER_MAGIC)
        return ENOENT;
    snprintf(path, sizeof path, "%s/" HELPERS, mount);
    if (mkdir(path, 0755) < 0 && errno != EEXIST)
        return errno;
    snprintf(path, sizeof path, "%s/" HELPERS "/cgroup.procs", mount);
    int file = aside(open(path, O_WRONLY | O_CLOEXEC));
    if (file < 0)
        return errno;
    int error = dprintf(file, "%d", (int)pid) < 0 ? errno : 0;
    close(file);
    return error;
}

/* Reset the I/O priority and the cgroup of a helper. The caller of a setuid host may have set the priority, and may
 * freeze or throttle the cgroup of the host. The helper itself cannot do this early enough. The helper gets the hello
 * afterwards, and takes no lock before that. The helper stays in the cgroup of the host if no cgroup2 can be written.
 * Return an errno value if the caller may have caused the failure, otherwise 0. */
static int release(pid_t pid)
{
    const int one_process = 1, no_class = 0; /* IOPRIO_WHO_PROCESS, IOPRIO_CLASS_NONE: ioprio_set(2) */
    syscall(SYS_ioprio_set, one_process, pid, no_class);
    int error = enter_cgroup("/sys/fs/cgroup", pid);
    if (error == ENOENT)
        error = enter_cgroup("/sys/fs/cgroup/unified", pid);
    return error == EMFILE || error == ENFILE || error == ENOMEM ? error : 0;
}

/* Call waitid for the helper. The pid might already belong to another process if the host ignores SIGCHLD or reaps all
 * children itself. A pidfd always refers to the same process. */
static int wait_for(const struct service *service, siginfo_t *info, int options)
{
    info->si_pid = 0;
    if (service->pidfd < 0)
        return waitid(P_PID, service->pid, info, options);
    return waitid(P_PIDFD, service->pidfd, info, options);
}

/* Reap a helper. Return false if the helper has not ended within `limit` ms. */
static bool reap(const struct service *service, int limit)
{
    siginfo_t info;
    for (long long now = milliseconds(), deadline = now + limit;; now = milliseconds()) {
        if (wait_for(service, &info, WEXITED | WNOHANG) == 0 ? info.si_pid != 0 : errno != EINTR)
            return true; /* on ECHILD, the host has reaped the helper */
        if (now >= deadline)
            return false;
        struct pollfd ended = {.fd = service->pidfd, .events = POLLIN};
        poll(&ended, 1, service->pidfd < 0 ? NO_PIDFD_PAUSE : (int)(deadline - now));
    }
}

/* Reap a helper of `leave_behind`, if it has ended. libpam calls this function when the host ends its handle. */
static void reap_late(pam_handle_t *pamh, void *data, int status)
{
    struct service *service = data;
    (void)pamh, (void)status;
    reap(service, 0);
    close(service->pidfd);
    free(service);
}

/* Leave a helper to `reap_late`. After the end of the host, init reaps a helper that lacks a pidfd or still runs.
 * Return false if `reap_late` does not get the helper. */
static bool leave_behind(pam_handle_t *pamh, const struct service *service)
{
    char name[32]; /* a name for each helper, because libpam would call `reap_late` for older data with the same name */
    struct service *copy = service->pidfd < 0 ? NULL : malloc(sizeof *copy);
    snprintf(name, sizeof name, "pam_totp_%d", (int)service->pid);
    pam_syslog(pamh, LOG_WARNING, "the helper %d has not ended yet", (int)service->pid);
    if (copy != NULL) {
        *copy = *service;
        if (pam_set_data(pamh, name, copy, reap_late) == PAM_SUCCESS)
            return true;
    }
    free(copy);
    return false;
}

/* Close the channel and kill the helper. A helper that sent a result has stored the record before. Send the signal to
 * the pidfd, after `wait_for` has checked that the process is still a child of the host. */
static void hang_up(pam_handle_t *pamh, const struct service *service)
{
    siginfo_t unused;
    shutdown(service->channel, SHUT_RDWR); /* close() alone does not end a channel that a forked child has open */
    close(service->channel);
    if (service->pid == 0)
        return;
    if (service->pidfd >= 0 && wait_for(service, &unused, WEXITED | WNOHANG | WNOWAIT) == 0 &&
        pidfd_send_signal(service->pidfd, SIGKILL, NULL, WITH_CHILDREN) < 0) /* Linux before 6.9 */
        pidfd_send_signal(service->pidfd, SIGKILL, NULL, 0);
    bool kept = !reap(service, END_LIMIT) && leave_behind(pamh, service);
    if (service->pidfd >= 0 && !kept)
        close(service->pidfd);
}

/* Start a helper and a channel to it. Return 0 or an errno value. */
static int start(pam_handle_t *pamh, const char *helper, struct service *service)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return errno;
    int near = aside(ends[0]), far = aside(ends[1]);
    int error = near < 0 || far < 0 ? EMFILE : spawn(helper, far, &service->pid);
    if (far >= 0)
        close(far);
    if (error != 0) {
        if (near >= 0)
            close(near);
        return error;
    }
    if (geteuid() == 0)
        error = release(service->pid); /* before pidfd_open: the caller may allow only one more descriptor */
    service->channel = near;
    service->pidfd = aside(pidfd_open(service->pid, 0));
    if (error != 0)
        hang_up(pamh, service);
    return error;
}

/* ---- the dialogue ------------------------------------------------------------------------------------------ */

static bool send_packet(int channel, const char *bytes, size_t size)
{
    return send(channel, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)size;
}

/* Wait for one message. Return the fault of the service, or NULL and a packet with a terminating NUL. */
static const char *receive(int channel, struct packet *packet)
{
    long long now = milliseconds(), deadline = now + TURN_LIMIT;
    for (; now < deadline; now = milliseconds()) {
        struct pollfd readable = {.fd = channel, .events = POLLIN};
        if (poll(&readable, 1, (int)(deadline - now)) <= 0)
            continue; /* the deadline has passed, or the host got a signal */
        ssize_t size = recv(channel, packet->bytes, PACKET_MAX, MSG_TRUNC | MSG_DONTWAIT);
        if (size > PACKET_MAX)
            return "sent a message above the size limit";
        if (size > 0) {
            packet->size = size;
            packet->bytes[size] = '\0';
            return NULL;
        }
        if (size == 0 || (errno != EAGAIN && errno != EINTR))
            return "closed the connection";
    }
    return "sent no message in time";
}

static void forget(char *text)
{
    if (text != NULL)
        explicit_bzero(text, strlen(text));
    free(text);
}

/* Show one message to the user. Return the answer, which the caller must wipe and free, or NULL. */
static char *converse(pam_handle_t *pamh, int style, const char *text)
{
    const struct pam_conv *conversation = item(pamh, PAM_CONV);
    const struct pam_message message = {.msg_style = style, .msg = text}, *messages = &message;
    struct pam_response *response = NULL;
    if (conversation == NULL || conversation->conv == NULL ||
        conversation->conv(1, &messages, &response, conversation->appdata_ptr) != PAM_SUCCESS || response == NULL)
        return NULL;
    char *answer = response->resp;
    free(response);
    return answer;
}

/* Send an answer, or N if `answer` is NULL. Send an empty answer if the answer is longer than ANSWER_MAX. Return the
 * fault of the service, or NULL. */
static const char *reply(int channel, const char *answer)
{
    char bytes[1 + ANSWER_MAX];
    size_t length = answer == NULL ? 0 : strlen(answer);
    if (length > ANSWER_MAX)
        length = 0;
    bytes[0] = answer == NULL ? 'N' : 'A';
    if (length > 0)
        memcpy(bytes + 1, answer, length);
    bool sent = send_packet(channel, bytes, 1 + length);
    explicit_bzero(bytes, sizeof bytes);
    return sent ? NULL : "did not receive the answer";
}

static const char *ask(pam_handle_t *pamh, int channel, int style, const char *text)
{
    char *answer = converse(pamh, style, text);
    const char *fault = reply(channel, answer);
    forget(answer);
    return fault;
}

static int result_named(const char *text)
{
    for (size_t i = 0; i < sizeof RESULTS / sizeof RESULTS[0]; i++)
        if (strcmp(RESULTS[i].text, text) == 0)
            return RESULTS[i].code;
    return UNDECIDED;
}

/* Carry out one message, and set `result` if the message is a result. Return the fault of the service, or NULL. */
static const char *obey(pam_handle_t *pamh, int channel, const struct packet *packet, int *result)
{
    static const char STRANGE[] = "sent a message outside the protocol";
    const char *text = packet->bytes + 1;
    if (strlen(packet->bytes) != packet->size)
        return STRANGE;
    switch (packet->bytes[0]) {
    case 'p':
        return ask(pamh, channel, PAM_PROMPT_ECHO_OFF, text);
    case 'P':
        return ask(pamh, channel, PAM_PROMPT_ECHO_ON, text);
    case 'g':
        return text[0] == '\0' ? reply(channel, item(pamh, PAM_AUTHTOK)) : STRANGE;
    case 'i':
        forget(converse(pamh, PAM_TEXT_INFO, text));
        return NULL;
    case 'e':
        forget(converse(pamh, PAM_ERROR_MSG, text));
        return NULL;
    case 's':
        return text[0] != '\0' && pam_set_item(pamh, PAM_AUTHTOK, text) == PAM_SUCCESS ? NULL : STRANGE;
    case 'r':
        *result = result_named(text);
        return *result != UNDECIDED ? NULL : STRANGE;
    default:
        return STRANGE;
    }
}

/* Carry messages between the user and the service until the service has decided. Return a PAM result, or FULL if the
 * first message of the service is `f`. */
static int dialogue(pam_handle_t *pamh, int channel)
{
    struct packet packet;
    const char *fault = NULL;
    int result = UNDECIDED;
    for (int turn = 0; result == UNDECIDED && fault == NULL; turn++) {
        fault = turn < TURNS_MAX ? receive(channel, &packet) : "sent too many messages without a decision";
        if (fault == NULL && turn == 0 && packet.size == 1 && packet.bytes[0] == 'f')
            result = FULL;
        else if (fault == NULL)
            fault = obey(pamh, channel, &packet, &result);
    }
    explicit_bzero(&packet, sizeof packet);
    if (fault != NULL)
        return deny(pamh, PAM_AUTHINFO_UNAVAIL, "denied: the service %s", fault);
    return result;
}

/* ---- one login --------------------------------------------------------------------------------------------- */

/* Add "key=value" and a NUL that separates it from the next item. Do nothing if `value` is NULL. */
static void put(struct packet *hello, const char *key, const char *value)
{
    size_t end = hello->size < sizeof hello->bytes ? hello->size : sizeof hello->bytes;
    if (value != NULL)
        hello->size += snprintf(hello->bytes + end, sizeof hello->bytes - end, "%s=%s", key, value) + 1;
}

/* Compose the hello message. `hello->size` is above PACKET_MAX if the message is too long. */
static void compose(struct packet *hello, pam_handle_t *pamh, const char *user, int flags, int argc, const char **argv)
{
    char number[16];
    snprintf(number, sizeof number, "%u", (unsigned)flags);
    hello->size = 1;
    hello->bytes[0] = 'H';
    put(hello, "version", "1");
    put(hello, "service", item(pamh, PAM_SERVICE));
    put(hello, "user", user);
    put(hello, "rhost", item(pamh, PAM_RHOST));
    put(hello, "ruser", item(pamh, PAM_RUSER));
    put(hello, "tty", item(pamh, PAM_TTY));
    put(hello, "flags", number);
    for (int i = 0; i < argc; i++)
        put(hello, "arg", argv[i]);
    hello->size--; /* remove the NUL after the last item */
}

/* Carry one login to the service at `socket`. Use a helper if `socket` is NULL or the service cannot be reached. */
static int carry(pam_handle_t *pamh, const struct packet *hello, const char *socket, const char *helper)
{
    struct service service = {.channel = -1, .pidfd = -1};
    if (socket != NULL)
        service.channel = connect_to(pamh, socket);
    if (service.channel < 0) {
        if (!usable(pamh, INTERPRETER, S_IFREG | S_IXUSR) || !usable(pamh, helper, S_IFREG))
            return PAM_SERVICE_ERR;
        int error = start(pamh, helper, &service);
        if (error != 0) {
            errno = error;
            return deny(pamh, PAM_AUTHINFO_UNAVAIL, "denied: cannot start %s: %m", INTERPRETER);
        }
    }
    int result = send_packet(service.channel, hello->bytes, hello->size)
                     ? dialogue(pamh, service.channel)
                     : deny(pamh, PAM_AUTHINFO_UNAVAIL, "denied: the service did not receive the login");
    hang_up(pamh, &service);
    return result;
}

static int authenticate(pam_handle_t *pamh, const struct settings *settings, int flags, int argc, const char **argv)
{
    const char *user = NULL;
    struct packet hello;

    if (settings->malformed != NULL)
        return deny(pamh, PAM_SERVICE_ERR, "denied: malformed argument %s", settings->malformed);
    if (pam_get_user(pamh, &user, NULL) != PAM_SUCCESS || user == NULL)
        return deny(pamh, PAM_CONV_ERR, "denied: libpam gave no user name");
    compose(&hello, pamh, user, flags, argc, argv);
    if (hello.size > PACKET_MAX)
        return deny(pamh, PAM_SERVICE_ERR, "denied: user, items and module arguments must be at most %d bytes together",
                    PACKET_MAX);

    int result = carry(pamh, &hello, settings->socket, settings->helper);
    if (result == FULL && geteuid() == 0)
        result = carry(pamh, &hello, NULL, settings->helper);
    if (result == FULL)
        return deny(pamh, PAM_AUTHINFO_UNAVAIL, "denied: the service is full");
    return result;
}

/* ---- entry points for libpam ------------------------------------------------------------------------------- */

#define EXPORTED __attribute__((visibility("default")))

EXPORTED int pam_sm_authenticate(pam_handle_t *pamh, int flags, int argc, const char **argv)
{
    struct settings settings = parse(argc, argv);
    int result = authenticate(pamh, &settings, flags, argc, argv);
    /* Request the delay after a right code too. libpam uses the delay only if the login fails, for example because a
     * later module refuses the password. With `forward_pass`, the delay then hides that the code was right. */
    if (result != PAM_IGNORE && !settings.nodelay)
        pam_fail_delay(pamh, FAIL_DELAY);
    return result;
}

EXPORTED int pam_sm_setcred(pam_handle_t *pamh, int flags, int argc, const char **argv)
{
    (void)pamh, (void)flags, (void)argc, (void)argv;
    return PAM_SUCCESS; /* codes give no credentials, but sshd denies a login if this function is missing */
}
