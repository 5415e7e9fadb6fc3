"""Tests of the statistics of a log and of a store."""

from __future__ import annotations

from typing import Any

from pam_totp.core.record import Token, UserRecord
from pam_totp.core.verify import Decision, Outcome
from pam_totp.metrics.exposition import text_of
from pam_totp.metrics.log_statistics import LogStatistics, prefix_of
from pam_totp.metrics.store_statistics import STATES, StoreStatistics, state_of
from pam_totp.operations import audit_log
from pam_totp.operations.authenticate import facts
from pam_totp.operations.restored import parse_with_service
from tests.support.site import fob, phone

SALT, DIGEST = "00" * 16, "ab" * 32


def read(*lines: str, at: int = 100) -> LogStatistics:
    log = LogStatistics()
    for line in lines:
        parsed = parse_with_service(line)
        assert parsed is not None, line
        log.add(at, *parsed)
    return log


def accepted(record: UserRecord, distance: int, service: str = "sshd") -> str:
    """Return the line about an accepted code of the first token of `record`, as a login writes it."""
    decision = Decision(outcome=Outcome.CODE, record=record, token=record.tokens[0].name, distance=distance)
    verb, fields = facts(decision)
    return audit_log.line(service, verb, user=record.user, **fields, rhost="192.0.2.7")


def user(name: str, *tokens: Token, **fields: Any) -> UserRecord:
    return UserRecord(user=name, tokens=tokens, **fields)


def store_of(*records: UserRecord) -> StoreStatistics:
    store = StoreStatistics()
    for record in records:
        store.add(record, 0)
    return store


def test_lines_are_counted_by_service_outcome_and_reason() -> None:
    log = read(
        accepted(user("alice", fob()), 0),
        accepted(user("alice", fob()), 0, "odd service"),
        "pam_totp(sshd:auth): refused user=alice reason=wrong",
        "pam_totp(sshd:auth): refused user=bob reason=wrong rhost=192.0.2.7",
        "pam_totp(sudo:auth): ignored user=carol reason=not-enrolled",
        "pam_totp(sudo:auth): error user=carol problem=broken",
        "pam_totp(pam-totp:auth): changed user=carol what=enroll",
    )
    assert log.answers == {
        ("sshd", "accepted", "code"): 1,
        ("odd service", "accepted", "code"): 1,
        ("sshd", "refused", "wrong"): 2,
        ("sudo", "ignored", "not-enrolled"): 1,
    }
    assert (log.lines, log.errors, log.first, log.last) == (7, 1, 100, 100)


def test_a_repeated_question_counts_once() -> None:
    line = accepted(user("alice", fob()), 3)
    log = read(line, f"{line.removesuffix(' rhost=192.0.2.7')} again=yes member=web1")
    assert log.answers == {("sshd", "accepted", "code"): 1}
    assert [found.ahead.codes for found in log.prefixes({})] == [1]


def test_the_prefix_that_runs_ahead_is_first() -> None:
    people = [user(f"user{i}", fob(serial=f"{'FT' if i % 2 else 'UB'}{i:06}", created=i)) for i in range(8)]
    log = read(*(accepted(person, 7 if i % 2 else i // 4) for i, person in enumerate(people)))
    prefixes = log.prefixes(store_of(*people).known)
    assert [(found.prefix, found.tokens, found.ahead.mean, found.ahead.most) for found in prefixes] == [
        ("FT00", 4, 7.0, 7),
        ("UB00", 4, 0.5, 1),
    ]
    assert [found.prefix for found in log.prefixes(store_of(*people).known, 1)] == ["F", "U"]


def test_a_token_without_a_serial_number_has_no_prefix() -> None:
    log = read(accepted(user("alice", fob()), 2), accepted(user("bob", fob(serial="12")), 2))
    known = store_of(user("alice", fob()), user("bob", fob(serial="12"))).known
    assert [found.prefix for found in log.prefixes(known)] == ["(none)"]
    assert prefix_of("12", 5) == "12"


def test_another_token_of_the_same_name_is_not_mixed_up() -> None:
    log = read(accepted(user("alice", fob(created=1)), 9))
    known = store_of(user("alice", fob(created=2, serial="FT000001"))).known
    assert [found.prefix for found in log.prefixes(known)] == ["(none)"]


def test_the_clock_that_is_furthest_off_is_first() -> None:
    people = [user("alice", phone()), user("bob", phone(serial="T1", period=60)), user("carol", phone())]
    lines = [accepted(people[0], 0), accepted(people[1], -2), accepted(people[1], -1), accepted(people[2], 1)]
    clocks = read(*lines).clocks(store_of(*people).known)
    assert [(clock.user, clock.drift.mean, clock.drift.least, clock.drift.most) for clock in clocks] == [
        ("bob", -1.5, -2, -1),
        ("carol", 1.0, 1, 1),
        ("alice", 0.0, 0, 0),
    ]
    assert clocks[0].facts is not None
    assert (clocks[0].facts.serial, clocks[0].facts.period) == ("T1", 60)


def test_forged_numbers_are_ignored() -> None:
    line = "pam_totp(sshd:auth): accepted user=alice by=code token=fob created={} next=1 ahead={}"
    log = read(line.format("x", 1), line.format(1, "x"), line.format(1, "1" * 300), line.format("9" * 5000, "1"))
    assert sum(distances.codes for distances in log.ahead.values()) <= 1


def test_tokens_are_counted_by_type_and_state() -> None:
    tokens = [
        fob(last_used=1),
        fob(),
        fob(row_needed=True),
        phone(confirmed=False),
        phone(enabled=False, confirmed=False),
    ]
    assert [state_of(token) for token in tokens] == list(STATES)
    store = store_of(*(user(f"u{i}", token) for i, token in enumerate(tokens)))
    assert store.tokens == {("hotp" if i < 3 else "totp", state): 1 for i, state in enumerate(STATES)}


def test_users_without_recovery_codes_are_the_enrolled_ones() -> None:
    store = store_of(
        user("alice", fob()),
        user("bob", fob(), salt=SALT, recovery=(DIGEST,)),
        user("carol", fob(confirmed=False)),
        user("dave", fob(), failures=3, failures_at=0),
    )
    assert (store.users, store.enrolled, store.without_recovery) == (4, 3, 2)
    assert store.failures == {"dave": 3}


def test_the_metrics_of_a_store_name_nobody() -> None:
    store = store_of(user("alice", fob(serial="FT0001", name="blue", last_used=1), failures=3, failures_at=0))
    text = text_of(store.metrics())
    assert 'pam_totp_tokens{type="hotp",state="active"} 1\n' in text
    assert "pam_totp_users_without_recovery_codes 1\n" in text
    for word in ("alice", "FT0001", "blue", "failures", "wrong"):
        assert word not in text
