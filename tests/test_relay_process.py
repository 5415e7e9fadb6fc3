"""Tests of the helper's process (inherited state, end), and of the PAM host, whose state a login must not change."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import as_root
from tests.support import pamconf
from tests.support.isolation import MAY_MOUNT
from tests.support.pamconf import Result, Shown, login
from tests.support.relay_kit import ROOT, Log, Setup, brisk, build, in_turn, library, play, told
from tests.support.silent_fuse import SilentFuse, needs_fuse
from tests.support.site import ME, OTHER_UID, PATIENCE

pytestmark = [pytest.mark.bare, pytest.mark.usefixtures("log")]

ACCEPTING = """
channel.send(b"r0")
"""
ASKING = """
channel.send(b"p%d" % os.getpid())
channel.send(b"r0" if channel.recv(600) == b"A123456" else b"r7")
"""


def children() -> set[int]:
    """Return the pids of this process's children, zombies included."""
    found = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if f"\nPPid:\t{os.getpid()}\n" in Path("/proc", entry, "status").read_text():
                found.add(int(entry))
    return found


def spawned(setup: Setup, source: str) -> str:
    """Write a stack that starts a helper with the code `source`. Return the stack's name."""
    return setup.stack("socket=none", f"helper={setup.helper(source)}", "nodelay")


# ---- the state that a helper inherits


def fact(setup: Setup, source: str) -> Any:
    return told(login(spawned(setup, source + ACCEPTING), "alice", [], setup.folder))


def test_a_helpers_environment_is_empty(setup: Setup) -> None:
    assert fact(setup, "tell(open('/proc/self/environ', 'rb').read())") == b""


def test_a_helper_has_three_null_descriptors_and_the_channel(setup: Setup) -> None:
    held = [os.open("/dev/zero", os.O_RDONLY) for _ in range(20)]
    for descriptor in held:
        os.set_inheritable(descriptor, True)
    try:
        descriptors = fact(
            setup,
            """
leads_to = {}
for n in os.listdir("/proc/self/fd"):
    try:
        leads_to[int(n)] = os.readlink(f"/proc/self/fd/{n}")
    except FileNotFoundError:
        pass  # listdir closed its own descriptor
tell(leads_to)
""",
        )
    finally:
        for descriptor in held:
            os.close(descriptor)
    assert descriptors.pop(3).startswith("socket:")
    assert descriptors == dict.fromkeys(range(3), "/dev/null")


def test_a_helper_can_read_and_write_its_null_device(setup: Setup) -> None:
    assert fact(setup, "tell((os.read(0, 1), os.write(1, b'x'), os.write(2, b'x')))") == (b"", 1, 1)


def test_a_helper_runs_in_the_root_folder(setup: Setup) -> None:
    assert fact(setup, "tell(os.getcwd())") == "/"


def test_a_helper_is_python_isolated_without_site(setup: Setup) -> None:
    command = fact(setup, "tell(open('/proc/self/cmdline').read().split('\\0'))")
    assert command == ["/usr/bin/python3", "-I", "-S", str(setup.folder / "helper.py"), ""]


def test_a_helper_runs_in_a_new_session(setup: Setup) -> None:
    assert fact(setup, "tell(os.getsid(0) == os.getpgrp() == os.getpid())") is True


def test_a_helpers_signals_are_default_and_unblocked_under_any_host(setup: Setup) -> None:
    stack = spawned(
        setup,
        """
with open("/proc/self/status") as file:
    fields = dict(line.split(":", 1) for line in file)
tell((int(fields["SigBlk"], 16), int(fields["SigIgn"], 16)))
"""
        + ACCEPTING,
    )
    host = setup.run(f"""
every = set(signal.Signals) - {{signal.SIGKILL, signal.SIGSTOP}}
for number in every:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, every)
print(pamconf.login({stack!r}, "alice", [], folder).messages[0].text)
""")
    ignored_by_python = {signal.SIGPIPE, signal.SIGXFSZ}
    blocked, ignored = literal_eval(host.stdout)
    assert blocked == 0, host.stderr
    assert {number for number in signal.Signals if ignored >> number - 1 & 1} == ignored_by_python


@as_root
def test_a_helper_of_a_setuid_host_keeps_both_ids(setup: Setup) -> None:
    """The PAM host has the caller's real uid and the effective uid 0. The helper drops privileges by itself."""
    stack = spawned(setup, "tell((os.getresuid(), os.getresgid()))" + ACCEPTING)
    host = setup.run(f"""
os.setresuid({OTHER_UID}, 0, 0)
print(pamconf.login({stack!r}, "alice", [], folder).messages[0].text)
""")
    assert literal_eval(host.stdout) == ((OTHER_UID, 0, 0), (0, 0, 0)), host.stderr


@as_root
def test_the_caller_of_a_setuid_host_is_not_trusted(setup: Setup) -> None:
    stack = spawned(setup, ACCEPTING)
    os.chown(setup.folder / "helper.py", OTHER_UID, -1)
    host = setup.run(f"""
os.setresuid({OTHER_UID}, 0, 0)
print(pamconf.login({stack!r}, "alice", [], folder).result.name)
""")
    assert host.stdout == "SERVICE_ERR\n", host.stderr


# ---- the end of a helper


def test_a_helper_that_continues_after_its_result_is_killed(setup: Setup) -> None:
    stack = spawned(
        setup,
        """
import signal, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
tell(os.getpid())
channel.send(b"r0")
time.sleep(20)
""",
    )
    done = login(stack, "alice", [], setup.folder)
    assert done.seconds < 10
    assert not os.path.exists(f"/proc/{told(done)}")


def test_a_stopped_helper_is_killed_at_the_time_limit(setup: Setup) -> None:
    helper = setup.helper("import signal\ntell(os.getpid())\nos.kill(os.getpid(), signal.SIGSTOP)" + ACCEPTING)
    done = setup.login("socket=none", f"helper={helper}", relay=brisk())
    assert done.result == Result.AUTHINFO_UNAVAIL
    assert not os.path.exists(f"/proc/{told(done)}")


@pytest.mark.parametrize("source", ["os._exit(0)", "raise SystemExit(1)", "os.kill(os.getpid(), 9)"])
def test_a_helper_that_dies_before_its_result_denies(setup: Setup, log: Log, source: str) -> None:
    assert login(spawned(setup, source), "alice", [], setup.folder).result == Result.AUTHINFO_UNAVAIL
    assert log() == ["denied: the service closed the connection"]


def test_a_helper_that_never_reads_the_login_denies(setup: Setup, log: Log) -> None:
    assert login(spawned(setup, "syntax error"), "alice", [], setup.folder).result == Result.AUTHINFO_UNAVAIL
    assert log() in (["denied: the service did not receive the login"], ["denied: the service closed the connection"])


def test_a_helper_that_is_killed_while_the_user_types_denies(setup: Setup, log: Log) -> None:
    def kill(shown: Shown) -> str:
        pid = int(shown.text)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return "123456"

    before = children()
    assert login(spawned(setup, ASKING), "alice", kill, setup.folder).result == Result.AUTHINFO_UNAVAIL
    assert log() == ["denied: the service did not receive the answer"]
    assert children() == before


def test_a_helper_ends_by_itself_if_the_kernel_has_no_pidfd(setup: Setup) -> None:
    source = "#include <errno.h>\nint pidfd_open(int pid, unsigned flags) { return errno = ENOSYS, -1; }\n"
    stack = spawned(setup, "tell(os.getpid())" + ASKING + "channel.recv(1)")
    host = setup.run(
        f"""
done = pamconf.login({stack!r}, "alice", ["123456"], folder)
print(done.result.name, os.path.exists("/proc/" + done.messages[0].text))
""",
        LD_PRELOAD=str(library(setup.folder, source)),
    )
    assert host.stdout == "SUCCESS False\n", host.stderr


def test_without_a_pidfd_a_helper_that_continues_does_not_block_the_host(setup: Setup) -> None:
    source = "#include <errno.h>\nint pidfd_open(int pid, unsigned flags) { return errno = ENOSYS, -1; }\n"
    stack = spawned(setup, "import time\ntell(os.getpid())" + ACCEPTING + "time.sleep(600)")
    host = setup.run(
        f"""
done = pamconf.login({stack!r}, "alice", [], folder)
os.kill(int(done.messages[0].text), signal.SIGKILL)
print(done.result.name)
""",
        LD_PRELOAD=str(library(setup.folder, source)),
    )
    assert host.stdout == "SUCCESS\n", host.stderr


# ---- a helper that cannot end


@pytest.fixture
def silent(setup: Setup) -> Iterator[SilentFuse]:
    folder = setup.folder / "silent"
    folder.mkdir()
    with SilentFuse(folder) as fuse:
        yield fuse


def has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@needs_fuse
def test_a_helper_that_cannot_end_is_reaped_later(setup: Setup, log: Log, silent: SilentFuse) -> None:
    """The helper waits for a file system that never answers. A signal cannot end this wait."""
    source = f"channel.send(b'pCode: ')\nchannel.close()\nos.stat({str(silent.folder)!r} + f'/{{os.getpid()}}')"
    stack = setup.stack("socket=none", f"helper={setup.helper(source)}", relay=build(END_LIMIT=300))

    def answer(_: Shown) -> str:
        assert silent.requests.acquire(timeout=PATIENCE)
        return "123456"

    other = os.fork()
    if other == 0:
        os._exit(5)
    try:
        os.waitid(os.P_PID, other, os.WEXITED | os.WNOWAIT)
        before = children()
        with pamconf.Session(stack, "alice", answer, setup.folder) as session:
            for _ in range(2):
                assert session.authenticate().result == Result.AUTHINFO_UNAVAIL
            left = children() - before
            assert len(left) == 2, "one helper for each login"
            assert not any(map(has_ended, left))
            assert len([line for line in log() if "has not ended" in line]) == 2
            silent.end()
            for pid in left:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert children() == before, "pam_end reaps the helpers"
        assert has_ended(other), "the relay does not reap another child"
    finally:
        os.waitpid(other, 0)


@needs_fuse
def test_a_home_that_never_answers_leaves_the_host_no_child(setup: Setup, silent: SilentFuse) -> None:
    relay = build(TURN_LIMIT=5000, HELPER=str(ROOT / "pam_totp" / "pam" / "helper.py"))
    before = children()
    done = setup.login(f"secret={silent.folder}/file", relay=relay, user=ME)
    assert done.result == Result.AUTHINFO_UNAVAIL
    assert silent.requests.acquire(blocking=False), "the helper waits for the file system"
    assert children() == before


# ---- the host is unchanged


def test_200_logins_of_every_kind_leave_no_descriptor_and_no_process(setup: Setup) -> None:
    before = os.listdir("/proc/self/fd"), children()
    dying = setup.helper("os._exit(1)", setup.folder / "dying.py")
    lingering = setup.helper(ACCEPTING + "channel.recv(1)\nos.pipe()", setup.folder / "lingering.py")
    accepting = setup.helper(ACCEPTING)
    scripts = in_turn(*[play(b"r0"), play(b"x"), play(hang_up=True), play(b"pCode: ", b"r7")] * 25)
    with setup.service(scripts) as service:
        stacks = [setup.stack(service.argument, "nodelay")] * 4
        for helper in (accepting, dying, lingering, "/nonexistent/helper.py"):
            stacks.append(setup.stack("socket=none", f"helper={helper}", "nodelay"))
        for i in range(200):
            login(stacks[i % 8], "alice", ["1"], setup.folder)
        assert service.logins == 100
    assert (os.listdir("/proc/self/fd"), children()) == before


@pytest.mark.parametrize("way", ["service", "helper"])
def test_a_process_that_the_host_starts_meanwhile_inherits_no_descriptor(setup: Setup, way: str) -> None:
    def inherited() -> set[int]:
        found = set()
        for n in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):  # listdir closed its own descriptor
                if os.get_inheritable(n):
                    found.add(n)
        return found

    def answer(_: Shown) -> str:
        meanwhile.append(inherited())
        return "123456"

    meanwhile: list[set[int]] = []
    with setup.service(play(b"pCode: ", b"r0")) as service:
        stack = setup.stack(service.argument) if way == "service" else spawned(setup, ASKING)
        before = inherited()
        assert login(stack, "alice", answer, setup.folder).result == Result.SUCCESS
    assert meanwhile == [before]


def test_the_service_gets_the_end_although_a_host_child_has_the_channel(setup: Setup) -> None:
    ended, child = threading.Event(), 0

    def script(channel: socket.socket, heard: list[bytes]) -> None:
        play(b"pCode: ", b"r0")(channel, heard)
        ended.set()

    def fork(_: Shown) -> str:
        nonlocal child
        child = os.fork()
        if child == 0:
            signal.pause()
        return "123456"

    try:
        with setup.service(script) as service:
            assert setup.login(service.argument, answers=fork).result == Result.SUCCESS
            assert ended.wait(5)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_answers_and_passwords_are_wiped(setup: Setup) -> None:
    """A preloaded library prints the memory that the relay wipes."""
    source = r"""
#include <ctype.h>
#include <stdio.h>
void explicit_bzero(volatile unsigned char *bytes, size_t size)
{
    for (; size > 0; size--, *bytes++ = 0)
        putc(isprint(*bytes) ? *bytes : '\n', stderr);
    putc('\n', stderr);
}
void __explicit_bzero_chk(void *bytes, size_t size, size_t room) { explicit_bzero(bytes, room < size ? room : size); }
"""
    with setup.service(play(b"pCode: ", b"g", b"shunter2", hang_up=True)) as service:
        stack = setup.stack(service.argument, carry_authtok=True)
        host = setup.run(
            f'pamconf.login({stack!r}, "alice", ["271828"], folder, items={{"authtok": "swordfish"}})',
            LD_PRELOAD=str(library(setup.folder, source)),
        )
    assert {"271828", "A271828", "Aswordfish", "shunter2"} <= set(host.stderr.split("\n"))


@pytest.mark.parametrize("way", ["service", "helper"])
def test_twenty_threads_log_in_at_once_and_each_gets_its_own_decision(setup: Setup, way: str) -> None:
    all_prompted = threading.Barrier(20)
    results: dict[str, Result] = {}

    def script(channel: socket.socket, heard: list[bytes]) -> None:
        user = channel.recv(8192).split(b"user=")[1].split(b"\0")[0]
        channel.send(b"pCode: ")
        channel.send(b"r0" if channel.recv(600) == b"A" + user else b"r7")

    def enter(stack: str, user: str, right: bool) -> None:
        def answer(_: Shown) -> str:
            all_prompted.wait(PATIENCE)
            return user if right else "wrong"

        results[user] = login(stack, user, answer, setup.folder).result

    helper = """
user = hello.split(b"user=")[1].split(b"\\0")[0]
channel.send(b"pCode: ")
channel.send(b"r0" if channel.recv(600) == b"A" + user else b"r7")
"""
    before = children()
    with setup.service(script) as service:
        stack = setup.stack(service.argument) if way == "service" else spawned(setup, helper)
        threads = [threading.Thread(target=enter, args=(stack, f"user{i}", i % 3 > 0)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert children() == before
    assert results == {f"user{i}": Result.SUCCESS if i % 3 else Result.AUTH_ERR for i in range(20)}


@pytest.mark.parametrize("closed", [(0,), (2,), (0, 1, 2)])
@pytest.mark.parametrize("way", ["service", "helper"])
def test_a_host_with_closed_standard_descriptors_can_still_use_them(
    setup: Setup, closed: tuple[int, ...], way: str
) -> None:
    with setup.service(play(b"pCode: ", b"r0")) as service:
        stack = setup.stack(service.argument) if way == "service" else spawned(setup, ASKING)
        host = setup.run(f"""
report = os.dup2(1, 100, inheritable=False)
for descriptor in {closed}:
    os.close(descriptor)
def write():
    for descriptor in {closed}:
        try:
            os.write(descriptor, b"a prompt of the host's")
            return "written"
        except OSError:
            pass
    return "closed"
def answer(shown):
    global meanwhile, inherited
    meanwhile = write()
    inherited = [n for n in range(3, 100) if os.path.exists(f"/proc/self/fd/{{n}}") and os.get_inheritable(n)]
    return "123456"
done = pamconf.login({stack!r}, "alice", answer, folder)
os.write(report, f"{{done.result.name}} {{meanwhile}} {{write()}} {{inherited}}".encode())
""")
    assert host.stdout == "SUCCESS closed closed []", host.stderr


def test_a_host_that_ignores_sigchld_still_ignores_it_and_has_no_zombie(setup: Setup) -> None:
    host = setup.run(f"""
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(3):
    print(pamconf.login({spawned(setup, ASKING)!r}, "alice", ["123456"], folder).result.name)
print(signal.getsignal(signal.SIGCHLD).name)
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child")
""")
    assert host.stdout.split("\n") == ["SUCCESS", "SUCCESS", "SUCCESS", "SIG_IGN", "no child", ""], host.stderr


def test_a_host_that_reaps_every_child_itself_may_do_so(setup: Setup) -> None:
    """A thread of the host waits for any child, as daemons do, and can reap the helper before the relay does."""
    host = setup.run(f"""
signals = []
handler = lambda *_: signals.append(1)
signal.signal(signal.SIGCHLD, handler)
child = os.fork()
if child == 0:
    signal.pause()
def reap():
    while os.wait()[0] != child:
        pass
reaper = threading.Thread(target=reap)
reaper.start()
for _ in range(20):
    assert pamconf.login({spawned(setup, ASKING)!r}, "alice", ["123456"], folder).result == pamconf.Result.SUCCESS
os.kill(child, signal.SIGKILL)
reaper.join()
print(signal.getsignal(signal.SIGCHLD) is handler, len(signals) > 0)
""")
    assert host.stdout == "True True\n", host.stderr


def test_signals_to_the_host_do_not_end_a_turn(setup: Setup) -> None:
    def script(channel: socket.socket, heard: list[bytes]) -> None:
        channel.recv(8192)
        for _ in range(200):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            os.sched_yield()
        channel.send(b"r0")

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        with setup.service(script) as service:
            assert setup.login(service.argument).result == Result.SUCCESS
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_signals_to_the_host_do_not_prolong_a_turn(setup: Setup) -> None:
    alarms: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: alarms.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        with setup.service(play()) as service:
            done = setup.login(service.argument, relay=brisk())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert done.result == Result.AUTHINFO_UNAVAIL
    assert 0.29 <= done.seconds < 9
    assert alarms


def test_a_service_that_exits_does_not_end_the_host(setup: Setup) -> None:
    """Python ignores SIGPIPE by default. The test sets the default action of a C program."""
    host = setup.run(f"""
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
def answer(shown):
    os.kill(int(shown.text), signal.SIGKILL)
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    return "123456"
print(pamconf.login({spawned(setup, ASKING)!r}, "alice", answer, folder).result.name)
""")
    assert (host.returncode, host.stdout) == (0, "AUTHINFO_UNAVAIL\n"), host.stderr


@pytest.mark.parametrize(("room", "result"), [(1, "AUTHINFO_UNAVAIL"), (2, "SUCCESS"), (3, "SUCCESS")])
def test_a_host_with_few_free_descriptors_is_answered(setup: Setup, room: int, result: str) -> None:
    """A helper requires two descriptors. A third descriptor, a pidfd, makes the wait for the helper's exit reliable."""
    host = setup.run(f"""
import resource
def leave_little_room(shown):
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        for descriptor in held[-{room}:]:
            os.close(descriptor)
    return "alice"
stack = {spawned(setup, ASKING)!r}
print(pamconf.login(stack, None, [leave_little_room, "123456"], folder).result.name)
""")
    assert host.stdout == f"{result}\n", host.stderr


# ---- a host in C


needs_private_etc = pytest.mark.skipif(
    not MAY_MOUNT or shutil.which("pamtester") is None,
    reason="requires pamtester, root, and permission to mount: pamtester gets a private /etc/pam.d",
)


def pamtester(setup: Setup, stack: str, answer: str) -> subprocess.CompletedProcess[str]:
    """Run pamtester in a new mount namespace, with the test's folder as /etc/pam.d and as /run/pam_totp."""
    script = """
mount --bind "$1" /etc/pam.d
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/pam_totp
mount --bind "$1" /run/pam_totp
exec pamtester "$2" alice authenticate setcred
"""
    return subprocess.run(
        ["unshare", "-m", "--propagation", "unchanged", "sh", "-ec", script, "sh", setup.folder, stack],
        input=answer,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@needs_private_etc
@pytest.mark.parametrize("way", ["service", "helper"])
def test_pamtester_logs_in_and_is_refused(setup: Setup, way: str) -> None:
    with setup.service(in_turn(play(b"pCode: ", b"r0"), play(b"pCode: ", b"r7"))) as service:
        stack = setup.stack(service.argument, "nodelay") if way == "service" else spawned(setup, ASKING)
        accepted, refused = pamtester(setup, stack, "123456\n"), pamtester(setup, stack, "000000\n")
    assert "successfully authenticated" in accepted.stdout, accepted
    assert "credential info has successfully been set" in accepted.stdout
    assert (accepted.returncode, refused.returncode) == (0, 1), refused


@needs_private_etc
def test_without_an_argument_the_socket_is_in_run(setup: Setup) -> None:
    with setup.service(play(b"r0"), setup.folder / "socket") as service:
        assert pamtester(setup, setup.stack("helper=/nonexistent/helper.py"), "").returncode == 0
        assert service.logins == 1


@needs_private_etc
def test_a_refusal_takes_the_requested_delay(setup: Setup) -> None:
    with setup.service(play(b"r7")) as service:
        stack = setup.stack(service.argument)
        begun = os.times().elapsed
        assert pamtester(setup, stack, "").returncode == 1
        assert os.times().elapsed - begun >= 1
