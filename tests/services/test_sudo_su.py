"""Tests of the real sudo and su: setuid programs that inherit the environment and terminal of an ordinary user."""

from __future__ import annotations

import pytest

from pam_totp.core.record import HotpToken
from pam_totp.core.settings import NEXT_PROMPT
from pam_totp.operations.authenticate import REFUSED
from tests.services.namespace import ACCOUNTS, Machine
from tests.services.terminal import Talk
from tests.support.etc import PASSWORD
from tests.support.site import codes, until

CODE = "One-time code: "
ID = ("id", "-un")


def counter(machine: Machine, user: str = "alice") -> int:
    token = machine.record(user).tokens[0]
    assert isinstance(token, HotpToken)
    return token.counter


def sudo(machine: Machine, *options: str) -> Talk:
    return machine.talk("sudo", *options, *ID, user="alice")


@pytest.fixture(autouse=True)
def enrolled(machine: Machine) -> None:
    machine.enrol("alice")


# sudo


def test_sudo_asks_for_a_code(machine: Machine, way_there: str) -> None:
    machine.stack("sudo", machine.module_line(way=way_there))
    status, shown = sudo(machine).asks(CODE).says(codes(0)).ends()
    assert (status, shown.strip()) == (0, "root")
    machine.log.wait_for("pam_totp(sudo:auth): accepted user=alice by=code token=fob")


def test_sudo_asks_for_password_then_code(machine: Machine, way_there: str) -> None:
    machine.stack("sudo", "auth requisite pam_unix.so nodelay", machine.module_line(way=way_there))
    status, shown = sudo(machine).asks("assword").says(PASSWORD).asks(CODE).says(codes(0)).ends()
    assert (status, shown.strip()) == (0, "root")


def test_sudo_gives_three_attempts_in_one_process(machine: Machine, way_there: str) -> None:
    machine.stack("sudo", machine.module_line(way=way_there))
    talk = sudo(machine).asks(CODE).fails("000000").asks(CODE)
    assert "Sorry, try again." in talk.before
    status, shown = talk.fails(codes(40)).asks(CODE).says(codes(40, 2)).ends()
    assert (status, shown.strip()) == (0, "root")
    assert (counter(machine), machine.record("alice").failures) == (42, 2), "a later login keeps these failures"


def test_under_sudo_the_module_obeys_pam_silent(machine: Machine, way_there: str) -> None:
    """sudo sets PAM_SILENT, and shows its own "Sorry, try again". Newer versions have `Defaults !pam_silent`."""
    machine.stack("sudo", machine.module_line(way=way_there))
    talk = sudo(machine).asks(CODE).fails("000000").asks(CODE)
    assert REFUSED not in talk.before
    status, shown = talk.says(codes(0)).ends()
    assert (status, shown.strip()) == (0, "root")


def test_a_fob_out_of_step_is_resynchronised_by_two_answers_to_sudo(machine: Machine, way_there: str) -> None:
    machine.stack("sudo", machine.module_line(way=way_there))
    status, shown = sudo(machine).asks(CODE).says(codes(40)).asks(NEXT_PROMPT).says(codes(41)).ends()
    assert (status, shown.strip()) == (0, "root")
    assert (counter(machine), machine.record("alice").failures) == (42, 0)


def test_sudo_refuses_after_three_wrong_answers(machine: Machine, way_there: str) -> None:
    machine.stack("sudo", machine.module_line(way=way_there))
    assert sudo(machine).asks(CODE).says(codes(0)).ends()[0] == 0
    talk = sudo(machine)
    for answer in (codes(0), ""):
        talk.asks(CODE).fails(answer)
    status, shown = talk.asks(CODE).says("7" * 600).ends()
    assert (status, "root" in shown) == (1, False)
    machine.log.wait_for("refused user=alice reason=replayed")
    assert machine.record("alice").failures == 0


def test_ctrl_c_at_the_sudo_prompt_leaves_no_failure_and_no_lock(machine: Machine, way_there: str) -> None:
    machine.stack("sudo", machine.module_line(way=way_there))
    before = machine.path("/var/lib/pam_totp/alice.record").read_bytes()
    status, _ = sudo(machine).asks(CODE).interrupts()
    assert status != 0
    machine.log.wait_for("pam_totp(sudo:auth): refused user=alice reason=no-answer")
    assert machine.path("/var/lib/pam_totp/alice.record").read_bytes() == before
    assert sudo(machine).asks(CODE).says(codes(0)).ends()[0] == 0, "the next login acquires the lock"


def test_a_closed_terminal_leaves_no_failure_and_no_lock(machine: Machine, way_there: str) -> None:
    machine.stack("sudo", machine.module_line(way=way_there))
    sudo(machine).asks(CODE).hangs_up()
    assert sudo(machine).asks(CODE).says(codes(0)).ends()[0] == 0
    assert machine.record("alice").failures == 0


def test_sudo_without_a_terminal_reads_the_code_from_standard_input(machine: Machine, way_there: str) -> None:
    machine.stack("sudo", machine.module_line(way=way_there))
    done = machine.run("sudo", "-S", *ID, user="alice", stdin=f"{codes(0)}\n")
    assert (done.returncode, done.stdout) == (0, "root\n")
    assert CODE in done.stderr
    done = machine.run("sudo", "-S", *ID, user="alice", stdin=f"{codes(0)}\n" * 3)
    assert (done.returncode, done.stdout) == (1, "")
    assert machine.run("sudo", "-S", *ID, user="alice").returncode == 1, "empty input is refused too"


def test_automation_answers_one_prompt_of_sudo_or_two(machine: Machine, way_there: str) -> None:
    """sudo -p replaces the prompts for password and code. A program that answers only the first prompt is refused."""
    ask = ("sudo", "-k", "-S", "-p", "[become] ", *ID)
    machine.stack("sudo", "auth requisite pam_unix.so nodelay", machine.module_line(way=way_there))
    done = machine.run(*ask, user="alice", stdin=f"{PASSWORD}\n{codes(0)}\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "root\n", "[become] [become] ")
    done = machine.run(*ask, user="alice", stdin=f"{PASSWORD}\n")
    assert (done.returncode, done.stdout) == (1, "")
    forward = machine.module_line("forward_pass", way=way_there)
    machine.stack("sudo", forward, "auth required pam_unix.so use_first_pass nodelay")
    done = machine.run(*ask, user="alice", stdin=f"{PASSWORD}{codes(1)}\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "root\n", "[become] ")


def test_a_command_without_a_password_does_not_reset_failures(machine: Machine, way_there: str) -> None:
    """sudo calls pam_setcred without pam_authenticate for NOPASSWD. That call resets the count of pam_faillock."""
    machine.stack("sudo", machine.module_line(way=way_there))
    sudo(machine).asks(CODE).says("000000").asks("code: ").says("111111").asks(CODE).interrupts()
    sudoers = machine.path("/etc/sudoers").read_text()
    machine.write("/etc/sudoers", f"{sudoers}\nalice ALL=NOPASSWD: /bin/echo\n", 0o440)
    try:
        assert machine.run("sudo", "-k", "/bin/echo", "hi", user="alice").stdout == "hi\n"
    finally:
        machine.write("/etc/sudoers", sudoers, 0o440)
    assert machine.record("alice").failures == 2


def test_a_code_before_the_password_is_not_used_as_the_password(machine: Machine, way_there: str) -> None:
    """A later module with try_first_pass prompts, because it gets no password from this module."""
    machine.stack("sudo", machine.module_line(way=way_there), "auth required pam_unix.so try_first_pass nodelay")
    status, shown = sudo(machine).asks(CODE).says(codes(0)).asks("for alice: ").says(PASSWORD).ends()
    assert (status, shown.strip()) == (0, "root")


def test_a_non_interactive_sudo_is_refused_before_the_module_is_called(machine: Machine, way_there: str) -> None:
    machine.stack("sudo", machine.module_line(way=way_there))
    done = machine.run("sudo", "-n", *ID, user="alice")
    assert (done.returncode, done.stdout) == (1, "")
    assert machine.log.module_lines() == []


def test_sudo_without_a_terminal_and_without_standard_input_is_refused(machine: Machine, way_there: str) -> None:
    machine.stack("sudo", machine.module_line(way=way_there))
    done = machine.run("sudo", *ID, user="alice", stdin=f"{codes(0)}\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert counter(machine) == 0


def test_password_and_code_in_one_answer_to_sudo(machine: Machine, way_there: str) -> None:
    machine.stack(
        "sudo", machine.module_line("forward_pass", way=way_there), "auth required pam_unix.so use_first_pass nodelay"
    )
    talk = sudo(machine).asks("Password and one-time code: ").says("wrong" + codes(0))
    status, shown = talk.asks("Password and one-time code: ").says(PASSWORD + codes(1)).ends()
    assert (status, shown.strip()) == (0, "root")


def test_sudo_never_gets_grace(machine: Machine, way_there: str) -> None:
    machine.stack("sudo", machine.module_line("grace_period=600", way=way_there))
    for count in (0, 1):
        assert sudo(machine).asks(CODE).says(codes(count)).ends()[0] == 0
    assert machine.record("alice").grace == ()


def test_an_unenrolled_user_is_prompted_and_refused_like_an_enrolled_one(machine: Machine, way_there: str) -> None:
    machine.stack("sudo", machine.module_line(way=way_there))
    machine.path("/var/lib/pam_totp/alice.record").unlink()
    talk = sudo(machine).asks(CODE).fails(codes(0)).asks(CODE)
    assert "Sorry, try again." in talk.before
    assert talk.interrupts()[0] == 1


HOSTILE = {
    "PATH": "/home/alice/evil:/usr/bin:/bin",
    "PYTHONHOME": "/home/alice/evil",
    "PYTHONPATH": "/home/alice/evil",
    "PYTHONSTARTUP": "/home/alice/evil/sitecustomize.py",
    "LD_PRELOAD": "/home/alice/evil/x.so",
    "OPENSSL_CONF": "/home/alice/evil/openssl.cnf",
    "TZ": "/home/alice/evil/tz",
    "XDG_CONFIG_HOME": "/home/alice/evil",
}
TRAP = "open('/home/alice/sprung', 'a').write('as %d' % __import__('os').geteuid())\n"


@pytest.mark.parametrize("program", ["sudo", "su"])
def test_the_callers_environment_cannot_inject_code_that_runs_as_root(
    machine: Machine, way_there: str, program: str
) -> None:
    """An interpreter inside sudo, such as pam_python.so, would search for its library through the caller's PATH."""
    machine.stack(program, machine.module_line(way=way_there))
    evil = "/home/alice/evil"
    made = machine.run("mkdir", "-p", f"{evil}/lib/python3.11", user="alice")
    assert made.returncode == 0, made.stderr
    for module in ("sitecustomize", "usercustomize", "pwd", "socket", "json", "encodings", "lib/python3.11/os"):
        machine.write(f"{evil}/{module}.py", TRAP)
    machine.write(f"{evil}/python3", '#!/bin/sh\necho sprung > /home/alice/sprung; exec /usr/bin/python3 "$@"\n', 0o755)
    environment = [f"{name}={value}" for name, value in HOSTILE.items()]
    words = ["sudo", "id", "-un"] if program == "sudo" else ["su", "alice", "-c", "id -un"]
    talk = machine.talk("env", *environment, *(f"/usr/bin/{words[0]}", *words[1:]), user="alice")
    status, shown = talk.asks(CODE).says(codes(0)).ends()
    assert (status, shown.split()[-1]) == (0, "root" if program == "sudo" else "alice")
    assert not machine.path("/home/alice/sprung").exists()


# su


def su(machine: Machine, user: str) -> Talk:
    return machine.talk("su", user, "-c", "id -un", user="alice")


def test_su_asks_for_the_other_users_code(machine: Machine, way_there: str) -> None:
    machine.stack("su", machine.module_line(way=way_there))
    machine.enrol("bob")
    status, shown = su(machine, "bob").asks(CODE).says(codes(0)).ends()
    assert (status, shown.strip()) == (0, "bob")
    assert (counter(machine, "bob"), counter(machine, "alice")) == (1, 0)
    status, shown = su(machine, "bob").asks(CODE).fails(codes(0)).ends()
    assert (status, "bob\r\n" in shown) == (1, False)


def test_su_to_root_asks_for_a_code(machine: Machine, way_there: str) -> None:
    machine.stack("su", "auth requisite pam_unix.so nodelay", machine.module_line(way=way_there))
    machine.enrol("root")
    status, shown = su(machine, "root").asks("Password: ").says(PASSWORD).asks(CODE).says(codes(0)).ends()
    assert (status, shown.strip()) == (0, "root")
    assert su(machine, "root").asks("Password: ").says("wrong").ends()[0] == 1


def test_su_without_a_terminal_reads_the_code_from_standard_input(machine: Machine, way_there: str) -> None:
    machine.stack("su", machine.module_line(way=way_there))
    machine.enrol("bob")
    done = machine.run("su", "bob", "-c", "id -un", user="alice", stdin=f"{codes(0)}\n")
    assert (done.returncode, done.stdout) == (0, "bob\n")
    done = machine.run("su", "bob", "-c", "id -un", user="alice", stdin=f"{codes(0)}\n")
    assert (done.returncode, done.stdout) == (1, "")


def test_ctrl_c_at_the_su_prompt_leaves_no_failure_and_no_lock(machine: Machine, way_there: str) -> None:
    machine.stack("su", machine.module_line(way=way_there))
    machine.enrol("bob")
    assert su(machine, "bob").asks(CODE).interrupts()[0] != 0
    assert (counter(machine, "bob"), machine.record("bob").failures) == (0, 0)
    assert su(machine, "bob").asks(CODE).says(codes(0)).ends()[0] == 0


def test_a_helper_replaces_a_stopped_service(machine: Machine) -> None:
    machine.stack("sudo", machine.module_line(way="socket"))
    machine.serve()
    machine.stop_serving()
    until(lambda: not machine.path("/run/pam_totp/socket").exists(), "the service unlinks the socket")
    assert sudo(machine).asks(CODE).says(codes(0)).ends()[0] == 0


def test_nullok_in_su_does_not_apply_to_a_second_name_of_an_account(machine: Machine, way_there: str) -> None:
    passwd = machine.path("/etc/passwd").read_text()
    machine.write("/etc/passwd", f"{passwd}ALICE:x:{ACCOUNTS['alice']}:{ACCOUNTS['alice']}::/home/alice:/bin/sh\n")
    try:
        machine.stack("su", machine.module_line("nullok", way=way_there), "auth required pam_permit.so")
        assert machine.run("su", "carol", "-c", "true", user="bob").returncode == 0
        assert machine.run("su", "ALICE", "-c", "true", user="bob", stdin=f"{codes(0)}\n").returncode != 0
        machine.log.wait_for("error user=ALICE", "the account is enrolled as alice")
        assert counter(machine) == 0
        assert machine.run("su", "alice", "-c", "true", user="bob", stdin=f"{codes(0)}\n").returncode == 0
    finally:
        machine.write("/etc/passwd", passwd)
