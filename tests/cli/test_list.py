"""Tests of list: the columns, the filters and the orders."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pam_totp.core.record import RecentLogin
from pam_totp.core.verify import Outcome
from pam_totp.operations.recent_logins import WORDS, words
from tests.support.site import Site, codes, fob, phone

DAY = 86_400
NOW = int(time.time())


@pytest.fixture
def users(site: Site) -> Site:
    salt, digest = "00" * 16, "11" * 32
    site.enrol(fob(serial="UB-300", last_used=NOW - 100 * DAY, created=NOW - 300 * DAY), user="alice", salt=salt)
    site.enrol(
        fob(serial="ub 100", created=NOW - 200 * DAY, enabled=False),
        phone(last_used=NOW - DAY, created=NOW - 400 * DAY),
        user="bob",
        salt=salt,
        recovery=(digest,),
    )
    site.enrol(phone(created=NOW - DAY, confirmed=False, serial="200"), user="carol")
    return site


def listed(site: Site, *options: str) -> list[tuple[str, str]]:
    """Return the user and the token of each line of the table."""
    lines = site.command("list", *options).stdout.splitlines()
    return [tuple(line.split()[:2]) for line in lines[1:] if ": " not in line]  # type: ignore[misc]


A, B, C, D = ("alice", "fob"), ("bob", "fob"), ("bob", "phone"), ("carol", "phone")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), [A, B, C, D]),
        (("--serial", "UB100"), [B]),
        (("--serial", "100"), []),
        (("--unused", "90d"), [A, B]),
        (("--unused", "24h"), [A, B, C, D]),
        (("--unused", "1y"), []),
        (("--without-recovery",), [A, D]),
        (("--state", "active"), [A, C]),
        (("--state", "disabled"), [B]),
        (("--state", "unconfirmed"), [D]),
        (("--state", "disabled", "--unused", "13w"), [B]),
        (("--sort", "last-used"), [B, D, A, C]),
        (("--sort", "created"), [C, A, B, D]),
        (("--sort", "serial"), [C, D, B, A]),
        (("--sort", "state"), [A, C, B, D]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_filters_and_orders_select_these_tokens(
    users: Site, options: tuple[str, ...], expected: list[tuple[str, str]]
) -> None:
    assert listed(users, *options) == expected


def test_the_table_has_the_serial_number_of_each_token(users: Site) -> None:
    heading, *rows = users.command("list").stdout.splitlines()
    assert heading.split()[:4] == ["USER", "TOKEN", "TYPE", "SERIAL"]
    assert [row[heading.index("SERIAL") :].split("  ")[0] for row in rows[:4]] == ["UB-300", "ub 100", "-", "200"]


def test_json_has_only_the_selected_tokens(users: Site) -> None:
    found: list[dict[str, Any]] = users.command_json("list", "--serial", "ub-100")
    assert [(user["user"], [token["serial"] for token in user["tokens"]]) for user in found] == [("bob", ["ub 100"])]


def test_remarks_on_a_user_are_printed_once_in_every_order(users: Site) -> None:
    for order in ("user", "last-used"):
        assert users.command("list", "--sort", order).stdout.count("bob: 1 unused recovery code") == 1


def test_no_match_is_reported_and_a_wrong_time_is_wrong_usage(users: Site) -> None:
    assert users.command("list", "--serial", "none").stdout == "no token matches\n"
    for wrong in ("90", "d", "0d", "-1d", "90 d", "x"):
        done = users.command("list", f"--unused={wrong}")
        assert (done.returncode, "such as 90d" in done.stderr) == (2, True), wrong


def test_a_serial_number_is_found_without_reading_other_records(users: Site) -> None:
    for user in ("bob", "carol"):
        users.path(user).write_text("damaged")
    found = users.command("list", "--serial", "UB-300")
    assert (found.returncode, found.stderr) == (0, "")
    assert "alice" in found.stdout
    assert users.command("list", "--serial", "unknown").returncode == 3, "a damaged record can have any serial number"


def test_recent_logins_follow_the_tokens_of_one_user_newest_first(site: Site) -> None:
    site.enrol(fob(), user="alice")
    site.command("verify", "alice", "000000")
    site.command("verify", "alice", codes(0))
    lines = site.command("list", "alice").stdout.splitlines()
    heading = lines.index("") + 1
    assert lines[heading].split("  ")[0] == "RECENT LOGIN"
    rows = [" ".join(line.split()[3:]) for line in lines[heading + 1 :]]
    assert rows == ["accepted with a code pam-totp -", "refused: wrong code pam-totp -"]
    assert "RECENT" not in site.command("list").stdout
    (found,) = site.command_json("list", "alice")
    assert [sorted(login) for login in found["recent"]] == [["accepted", "at", "outcome", "rhost", "service"]] * 2
    assert [login["outcome"] for login in found["recent"]] == ["code", "wrong"]


def test_changes_by_the_desk_follow_newest_first(site: Site) -> None:
    site.enrol(fob(), user="alice", changes="1800000000 unlock dora; 1800000060 disable-token dora my%20fob; other")
    lines = site.command("list", "alice").stdout.splitlines()
    heading = lines.index("") + 1
    assert lines[heading].split("  ")[0] == "CHANGE BY THE DESK"
    assert [line.split()[3:] for line in lines[heading + 1 :]] == [
        ["disable-token", "my", "fob", "dora"],
        ["unlock", "-", "dora"],
    ]
    assert "DESK" not in site.command("list").stdout
    (found,) = site.command_json("list", "alice")
    assert found["changes"][1] == {"at": 1_800_000_000, "what": "unlock", "token": None, "by": "dora"}


def test_every_outcome_that_a_record_keeps_has_words() -> None:
    assert set(Outcome) - {Outcome.MALFORMED, Outcome.NOT_ENROLLED} == set(WORDS)
    accepted = {outcome for outcome in Outcome if outcome.accepted} | {Outcome.TICKET}  # after the first code
    assert all(text.startswith("accepted" if outcome in accepted else "refused: ") for outcome, text in WORDS.items())
    later = RecentLogin(at=0, accepted=False, outcome="later", service="sshd", rhost=None)
    assert words(later) == "refused"
