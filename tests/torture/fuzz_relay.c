/* A libFuzzer target: the relay between a hostile PAM application and a hostile service.
 *
 * The input contains the items, module arguments and answers of the application, then the messages of the service.
 * The sanitizers must report no error. Other rules:
 * - A login succeeds only if the first result message of the service is exactly "r0".
 * - The relay sends one hello of at most 4096 bytes, and answers of at most 512 bytes without a NUL.
 */
#define INTERPRETER "/usr/bin/python3"
#define HELPER "/nonexistent/helper.py"
#include "../../pam_totp/pam/relay.c"

#define CLAIM(what) ((what) ? (void)0 : abort())

struct input {
    const unsigned char *bytes;
    size_t size;
};

struct pam_handle {
    const char *items[16]; /* index: the item's number in security/_pam_types.h */
    char *authtok;
    struct input answers;
    struct pam_conv conversation;
};

static unsigned take_byte(struct input *from)
{
    if (from->size == 0)
        return 0;
    from->size--;
    return *from->bytes++;
}

static struct input take(struct input *from, size_t size)
{
    struct input taken = {from->bytes, size < from->size ? size : from->size};
    from->bytes += taken.size;
    from->size -= taken.size;
    return taken;
}

/* Return a string, or NULL if the next byte is 255. The size is this byte, or 16 times this byte if byte % 16 is 15. */
static char *take_text(struct input *from)
{
    unsigned size = take_byte(from);
    if (size == 255)
        return NULL;
    struct input taken = take(from, size % 16 == 15 ? size * 16 : size);
    char *text = malloc(taken.size + 1);
    if (taken.size > 0)
        memcpy(text, taken.bytes, taken.size);
    text[taken.size] = '\0';
    return text;
}

/* ---- the functions of libpam that the relay calls ----------------------------------------------------------- */

int pam_get_item(const pam_handle_t *pamh, int type, const void **value)
{
    *value = type == PAM_CONV ? (const void *)&pamh->conversation : type == PAM_AUTHTOK ? pamh->authtok : pamh->items[type];
    return PAM_SUCCESS;
}

int pam_set_item(pam_handle_t *pamh, int type, const void *value)
{
    CLAIM(type == PAM_AUTHTOK);
    free(pamh->authtok);
    pamh->authtok = strdup(value);
    return PAM_SUCCESS;
}

int pam_set_data(pam_handle_t *pamh, const char *name, void *data, void (*at_end)(pam_handle_t *, void *, int))
{
    (void)pamh, (void)name, (void)data, (void)at_end;
    abort(); /* the relay calls this function only for a running helper, and HELPER does not exist */
}

int pam_get_user(pam_handle_t *pamh, const char **user, const char *prompt)
{
    CLAIM(prompt == NULL);
    *user = pamh->items[PAM_USER];
    return *user == NULL ? PAM_CONV_ERR : PAM_SUCCESS;
}

int pam_fail_delay(pam_handle_t *pamh, unsigned microseconds)
{
    CLAIM(pamh != NULL && microseconds == FAIL_DELAY);
    return PAM_SUCCESS;
}

void pam_vsyslog(const pam_handle_t *pamh, int priority, const char *format, va_list values)
{
    char line[64];
    CLAIM(pamh != NULL && priority == LOG_ERR);
    vsnprintf(line, sizeof line, format, values);
}

void pam_syslog(const pam_handle_t *pamh, int priority, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    pam_vsyslog(pamh, priority, format, values);
    va_end(values);
}

static int answer_prompt(int count, const struct pam_message **messages, struct pam_response **responses, void *data)
{
    struct input *answers = data;
    CLAIM(count == 1 && strlen(messages[0]->msg) < PACKET_MAX);
    switch (take_byte(answers) % 4) {
    case 0:
        return PAM_CONV_ERR;
    case 1:
        return PAM_SUCCESS; /* a defective application: success without a response */
    default:
        *responses = calloc(1, sizeof **responses);
        (*responses)->resp = take_text(answers);
        return PAM_SUCCESS;
    }
}

/* ---- a login ------------------------------------------------------------------------------------------------ */

static void check_sent_packets(int service, bool with_hello)
{
    char packet[PACKET_MAX + 2];
    for (bool first = true;; first = false) {
        ssize_t size = recv(service, packet, sizeof packet, MSG_DONTWAIT);
        if (size <= 0)
            return;
        if (first && with_hello) {
            CLAIM(packet[0] == 'H' && size <= PACKET_MAX);
            continue;
        }
        CLAIM(packet[0] == 'A' || (packet[0] == 'N' && size == 1));
        CLAIM(size <= 1 + ANSWER_MAX && memchr(packet, '\0', size) == NULL);
    }
}

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size);

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t size)
{
    struct input input = {bytes, size};
    static const int ITEMS[] = {PAM_SERVICE, PAM_USER, PAM_TTY, PAM_RHOST, PAM_RUSER};
    struct pam_handle pamh = {.conversation = {.conv = answer_prompt}};
    char *texts[sizeof ITEMS / sizeof ITEMS[0]], *arguments[9] = {NULL};
    for (size_t i = 0; i < sizeof ITEMS / sizeof ITEMS[0]; i++)
        pamh.items[ITEMS[i]] = texts[i] = take_text(&input);
    pamh.authtok = take_text(&input);
    int count = take_byte(&input) % 9, used = 0;
    for (int i = 0; i < count; i++)
        if ((arguments[used] = take_text(&input)) != NULL)
            used++;
    pamh.answers = take(&input, 16 * take_byte(&input));
    pamh.conversation.appdata_ptr = &pamh.answers;

    struct settings settings = parse(used, (const char **)arguments);
    if (settings.malformed == NULL && settings.socket != NULL)
        usable(&pamh, settings.socket, S_IFSOCK);
    if (settings.malformed == NULL)
        usable(&pamh, settings.helper, S_IFREG);
    struct packet hello;
    bool fits = pamh.items[PAM_USER] != NULL;
    if (fits) {
        compose(&hello, &pamh, pamh.items[PAM_USER], 0, used, (const char **)arguments);
        fits = hello.size <= PACKET_MAX;
    }

    int ends[2];
    CLAIM(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    bool let_in = false, decided = false;
    for (int messages = 0; input.size > 0 && messages < 80; messages++) {
        unsigned length = take_byte(&input) | take_byte(&input) << 8;
        struct input message = take(&input, length % 5000);
        if (send(ends[1], message.bytes, message.size, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
            break;
        if (!decided && message.size > 0 && message.bytes[0] == 'r') {
            decided = true;
            let_in = message.size == 2 && message.bytes[1] == '0';
        }
    }
    shutdown(ends[1], SHUT_WR);
    if (fits)
        CLAIM(send_packet(ends[0], hello.bytes, hello.size));
    int result = dialogue(&pamh, ends[0]);
    CLAIM(result == PAM_SUCCESS ? let_in : result != UNDECIDED);
    check_sent_packets(ends[1], fits);
    close(ends[0]);
    close(ends[1]);

    for (size_t i = 0; i < sizeof ITEMS / sizeof ITEMS[0]; i++)
        free(texts[i]);
    for (int i = 0; i < used; i++)
        free(arguments[i]);
    free(pamh.authtok);
    return 0;
}
