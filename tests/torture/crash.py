"""Logins through the real helper or service with a fault at a system call: a kill before the call, or an error.

The test starts the process, waits for its prompt, attaches strace, and then sends the answer. The trace therefore
contains the calls from the answer to the result. The process reads the secret file, decides, and records the use of the
code.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.oath import totp
from pam_totp.core.policy import Policy
from pam_totp.core.record import TotpToken, UserRecord
from pam_totp.operations.authenticate import decide
from pam_totp.store.file import FileStore
from tests.support.site import ME, PATIENCE, TREE, Site, codes, fob, phone, until

PYTHON = "/usr/bin/python3"
HELPER = str(TREE / "pam_totp" / "pam" / "helper.py")
SALT, RECOVERY = "5a" * 16, "0123456789ABCDEF"
PHONE = phone(period=86_400)

# Each call fails with each of these errors, in separate logins. Each call of SHORT also returns 1 in another login, as
# after a short read or write.
ERRORS = ("ENOSPC", "EIO", "EINTR")
SHORT = {"pwritev2", "read", "pread64", "sendmsg"}
CANNOT_FAIL = {"getpid", "geteuid"}
# No fault is injected at these calls. The number of memory calls varies, and other threads of the service wait in the
# second group. The trace can lack `recvfrom`, which waits for the answer when strace attaches.
IGNORED = {"mmap", "munmap", "mremap", "madvise", "brk", "mprotect"}
IGNORED |= {"futex", "epoll_wait", "restart_syscall", "recvfrom", "select", "pselect6"}


@dataclass(frozen=True)
class Kind:
    """A kind of answer. `is_recorded` returns True if the record shows that the answer was used or counted."""

    name: str
    answer: Callable[[], str]
    is_recorded: Callable[[UserRecord], bool]
    right: bool = True


def _last_step(record: UserRecord) -> int | None:
    token = record.token("phone")
    assert isinstance(token, TotpToken)
    return token.last_step


KINDS = {
    kind.name: kind
    for kind in (
        Kind("hotp", lambda: codes(0), lambda record: record.tokens[0] != fob()),
        Kind("row", lambda: codes(0, 3), lambda record: record.tokens[0] != fob()),
        Kind(
            "totp",
            lambda: totp(PHONE.secret, int(time.time()), period=PHONE.period),
            lambda record: _last_step(record) is not None,
        ),
        Kind("recovery", lambda: RECOVERY, lambda record: record.recovery == ()),
        Kind("wrong", lambda: "000000", lambda record: record.failures == 1, right=False),
    )
}


def enrol_for_a_crash(site: Site) -> None:
    for name in site.files():
        (site.store / name).unlink()
    site.enrol(fob(), PHONE, salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))


@dataclass(frozen=True)
class Call:
    """A system call after the answer: the `number`-th call of `name` by its thread, from 1.

    `line` is the text in the trace.
    """

    name: str
    number: int
    line: str


@dataclass
class Ended:
    """The result of a login: the messages to the relay, and the exit status of the process."""

    messages: list[bytes]
    status: int  # exit status, or the negative number of the signal that ended the process
    calls: list[Call] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        return b"r0" in self.messages


def by_helper(site: Site, answer: str, *inject: str) -> Ended:
    """Log in through the real helper, and return the result. strace injects the faults in `inject` after the prompt."""
    channel, helper_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [PYTHON, "-I", "-S", HELPER]
    pid = os.posix_spawn(PYTHON, argv, {}, file_actions=[(os.POSIX_SPAWN_DUP2, helper_end.fileno(), 3)])
    helper_end.close()
    try:
        with channel:
            calls, messages = _watched(site, pid, channel, answer, inject)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        pid = 0
        return Ended(messages, status, calls)
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def by_service(site: Site, answer: str, *inject: str, in_thread: bool = False) -> Ended:
    """Log in through the real service, like `by_helper`, and return the result. Stop the service at the end.

    `in_thread` selects the thread that uses the store: a thread of the pool, or the thread of the event loop. The
    service itself would select the thread by the speed of the disk.
    """
    limit = "-1.0" if in_thread else "float('inf')"
    process = site.start(before=f"from pam_totp.pam import store_queue as s; s.MEMORY = s.SLOW_DISK = {limit}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.connect(str(site.socket))
        calls, messages = _watched(site, process.pid, channel, answer, inject)
    if not any("KILL" in fault for fault in inject):
        process.terminate()
    status = process.wait(PATIENCE)
    site.stop()
    return Ended(messages, status, calls)


by_service_thread = partial(by_service, in_thread=True)


def _watched(
    site: Site, pid: int, channel: socket.socket, answer: str, inject: tuple[str, ...]
) -> tuple[list[Call], list[bytes]]:
    channel.settimeout(PATIENCE)
    arguments = (
        "version=1",
        "service=demo",
        f"user={ME}",
        "flags=0",
        f"arg=store={site.store}",
        "arg=no_second_prompt",
    )
    channel.send(b"H" + "\0".join(arguments).encode())
    assert channel.recv(4097)[:1] == b"p"
    until(lambda: _at_rest(pid), "every thread of the process sleeps")  # in `recvfrom`, for the answer
    trace = site.folder / "trace"
    expressions = [word for fault in inject for word in ("-e", f"inject={fault}")]
    with subprocess.Popen(
        ["strace", "-f", "-p", str(pid), "-o", trace, "-s", "64", *expressions], stderr=subprocess.PIPE
    ) as strace:
        assert strace.stderr is not None
        assert b"attached" in strace.stderr.readline()
        messages = []
        try:
            channel.send(b"A" + answer.encode())
            while packet := channel.recv(4097):
                messages.append(packet)
                if packet[:1] == b"r":
                    break
        except (ConnectionResetError, BrokenPipeError, TimeoutError):
            pass  # the process was killed, or a fault prevented the result and the end of the connection
        finally:
            # strace would wait forever for several killed threads after SIGTERM. The trace is complete after SIGKILL
            # too, because strace writes the trace line by line.
            strace.kill()
    return _calls(trace), messages


def _at_rest(pid: int) -> bool:
    """Return True if every thread of a process sleeps."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "S" for task in tasks)


def _calls(trace: Path) -> list[Call]:
    """Return the calls of all threads from the arrival of the answer to the result, in order.

    The calls of each thread have their own numbers, because strace counts them separately.
    """
    lines = [
        (thread, name, line)
        for line in trace.read_text(errors="replace").splitlines()
        for thread, name in re.findall(r"^(\d*) *(\w+)\(", line)
        if name not in IGNORED
    ]
    ends = [number for number, (_, _, line) in enumerate(lines) if re.search(r'sendmsg\(.*"r", iov_len', line)]
    counted: Counter[tuple[str, str]] = Counter()
    found = []
    for thread, name, line in lines[: ends[0] + 1] if ends else lines:
        counted[thread, name] += 1
        found.append(Call(name, counted[thread, name], line))
    return found


def injections(calls: list[Call]) -> list[tuple[Call, str]]:
    """Return each call with each fault to inject at it, in strace's syntax."""
    found = []
    for call in calls:
        when = f"when={call.number}"
        # The error prevents the call, because a signal without an error would arrive after the call.
        found.append((call, f"{call.name}:error=EIO:signal=KILL:{when}"))
        if call.name in CANNOT_FAIL:
            continue
        found.extend((call, f"{call.name}:error={error}:{when}") for error in ERRORS)
        if call.name in SHORT:
            found.append((call, f"{call.name}:retval=1:{when}"))
    return found


def judge(site: Site, kind: Kind, ended: Ended, what: object) -> None:
    """Check the record, the result and the next logins after a login with a fault."""
    assert site.files() == {f"{ME}.record"}, f"{what}: a login creates no file"
    record = site.record()  # raises an exception if the file is damaged
    is_recorded = kind.is_recorded(record)
    assert is_recorded or record == _before(record.user), f"{what}: the store contains the old or the new record"
    if not kind.right:
        assert not ended.accepted, what
    elif ended.accepted:
        assert is_recorded, f"{what}: an accepted answer is recorded"
    assert is_recorded or b"r7" not in ended.messages, f"{what}: an answer that is refused as wrong is recorded"
    store = FileStore(str(site.store))

    def accepts(answer: str) -> bool:
        return decide(store, ME, Answer.parse(answer.encode()), Policy(), lambda: int(time.time())).outcome.accepted

    assert accepts(kind.answer()) is (kind.right and not is_recorded), (
        f"{what}: a right answer is accepted exactly once"
    )
    assert accepts(codes(5)), f"{what}: the next login succeeds"
    assert site.files() == {f"{ME}.record"}, f"{what}: a login creates no file"


def _before(user: str) -> UserRecord:
    return UserRecord(user=user, tokens=(fob(), PHONE), salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))


def can_attach() -> bool:
    """Return True if strace is installed, and can attach to a process that it did not start.

    Linux can deny this permission to ordinary users (Yama's ptrace_scope).
    """
    try:
        with subprocess.Popen(["sleep", "60"]) as process:
            command = ["strace", "-o", "/dev/null", "-p", str(process.pid)]
            with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
                assert strace.stderr is not None
                attached = b"attached" in strace.stderr.readline()
                process.kill()
                return attached
    except FileNotFoundError:
        return False
