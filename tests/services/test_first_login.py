"""Tests of the enrolment at the first login with a ticket, through the real sshd, sudo, su and login.

The user must see the texts in every locale, at every log level of ssh, in plink and in paramiko. The next login shows
the same key after a login that ends at any point.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pam_totp.core.oath import totp
from pam_totp.core.record import TotpToken, UserRecord
from pam_totp.core.secretfile import base32
from pam_totp.core.settings import NEXT_PROMPT
from pam_totp.formats.qr import packed
from pam_totp.operations.first_login import NOTHING_CHANGED, PRESS_ENTER
from pam_totp.operations.tickets import issue_ticket
from tests.services.namespace import COPY, STORE, Machine, Sshd
from tests.services.terminal import Talk
from tests.services.test_ssh import is_in
from tests.support.etc import PASSWORD
from tests.support.site import KEY, codes, fob
from tests.support.terminals import drawn, scanned

CODE = "One-time code: "
QUESTION = "Type the six digits the app shows, or q for a QR code: "
AFTER_PICTURE = "Type the six digits the app shows: "
SHOWN_KEY = " ".join(re.findall("....", base32(KEY)))
ENDS = 86_400  # seconds from now


class Ticket(str):
    """A ticket in the form that the user types."""


def code(offset: int = 0) -> str:
    return totp(KEY, int(time.time()) + 30 * offset)


@pytest.fixture
def ticket(machine: Machine) -> Ticket:
    return invite(machine)


def invite(machine: Machine, token: TotpToken | None = None, user: str = "alice") -> Ticket:
    """Add a ticket to the record of `user`, and return the ticket."""
    token = token or TotpToken(name="phone", secret=KEY, created=0, confirmed=False)
    record, shown = issue_ticket(UserRecord(user=user), token, int(time.time()) + ENDS, packed(token, user, "host"))
    machine.put(f"{STORE}/{user}.record", "pam_totp", record)
    return Ticket(shown)


def stack(machine: Machine, service: str = "sshd", way: str = "spawn", arguments: str = "") -> None:
    machine.stack(service, machine.module_line(f"enroll=ticket {arguments}", way=way))


def is_enrolled(machine: Machine) -> bool:
    return machine.record("alice").enrolled


# sshd and OpenSSH's client


def test_ticket_then_code(machine: Machine, sshd: Sshd, way_there: str, ticket: Ticket) -> None:
    stack(machine, way=way_there)
    talk = sshd.ssh().asks(CODE).says(ticket).asks(QUESTION)
    assert SHOWN_KEY in talk.before
    talk.says(code()).asks(PRESS_ENTER)
    assert len(re.findall(r"(?:[0-9A-Z]{4}-){3}[0-9A-Z]{4}", talk.before)) == 10
    assert is_in(talk.says(""))
    record = machine.record("alice")
    assert (record.enrolled, record.ticket, len(record.recovery)) == (True, None, 10)
    machine.log.wait_for("pam_totp(sshd:auth): presented user=alice what=ticket token=phone", "rhost=127.0.0.1")
    machine.log.wait_for("changed user=alice what=enroll token=phone", "by=ticket")
    machine.log.wait_for("accepted user=alice by=ticket token=phone")
    logged = "\n".join(machine.log.lines())
    assert not [secret for secret in (ticket, ticket.replace("-", ""), base32(KEY), SHOWN_KEY) if secret in logged]
    assert is_in(sshd.ssh().asks(CODE).says(code(1))), "the next login is an ordinary login"


def test_password_then_ticket(machine: Machine, sshd: Sshd, way_there: str, ticket: Ticket) -> None:
    machine.stack("sshd", "auth requisite pam_unix.so nodelay", machine.module_line("enroll=ticket", way=way_there))
    talk = sshd.ssh().asks("Password: ").says(PASSWORD).asks(CODE).says(ticket).asks(QUESTION)
    assert is_in(talk.says(code()).asks(PRESS_ENTER).says(""))


def test_the_ticket_is_right_at_the_second_prompt(machine: Machine, sshd: Sshd, ticket: Ticket) -> None:
    stack(machine)
    talk = sshd.ssh().asks(CODE).says("0" * 16).asks(NEXT_PROMPT).says(ticket.lower().replace("-", " "))
    assert is_in(talk.asks(QUESTION).says(code()).asks(PRESS_ENTER).says("anything"))


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
@pytest.mark.parametrize("level", ["INFO", "QUIET"])
def test_ssh_shows_every_text_in_every_locale_and_at_every_level(
    machine: Machine, sshd: Sshd, ticket: Ticket, locale: str, level: str
) -> None:
    """ssh shows the blocks as octal escapes in the locale C. The key under the picture is readable."""
    stack(machine)
    talk = sshd.ssh("alice", f"LogLevel={level}", environment=(f"LC_ALL={locale}",)).asks(CODE).says(ticket)
    assert SHOWN_KEY in talk.asks(QUESTION).before
    talk.says("q").asks(AFTER_PICTURE)
    assert SHOWN_KEY in talk.before
    assert ("\\342\\226\\210" in talk.before) is (locale == "C")
    assert ("█" in talk.before) is (locale == "C.UTF-8")
    talk.says("000000").asks(QUESTION)
    assert "Wrong code." in talk.before
    assert SHOWN_KEY in talk.before
    talk.says(code()).asks(PRESS_ENTER)
    assert is_in(talk.says(""))


def test_zbar_reads_the_picture_that_ssh_shows(machine: Machine, sshd: Sshd, ticket: Ticket, tmp_path: Path) -> None:
    stack(machine)
    talk = sshd.ssh().asks(CODE).says(ticket).asks(QUESTION).says("q").asks(AFTER_PICTURE)
    lines = [line.strip("\r") for line in talk.before.splitlines() if "█" in line or "▀" in line]
    assert (len(lines), max(map(len, lines))) == (19, 78)
    left, right = ([line.ljust(78)[part] for line in lines] for part in (slice(0, 37), slice(41, 78)))
    light_ink = drawn("\n".join(left))
    dark_ink = [[1 - module for module in row] for row in drawn("\n".join(f"{line}█" for line in right))]
    for rows in (light_ink, [row[:-1] for row in dark_ink]):
        assert scanned(rows, tmp_path) == f"otpauth://totp/host:alice?secret={base32(KEY)}"


def test_a_client_in_latin_1_gets_the_key_and_ends_only_at_the_picture(
    machine: Machine, sshd: Sshd, ticket: Ticket
) -> None:
    stack(machine)
    latin_1 = ("LOCPATH=/run/latin-1", "LC_ALL=en_US.ISO-8859-1")
    machine.path("/run/latin-1").mkdir(exist_ok=True)
    machine.run("localedef", "-i", "en_US", "-f", "ISO-8859-1", "/run/latin-1/en_US.ISO-8859-1")
    if machine.run("env", *latin_1, "locale", "charmap").stdout != "ISO-8859-1\n":
        pytest.skip("requires the sources of locales (Debian: locales)")
    talk = sshd.ssh(environment=latin_1).asks(CODE).says(ticket).asks(QUESTION).says("q")
    assert talk.ends()[0] == 255
    talk = sshd.ssh(environment=latin_1).asks(CODE).says(ticket).asks(QUESTION)
    assert SHOWN_KEY in talk.before
    assert is_in(talk.says(code()).asks(PRESS_ENTER).says(""))


# Every event that can end a login early

ENDS_OF_LOGINS = ("Ctrl-C", "Ctrl-D", "hang-up")
AT_PROMPTS: dict[str, Callable[[Talk], Talk]] = {
    "the key": lambda talk: talk,
    "the picture": lambda talk: talk.says("q").asks(AFTER_PICTURE),
    "a wrong code": lambda talk: talk.says("000000").asks(QUESTION),
    "an empty answer": lambda talk: talk.says("").asks(QUESTION),
}


@pytest.mark.parametrize("break_off", [*itertools.product(ENDS_OF_LOGINS, AT_PROMPTS)], ids=" at ".join)
def test_after_a_login_that_broke_off_the_same_key_comes_again(
    machine: Machine, sshd: Sshd, way_there: str, ticket: Ticket, break_off: tuple[str, str]
) -> None:
    end, prompt = break_off
    stack(machine, way=way_there)
    before = machine.record("alice")
    talk = AT_PROMPTS[prompt](sshd.ssh().asks(CODE).says(ticket).asks(QUESTION))
    if end == "Ctrl-C":
        assert talk.interrupts()[0] != 0
    elif end == "Ctrl-D":
        talk.terminal.sendeof()
        if prompt != "an empty answer":
            talk.asks(QUESTION).terminal.sendeof()
        talk.asks(CODE)
        talk.hangs_up()
    else:
        talk.hangs_up()
    machine.log.wait_for("refused user=alice reason=no-answer", "rhost=127.0.0.1")
    assert machine.record("alice") == before
    assert not [line for line in machine.log.module_lines() if "error" in line]
    talk = sshd.ssh().asks(CODE).says(ticket).asks(QUESTION)
    assert SHOWN_KEY in talk.before
    assert is_in(talk.says(code()).asks(PRESS_ENTER).says(""))


@pytest.mark.parametrize("end", ENDS_OF_LOGINS)
def test_a_login_that_breaks_off_at_the_recovery_codes_has_enrolled(
    machine: Machine, sshd: Sshd, way_there: str, ticket: Ticket, end: str
) -> None:
    stack(machine, way=way_there)
    talk = sshd.ssh().asks(CODE).says(ticket).asks(QUESTION).says(code()).asks(PRESS_ENTER)
    if end == "Ctrl-C":
        assert talk.interrupts()[0] != 0
    elif end == "hang-up":
        talk.hangs_up()
    else:
        talk.terminal.sendeof()
        assert is_in(talk)
    assert is_enrolled(machine)
    assert is_in(sshd.ssh().asks(CODE).says(code(1)))
    assert not [line for line in machine.log.module_lines() if "error" in line]


def test_without_a_terminal_the_enrolment_ends_by_itself(machine: Machine, sshd: Sshd, ticket: Ticket) -> None:
    """ssh reads each answer from the program SSH_ASKPASS. The test's program prints the ticket, then empty lines."""
    stack(machine)
    machine.write("/run/askpass", f"#!/bin/sh\ncase $1 in *'{CODE}'*) echo {ticket};; *) echo;; esac\n", 0o755)
    talk = sshd.ssh(
        "alice",
        "NumberOfPasswordPrompts=1",
        environment=("SSH_ASKPASS=/run/askpass", "SSH_ASKPASS_REQUIRE=force", "DISPLAY=:0"),
    )
    status, shown = talk.ends()
    assert (status, "Permission denied" in shown) == (255, True)
    assert [line.count("reason=no-answer") for line in machine.log.module_lines()] == [0, 1]
    assert not is_enrolled(machine)


def test_three_wrong_codes_end_the_conversation(machine: Machine, sshd: Sshd, way_there: str, ticket: Ticket) -> None:
    stack(machine, way=way_there)
    talk = sshd.ssh("alice", "NumberOfPasswordPrompts=1").asks(CODE).says(ticket)
    for _ in range(3):
        talk.asks(QUESTION).says("000000")
    status, shown = talk.ends()
    assert (status, "Permission denied" in shown) == (255, True)
    assert NOTHING_CHANGED not in shown, "after this message, sshd would not log the failure"
    machine.log.wait_for("sshd", "error: PAM: Authentication failure for alice from 127.0.0.1")
    assert not is_enrolled(machine)
    assert machine.record("alice").failures == 0


def test_password_authentication_fails_at_the_first_prompt(
    machine: Machine, sshd: Sshd, way_there: str, ticket: Ticket
) -> None:
    stack(machine, way=way_there)
    talk = sshd.ssh("alice", "NumberOfPasswordPrompts=1", port=sshd.PASSWORD).asks("password: ").says(ticket)
    assert not is_in(talk)
    assert not is_enrolled(machine)
    machine.log.wait_for("refused user=alice reason=no-answer")


def test_of_two_sessions_with_one_ticket_one_enrols(
    machine: Machine, sshd: Sshd, way_there: str, ticket: Ticket
) -> None:
    stack(machine, way=way_there)
    talks = [sshd.ssh("alice", "NumberOfPasswordPrompts=1").asks(CODE).says(ticket).asks(QUESTION) for _ in range(4)]
    for talk in talks:
        talk.says(code())
    ends = [talk.terminal.expect_exact([PRESS_ENTER.encode(), b"Permission denied"]) for talk in talks]
    assert sorted(ends) == [0, 1, 1, 1]
    machine.log.wait_for("refused user=alice reason=ticket-ended")


def test_a_login_past_its_time_limit_leaves_the_ticket(machine: Machine, sshd: Sshd, ticket: Ticket) -> None:
    """The test sends SIGALRM to sshd's monitor, as at the end of LoginGraceTime."""
    stack(machine)
    talk = sshd.ssh().asks(CODE).says(ticket).asks(QUESTION)
    titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in machine.processes()}
    (monitor,) = (pid for pid, title in titles.items() if b"alice [priv]" in title)
    os.kill(monitor, signal.SIGALRM)
    machine.log.wait_for("refused user=alice reason=no-answer")
    assert talk.says(code()).ends()[0] == 255, "ssh detects the end of the login after the answer"
    assert machine.record("alice").ticket is not None
    talk = sshd.ssh().asks(CODE).says(ticket).asks(QUESTION)
    assert SHOWN_KEY in talk.before
    assert is_in(talk.says(code()).asks(PRESS_ENTER).says(""))


def test_a_session_shows_nobody_else_who_is_invited(
    machine: Machine, sshd: Sshd, way_there: str, ticket: Ticket
) -> None:
    """Invited, unenrolled and unknown users see the same texts after a wrong ticket. An enrolled user needs a code."""
    stack(machine, way=way_there)
    machine.enrol("carol", ticket=machine.record("alice").ticket)
    seen = set()
    for user in ("alice", "bob", "mallory"):
        talk = sshd.ssh(user, "NumberOfPasswordPrompts=1").asks(CODE).says("0" * 16).asks(NEXT_PROMPT).says("000000")
        seen.add(str(talk.ends()).replace(user, "USER"))
    assert len(seen) == 1, seen
    talk = sshd.ssh("bob", "NumberOfPasswordPrompts=1").asks(CODE).says(ticket).asks(NEXT_PROMPT)
    assert talk.says(ticket).ends()[0] == 255, "the ticket belongs to alice"
    talk = sshd.ssh("carol", "NumberOfPasswordPrompts=1").asks(CODE).says(ticket).asks(NEXT_PROMPT)
    assert talk.says(ticket).ends()[0] == 255, "a ticket must not enrol an enrolled user"


@pytest.mark.parametrize("arguments", ["", "enroll=off"])
def test_a_ticket_opens_nothing_without_enroll(machine: Machine, sshd: Sshd, ticket: Ticket, arguments: str) -> None:
    machine.stack("sshd", machine.module_line(arguments))
    talk = sshd.ssh("alice", "NumberOfPasswordPrompts=1").asks(CODE).says(ticket).asks(NEXT_PROMPT).says(ticket)
    assert talk.ends()[0] == 255
    machine.log.wait_for("refused user=alice reason=not-enrolled")


def test_a_key_fob_at_its_first_login(machine: Machine, sshd: Sshd) -> None:
    ticket = invite(machine, TotpToken(name="fob", secret=KEY, created=0, confirmed=False, serial="SM00000042"))
    stack(machine)
    talk = sshd.ssh().asks(CODE).says(ticket).asks("in one line: ")
    assert "Take the token SM00000042." in talk.before
    assert not re.search(r"[A-Z2-7]{4} [A-Z2-7]{4} [A-Z2-7]{4}", talk.before)
    assert is_in(talk.says(f"{code()} {code(1)}").asks(PRESS_ENTER).says(""))


# Other ssh clients

PARAMIKO = """
import socket, sys, paramiko
user, password, *answers = sys.argv[1:]
transport = paramiko.Transport(socket.create_connection(("127.0.0.1", PORT)))
transport.start_client()
def handler(title, instructions, prompts):
    for prompt, echo in prompts:
        print(prompt, flush=True)
    return [answers.pop(0) if answers else password for _ in prompts]
try:
    transport.auth_interactive(user, handler)
except paramiko.AuthenticationException as e:
    sys.exit(f"refused: {e}")
print("in")
"""


def paramiko(machine: Machine, *answers: str) -> tuple[int, str]:
    program = PARAMIKO.replace("PORT", str(Sshd.KEYBOARD))
    if machine.run("/usr/bin/python3", "-c", "import paramiko").returncode != 0:
        pytest.skip("requires paramiko (Debian: python3-paramiko)")
    done = machine.run("/usr/bin/python3", "-c", program, "alice", PASSWORD, *answers)
    return done.returncode, done.stdout + done.stderr


def test_paramiko_shows_the_key_and_enrols(machine: Machine, sshd: Sshd, ticket: Ticket) -> None:
    stack(machine)
    status, shown = paramiko(machine, ticket, "q", code(), "")
    assert status == 0, shown
    assert shown.count(SHOWN_KEY) == 2
    assert "█" in shown


def test_a_program_that_gives_its_password_at_every_prompt_ends(machine: Machine, sshd: Sshd, ticket: Ticket) -> None:
    """paramiko's `connect` answers every prompt with the password."""
    machine.stack("sshd", "auth requisite pam_unix.so nodelay", machine.module_line("enroll=ticket"))
    status, shown = paramiko(machine, PASSWORD, ticket)
    assert (status, "refused" in shown) == (1, True)
    assert shown.count(SHOWN_KEY) == 1
    machine.log.wait_for("refused user=alice reason=not-confirmed")
    assert not is_enrolled(machine)


def test_plink_shows_the_key_and_enrols(machine: Machine, sshd: Sshd, ticket: Ticket) -> None:
    if machine.run("plink", "-V").returncode != 0:
        pytest.skip("requires plink (Debian: putty-tools)")
    stack(machine)
    fingerprint = machine.run("ssh-keygen", "-l", "-f", "/run/sshd/host_key.pub").stdout.split()[1]
    words = (
        "-ssh",
        "-no-antispoof",
        "-P",
        str(sshd.KEYBOARD),
        "-hostkey",
        fingerprint,
        "alice@127.0.0.1",
        "echo in as $(id -un)",
    )
    talk = machine.talk("plink", *words).asks(CODE).says(ticket).asks(QUESTION)
    assert SHOWN_KEY in talk.before
    talk.says("q").asks(AFTER_PICTURE)
    assert SHOWN_KEY in talk.before
    status, shown = talk.says(code()).asks(PRESS_ENTER).says("").ends()
    assert (status, "in as alice" in shown) == (0, True)


# Programs on a terminal of this host


def su(machine: Machine) -> Talk:
    return machine.talk("su", "alice", "-c", "id -un", user="bob", echo=True)


def sudo(machine: Machine, *options: str) -> Talk:
    return machine.talk("sudo", *options, "id", "-un", user="alice", echo=True)


def login(machine: Machine) -> Talk:
    return machine.talk("login", "-p", "alice", echo=True)


@pytest.mark.parametrize("program", [su, sudo, login])
def test_ticket_then_code_on_a_terminal(
    machine: Machine, way_there: str, ticket: Ticket, program: Callable[[Machine], Talk]
) -> None:
    stack(machine, program.__name__, way=way_there)
    talk = program(machine).asks(CODE).says(ticket).asks(QUESTION)
    assert SHOWN_KEY in talk.before
    talk.says("q").asks(AFTER_PICTURE)
    assert "█" in talk.before
    talk.says("000000").asks(QUESTION).says(code()).asks(PRESS_ENTER)
    assert re.search(r"(?:[0-9A-Z]{4}-){3}[0-9A-Z]{4}", talk.before)
    talk.says("")
    if program is login:
        machine.log.wait_for("accepted user=alice by=ticket")
    else:
        assert talk.ends()[0] == 0
    assert is_enrolled(machine)


def test_without_input_su_ends_and_leaves_the_ticket(machine: Machine, way_there: str, ticket: Ticket) -> None:
    stack(machine, "su", way=way_there)
    done = machine.run("su", "alice", "-c", "id", user="bob", stdin=f"{ticket}\n")
    assert done.returncode != 0
    machine.log.wait_for("refused user=alice reason=no-answer")
    assert not is_enrolled(machine)


def test_a_prompt_of_sudo_that_replaces_ours_enrols_nobody_by_chance(machine: Machine, ticket: Ticket) -> None:
    """`sudo -p` hides the key, so the user cancels. The ticket must remain valid."""
    stack(machine, "sudo")
    talk = sudo(machine, "-p", "secret: ").asks("secret: ").says(ticket)
    talk.asks("secret: ")
    assert SHOWN_KEY not in talk.before
    assert talk.interrupts()[0] != 0
    assert not is_enrolled(machine)
    talk = sudo(machine).asks(CODE).says(ticket).asks(QUESTION)
    assert talk.says(code()).asks(PRESS_ENTER).says("").ends()[0] == 0


def test_polkit_takes_no_ticket(machine: Machine, way_there: str, ticket: Ticket) -> None:
    """pamtester takes the place of polkit's agent, under the same service name."""
    stack(machine, "polkit-1", way=way_there)
    pamtester = machine.talk("pamtester", "polkit-1", "alice", "authenticate")
    assert pamtester.asks(CODE).says(ticket).asks(NEXT_PROMPT).says(ticket).ends()[0] != 0
    machine.log.wait_for("pam_totp(polkit-1:auth): refused user=alice reason=not-enrolled")


def test_the_first_line_of_the_key_is_not_behind_the_name_that_ssh_shows(
    machine: Machine, sshd: Sshd, ticket: Ticket
) -> None:
    stack(machine)
    talk = sshd.ssh().asks(CODE).says(ticket).asks(QUESTION)
    title = next(line for line in talk.before.splitlines() if "Add this key" in line)
    assert title.startswith("The ticket is right.")


# The command, in a session of the user


def redeem(machine: Machine, *words: str, user: str = "alice") -> Talk:
    python = ("env", f"PYTHONPATH={COPY}", "PYTHONDONTWRITEBYTECODE=1", "/usr/bin/python3", "-m", "pam_totp.cli")
    return machine.talk(*python, "enroll", "--ticket", *words, user=user, echo=True)


TICKET = "Enrolment ticket: "


def test_a_user_redeems_a_ticket_without_root(machine: Machine, ticket: Ticket) -> None:
    machine.serve()
    talk = redeem(machine).asks(TICKET).says(ticket).asks(QUESTION)
    assert SHOWN_KEY in talk.before
    talk.says("q").asks(AFTER_PICTURE).says("000000").asks(QUESTION).says(code()).asks(PRESS_ENTER)
    assert re.search(r"(?:[0-9A-Z]{4}-){3}[0-9A-Z]{4}", talk.before)
    status, shown = talk.says("").ends()
    assert (status, "alice is enrolled" in shown) == (0, True)
    assert is_enrolled(machine)
    machine.log.wait_for("pam_totp(pam-totp:auth): changed user=alice what=enroll token=phone", "by=ticket")


@pytest.mark.parametrize("site", ["", "[policy]\nnullok = true\n", "[policy]\nenroll = 'off'\ngrace_period = 600\n"])
def test_a_ticket_for_a_lost_phone_replaces_the_old_token(machine: Machine, site: str) -> None:
    old = UserRecord(user="alice", tokens=(fob(),))
    new = TotpToken(name="phone", secret=b"n" * 20, created=0, confirmed=False)
    record, ticket = issue_ticket(old, new, int(time.time()) + ENDS)
    machine.put(f"{STORE}/alice.record", "pam_totp", record)
    machine.write("/etc/pam_totp.toml", site)
    machine.serve()
    talk = redeem(machine).asks(TICKET).says(ticket).asks("the app shows: ")
    assert talk.says(totp(b"n" * 20, int(time.time()))).asks(PRESS_ENTER).says("").ends()[0] == 0
    assert [token.name for token in machine.record("alice").tokens] == ["phone"]
    machine.log.wait_for("changed user=alice what=remove token=fob", "by=ticket")


def test_the_command_takes_only_a_ticket_of_the_caller(machine: Machine, ticket: Ticket) -> None:
    machine.serve()
    machine.enrol("carol", ticket=machine.record("alice").ticket)
    before = machine.record("carol")
    for answer in (codes(0), codes(0, 2), ticket, "0" * 16, ""):
        status, shown = redeem(machine, user="carol").asks(TICKET).says(answer).ends()
        assert (status, "refused: the ticket is wrong" in shown) == (1, True), shown
    after = machine.record("carol")
    assert (after.tokens, after.failures, after.ticket) == (before.tokens, 0, before.ticket), "the ticket is unused"
    status, shown = redeem(machine, "alice", user="carol").ends()
    assert (status, "only root can redeem a ticket of alice" in shown) == (3, True)
    assert redeem(machine, "alice", user="root").asks(TICKET).presses_ctrl_c().ends()[0] == 130


def test_the_command_without_a_service_or_with_other_options_says_so(machine: Machine) -> None:
    machine.stop_serving()
    machine.path("/run/pam_totp/socket").unlink(missing_ok=True)
    status, shown = redeem(machine).ends()
    assert (status, "systemctl start pam_totp.socket" in shown) == (3, True)
    status, shown = redeem(machine, "--name", "phone").ends()
    assert (status, "--ticket excludes the options of a new token" in shown) == (2, True)


def test_another_service_name_gets_no_more_from_the_service(machine: Machine) -> None:
    """Each account can choose the service name. At the socket, an enrolled user's ticket is valid only under
    `REDEEM_SERVICE`."""
    record, ticket = issue_ticket(
        UserRecord(user="alice", tokens=(fob(),)),
        TotpToken(name="phone", secret=b"n" * 20, created=0, confirmed=False),
        int(time.time()) + ENDS,
    )
    machine.put(f"{STORE}/alice.record", "pam_totp", record)
    machine.serve()
    machine.stack("locker", machine.module_line("enroll=ticket", way="socket"))
    machine.write("/etc/pam_totp.toml", "[policy]\nenroll = 'ticket'\n")
    talk = machine.talk("pamtester", "locker", "alice", "authenticate", user="alice")
    assert talk.asks(CODE).says(ticket).ends()[0] != 0
    machine.log.wait_for("pam_totp(locker:auth): refused user=alice reason=wrong")
