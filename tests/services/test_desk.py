"""Tests of `pam-totp desk` through the real sudo: a desk member helps a user, and tries forbidden actions."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator

import pytest

from pam_totp.core.oath import totp
from pam_totp.core.record import Token
from pam_totp.core.secretfile import unbase32
from pam_totp.operations.desk import recent_changes
from pam_totp.operations.first_login import PRESS_ENTER
from tests.services.namespace import ACCOUNTS, Machine
from tests.services.terminal import Talk
from tests.support.site import codes, fob, phone

LAUNCHER = """\
#!/bin/sh
exec env PYTHONPATH=/run/tree PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 -P -m pam_totp.cli "$@"
"""
RULES = """\
Defaults lecture=never, timestamp_timeout=0
alice ALL=(ALL:ALL) ALL
%helpdesk ALL=(root) NOPASSWD: /usr/bin/pam-totp desk, /usr/bin/pam-totp desk *
"""
SITE = '[desk]\ngroup = "helpdesk"\n'
PROMPT = "One-time code of carol: "
LONG_CODE = re.compile(r"\b(?:[0-9A-Z]{4}-){3}[0-9A-Z]{4}\b")


@pytest.fixture
def desk(machine: Machine) -> Iterator[Machine]:
    """Yield a machine on which carol is a desk member with a key fob, and bob is a user."""
    before = {path: machine.path(path).read_text() for path in ("/etc/group", "/etc/passwd", "/etc/sudoers")}
    machine.write("/usr/bin/pam-totp", LAUNCHER, 0o755)
    machine.write("/etc/sudoers", RULES, 0o440)
    set_members(machine, "carol")
    machine.write("/etc/pam_totp.toml", SITE)
    machine.enrol("carol")
    yield machine
    machine.path("/usr/bin/pam-totp").unlink()
    for path, text in before.items():
        machine.write(path, text, 0o440 if path.endswith("sudoers") else 0o644)


def set_members(machine: Machine, *names: str) -> None:
    text = "".join(line for line in machine.path("/etc/group").read_text().splitlines(True) if "helpdesk" not in line)
    machine.write("/etc/group", f"{text}helpdesk:x:7777:{','.join(names)}\n")


def sudo(machine: Machine, *words: str, user: str = "carol") -> Talk:
    return machine.talk("sudo", "pam-totp", "desk", *words, user=user)


def ask_desk(machine: Machine, counter: int, *words: str) -> tuple[int, str]:
    """Run the action `words` as carol, who signs in with the code at `counter`. Return exit status and output."""
    return sudo(machine, *words).asks(PROMPT).says(codes(counter)).ends()


def test_a_desk_member_gives_a_temporary_code_that_opens_one_login(desk: Machine) -> None:
    desk.enrol("alice", phone())
    desk.stack("sudo", desk.module_line())
    status, shown = ask_desk(desk, 0, "temporary-code", "alice", "--valid", "4h")
    assert status == 0, shown
    found = LONG_CODE.search(shown)
    assert found is not None
    talk = desk.talk("sudo", "id", "-un", user="alice").asks("One-time code: ").says(found[0])
    assert talk.ends() == (0, "\r\nroot\r\n")
    status, _ = desk.talk("sudo", "-k", "id", user="alice").asks("One-time code: ").fails(found[0]).interrupts()
    assert status != 0, "the code must be accepted once"
    lines = [line for line in desk.log.module_lines() if "what=temporary-code" in line]
    assert len(lines) == 1
    assert " user=alice " in lines[0]
    assert " by=carol" in lines[0]
    assert found[0] not in "".join(desk.log.lines())
    assert [(c.what, c.by) for c in recent_changes(desk.record("alice"))] == [("temporary-code", "carol")]


def test_a_ticket_of_the_desk_enrols_its_owner_at_a_login(desk: Machine) -> None:
    desk.stack("sudo", desk.module_line("enroll=ticket"))
    status, shown = ask_desk(desk, 0, "ticket", "alice")
    found = LONG_CODE.search(shown)
    assert status == 0, shown
    assert found is not None
    talk = (
        desk.talk("sudo", "id", "-un", user="alice").asks("One-time code: ").says(found[0]).asks("Type the six digits")
    )
    assert "The user enters the ticket where a login asks for a code" in shown
    key = re.search(r"(?:[A-Z2-7]{4} ){7}[A-Z2-7]{4}", talk.before)
    assert key is not None
    talk.asks(": ").says(totp(unbase32(key[0].replace(" ", "")), int(time.time()))).asks(PRESS_ENTER).says("")
    assert talk.ends()[0] == 0
    record = desk.record("alice")
    assert (record.enrolled, record.ticket) == (True, None)
    assert [change.what for change in recent_changes(record)] == ["invite"]


def test_the_desk_learns_that_a_login_takes_no_ticket_of_an_enrolled_user(desk: Machine) -> None:
    desk.enrol("alice", phone())
    status, shown = ask_desk(desk, 0, "ticket", "alice")
    assert status == 0, shown
    assert "A login does not accept the ticket, because the user has a token" in shown
    assert "pam-totp enroll --ticket" in shown


@pytest.mark.parametrize("user", ["root", "toor", "carol", "bob"])
def test_a_desk_member_cannot_change_the_factors_that_are_left_to_root(desk: Machine, user: str) -> None:
    """The users are root under two names, the desk member, and another desk member by the primary group."""
    passwd = desk.path("/etc/passwd").read_text()
    bob = f"bob:x:{ACCOUNTS['bob']}:"
    desk.write("/etc/passwd", passwd.replace(f"{bob}{ACCOUNTS['bob']}:", f"{bob}7777:") + "toor:x:0:0::/root:/bin/sh\n")
    tokens = (fob(),) if user == "carol" else (phone(serial="S-OLD"),)
    desk.enrol(user, *tokens)
    before = desk.record(user).tokens[0].secret
    attempts = (
        ("ticket", user),
        ("temporary-code", user),
        ("disable", user, "--all"),
        ("assign", "S-1", user),
        *([] if user == "carol" else [("replace", "S-OLD", "S-1")]),
    )
    for counter, words in enumerate(attempts):
        status, shown = ask_desk(desk, counter, *words)
        assert (status, "only root can change" in shown) == (1, True), (words, shown)
        line = desk.log.wait_for(
            "auth): denied", f"what={'invite' if words[0] == 'ticket' else words[0].split('-')[0]}"
        )
        assert f" user={user} " in line
        assert " by=carol" in line
        desk.log.clear()
    record = desk.record(user)
    assert (record.tokens[0].secret, len(record.tokens), record.ticket, record.temporary) == (before, 1, None, None)


@pytest.mark.parametrize("order", [("erna", "erna-adm"), ("erna-adm", "erna")])
def test_a_second_name_in_a_protected_primary_group_protects_the_first(desk: Machine, order: tuple[str, str]) -> None:
    """A look-up by uid finds only the first name. A group's entry lacks accounts with that primary group."""
    gids = {"erna": 1500, "erna-adm": 27}
    for path, text in (
        ("/etc/passwd", "".join(f"{name}:x:1500:{gids[name]}::/:/bin/sh\n" for name in order)),
        ("/etc/group", "sudo:x:27:\n"),
    ):
        desk.write(path, desk.path(path).read_text() + text)
    for counter, user in enumerate(order):
        desk.enrol(user, phone())
        status, shown = ask_desk(desk, counter, "ticket", user)
        assert (status, "only root can change" in shown) == (1, True), (user, shown)
        assert desk.record(user).ticket is None


@pytest.mark.parametrize(
    "words",
    [
        ("pam-totp", "unlock", "bob"),
        ("pam-totp", "invite", "bob"),
        ("SUDO_UID=0", "pam-totp", "desk", "show", "bob"),
        ("pam-totp", "--store", "/home/carol", "desk"),
        ("-u", "pam_totp", "pam-totp", "desk"),
    ],
)
def test_the_sudo_rule_opens_the_desk_alone(desk: Machine, words: tuple[str, ...]) -> None:
    done = desk.run("sudo", "-n", *words, user="carol")
    assert done.returncode == 1
    assert "sudo: " in done.stderr, "sudo itself refuses"
    assert desk.log.module_lines() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--store", "/home/carol", "show", "bob"), "invalid choice"),
        (("show", "bob", "--store", "/home/carol"), "unrecognized arguments"),
        (("show", "bob", "--config", "/home/carol/x"), "unrecognized arguments"),
        (("ticket", "bob", "--output", "/etc/cron.d/x"), "invalid choice"),
        (("show",), "takes USER"),
        (("show", "bob", "alice"), "takes USER"),
        (("disable", "bob"), "requires --token NAME or --all"),
        (("unlock", "bob", "--all"), "unexpected option of 'pam-totp desk unlock': --all"),
        (("temporary-code", "bob", "--valid", "1y"), "codes are printed only on a terminal"),
    ],
)
def test_a_member_chooses_no_store_and_no_file(desk: Machine, words: tuple[str, ...], said: str) -> None:
    done = desk.run("sudo", "-n", "pam-totp", "desk", *words, user="carol")
    assert (done.returncode, said in done.stderr) == (2, True), done


def test_without_sudo_or_the_group_or_a_token_there_is_no_desk(desk: Machine) -> None:
    done = desk.run("pam-totp", "desk", "show", "bob", user="carol")
    assert (done.returncode, "run 'sudo pam-totp desk'" in done.stderr) == (3, True), done
    forged = desk.run("env", f"SUDO_UID={ACCOUNTS['carol']}", "pam-totp", "desk", "show", "bob", user="bob")
    assert (forged.returncode, "run 'sudo pam-totp desk'" in forged.stderr) == (3, True), forged
    desk.stack("sudo", "auth required pam_permit.so")
    done = desk.run("sudo", "pam-totp", "desk", "show", "bob", user="alice")  # alice may run everything as root
    assert "alice is not a member of the group helpdesk" in done.stderr, done
    done = desk.run("pam-totp", "desk", "show", "bob")
    assert (done.returncode, "root uses the other commands" in done.stderr) == (2, True), done
    set_members(desk, "carol", "alice")
    done = desk.run("sudo", "pam-totp", "desk", "show", "bob", user="alice")
    assert (done.returncode, "alice has no token" in done.stderr) == (1, True), done
    desk.path("/etc/pam_totp.toml").unlink()
    done = desk.run("sudo", "-n", "pam-totp", "desk", "show", "bob", user="carol")
    assert (done.returncode, "this host has no desk" in done.stderr) == (3, True), done


def test_a_wrong_code_of_the_member_counts_and_opens_nothing(desk: Machine) -> None:
    desk.enrol("bob", fob())
    done = desk.run("sudo", "-n", "pam-totp", "desk", "unlock", "bob", user="carol", stdin="000000\n")
    assert (done.returncode, "the code was refused" in done.stderr) == (1, True), done
    assert desk.record("carol").failures == 1
    assert desk.record("bob").changes == ""
    status, shown = sudo(desk, "show", "bob").asks(PROMPT).says(codes(40)).asks(PROMPT).says(codes(41)).ends()
    assert (status, "fob" in shown) == (0, True), "two codes in a row resynchronise the member's fob"


def test_a_session_ends_its_rights_when_the_member_leaves_the_group(desk: Machine) -> None:
    desk.enrol("bob", fob(), failures=7, failures_at=1_700_000_000)
    talk = sudo(desk).asks(PROMPT).says(codes(0)).asks("desk> ").says("show bob").asks("desk> ")
    assert "recovery codes left" in talk.before
    set_members(desk, "alice")
    for line in ("unlock bob", "show bob", "find bob", "stock", "ticket bob"):
        talk.says(line).asks("desk> ")
        assert "not a member of the desk group" in talk.before, line
    assert talk.says("quit").ends()[0] == 0
    record = desk.record("bob")
    assert (record.failures, record.ticket, record.changes) == (7, None, "")


@pytest.mark.parametrize("tokens", [(fob(enabled=False),), (phone(name="fob"),), None], ids=["off", "other", "gone"])
def test_a_session_ends_when_a_token_of_the_member_is_stopped(desk: Machine, tokens: tuple[Token, ...] | None) -> None:
    desk.enrol("bob", fob(), failures=7, failures_at=1_700_000_000)
    talk = sudo(desk).asks(PROMPT).says(codes(0)).asks("desk> ").says("show bob").asks("desk> ")
    if tokens is None:
        desk.path("/var/lib/pam_totp/carol.record").unlink()
    else:
        desk.enrol("carol", *tokens)
    status, shown = talk.says("unlock bob").ends()
    assert (status, "the tokens of carol have changed" in shown) == (1, True), shown
    assert desk.record("bob").failures == 7


def test_a_session_survives_mistakes_and_fits_80_columns(desk: Machine) -> None:
    desk.enrol("bob", fob(serial="S" * 60, name="n" * 60), phone())
    talk = sudo(desk)
    talk.terminal.setwinsize(24, 80)
    talk.asks(PROMPT).says(codes(0)).asks("desk> ")
    for line, said in (
        ("help", "temporary-code USER"),
        ("no-such-action bob", "invalid choice"),
        ("unlock 'bob", "no closing quotation"),
        ("unlock", "takes USER"),
        ("--help", "examples:"),
        ("unlock no-such-user", "there is no account of this name"),
        ("show bob", "phone"),
        ("stock", "no token is in stock"),
        ("find bo", "bob"),
        ("find zzz", "no user or token found"),
    ):
        talk.says(line).asks("desk> ")
        assert said in talk.before, line
        if line.split()[0] in ("help", "show", "stock", "find"):
            assert max(len(row.rstrip()) for row in talk.before.splitlines()) <= 80, talk.before
    talk.terminal.sendeof()
    assert talk.ends()[0] == 0


@pytest.mark.parametrize("user", ["bo b", "b\nob", "bob\x1b[2J", "b'ob", "../root", "%", "böb", "x" * 300])
def test_a_name_with_odd_characters_harms_nothing(desk: Machine, user: str) -> None:
    done = desk.run(
        "sudo", "-n", "pam-totp", "desk", "ticket", "--output", "-", "--", user, user="carol", stdin=codes(0) + "\n"
    )
    assert done.returncode == 1, done
    assert "there is no account of this name" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
    (line,) = [line for line in desk.log.module_lines() if "denied" in line]
    assert "reason=no-account" in line
    assert sorted(path.name for path in desk.path("/var/lib/pam_totp").glob("*.record")) == ["carol.record"]


@pytest.mark.parametrize(
    "line", ["assign '\x1b[2J' bob", "replace S-7 '\x1b]0;x\x07'", "\x1b[2J", "disable bob --token '\x1b[2J'"]
)
def test_an_error_in_a_session_repeats_no_control_characters(desk: Machine, line: str) -> None:
    desk.enrol("bob", fob(serial="S-7"))
    done = desk.run("sudo", "-n", "pam-totp", "desk", user="carol", stdin=f"{codes(0)}\n{line}\n")
    assert done.stderr.startswith("pam-totp: "), done
    assert re.search(r"[\x00-\x09\x0b-\x1f]", done.stderr + done.stdout) is None, done


@pytest.mark.parametrize("ready", ["", f"{codes(0)}\n"], ids=["code", "action"])
def test_a_line_without_an_end_takes_no_memory(desk: Machine, ready: str) -> None:
    """A desk member could otherwise exhaust the host's memory, because the command runs as root."""
    script = 'ulimit -v 400000; (printf %s "$0"; cat /dev/zero) | exec sudo -n pam-totp desk'
    done = desk.run("sh", "-c", script, ready, user="carol")
    assert (done.returncode, "an input line must be at most" in done.stderr) == (2, True), done.stderr[-300:]


def test_data_is_printed_as_json(desk: Machine) -> None:
    desk.enrol("bob", fob(serial="S-7"))
    done = desk.run("sudo", "-n", "pam-totp", "desk", "find", "S-7", "--json", user="carol", stdin=codes(0) + "\n")
    assert json.loads(done.stdout) == {"users": ["bob"], "token": None}, done
    done = desk.run("sudo", "-n", "pam-totp", "desk", "show", "bob", "--json", user="carol", stdin=codes(1) + "\n")
    facts = json.loads(done.stdout)
    assert (facts["user"], facts["tokens"][0]["serial"], facts["tokens"][0]["state"]) == ("bob", "S-7", "active")
    assert "GEZDGNBV" not in done.stdout
    words = ("ticket", "bob", "--json", "--output", "-")
    done = desk.run("sudo", "-n", "pam-totp", "desk", *words, user="carol", stdin=codes(2) + "\n")
    assert LONG_CODE.fullmatch(json.loads(done.stdout)["code"]), done


def test_the_desk_reads_records_as_the_owner_of_the_store(desk: Machine) -> None:
    desk.enrol("bob", fob())
    desk.own("/var/lib/pam_totp/bob.record", "root")  # only root can read the file
    done = desk.run("sudo", "-n", "pam-totp", "desk", "show", "bob", user="carol", stdin=codes(0) + "\n")
    assert done.returncode == 3, done
