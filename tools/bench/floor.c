/* floor SOCKET STORE
 *
 * A service that makes the system calls of a login, and accepts every answer. Its time is a lower bound for services
 * with a socket, a lock, two reads of the record, a durable write and a log line.
 *
 * The steps of a login:
 * - Accept the connection, and read the hello and the record.
 * - Send the prompt, and read the answer.
 * - Lock a byte, read the record, and write a slot (RWF_DSYNC).
 * - Log the result, and send it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <syslog.h>
#include <unistd.h>

enum { PACKET = 4097, SLOT = 4096 };

static char record[2 * SLOT], packet[PACKET];

static void read_record(int folder)
{
    struct stat status;
    int file = openat(folder, "floor.record", O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fstat(file, &status) != 0 || pread(file, record, sizeof record, 0) != sizeof record)
        _exit(1);
    close(file);
}

static void write_slot(int folder, int slot)
{
    struct iovec data = {record, SLOT};
    int file = openat(folder, "floor.record", O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
    if (pwritev2(file, &data, 1, (off_t)slot * SLOT, RWF_DSYNC) != SLOT)
        _exit(1);
    close(file);
}

static void serve(int channel, const char *store, int slot)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    getsockopt(channel, SOL_SOCKET, SO_PEERCRED, &peer, &size);
    if (recv(channel, packet, sizeof packet, 0) <= 0)
        return;
    int folder = open(store, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    read_record(folder);
    close(folder);
    send(channel, "pOne-time code: ", 16, MSG_NOSIGNAL);
    if (recv(channel, packet, sizeof packet, 0) <= 0)
        return;
    folder = open(store, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int lock = openat(folder, ".lock", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    struct flock byte = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 4711, .l_len = 1};
    if (fcntl(lock, F_OFD_SETLK, &byte) != 0)
        _exit(1);
    read_record(folder);
    write_slot(folder, slot);
    close(lock);
    close(folder);
    syslog(LOG_AUTHPRIV | LOG_INFO, "floor: accepted user=root by=code token=token rhost=none");
    send(channel, "r0", 2, MSG_NOSIGNAL);
}

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, arguments[1], sizeof address.sun_path - 1);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 128) != 0)
        return 1;
    for (int slot = 0;; slot = !slot) {
        int channel = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        serve(channel, arguments[2], slot);
        close(channel);
    }
}
