"""One login in the real helper, broken at one system call of its choice: killed before it, or told that it failed.

The helper is started as the relay starts it, and brought to its prompt; then strace takes hold of it, and only then
is the answer given. So every call that is seen, and counted, lies between the person's answer and ours: that is where
the secret file is read, the decision made, and its use recorded.
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
from pathlib import Path

from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.oath import totp
from pam_totp.core.policy import Policy
from pam_totp.core.record import TotpToken, UserRecord
from pam_totp.operations.authenticate import decide
from pam_totp.store.file import FileStore
from tests.site import ME, PATIENCE, TREE, Site, codes, fob, phone, until

PYTHON = "/usr/bin/python3"
HELPER = str(TREE / "pam_totp" / "pam" / "helper.py")
SALT, RECOVERY = "5a" * 16, "0123456789ABCDEF"
PHONE = phone(period=86_400)

# What every call is told, in turn; besides, that it did a part of the work.
ERRORS = ("ENOSPC", "EIO", "EINTR")
SHORT = {"write", "read", "pread64", "sendto"}
CANNOT_FAIL = {"getpid", "geteuid"}
# Not the login's doing: how much memory it needs is not always the same, and the service's other threads wait. Nor is
# the call that waits for the answer: it is under way when strace comes, which may or may not see it.
BESIDE = {"mmap", "munmap", "mremap", "madvise", "brk", "mprotect"}
BESIDE |= {"futex", "epoll_wait", "restart_syscall", "recvfrom"}


@dataclass(frozen=True)
class Kind:
    """An answer, and how to see in a record that it was taken note of."""

    name: str
    answer: Callable[[], str]
    noted: Callable[[UserRecord], bool]
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
    for name in os.listdir(site.store):
        (site.store / name).unlink()
    site.enrol(fob(), PHONE, salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))


@dataclass(frozen=True)
class Call:
    """The `number`th call (from 1) of `name` after the answer, and how strace shows it."""

    name: str
    number: int
    shown: str


@dataclass
class Ended:
    """What came of a login: all that was said to the relay, and how the process ended."""

    said: list[bytes]
    status: int  # exit status, or minus the signal
    calls: list[Call] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        return b"r0" in self.said


def by_helper(site: Site, answer: str, *inject: str) -> Ended:
    """Log in through the real helper, with strace injecting what `inject` says from the answer on."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [PYTHON, "-I", "-S", HELPER]
    pid = os.posix_spawn(PYTHON, argv, {}, file_actions=[(os.POSIX_SPAWN_DUP2, its.fileno(), 3)])
    its.close()
    try:
        with ours:
            calls, said = _watched(site, pid, ours, answer, inject)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        pid = 0
        return Ended(said, status, calls)
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def by_service(site: Site, answer: str, *inject: str) -> Ended:
    """The same through the real service; where that does not die of it, it is ended afterwards."""
    process = site.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.connect(str(site.socket))
        calls, said = _watched(site, process.pid, channel, answer, inject)
    if not any("KILL" in one for one in inject):
        process.terminate()
    status = process.wait(PATIENCE)
    site.stop()
    return Ended(said, status, calls)


def _watched(
    site: Site, pid: int, channel: socket.socket, answer: str, inject: tuple[str, ...]
) -> tuple[list[Call], list[bytes]]:
    channel.settimeout(PATIENCE)
    arguments = ("version=1", "service=demo", f"user={ME}", "flags=0", f"arg=store={site.store}")
    channel.send(b"H" + "\0".join(arguments).encode())
    assert channel.recv(4097)[:1] == b"p"
    until(lambda: _at_rest(pid), "it waits for the answer: what it does before is none of what is counted")
    trace = site.folder / "trace"
    expressions = [word for one in inject for word in ("-e", f"inject={one}")]
    with subprocess.Popen(
        ["strace", "-f", "-p", str(pid), "-o", trace, "-s", "64", *expressions], stderr=subprocess.PIPE
    ) as strace:
        assert strace.stderr is not None
        assert b"attached" in strace.stderr.readline()
        said = []
        try:
            channel.send(b"A" + answer.encode())
            while packet := channel.recv(4097):
                said.append(packet)
        except (ConnectionResetError, BrokenPipeError):
            pass  # it ended with something of ours unread, or before we said anything
        # By a signal strace would let go; but of several threads that were killed it then waits for the end in vain.
        # What it saw is written, line by line.
        strace.kill()
    return _calls(trace), said


def _at_rest(pid: int) -> bool:
    """Whether every thread of a process sleeps."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all((task / "stat").read_text().rpartition(")")[2].split()[0] == "S" for task in tasks)


def _calls(trace: Path) -> list[Call]:
    """The calls from the answer's arrival to ours, in order: those of the thread that answers, as strace counts for
    each thread by itself."""
    lines = [
        (thread, name, line)
        for line in trace.read_text(errors="replace").splitlines()
        for thread, name in re.findall(r"^(\d*) *(\w+)\(", line)
        if name not in BESIDE
    ]
    ends = [number for number, (_, _, line) in enumerate(lines) if re.search(r'sendto\(\d+, "r\d', line)]
    upto = lines[: ends[0] + 1] if ends else lines
    counted: Counter[str] = Counter()
    found = []
    for thread, name, line in upto:
        if not ends or thread == upto[-1][0]:
            counted[name] += 1
            found.append(Call(name, counted[name], line))
    return found


def injections(calls: list[Call]) -> list[tuple[Call, str]]:
    """Everything that is to be tried on these calls, as strace wants it said."""
    found = []
    for call in calls:
        when = f"when={call.number}"
        # The error keeps the call from being done: a signal alone comes when it returns.
        found.append((call, f"{call.name}:error=EIO:signal=KILL:{when}"))
        if call.name in CANNOT_FAIL:
            continue
        found.extend((call, f"{call.name}:error={error}:{when}") for error in ERRORS)
        if call.name in SHORT:
            found.append((call, f"{call.name}:retval=1:{when}"))
    return found


def judge(site: Site, kind: Kind, ended: Ended, what: object) -> None:
    """What must hold after a login that was broken somewhere."""
    left = set(os.listdir(site.store)) - {f"{ME}.json", f"{ME}.lock"}
    killed = ended.status == -signal.SIGKILL
    assert not left or (killed and left == {f".{ME}.json.tmp"}), f"{what}: {left}"
    for name in left:
        assert (site.store / name).stat().st_mode & 0o777 == 0o600, f"{what}: {name} can be read by others"
    record = site.record()  # it parses: the old one or the new one
    noted = kind.noted(record)
    assert noted or record == _before(record.user), f"{what}: neither old nor new"
    if not kind.right:
        assert not ended.accepted, what
    elif ended.accepted:
        assert noted, f"{what}: accepted before it was recorded"
    assert noted or b"r7" not in ended.said, f"{what}: refused as wrong, and not counted"
    store = FileStore(str(site.store))

    def accepts(answer: str) -> bool:
        return decide(store, ME, Answer.parse(answer.encode()), Policy(), lambda: int(time.time())).outcome.accepted

    assert accepts(kind.answer()) is (kind.right and not noted), f"{what}: a code is good once, and not lost before"
    assert accepts(codes(5)), f"{what}: the next login works"
    assert set(os.listdir(site.store)) == {f"{ME}.json", f"{ME}.lock"}, f"{what}: something is left behind"


def _before(user: str) -> UserRecord:
    return UserRecord(user=user, tokens=(fob(), PHONE), salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))


def can_attach() -> bool:
    """Whether strace is there, and may take hold of a process that it did not start (not so with yama's ptrace_scope
    for ordinary users)."""
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
