"""Tests of the record: it is always valid, changes only by named transitions, and its repr shows no secret."""

from __future__ import annotations

import traceback
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pam_totp.core.record import (
    DAY,
    KEPT_CHANGES,
    MAX_RECENT,
    TIME_LIMIT,
    Grace,
    HotpToken,
    RecordError,
    Token,
    TotpToken,
    UserRecord,
)
from pam_totp.core.secretfile import base32
from tests.core.strategies import TIME_END, hotp_tokens, records, times, tokens, totp_tokens
from tests.support.site import KEY, fob, phone

DIGEST = "ab" * 32
SALT = "00" * 16
LIMIT = 2**64


def alice(*held: Token, **fields: Any) -> UserRecord:
    return UserRecord(user="alice", tokens=held, **fields)


# ---- every constructor checks the fields


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"secret": bytearray(KEY)}, "secret: must be 112 to 1024 bits"),
        ({"secret": "12345678901234567890"}, "secret: "),
        ({"secret": b"x" * 13}, "secret: "),
        ({"secret": b"x" * 129}, "secret: "),
        ({"name": ""}, "name: "),
        ({"digits": 9}, "digits: "),
        ({"digits": True}, "digits: "),
        ({"algorithm": "sha1"}, "algorithm: "),
        ({"created": None}, "created: "),
        ({"created": -1}, "created: "),
        ({"created": 1.5}, "created: "),
        ({"last_used": TIME_END}, "last_used: "),
        ({"enabled": 1}, "enabled: "),
        ({"serial": ""}, "serial: "),
        ({"counter": -1}, "counter: "),
        ({"counter": LIMIT + 1}, "counter: "),
    ],
)
def test_a_token_with_an_invalid_field_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        fob(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"user": "a\0b"}, "user: "),
        ({"user": "a\nb"}, "user: "),
        ({"user": "\udcff"}, "user: "),
        ({"user": b"alice"}, "user: "),
        ({"tokens": [fob()]}, "tokens: "),
        ({"tokens": (1,)}, "tokens: "),
        ({"tokens": (fob(), fob(name="other"))}, "duplicate secret"),
        ({"tokens": (fob(), phone(name="fob"))}, "duplicate name"),
        ({"recovery": [DIGEST], "salt": SALT}, "recovery: must be a list"),
        ({"recovery": (DIGEST, 5), "salt": SALT}, r"recovery\[1\]: "),
        ({"recovery": (DIGEST, [DIGEST]), "salt": SALT}, r"recovery\[1\]: "),
        ({"recovery": (DIGEST,)}, "salt: required"),
        ({"failures": 1}, "failures_at: required"),
        ({"grace": (("sshd", "x", 0),)}, "grace: "),
    ],
)
def test_a_record_with_an_invalid_field_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecordError, match=said):
        UserRecord(**{"user": "alice"} | fields)


# ---- repr and tracebacks show no secret


@given(records())
def test_neither_repr_nor_str_nor_format_shows_a_key_or_a_digest(record: UserRecord) -> None:
    record = record._replace(user="alice")  # a random user name could contain the text of a key
    for value in (record, *record.tokens, record.tokens, *record.grace):
        for shown in (repr(value), str(value), f"{value}", f"{value!r:>10}"):
            for token in record.tokens:
                assert base32(token.secret) not in shown
                assert repr(token.secret)[2:-1] not in shown
                assert token.secret.hex() not in shown
            assert not [d for d in record.recovery if d in shown]
            assert record.salt is None or record.salt not in shown


def test_the_repr_names_the_type_of_a_token_and_a_record() -> None:
    assert repr(fob()) == "<hotp token 'fob'>"
    assert repr(phone()) == "<totp token 'phone'>"
    assert repr(alice(fob(), phone())) == "<record of 'alice': 2 tokens>"
    assert "12345678901234567890" not in repr(Grace(service="sshd", rhost="h", granted=0))


def test_a_traceback_of_a_refused_key_does_not_show_the_key() -> None:
    with pytest.raises(RecordError) as caught:
        fob(secret=b"marker-short!")
    assert "marker-short" not in "".join(traceback.format_exception_only(caught.value))


# ---- transitions: counters and steps


@given(token=hotp_tokens, ahead=st.integers(0, 1000), count=st.integers(1, 3), now=times)
def test_a_counter_moves_to_just_after_the_last_code(token: HotpToken, ahead: int, count: int, now: int) -> None:
    assume(token.counter + ahead + count <= LIMIT)
    after = token.accepted(token.counter + ahead, count, now)
    assert after.counter == token.counter + ahead + count
    assert after.last_used == now
    assert after.confirmed
    still = token.row_needed and count == 1
    expected = token._replace(counter=after.counter, last_used=now, confirmed=True, row_needed=still)
    assert after == expected, "no other field changes"


@given(token=hotp_tokens, back=st.integers(1, 1000), count=st.integers(1, 3))
def test_a_counter_never_decreases(token: HotpToken, back: int, count: int) -> None:
    assume(token.counter >= back)
    with pytest.raises(ValueError, match="must not decrease"):
        token.accepted(token.counter - back, count, 0)


@given(token=tokens, ahead=st.integers(-5, 1000))
def test_a_counter_or_step_is_rolled_forward_and_never_back(token: Token, ahead: int) -> None:
    next_factor = token.next_factor + ahead
    assume(0 <= next_factor <= LIMIT)
    after = token.rolled_forward(next_factor)
    assert after.next_factor == max(token.next_factor, next_factor)
    assert (
        after._replace(**{name: getattr(token, name) for name in ("counter", "last_step") if name in token._fields})
        == token
    )


def test_a_third_code_in_a_row_ends_the_need_for_codes_in_a_row() -> None:
    assert phone(row_needed=True).accepted(5, 1, 150).row_needed
    assert not phone(row_needed=True).accepted(5, 1, 150, ends_consecutive=True).row_needed
    assert fob(row_needed=True).used_up(5, 2).row_needed, "refused codes do not clear `row_needed`"


def test_the_last_counter_has_no_successor() -> None:
    spent = fob(counter=LIMIT - 1).accepted(LIMIT - 1, 1, 0)
    assert spent.counter == LIMIT
    with pytest.raises(RecordError):
        spent.accepted(LIMIT, 1, 0)


@given(token=totp_tokens, step=st.integers(0, LIMIT - 4), count=st.integers(1, 3), now=times)
def test_a_time_token_moves_to_the_last_step_and_one_code_keeps_the_drift(
    token: TotpToken, step: int, count: int, now: int
) -> None:
    if token.last_step is not None and step <= token.last_step:
        with pytest.raises(ValueError, match="must not decrease"):
            token.accepted(step, count, now)
        return
    last = step + count - 1
    drift = token.drift if count == 1 else last - now // token.period
    assume(abs(drift) <= 2**31)
    after = token.accepted(step, count, now)
    assert (after.last_step, after.drift, after.last_used, after.confirmed) == (last, drift, now, True)
    still = token.row_needed and count == 1
    assert after == token._replace(last_step=last, drift=drift, last_used=now, confirmed=True, row_needed=still)


def test_step_0_counts_as_used() -> None:
    used = phone().accepted(0, 1, 0)
    assert used.last_step == 0
    with pytest.raises(ValueError, match="must not decrease"):
        used.accepted(0, 1, 0)
    assert used.accepted(1, 1, 30).last_step == 1


def test_a_token_of_an_unknown_type_has_no_transition() -> None:
    with pytest.raises(NotImplementedError):
        Token(name="x", secret=KEY, created=0).accepted(0, 1, 0)
    with pytest.raises(NotImplementedError):
        _ = Token(name="x", secret=KEY, created=0).next_factor
    with pytest.raises(NotImplementedError):
        Token(name="x", secret=KEY, created=0).rolled_forward(1)


# ---- changes by the administrator


@given(tokens)
def test_a_named_change_changes_only_its_field(token: Token) -> None:
    assert token.renamed("other") == token._replace(name="other")
    assert token.with_serial("S1") == token._replace(serial="S1")
    assert token.with_serial(None).serial is None
    assert token.switched(False) == token._replace(enabled=False)
    assert token.switched(True) == token._replace(enabled=True)
    assert token.confirmed_without_code() == token._replace(confirmed=True)


def test_only_an_enabled_and_confirmed_token_is_active() -> None:
    active = {(e, c): fob(enabled=e, confirmed=c).active for e in (True, False) for c in (True, False)}
    assert active == {(True, True): True, (True, False): False, (False, True): False, (False, False): False}


def test_enrolled_means_a_confirmed_token_enabled_or_not() -> None:
    assert not alice().enrolled
    assert not alice(fob(confirmed=False)).enrolled
    assert alice(fob(enabled=False)).enrolled
    assert alice(fob(confirmed=False), phone()).enrolled
    assert not alice(salt=SALT, recovery=(DIGEST,)).enrolled, "recovery codes alone do not enrol a user"


def test_a_change_of_tokens_is_made_by_name_and_voids_grace() -> None:
    grace = (Grace(service="sshd", rhost="h", granted=0),)
    record = alice(fob(), grace=grace, failures=3, failures_at=7, refused=4)
    assert record.token("fob") is record.tokens[0]
    assert record.token("phone") is None
    added = record.with_token(phone())
    assert [t.name for t in added.tokens] == ["fob", "phone"]
    renamed = record.with_changed(record.tokens[0], record.tokens[0].renamed("key"))
    assert [t.name for t in renamed.tokens] == ["key"]
    removed = added.without_token("fob")
    assert [t.name for t in removed.tokens] == ["phone"]
    for after in (added, renamed, removed):
        assert after.grace == ()
        assert (after.failures, after.failures_at, after.refused) == (3, 7, 4), "a change of tokens keeps the failures"
    with pytest.raises(RecordError, match="duplicate name"):
        record.with_token(fob(secret=b"x" * 20))
    with pytest.raises(RecordError, match="duplicate secret"):
        record.with_token(phone(secret=KEY))


def test_a_change_of_grace_changes_only_grace() -> None:
    record = alice(fob(), failures=3, failures_at=7)
    grace = (Grace(service="sshd", rhost="192.0.2.7", granted=5),)
    assert record.with_grace(grace) == record._replace(grace=grace)


def test_a_record_without_tokens_keeps_recovery_codes_and_failures() -> None:
    grace = (Grace(service="sshd", rhost="192.0.2.7", granted=5),)
    record = alice(fob(), salt=SALT, recovery=(DIGEST,), failures=3, failures_at=7, refused=2, grace=grace)
    assert record.without_tokens("bob") == UserRecord(
        user="bob", salt=SALT, recovery=(DIGEST,), failures=3, failures_at=7, refused=2
    )


def test_new_recovery_codes_replace_the_old_codes() -> None:
    record = alice(fob(), salt=SALT, recovery=(DIGEST,)).with_recovery("11" * 16, ("cd" * 32, "ef" * 32))
    assert (record.salt, record.recovery) == ("11" * 16, ("cd" * 32, "ef" * 32))


# ---- failures


def counted(failures: int, at: int | None = 0, **fields: Any) -> UserRecord:
    return alice(fob(), failures=failures, failures_at=at, **fields)


@pytest.mark.parametrize(
    ("failures", "at", "now", "then"),
    [
        (0, None, 5, (0, None)),
        (0, 7, 5, (0, 7)),
        (0, 0, 30 * DAY, (0, 0)),
        (1, 0, 0, (1, 0)),
        (1, 0, DAY - 1, (1, 0)),
        (1, 0, DAY, (0, DAY)),
        (3, 100, 100 + DAY - 1, (3, 100)),
        (3, 100, 100 + DAY, (2, 100 + DAY)),
        (3, 100, 100 + 2 * DAY + 5, (1, 100 + 2 * DAY)),
        (3, 100, 100 + 3 * DAY, (0, 100 + 3 * DAY)),
        (3, 100, TIME_END - 1, (0, 100 + 3 * DAY)),
        (2**62, 0, 2**62 - 1, (2**62 - (2**62 - 1) // DAY, (2**62 - 1) // DAY * DAY)),
    ],
)
def test_failures_decrease_by_one_for_every_full_day(
    failures: int, at: int | None, now: int, then: tuple[int, int | None]
) -> None:
    assert counted(failures, at).failures_now(now) == then


def test_failures_decrease_although_a_failure_is_added_every_day() -> None:
    record = counted(10, 0)
    for day in range(1, 8):
        record = record.refused_as_wrong(day * DAY + 3600)
    assert record.failures == 10, "each day adds one failure, and one failure expires"
    for day in range(8, 15):
        record = record.refused_as_wrong(2 * day * DAY)
    assert record.failures < 10


def test_a_failure_is_not_lost_when_the_clock_goes_back_and_returns() -> None:
    now = 20_000 * DAY
    record = counted(0, None)
    for _ in range(4):
        record = record.refused_as_wrong(now)
    record = record.refused_as_wrong(0)  # the clock of a machine without a battery, before its first synchronisation
    assert record.failures == 5
    assert record.failures_now(now)[0] == 5
    assert record.failures_now(now + DAY)[0] == 4


@given(record=records(), now=times, again=times)
def test_failures_fall_by_at_most_one_a_day_and_never_grow_with_time(record: UserRecord, now: int, again: int) -> None:
    failures, since = record.failures_now(now)
    assert 0 <= failures <= record.failures
    if record.failures_at is not None:
        assert record.failures - failures <= max(now - record.failures_at, 0) // DAY
    assert (since is None) == (record.failures_at is None)
    if since is not None and record.failures_at is not None:
        assert since - record.failures_at == (record.failures - failures) * DAY
    later = record._replace(failures=failures, failures_at=since)
    assert later.failures_now(max(now, again)) == record.failures_now(max(now, again)), (
        "a read between the changes has no effect"
    )


def test_a_wrong_answer_is_a_failure_but_a_replay_is_only_a_refusal() -> None:
    record = counted(2, 100, refused=6)
    assert record.refused_uncounted() == record._replace(refused=7)
    assert record.refused_as_wrong(200) == record._replace(failures=3, refused=7)
    assert counted(0, None).refused_as_wrong(200) == counted(1, 200, refused=1)
    assert counted(1, 0).refused_as_wrong(5 * DAY) == counted(1, 5 * DAY, refused=1)
    assert counted(0, 300).refused_as_wrong(200) == counted(1, 300, refused=1), "the clock was set back"


def test_counters_stop_at_their_maximum() -> None:
    """At the maximum counts, the store must still accept a right code, and still write a refusal."""
    full = counted(2**62, 2**62 - 1, refused=2**62)
    assert full.refused_uncounted() == full
    assert full.refused_as_wrong(2**62 - 1) == full


@pytest.mark.parametrize("count", [1, 2, 3])
def test_after_accepted_codes_only_time_has_lowered_the_count(count: int) -> None:
    record = counted(30, 100, refused=6)
    after = record.accepted(record.tokens[0], 0, count, 100 + DAY + 1)
    assert (after.failures, after.failures_at, after.refused) == (29, 100 + DAY, 0)


@pytest.mark.parametrize(
    ("failures", "now", "most", "own", "then"),
    [
        (3, 100, 5, 0, (3, 100)),
        (30, 100, 5, 0, (5, 100)),
        (30, 100, 0, 0, (0, 100)),
        (30, 100 + 2 * DAY + 9, 5, 0, (5, 100 + 2 * DAY)),
        (6, 100 + 2 * DAY, 5, 0, (4, 100 + 2 * DAY)),
        (30, 0, 5, 0, (5, 100)),
        (3, 100, 5, 1, (2, 100)),
        (6, 100, 5, 1, (5, 100)),
        (1, 100, 5, 1, (0, 100)),
        (1, 100 + DAY, 5, 1, (0, 100 + DAY)),
    ],
)
def test_a_lowered_count_keeps_its_time(
    failures: int, now: int, most: int, own: int, then: tuple[int, int | None]
) -> None:
    record = counted(failures, 100, refused=6)
    after = record.lowered(most, now, own=own)
    assert after == record._replace(failures=then[0], failures_at=then[1])


@given(
    st.lists(
        st.tuples(st.integers(0, 40 * DAY), st.sampled_from(["wrong", "wrong", "wrong", "code", "row", "recovery"])),
        max_size=60,
    )
)
def test_no_sequence_of_clocks_lowers_the_count_by_more_than_one_a_day(history: list[tuple[int, str]]) -> None:
    """Each event has its own time. Sum the failures that the decrease of one a day removed before each event."""
    record, expired, clocks = counted(0, None, salt=SALT, recovery=(DIGEST,)), 0, []
    for counter, (now, event) in enumerate(history):
        before, _ = record.failures_now(now)
        expired += record.failures - before
        if event == "wrong":
            clocks.append(now)
            record = record.refused_as_wrong(now)
            assert record.failures == before + 1, "each wrong answer adds one failure"
        elif event == "recovery":
            record = record.recovered(DIGEST, 5, now)
            assert record.failures == min(before, 5)
        else:
            count = 1 if event == "code" else 2
            record = record.accepted(record.tokens[0], 2 * counter, count, now)
            record = record if count == 1 else record.lowered(5, now)
            assert record.failures == (before if count == 1 else min(before, 5))
        highest = max(clock for clock, _ in history[: counter + 1])
        assert expired <= (highest - min(clocks)) // DAY if clocks else expired == 0


def test_a_success_moves_only_the_token_of_the_code() -> None:
    record = alice(fob(), phone())
    after = record.accepted(record.tokens[1], 7, 1, 210)
    assert after.tokens == (record.tokens[0], record.tokens[1].accepted(7, 1, 210))


def test_a_used_recovery_code_is_removed_and_lowers_the_count() -> None:
    record = counted(30, 5, refused=9, salt=SALT, recovery=(DIGEST, "cd" * 32))
    after = record.recovered(DIGEST, 4, 5 + DAY)
    assert after == record._replace(recovery=("cd" * 32,), failures=4, failures_at=5 + DAY, refused=0)


def test_unlocking_clears_only_the_failures() -> None:
    record = counted(30, 5, refused=9)
    assert record.unlocked() == record._replace(failures=0, failures_at=None)


def test_only_the_last_changes_by_the_desk_are_kept_and_a_login_keeps_them() -> None:
    record = UserRecord(user="alice", tokens=(fob(),))
    made = [f"{at} unlock dora" for at in range(KEPT_CHANGES + 2)]
    for entry in made:
        record = record.with_change(entry)
    assert record.change_entries == made[2:]
    assert record.accepted(record.tokens[0], 0, 1, 9).changes == record.changes
    assert record.longest().changes == record.changes, "a slot has space for the changes"
    assert record.without_tokens("bob").change_entries == []
    assert record.lasting != UserRecord(user="alice", tokens=record.tokens).lasting, "a change is written to both slots"
    long = record.with_change("x" * (MAX_RECENT - 20))
    assert long.change_entries == [made[-1], "x" * (MAX_RECENT - 20)], "the oldest entries are dropped"


def test_entries_that_are_no_recent_login_are_not_shown() -> None:
    entries = (
        "accepted 5 code sshd",
        f"accepted {TIME_LIMIT} code sshd",
        "accepted x code sshd",
        "seen 5 code sshd",
        "x",
    )
    shown = UserRecord(user="alice", recent="; ".join(entries)).recent_logins
    assert [login.entry() for login in shown] == ["accepted 5 code sshd"]
