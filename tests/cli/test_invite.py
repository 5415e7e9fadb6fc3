"""Tests of invite: tickets for the enrolment at the first login."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pexpect
import pytest

from pam_totp.core.answer import Answer
from pam_totp.core.policy import Policy
from pam_totp.core.verify import Outcome, Tickets, verify
from tests.support.site import ME, PATIENCE, TREE, Site, codes, fob, phone

DAY = 86_400


def outcome(site: Site, ticket: str, user: str = ME, tickets: Tickets = Tickets.UNENROLLED) -> Outcome:
    record = site.record(user)
    return verify(record, Answer.parse(ticket.encode()), int(time.time()), Policy(), tickets=tickets).outcome


def test_a_ticket_is_printed_once_and_stored_as_a_digest(site: Site) -> None:
    done = site.command("invite", ME, "--output", "-")
    assert done.returncode == 0, done.stderr
    user, ticket = done.stdout.split()
    assert user == ME
    assert outcome(site, ticket) is Outcome.TICKET
    record = site.record()
    assert (record.enrolled, [t.name for t in record.tokens]) == (False, ["phone"])
    assert ticket not in site.path().read_text()
    assert "1 ticket, valid until " in done.stderr
    assert record.ticket is not None
    assert 6.9 < (record.ticket.ends - time.time()) / DAY < 7.1


def test_tickets_of_many_users_from_a_file(site: Site, tmp_path: Path) -> None:
    names = tmp_path / "staff.txt"
    names.write_text("# staff\nannika\n\n  bo  # part time\nannika\n")
    out = tmp_path / "tickets.json"
    done = site.command("invite", "--from", str(names), "--valid", "12h", "--json", "--output", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    made = json.loads(out.read_text())
    assert [one["user"] for one in made] == ["annika", "bo"]
    assert out.stat().st_mode & 0o777 == 0o600
    for one in made:
        assert outcome(site, one["ticket"], one["user"]) is Outcome.TICKET
        assert 11.9 < (one["ends"] - time.time()) / 3600 < 12.1


def test_a_new_ticket_replaces_the_earlier_one(site: Site) -> None:
    first = site.command("invite", ME, "--output", "-").stdout.split()[1]
    second = site.command("invite", ME, "--output", "-").stdout.split()[1]
    assert outcome(site, first) is Outcome.NOT_ENROLLED
    assert outcome(site, second) is Outcome.TICKET
    assert len(site.record().tokens) == 1


def test_an_enrolled_user_keeps_the_tokens_until_the_ticket_is_redeemed(site: Site) -> None:
    site.enrol(fob(), phone())
    refused = site.command("invite", ME, "--output", "-", stdin="n\n")
    assert refused.returncode == 1
    assert refused.stderr == "pam-totp: cancelled; nothing was changed\n"
    assert site.record().ticket is None
    ticket = site.command("invite", ME, "--yes", "--output", "-").stdout.split()[1]
    assert [t.name for t in site.record().tokens] == ["fob", "phone", "phone 2"]
    assert site.command("verify", ME, codes(0)).returncode == 0
    assert outcome(site, ticket) is Outcome.WRONG
    assert outcome(site, ticket, tickets=Tickets.EVERYBODY) is Outcome.TICKET


def test_an_enrolled_user_learns_that_a_login_takes_no_ticket(site: Site) -> None:
    site.enrol(phone())
    done = site.command("invite", ME, "annika", "--sheet", "--yes", "--output", "-")
    assert done.returncode == 0, done.stderr
    assert f"{ME}: a login accepts no ticket of a user with a token; " in done.stderr
    enrolled, new = done.stdout.split("\f")
    assert "pam-totp enroll --ticket" in enrolled and "Enter the ticket at the prompt" not in enrolled
    assert "pam-totp enroll --ticket" not in new and "Enter the ticket at the prompt for a one-time code." in new
    assert max(map(len, enrolled.splitlines())) <= 80
    assert "accepts no ticket" not in site.command("invite", "annika", "--output", "-").stderr


def test_the_ticket_of_an_assigned_token_shows_no_key(site: Site) -> None:
    site.enrol(fob(serial="S-1", confirmed=False))
    done = site.command("invite", ME, "--token", "fob", "--sheet", "--output", "-")
    assert done.returncode == 0, done.stderr
    assert "Press the button of the key fob." in done.stdout
    record = site.record()
    assert record.ticket is not None
    assert (record.ticket.token, record.ticket.picture, len(record.tokens)) == ("fob", None, 1)
    site.enrol(fob(serial="S-1"))
    done = site.command("invite", ME, "--token", "fob", "--yes", "--output", "-")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is confirmed already" in done.stderr


def test_a_sheet_has_the_instructions_and_the_portal(site: Site) -> None:
    done = site.command("invite", "annika", "bo", "--sheet", "--portal", "https://otp.example/", "--output", "-")
    pages = done.stdout.split("\f")
    assert [page.splitlines()[0] for page in pages] == ["ENROLMENT TICKET FOR annika", "ENROLMENT TICKET FOR bo"]
    for page, user in zip(pages, ("annika", "bo"), strict=True):
        assert "https://otp.example/" in page
        assert max(map(len, page.splitlines())) <= 80
        assert outcome(site, page.split("\n\n")[1].strip(), user) is Outcome.TICKET


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "missing USER argument"),
        ([ME, "--valid", "91d"], "--valid must be at most 90d"),
        ([ME, "--valid", "0d"], "must be 1 to 99999 and h, d, w or y"),
        ([ME, "--portal", "https://x/"], "--portal requires --sheet"),
        ([ME, "--sheet", "--json"], "--sheet excludes --json"),
        ([ME], "keys and codes are printed only on a terminal"),
        ([ME, "--issuer", "a:b", "--output", "-"], "issuer"),
    ],
)
def test_wrong_usage_changes_nothing(site: Site, arguments: list[str], problem: str) -> None:
    done = site.command("invite", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert problem in done.stderr
    assert not site.path().exists()


def test_an_empty_list_of_users_is_an_error(site: Site, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# empty\n")
    done = site.command("invite", "--from", str(tmp_path / "empty"), "--output", "-")
    assert done.returncode == 1
    assert "must contain a user name" in done.stderr


def test_no_ticket_is_made_if_one_of_the_users_cannot_get_one(site: Site, tmp_path: Path) -> None:
    site.enrol(*(fob(name=f"fob {i}", secret=bytes([i]) * 20) for i in range(8)), user="bo")
    earlier = site.command("invite", "annika", "--output", "-").stdout.split()[1]
    out = tmp_path / "tickets.txt"
    done = site.command("invite", "annika", "bo", "--yes", "--output", str(out))
    assert (done.returncode, out.exists()) == (1, False)
    assert done.stderr.endswith("pam-totp: bo: tokens: must be a list of at most 8 entries; nothing was changed\n")
    assert outcome(site, earlier, "annika") is Outcome.TICKET


@pytest.mark.parametrize("removed", [True, False])
def test_a_token_that_was_changed_before_the_confirmation_gets_no_ticket(site: Site, *, removed: bool) -> None:
    site.enrol(phone(), fob(serial="S-1", confirmed=False))
    command = ["-m", "pam_totp.cli", "invite", "--store", str(site.store), ME, "--token", "fob"]
    running = pexpect.spawn(sys.executable, command, cwd=TREE, timeout=PATIENCE, encoding="utf-8")
    running.expect_exact("Make it? [y/N] ")
    tokens = [phone()] if removed else [phone(), fob(serial="S-1", counter=3)]
    site.enrol(*tokens)
    running.sendline("y")
    running.expect_exact("gets no ticket: another command has changed the token 'fob'")
    running.expect(pexpect.EOF)
    running.close()
    assert running.exitstatus == 1
    assert (site.record().tokens, site.record().ticket) == (tuple(tokens), None)


@pytest.mark.parametrize(("name", "shown"), [("\x1b[31mz", r"\x1b[31mz"), ("q" * 400, "q" * 40)])
def test_an_invalid_name_in_a_list_is_named(site: Site, tmp_path: Path, name: str, shown: str) -> None:
    (tmp_path / "staff").write_text(f"annika\n{name}\n")
    done = site.command("invite", "--from", str(tmp_path / "staff"), "--output", "-")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"pam-totp: user name '{shown}' must ")
    assert not site.path("annika").exists()
