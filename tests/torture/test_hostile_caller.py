"""Tests of the real sudo and su: they refuse wrong codes under the conditions in `hostile.ATTACKS`.

Every guess costs a failure: a condition that prevents the count of a wrong answer also prevents the acceptance of a
right answer.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pam_totp.core.record import HotpToken
from pam_totp.store.decoys import FOLDER as DECOYS
from tests.services.namespace import HELPER, RELAY, STORE, Machine
from tests.support.site import codes
from tests.torture.hostile import ATTACKS, TRAP
from tests.torture.pace import LONG, report, rounds

HOSTILE = "/run/hostile.py"
PROGRAMS = {  # the user that enters a code, the target user, the command
    "sudo": ("alice", "root", ["/usr/bin/sudo", "-S", "-p", "", "/usr/bin/id", "-un"]),
    "su": ("bob", "bob", ["/usr/bin/su", "bob", "-c", "/usr/bin/id -un"]),
}
# su keeps the limits of its caller; sudo resets some of these limits. The short form contains the strongest attacks on
# each program.
SOME = {
    "sudo": ("environment", "umask 0", "signals blocked", "(0, 1, 2) closed", "5 descriptors"),
    "su": ("umask 0777", "600 bytes per file", "16 MiB of memory", "6 descriptors"),
}
CASES = [(attack, program) for program in PROGRAMS for attack in (ATTACKS if LONG else SOME[program])]


@pytest.fixture
def attacked(machine: Machine) -> Iterator[Machine]:
    """Yield the machine with the trap, stacks for sudo and su, and two enrolled users.

    Afterwards, check that the programs have not used the trap.
    """
    for name in ("hostile.py", "signals.py"):
        machine.write(f"/run/{name}", Path(__file__).with_name(name).read_text(), 0o755)
    trap = machine.path(TRAP)
    shutil.rmtree(trap, ignore_errors=True)
    for folder in ("", "lib", "lib/python3.11", "LC_MESSAGES", "pam.d"):
        (trap / folder).mkdir()
    sprung = f"open('{TRAP}/sprung', 'a').write('sprung')\n"
    for name in ("sitecustomize", "usercustomize", "socket", "json", "os", "pwd", "lib/python3.11/os"):
        machine.write(f"{TRAP}/{name}.py", sprung)
    for name in ("python3", "id", "sh", "sudo"):
        machine.write(f"{TRAP}/{name}", f"#!/bin/sh\n: > {TRAP}/sprung\n", 0o755)
    for name in ("x.so", "openssl.cnf", "tz", "gconv-modules", "pam.d/sudo"):
        machine.write(f"{TRAP}/{name}", "")
    for place in (trap, *trap.rglob("*")):
        os.chown(place, 54001, 54001)
    for service in PROGRAMS:
        machine.stack(service, machine.module_line())
    for user in ("alice", "bob"):
        machine.enrol(user)
    yield machine
    assert not (trap / "sprung").exists()
    shutil.rmtree(trap)


def counter(machine: Machine, user: str) -> int:
    token = machine.record(user).tokens[0]
    assert isinstance(token, HotpToken)
    return token.counter


def gets_in(machine: Machine, program: str, attack: str, answer: str) -> bool:
    _, becomes, words = PROGRAMS[program]
    done = machine.run("/usr/bin/python3", "-I", HOSTILE, attack, *words, user="alice", stdin=f"{answer}\n")
    assert "Traceback" not in done.stderr or "hostile.py" in done.stderr, done.stderr
    return done.stdout.splitlines()[-1:] == [becomes]


def in_order(machine: Machine, user: str) -> None:
    """Check the names, modes and owners of the files in the store, and that the next login of `user` succeeds."""
    assert {p.name for p in machine.path(STORE).iterdir()} <= {"alice.record", "bob.record", ".lock", DECOYS}
    for path in machine.path(STORE).rglob("*"):
        status = path.stat()
        assert (status.st_mode & 0o777, status.st_uid) == (0o700 if path.is_dir() else 0o600, 54000), path
    program = "sudo" if user == "alice" else "su"
    assert gets_in(machine, program, "nothing", codes(counter(machine, user), 3))


@pytest.mark.parametrize(("attack", "program"), CASES)
def test_a_wrong_code_is_refused_and_counted_under_any_caller(attacked: Machine, attack: str, program: str) -> None:
    user = PROGRAMS[program][0]
    assert not gets_in(attacked, program, attack, "000000")
    counted = attacked.record(user).failures
    assert counted in (0, 1)
    assert counter(attacked, user) == 0
    let_in = gets_in(attacked, program, attack, codes(0))
    assert counter(attacked, user) == 1 or not let_in, "an accepted code is used up"
    assert counted == 1 or not let_in, "a right answer is accepted only if the wrong answer was counted"
    assert not gets_in(attacked, program, "nothing", "000000")
    in_order(attacked, user)


@pytest.mark.bare
@pytest.mark.parametrize("program", PROGRAMS)
def test_no_file_that_the_caller_controls_is_opened(attacked: Machine, program: str) -> None:
    """Trace sudo or su from its start, including the relay and the helper."""
    user, _, words = PROGRAMS[program]
    strace = ("strace", "-u", "alice", "-f", "-s", "4096", "-o", "/run/trace", "-e", "trace=%file,%network")
    launcher = ("/usr/bin/python3", "-I", HOSTILE, "environment")
    done = attacked.run(*strace, *launcher, *words, stdin=f"{codes(0)}\n")
    assert done.returncode == 0, done
    assert counter(attacked, user) == 1
    trace = attacked.path("/run/trace").read_text()
    privileged = trace[trace.index(f'execve("{words[0]}"') :].splitlines()[1:]
    assert any('execve("/usr/bin/python3"' in call for call in privileged), "the trace includes the helper"
    named = [call for call in privileged if re.search(r"/home/alice|/tmp|\bx\.so|sitecustomize", call)]
    used = [call for call in named if re.search(r"\b(open|openat|openat2|creat|execve|connect|bind|rename\w*)\(", call)]
    assert not used, used
    relative = [call for call in privileged if re.search(r'\b(openat\(AT_FDCWD|execve\(|open\()[, ]*"[^/]', call)]
    assert not relative, relative


@pytest.mark.parametrize("program", PROGRAMS)
def test_signals_from_the_caller_do_not_change_a_result(attacked: Machine, program: str) -> None:
    """Stop, continue and kill every process that the caller can signal, at random times in the login."""
    user, becomes, words = PROGRAMS[program]
    got_in = 0
    times = rounds(6, 300)
    for number in range(times):
        answer = codes(0, 3) if number % 3 == 2 else "000000"
        given = ("/usr/bin/python3", "-I", HOSTILE.replace("hostile", "signals"), str(number), answer, *words)
        done = attacked.run(*given, user="alice")
        is_in = done.stdout.splitlines()[-1:] == [becomes]
        assert not is_in or answer != "000000"
        got_in += is_in
        attacked.record(user)  # raises an exception if the file is damaged
    for pid in attacked.processes(HELPER):  # a killed program can leave a stopped helper
        os.kill(pid, signal.SIGKILL)
    assert got_in <= 1, "the same three codes are accepted at most once"
    report(f"signals to {program} and its children: {times} logins, {got_in} accepted (0 or 1 expected)")
    first = counter(attacked, user)
    assert first in (0, 3)
    in_order(attacked, user)


def test_a_helper_that_the_caller_can_write_is_not_started(attacked: Machine) -> None:
    source = f"import os; open('{TRAP}/sprung', 'w')\nos.write(3, b'r0')\n"
    for path in (f"{TRAP}/helper.py", "/home/helper.py"):
        attacked.write(path, source)
        attacked.own(path, "alice")
        attacked.stack("sudo", f"auth required {RELAY} socket=none helper={path} nodelay")
        for answer in ("000000", codes(0)):
            assert not gets_in(attacked, "sudo", "nothing", answer)
    assert counter(attacked, "alice") == 0
    attacked.stack("sudo", attacked.module_line())
    in_order(attacked, "alice")


def test_a_socket_with_the_caller_as_listener_is_not_used(attacked: Machine) -> None:
    """A listener under the control of the caller could accept every answer."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with listener:
        listener.bind(str(attacked.path(f"{TRAP}/socket")))
        listener.listen()
        attacked.own(f"{TRAP}/socket", "alice")
        listener.setblocking(False)
        attacked.stack("sudo", f"auth required {RELAY} socket={TRAP}/socket helper={HELPER} nodelay")
        assert not gets_in(attacked, "sudo", "nothing", "000000")
        assert attacked.record("alice").failures == 1, "a helper checks the answer instead"
        with pytest.raises(BlockingIOError):
            listener.accept()
