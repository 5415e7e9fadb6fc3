"""Tests of a backup that is rolled forward from the log: the lines that are used, and their effects."""

from __future__ import annotations

import dataclasses
from time import tzset
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_totp.core.record import Grace, HotpToken, Token, TotpToken, UserRecord
from pam_totp.core.verify import Decision, Outcome
from pam_totp.operations import audit_log
from pam_totp.operations.authenticate import facts
from pam_totp.operations.restored import Forwarded, Log, parse, written_at
from tests.core.strategies import records
from tests.support.site import KEY, fob, phone

NOW = 1_700_000_000  # 2023-11-14T22:13:20Z
BEFORE, AFTER = "2023-11-14T22:13:19Z host pam_totp[1]: ", "2023-11-14T22:13:20Z host pam_totp[1]: "
LINE = "pam_totp(sshd:auth): accepted user=alice by=code token=fob created=0 next=9"


def use(token: Token, user: str = "alice", verb: str = "accepted") -> str:
    """Return the log line of a login after which the record contains `token`."""
    record = UserRecord(user=user, tokens=(token,))
    decision = Decision(outcome=Outcome.CODE, record=record, token=token.name)
    return audit_log.line("sshd", verb, user=user, **facts(decision)[1], rhost="192.0.2.7")


def change(what: str, token: Token, at: int, user: str = "alice", **more: Any) -> str:
    said = audit_log.of_token(token)
    return audit_log.line("pam-totp", "changed", user=user, what=what, **said, **more, at=at, by="root")


def forward(record: UserRecord, *lines: str, restored_at: int | None = NOW) -> Forwarded:
    """Return the record, rolled forward from log lines. Lines without a header have a time before the restore."""
    log = Log(restored_at=restored_at, now=NOW)
    log.read(f"{BEFORE}{line}" if line.startswith("pam_totp(") else line for line in lines)
    return log.forward(record)


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
    Log(restored_at=NOW, now=NOW).read([text, f"pam_totp({text}", f"{LINE} {text}"])


@pytest.mark.parametrize("field", ["next=x", "next=-1", "next=18446744073709551617", "next=" + "1" * 5000, "nxt=9"])
def test_an_invalid_number_does_not_count(field: str) -> None:
    assert forward(alice(fob(5)), LINE.replace("next=9", field)).record == alice(fob(5, row_needed=True))


@pytest.mark.parametrize("gone", [" user=alice", " token=fob", " created=0"])
def test_a_line_that_identifies_no_token_does_not_count(gone: str) -> None:
    assert forward(alice(fob(5)), LINE.replace(gone, "")).record == alice(fob(5, row_needed=True))


def test_a_truncated_name_does_not_count() -> None:
    log = Log(restored_at=NOW, now=NOW)
    assert log.read([audit_log.line("x", "accepted", user="u" * 256, token="fob", created=0, next=9)]).lines == 1
    assert list(log.users()) == []


@pytest.mark.parametrize(
    ("field", "name"),
    [(field, name) for field in ("user", "token", "to") for name in ("", "\ud800", "x" * 256, "x\n", "x\u202ey")]
    + [("token", " x"), ("to", "x ")],
)
def test_a_line_with_a_name_that_no_record_can_have_does_not_count(field: str, name: str) -> None:
    said: dict[str, Any] = {"user": "bob", "token": "fob", "created": 7, "at": 100, "to": "new"}
    log = Log(restored_at=NOW, now=NOW)
    log.read([audit_log.line("x", "changed", **{**said, "what": "enroll"})])
    lines = [
        audit_log.line("x", "changed", **{**said, "what": what, field: name})
        for what in ("enroll", "rename", "recovery", "disable-token")
    ]
    assert log.read(lines).lines == 4
    for user in log.users():
        result = log.forward(UserRecord(user=user, tokens=(fob(5, created=7),)))
        assert name not in (user, *result.missing)
        assert not any(f"'{name}'" in said for said in notes(result))


@pytest.mark.parametrize("host", ["a\x1b[2J", "a\x07", "\x9b2J", "h\u202e"])
def test_a_host_that_would_control_the_terminal_does_not_count(host: str) -> None:
    assert parse(f"Nov 28 19:37:06 {host} pam_totp[471]: {LINE}") is None


@pytest.mark.parametrize("field", ["user", "token", "to"])
def test_a_name_that_would_control_the_terminal_does_not_count(field: str) -> None:
    said: dict[str, Any] = {"user": "alice", "token": "fob", "created": 7, "at": 100, "to": "new"}
    log = Log(restored_at=NOW, now=NOW)
    log.read(
        [audit_log.line("x", "changed", **{**said, "what": what, field: "a\x1b[2J"}) for what in ("enroll", "rename")]
    )
    result = log.forward(alice(fob(5, created=7)))
    assert all(text.isprintable() for text in (*notes(result), *log.forward(alice()).missing, *log.users()))


def test_the_lines_of_a_file_are_counted_with_their_times() -> None:
    log = Log(restored_at=NOW, now=NOW)
    span = log.read([f"Nov {day} 19:37:06 host pam_totp[1]: {LINE}" for day in (27, 28)] + ["something else"])
    assert (span.lines, span.first, span.last) == (2, "Nov 27 19:37:06 host", "Nov 28 19:37:06 host")
    assert dataclasses.astuple(log.read([LINE])) == (1, "", "")


@pytest.mark.parametrize(
    ("header", "time"),
    [
        ("2023-11-14T22:13:20.9Z host pam_totp: ", NOW),
        ("2023-11-14T23:13:20,123456+01:00 host pam_totp[4]: ", NOW),
        ("2023-11-14T20:13:20-0200 host pam_totp[4]: ", NOW),
        ("Tue 2023-11-14 22:13:20 UTC host pam_totp[4]: ", NOW),
        ("Tue 2023-11-14 23:13:20 CET host pam_totp[4]: ", NOW),
        ("Tue 2023-11-14 23:13:20 XYZ host pam_totp[4]: ", None),
        ("Nov 14 23:13:20 host pam_totp[4]: ", NOW),
        ("Nov 14 23:13:20.5 host pam_totp[4]: ", NOW),
        ("Nov 16 23:13:21 host pam_totp[4]: ", NOW - 363 * 86400 + 1),  # of the previous year
        ("Oct 29 02:30:00 host pam_totp[4]: ", 1_698_543_000),  # this time occurs twice: the later time is used
        ("Feb 29 00:00:00 host pam_totp[4]: ", 1_582_930_800),
        ("Foo 10 00:00:00 host pam_totp[4]: ", None),
        ("2023-13-14T22:13:20Z host pam_totp: ", None),
        ("", None),
    ],
)
def test_the_time_of_a_line_is_never_read_as_an_older_time(
    header: str, time: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        tzset()
        found = written_at(header + LINE, NOW)
    tzset()
    assert found == time


# ---- the effects of the lines


def test_a_counter_is_rolled_forward_by_accepted_and_refused_codes() -> None:
    result = forward(alice(fob(5)), use(fob(9)), use(fob(12), verb="refused"), use(fob(7)))
    assert result.record == alice(fob(12))
    assert notes(result) == ["counter 5 -> 12"]


def test_a_step_is_rolled_forward() -> None:
    last = NOW // 30 - 5
    result = forward(alice(phone(last_step=last - 9), phone(name="b", secret=KEY)), use(phone(last_step=last)))
    assert result.record == alice(phone(last_step=last), phone(name="b", secret=KEY)), "a TOTP token needs no log"


def test_a_step_in_the_future_is_ignored() -> None:
    result = forward(alice(phone(last_step=5)), use(phone(last_step=NOW // 30 + 6000)))
    assert result.record == alice(phone(last_step=5))
    assert notes(result) == ["ignored a step that is in the future"]


@pytest.mark.parametrize("period", [30, 60, 86_400])
@pytest.mark.parametrize("forged", [10**18, NOW // 29, NOW // 30 + 5762])
def test_a_forged_step_hides_no_used_step(period: int, forged: int) -> None:
    used = phone(period=period, last_step=NOW // period)
    lines = [use(used), use(used._replace(last_step=forged)), use(used._replace(last_step=used.next_factor - 9))]
    for said in (lines, lines[::-1]):
        result = forward(alice(phone(period=period, last_step=5)), *said)
        assert result.record == alice(used)
        assert notes(result) == [
            f"ignored a step that is in the future, next step 6 -> {used.next_factor}",
        ]


def test_a_step_of_a_fast_token_is_rolled_forward() -> None:
    used = phone(last_step=NOW // 30 + 5758)
    assert forward(alice(phone(last_step=5)), use(used)).record == alice(used)


def test_another_user_and_another_token_of_that_name_do_not_count() -> None:
    result = forward(alice(fob(5)), use(fob(9), user="bob"), use(fob(9, created=1)), use(fob(9, name="Fob")))
    assert result.record == alice(fob(5, row_needed=True))


@pytest.mark.parametrize(("known", "covered"), [(None, False), (4, False), (5, True), (6, True)])
def test_a_key_fob_that_the_log_does_not_cover_needs_codes_in_a_row(known: int | None, covered: bool) -> None:
    """The log might lack later uses if the last logged use is older than the backup."""
    result = forward(alice(fob(5)), *([] if known is None else [use(fob(known))]))
    assert result.record == alice(fob(max(5, known or 0), row_needed=not covered))
    assert ("codes in a row needed" in notes(result)[0]) is not covered


def test_a_use_after_the_restore_does_not_cover_a_key_fob() -> None:
    """A replayed code advances the counter of a restored store, but the log might still lack uses since the backup."""
    replayed = AFTER + use(fob(13))
    assert forward(alice(fob(12)), replayed).record == alice(fob(13, row_needed=True))
    assert forward(alice(fob(12)), replayed, use(fob(12))).record == alice(fob(13)), "an older use covers the key fob"


def test_without_a_time_no_line_covers_a_key_fob() -> None:
    assert forward(alice(fob(5)), use(fob(9)), restored_at=None).record == alice(fob(9, row_needed=True))
    log = Log(restored_at=NOW, now=NOW)
    log.read([use(fob(9))])
    assert log.forward(alice(fob(5))).record == alice(fob(9, row_needed=True)), "the time is only in the header"


def test_an_enrolment_in_the_log_covers_an_unused_key_fob() -> None:
    assert forward(alice(fob(5)), change("enroll", fob(5), 100)).record == alice(fob(5))


def test_recovery_codes_and_grace_of_a_backup_are_voided() -> None:
    grace = (Grace(service="sshd", rhost="192.0.2.7", granted=5),)
    before = alice(phone(), salt="00" * 16, recovery=("ab" * 32,), grace=grace, failures=3, failures_at=5)
    result = forward(before)
    assert result.record == alice(phone(), salt="00" * 16, failures=3, failures_at=5)
    assert result.void_codes == 1


def test_a_removed_token_is_removed() -> None:
    result = forward(alice(fob(5), phone()), change("remove", fob(7), 100))
    assert (result.record, notes(result)) == (alice(phone()), ["removed", ""])


def test_the_last_token_is_kept_as_disabled_so_that_nullok_does_not_apply() -> None:
    gone = [change("remove", fob(7), 100), change("remove", phone(last_step=9), 100)]
    kept = "removed: kept as disabled, because a user without a token passes nullok"
    result = forward(alice(fob(5)), *gone)
    assert (result.record, notes(result)) == (alice(fob(7, enabled=False)), [f"{kept}, counter 5 -> 7"])
    result = forward(alice(phone(), fob(5)), *gone)
    assert (result.record, notes(result)) == (alice(fob(7, enabled=False)), ["removed", f"{kept}, counter 5 -> 7"])
    assert result.missing == ()


def test_an_unconfirmed_token_does_not_keep_its_user_enrolled() -> None:
    gone = [change("remove", fob(5), 100)]
    unconfirmed = phone(confirmed=False)
    assert forward(alice(fob(5), unconfirmed), *gone).record == alice(fob(5, enabled=False), unconfirmed)
    result = forward(alice(fob(5, confirmed=False)), *gone)
    assert (result.record, notes(result)) == (None, ["removed"]), "the user was not enrolled"


def test_a_record_without_tokens_remains() -> None:
    assert forward(alice(salt="00" * 16, recovery=("ab" * 32,))).record == alice(salt="00" * 16)


def test_a_token_that_was_imported_again_is_disabled() -> None:
    """`import json` keeps the time of creation. The times of the lines decide, not the order of the files."""
    lines = [change("import", fob(7), 200), change("remove", fob(7), 100)]
    for said in (lines, lines[::-1]):
        result = forward(alice(fob(5)), *said)
        assert result.record == alice(fob(7, enabled=False)), "the later line can be forged"
        assert notes(result) == [
            "disabled: it was removed, and a log line that adds it again is ignored, counter 5 -> 7"
        ]


def test_a_new_token_of_the_same_name_does_not_keep_the_old_one() -> None:
    new = fob(0, created=150)
    lines = [change("remove", fob(7), 100), change("enroll", new, 150), use(fob(3, created=150))]
    result = forward(alice(fob(5), phone()), *lines)
    assert result.record == alice(phone())
    assert result.missing == ("fob",)


def test_a_disabled_token_is_disabled_and_never_enabled() -> None:
    off, on = change("disable-token", fob(5), 100), change("enable-token", fob(5), 200)
    assert forward(alice(fob(5)), off).record == alice(fob(5, enabled=False))
    result = forward(alice(fob(5)), on, off)
    assert result.record == alice(fob(5, enabled=False))
    assert notes(result) == ["disabled: a log line that enables it again is ignored"]
    result = forward(alice(fob(5, enabled=False)), on)
    assert result.record == alice(fob(5, enabled=False)), "a line can be forged, so it gives no rights"
    assert notes(result) == ["still disabled: it was enabled since the backup"]


def test_a_renamed_token_is_followed() -> None:
    lines = [change("rename", fob(7), 100, to="blue"), change("rename", fob(8, name="blue"), 200, to="green")]
    for name in ("fob", "blue", "green"):
        result = forward(alice(fob(5, name=name)), *lines, use(fob(20, name="green")))
        assert result.record == alice(fob(20, name=name))
    result = forward(alice(fob(5), phone()), *lines, change("remove", fob(9, name="green"), 300))
    assert result.record == alice(phone())
    assert forward(alice(fob(5)), change("rename", fob(5), 100, to="fob")).record == alice(fob(5))


def test_the_old_name_of_a_renamed_token_is_named() -> None:
    lines = [change("rename", fob(7), 100, to="blue"), use(fob(20, name="blue"))]
    assert notes(forward(alice(fob(5)), *lines)) == [
        "counter 5 -> 20, has its old name again: it was renamed to 'blue'"
    ]
    assert notes(forward(alice(fob(5, name="blue")), *lines)) == ["counter 5 -> 20"], "it was renamed before the backup"


@pytest.mark.parametrize("what", ["confirm", "resync", "accepted"])
def test_a_token_that_was_confirmed_since_the_backup_is_named(what: str) -> None:
    """The token stays unconfirmed, because lines can be forged."""
    line = use(fob(9)) if what == "accepted" else change(what, fob(9), 100)
    result = forward(alice(fob(5, confirmed=False)), line)
    assert result.record == alice(fob(9, confirmed=False))
    assert notes(result) == ["counter 5 -> 9, confirmed since the backup: confirm it again"]
    assert notes(forward(alice(fob(5)), line)) == ["counter 5 -> 9"]


def test_recovery_codes_in_the_log_are_named() -> None:
    line = audit_log.line("pam-totp", "changed", user="alice", what="recovery", codes=10, at=100, by="root")
    assert forward(alice(phone()), line, line.replace("100", "70")).recovery_made == 100
    assert forward(alice(phone()), line, line.replace("100", "70").replace("alice", "bob")).recovery_made == 100
    assert forward(alice(phone()), line.replace(" user=alice", "")).recovery_made is None
    assert forward(alice(phone()), line.replace(" at=", " store=/other at=")).recovery_made is None


def test_an_earlier_run_on_the_same_files_is_found() -> None:
    """An administrator might have renamed the store since the first run."""
    line = audit_log.line("pam-totp", "changed", user="alice", what="restored", store="/s.new", at=NOW, by="alice")
    log = Log(restored_at=NOW, now=NOW)
    assert log.last_restored is None
    log.read([line.replace(str(NOW), str(NOW - 1))])
    assert log.last_restored is None, "the line is about another restore"
    log.read([line, line.replace(str(NOW), str(NOW + 5)), line])
    assert log.last_restored == NOW + 5
    unknown = Log(restored_at=None, now=NOW)
    unknown.read([line])
    assert unknown.last_restored == NOW


def test_tokens_that_the_log_does_not_distinguish_are_disabled() -> None:
    """Two tokens of one import have the same time of creation, and are renamed."""
    one, two = fob(5), fob(900, name="fob-2", secret=KEY[::-1])
    lines = [
        change("rename", one, 100, to="old"),
        change("rename", two, 200, to="fob"),
        change("remove", fob(900, name="fob"), 300),
    ]
    result = forward(alice(one, two), *lines, use(fob(950)))
    assert result.record == alice(*(t.switched(False).with_row_needed() for t in (one, two)))
    assert notes(result) == 2 * ["disabled: the log cannot distinguish it from another token, codes in a row needed"]


def test_a_token_whose_name_two_tokens_had_is_disabled() -> None:
    """The log contains the removal of a second token, which had the same name and is missing from the backup."""
    one, two = fob(5), fob(900, name="old", secret=KEY[::-1])
    lines = [change("import", one, 50), change("import", two, 50), change("remove", two, 60)]
    result = forward(alice(one), *lines, change("rename", one, 100, to="old"))
    assert result.record == alice(one.switched(False).with_row_needed())


FORGED = {
    "enrolment": [change("enroll", fob(5), 1 << 61), change("enroll", fob(5), NOW)],
    "import": [change("import", fob(5), NOW)],
    "enabling": [change("enable-token", fob(5), 1 << 61), change("enable-token", fob(5), NOW)],
    "rename before": [change("rename", fob(5), 50, to="x")],
    "rename after": [change("rename", fob(5), 300, to="x")],
    "rename between": [change("rename", fob(5, name="blue"), 150, to="x")],
    "rename to it": [change("rename", fob(5, name="x"), 150, to="blue")],
    "swap": [change("rename", fob(5), 50, to="x"), change("rename", fob(5, name="y"), 60, to="fob")],
    "two names": [
        change("enroll", fob(5, name="x"), 50),
        change("rename", fob(5, name="x"), 50, to="fob"),
        change("enroll", fob(5), 50),
    ],
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("what", ["remove", "disable-token"])
@pytest.mark.parametrize("at", [200, NOW + 10 * 86_400, None])
def test_no_forged_line_enables_a_removed_or_disabled_token(forged: list[str], what: str, at: int | None) -> None:
    """`at` is the time in the true line. This time can be wrong or missing."""
    true = change(what, fob(5, name="blue"), at or 0)
    lines = [change("rename", fob(5), 100, to="blue"), true if at else true.replace(" at=0", "")]
    for said in ([*lines, *forged], [*forged, *lines]):
        result = forward(alice(fob(5), phone()), *said).record
        assert result is not None
        assert not [token for token in result.tokens if token.active and token.name == "fob"]
        assert [token for token in result.tokens if token.active] == [phone()]


def test_tokens_and_users_that_the_backup_lacks_are_named() -> None:
    lines = [
        change("enroll", fob(0), 100),
        change("rename", fob(0), 110, to="work"),
        change("import", phone(), 120),
        change("remove", phone(), 130),
    ]
    assert forward(alice(), *lines).missing == ("work",)
    assert forward(alice(fob(0, name="work")), *lines).missing == ()
    log = Log(restored_at=NOW, now=NOW)
    log.read(lines)
    assert list(log.users()) == ["alice"]


def test_changes_in_another_store_do_not_count() -> None:
    line = change("remove", fob(5), 100, store="/other")
    assert forward(alice(fob(5)), line).record == alice(fob(5, row_needed=True))
    log = Log({"/other"}, restored_at=NOW, now=NOW)
    log.read([line])
    assert log.forward(alice(fob(5))).record == alice(fob(5, enabled=False, row_needed=True))


def test_a_time_in_the_future_is_ignored() -> None:
    """One forged line with a future time could otherwise hide the latest creation of recovery codes."""
    line = audit_log.line("pam-totp", "changed", user="alice", what="recovery", codes=10, at=100, by="root")
    restored = line.replace("recovery", "restored")
    log = Log(restored_at=NOW, now=NOW)
    log.read(text.replace("at=100", f"at={at}") for text in (line, restored) for at in (100, NOW + 90_000, 1 << 61))
    assert (log.forward(alice(phone())).recovery_made, log.last_restored) == (100, None)


@given(records(), st.data())
def test_no_log_gives_a_right_that_the_backup_lacks(record: UserRecord, data: st.DataObject) -> None:
    """Forged lines can only remove rights: a token keeps or loses its rights, and an enrolled user stays enrolled."""
    whats = st.sampled_from(
        ["enroll", "import", "remove", "rename", "enable-token", "disable-token", "restored", "confirm"]
    )
    lines = []
    for token in record.tokens:
        for _ in range(data.draw(st.integers(0, 3))):
            said = {**audit_log.of_token(token), "next": data.draw(st.integers(0, 2**64))}
            more = {"what": data.draw(whats), "to": data.draw(st.sampled_from([t.name for t in record.tokens]))}
            at = data.draw(st.integers(0, 9) | st.integers(0, 2**64))
            lines.append(BEFORE + audit_log.line("x", "changed", user=record.user, **said, **more, at=at))
    log = Log(restored_at=NOW, now=NOW)
    log.read(lines)
    result = log.forward(record)
    assert result.record is None or result.record.recovery == () == result.record.grace
    assert not record.enrolled or (result.record is not None and result.record.enrolled)
    for old, new, _ in result.tokens:
        if new is None:
            continue
        assert new.next_factor >= old.next_factor
        assert new.row_needed >= old.row_needed
        assert new.enabled <= old.enabled
        assert isinstance(new, HotpToken | TotpToken)
        moved = {"counter", "last_step", "row_needed", "enabled"}
        assert all(getattr(new, name) == getattr(old, name) for name in old._fields if name not in moved)


@pytest.mark.parametrize("line", ["", LINE, f"Feb 30 10:00:00 host pam_totp[1]: {LINE}"])
def test_a_line_with_an_impossible_time_has_no_time(line: str) -> None:
    assert written_at(line, 1_795_900_000) is None


def test_a_token_removed_in_the_second_of_its_enrolment_is_removed() -> None:
    lines = [change(what, phone(created=100), 100) for what in ("enroll", "remove")]
    result = forward(alice(fob(5), phone(created=100)), *lines)
    assert notes(result)[1] == "removed"
    assert result.record is not None
    assert [token.name for token in result.record.tokens] == ["fob"]


# ---- the stock


def stocked(counter: int = 0) -> HotpToken:
    return fob(counter, serial="T-1", confirmed=False)


def test_a_token_in_stock_is_rolled_forward_by_the_lines_of_its_user() -> None:
    given = fob(3, serial="T-1", created=100)
    log = Log(restored_at=NOW, now=NOW)
    log.read(
        [f"{BEFORE}{change('assign', given, 100, serial='t 1', type='hotp')}", f"{BEFORE}{use(fob(9, created=100))}"]
    )
    log.read([f"{BEFORE}{change('rename', fob(9, created=100), 200, to='blue')}"])
    log.read([f"{BEFORE}{use(fob(12, name='blue', created=100))}"])
    token, said = log.forward_stock(stocked())
    assert (token, said) == (stocked(12).with_row_needed(), ["counter 0 -> 12", "codes in a row needed"])
    assert log.forward_stock(stocked(20))[0] == stocked(20).with_row_needed()
    assert log.forward_stock(fob(serial="T-2"))[0] == fob(serial="T-2", row_needed=True)


@pytest.mark.parametrize("what", ["return", "unassign"])
def test_a_token_that_came_back_into_stock_is_removed_from_its_user(what: str) -> None:
    record = alice(fob(5, serial="T-1"), phone())
    result = forward(record, change(what, fob(7, serial="T-1"), 100, serial="T-1", type="hotp"))
    assert result.record == alice(phone())
    assert forward(alice(phone()), change("assign", fob(), 100, serial="T-1")).missing == ("fob",)
