"""Tests of a backup that is brought forward from the log: the lines that count, and what they change."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_totp.core.record import Grace, HotpToken, Token, TotpToken, UserRecord
from pam_totp.core.verify import Decision, Outcome
from pam_totp.operations import audit_log
from pam_totp.operations.authenticate import facts
from pam_totp.operations.restored import Forwarded, Log, parse
from tests.core.strategies import records
from tests.support.site import KEY, fob, phone

NOW = 1_700_000_000
LINE = "pam_totp(sshd:auth): accepted user=alice by=code token=fob created=0 next=9"


def use(token: Token, user: str = "alice", verb: str = "accepted") -> str:
    """Return the line of a login with this token, which has the state after it."""
    record = UserRecord(user=user, tokens=(token,))
    decision = Decision(outcome=Outcome.CODE, record=record, token=token.name)
    return audit_log.line("sshd", verb, user=user, **facts(decision)[1], rhost="192.0.2.7")


def change(what: str, token: Token, at: int, user: str = "alice", **more: Any) -> str:
    said = audit_log.of_token(token)
    return audit_log.line("pam-totp", "changed", user=user, what=what, **said, **more, at=at, by="root")


def forward(record: UserRecord, *lines: str) -> Forwarded:
    log = Log()
    log.read(lines)
    return log.forward(record, NOW)


def alice(*tokens: Token, **fields: Any) -> UserRecord:
    return UserRecord(user="alice", tokens=tokens, **fields)


def notes(result: Forwarded) -> list[str]:
    return [", ".join(said) for _, _, said in result.tokens]


# ---- the lines


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Nov 28 19:37:06 host pam_totp[471]: ",
        "Nov  8 19:37:06 host.example pam_totp[471]: ",
        "Nov 28 19:37:06.123456 host pam_totp[471]: ",
        "Nov 28 19:37:06 host pam_totp: ",
        "2026-11-28T19:37:06.123456+01:00 host pam_totp[471]: ",
        "2026-11-28T19:37:06+0000 host pam_totp[471]: ",
        "2026-11-28T19:37:06Z host pam_totp[471]: ",
        "Sat 2026-11-28 19:37:06 UTC host pam_totp[471]: ",
    ],
)
def test_lines_of_every_log_daemon_are_read(header: str) -> None:
    assert parse(header + LINE) == (
        "accepted",
        {"user": "alice", "by": "code", "token": "fob", "created": "0", "next": "9"},
    )


@pytest.mark.parametrize(
    "line",
    [
        f"Nov 28 19:37:06 host sshd[1]: Invalid user {LINE} from 192.0.2.7 port 22",
        f"Nov 28 19:37:06 host sshd[1]: Invalid user x pam_totp[1]: {LINE}",
        f"Nov 28 19:37:06 host sshd[1]: {LINE}",
        f"Nov 28 19:37:06 host su: pam_totp[1]: {LINE}",
        f"Nov 28 19:37:06 a b pam_totp[1]: {LINE}",
        f"xNov 28 19:37:06 host pam_totp[1]: {LINE}",
        f" {LINE}",
        f"{LINE} and more",
        f'{LINE} rhost="192.0.2.7',
        f'{LINE} rhost="\\x"',
        LINE.replace(":auth)", ")"),
        "",
    ],
)
def test_text_that_other_programs_log_does_not_count(line: str) -> None:
    assert parse(line) is None
    assert forward(alice(fob(5)), line).record == alice(fob(5, row_needed=True))


@given(service=st.text(max_size=30), user=st.text(max_size=255), token=st.text(max_size=255))
def test_every_written_line_is_read_back(service: str, user: str, token: str) -> None:
    line = audit_log.line(service, "changed", user=user, token=token, next=7)
    assert parse(f"Nov 28 19:37:06 host pam_totp[471]: {line}") == (
        "changed",
        {"user": user, "token": token, "next": "7"},
    )


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    Log().read([text, f"pam_totp({text}", f"{LINE} {text}"])


@pytest.mark.parametrize("field", ["next=x", "next=-1", "next=18446744073709551617", "next=" + "1" * 5000, "nxt=9"])
def test_an_invalid_number_does_not_count(field: str) -> None:
    assert forward(alice(fob(5)), LINE.replace("next=9", field)).record == alice(fob(5, row_needed=True))


@pytest.mark.parametrize("gone", [" user=alice", " token=fob", " created=0"])
def test_a_line_that_identifies_no_token_does_not_count(gone: str) -> None:
    assert forward(alice(fob(5)), LINE.replace(gone, "")).record == alice(fob(5, row_needed=True))


def test_a_truncated_name_does_not_count() -> None:
    log = Log()
    assert log.read([audit_log.line("x", "accepted", user="u" * 256, token="fob", created=0, next=9)]).lines == 1
    assert list(log.users()) == []


def test_the_lines_of_a_file_are_counted_with_their_times() -> None:
    log = Log()
    span = log.read([f"Nov {day} 19:37:06 host pam_totp[1]: {LINE}" for day in (27, 28)] + ["something else"])
    assert (span.lines, span.first, span.last) == (2, "Nov 27 19:37:06 host", "Nov 28 19:37:06 host")
    assert dataclasses.astuple(log.read([LINE])) == (1, "", "")


# ---- what they change


def test_a_counter_is_brought_forward_by_accepted_and_refused_codes() -> None:
    result = forward(alice(fob(5)), use(fob(9)), use(fob(12), verb="refused"), use(fob(7)))
    assert result.record == alice(fob(12))
    assert notes(result) == ["counter 5 -> 12"]


def test_a_step_is_brought_forward() -> None:
    last = NOW // 30 - 5
    result = forward(alice(phone(last_step=last - 9), phone(name="b", secret=KEY)), use(phone(last_step=last)))
    assert result.record == alice(phone(last_step=last), phone(name="b", secret=KEY)), "a clock needs no log"


def test_a_step_in_the_future_is_ignored() -> None:
    result = forward(alice(phone(last_step=5)), use(phone(last_step=NOW // 30 + 6000)))
    assert result.record == alice(phone(last_step=5))
    assert notes(result) == ["ignored a step that is in the future"]


def test_another_user_and_another_token_of_that_name_do_not_count() -> None:
    result = forward(alice(fob(5)), use(fob(9), user="bob"), use(fob(9, created=1)), use(fob(9, name="Fob")))
    assert result.record == alice(fob(5, row_needed=True))


@pytest.mark.parametrize(("known", "covered"), [(None, False), (4, False), (5, True), (6, True)])
def test_a_key_fob_that_the_log_does_not_cover_needs_a_row(known: int | None, covered: bool) -> None:
    """If the log knows only uses that are older than the backup, later ones may be missing too."""
    result = forward(alice(fob(5)), *([] if known is None else [use(fob(known))]))
    assert result.record == alice(fob(max(5, known or 0), row_needed=not covered))
    assert ("codes in a row needed" in notes(result)[0]) is not covered


def test_an_enrolment_in_the_log_covers_an_unused_key_fob() -> None:
    assert forward(alice(fob(5)), change("enroll", fob(5), 100)).record == alice(fob(5))


def test_recovery_codes_and_grace_of_a_backup_end() -> None:
    grace = (Grace(service="sshd", rhost="192.0.2.7", granted=5),)
    before = alice(phone(), salt="00" * 16, recovery=("ab" * 32,), grace=grace, failures=3, failures_at=5)
    result = forward(before)
    assert result.record == alice(phone(), salt="00" * 16, failures=3, failures_at=5)
    assert result.voided == 1


def test_a_removed_token_is_removed_and_the_last_one_ends_the_record() -> None:
    gone = change("remove", fob(7), 100)
    assert forward(alice(fob(5), phone()), gone).record == alice(phone())
    result = forward(alice(fob(5)), gone)
    assert (result.record, notes(result)) == (None, ["removed"])


def test_a_record_without_tokens_remains() -> None:
    assert forward(alice(salt="00" * 16, recovery=("ab" * 32,))).record == alice(salt="00" * 16)


def test_a_token_that_was_imported_again_remains() -> None:
    """`import json` keeps the time of creation. The times of the lines count, not the order of the files."""
    lines = [change("import", fob(7), 200), change("remove", fob(7), 100)]
    assert forward(alice(fob(5)), *lines).record == alice(fob(7))
    assert forward(alice(fob(5)), *reversed(lines)).record == alice(fob(7))


def test_a_new_token_of_the_same_name_does_not_keep_the_old_one() -> None:
    new = fob(0, created=150)
    lines = [change("remove", fob(7), 100), change("enroll", new, 150), use(fob(3, created=150))]
    result = forward(alice(fob(5), phone()), *lines)
    assert result.record == alice(phone())
    assert result.missing == ("fob",)


def test_a_disabled_token_is_disabled_and_never_enabled() -> None:
    off, on = change("disable-token", fob(5), 100), change("enable-token", fob(5), 200)
    assert forward(alice(fob(5)), off).record == alice(fob(5, enabled=False))
    assert forward(alice(fob(5)), on, off).record == alice(fob(5))
    result = forward(alice(fob(5, enabled=False)), on)
    assert result.record == alice(fob(5, enabled=False)), "lines can be forged, so they open nothing"
    assert notes(result) == ["still disabled: it was enabled since the backup"]


def test_a_renamed_token_is_followed() -> None:
    lines = [change("rename", fob(7), 100, to="blue"), change("rename", fob(8, name="blue"), 200, to="green")]
    for name in ("fob", "blue", "green"):
        result = forward(alice(fob(5, name=name)), *lines, use(fob(20, name="green")))
        assert result.record == alice(fob(20, name=name))
    result = forward(alice(fob(5), phone()), *lines, change("remove", fob(9, name="green"), 300))
    assert result.record == alice(phone())
    assert forward(alice(fob(5)), change("rename", fob(5), 100, to="fob")).record == alice(fob(5))


def test_names_that_the_log_does_not_tell_apart_need_a_row() -> None:
    """Two tokens of one import have the same time of creation, and their names change."""
    one, two = fob(5), fob(900, name="fob-2", secret=KEY[::-1])
    lines = [
        change("rename", one, 100, to="old"),
        change("rename", two, 200, to="fob"),
        change("remove", fob(900, name="fob"), 300),
    ]
    result = forward(alice(one, two), *lines, use(fob(950)))
    assert result.record == alice(one.with_row_needed(), two.with_row_needed())
    assert notes(result) == 2 * ["the log names it ambiguously, codes in a row needed"]


def test_tokens_and_users_that_the_backup_lacks_are_named() -> None:
    lines = [
        change("enroll", fob(0), 100),
        change("rename", fob(0), 110, to="work"),
        change("import", phone(), 120),
        change("remove", phone(), 130),
    ]
    assert forward(alice(), *lines).missing == ("work",)
    assert forward(alice(fob(0, name="work")), *lines).missing == ()
    log = Log()
    log.read(lines)
    assert list(log.users()) == ["alice"]


def test_changes_in_another_store_do_not_count() -> None:
    line = change("remove", fob(5), 100, store="/other")
    assert forward(alice(fob(5)), line).record == alice(fob(5, row_needed=True))
    log = Log("/other")
    log.read([line])
    assert log.forward(alice(fob(5)), NOW).record is None


@given(records(), st.data())
def test_no_log_gives_a_right_that_the_backup_lacks(record: UserRecord, data: st.DataObject) -> None:
    """Whatever lines an account forges, each token loses rights or keeps them, and no token is added."""
    whats = st.sampled_from(["enroll", "import", "remove", "rename", "enable-token", "disable-token", "restored"])
    lines = []
    for token in record.tokens:
        for _ in range(data.draw(st.integers(0, 3))):
            said = {**audit_log.of_token(token), "next": data.draw(st.integers(0, 2**64))}
            more = {"what": data.draw(whats), "to": data.draw(st.sampled_from([t.name for t in record.tokens]))}
            at = data.draw(st.integers(0, 9))
            lines.append(audit_log.line("x", "changed", user=record.user, **said, **more, at=at))
    log = Log()
    log.read(lines)
    result = log.forward(record, NOW)
    assert result.record is None or result.record.recovery == () == result.record.grace
    for old, new, _ in result.tokens:
        if new is None:
            continue
        assert new.next_factor >= old.next_factor
        assert new.row_needed >= old.row_needed
        assert new.enabled <= old.enabled
        assert isinstance(new, HotpToken | TotpToken)
        moved = {"counter", "last_step", "row_needed", "enabled"}
        assert all(getattr(new, name) == getattr(old, name) for name in old._fields if name not in moved)
