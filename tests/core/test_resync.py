"""Tests of resynchronisation: the range of the search, its progress, and the update of the record."""

from __future__ import annotations

from typing import Any

import pytest

from pam_totp.core.oath import hotp
from pam_totp.core.policy import Policy
from pam_totp.core.record import Token, TotpToken, UserRecord
from pam_totp.operations import resync
from pam_totp.operations.resync import NotConsecutive, TokenChanged, candidates, is_last_accepted, locate, resynchronise
from pam_totp.store import NotThere
from tests.core.stores import Memory
from tests.support.site import KEY, fob, phone


def row(first: int, count: int = 2) -> tuple[str, ...]:
    return tuple(hotp(KEY, first + i) for i in range(count))


def test_an_event_token_is_searched_from_its_counter() -> None:
    assert candidates(fob(7), 2, 0, 100) == range(7, 108)


@pytest.mark.parametrize(
    ("token", "count", "within"),
    [
        (phone(), 2, range(0, 200)),  # the last of two codes is at most 100 steps before or after the clock
        (phone(), 3, range(0, 199)),
        (phone(drift=5), 2, range(4, 205)),
        (phone(last_step=99), 2, range(100, 200)),
        (phone(last_step=0), 2, range(1, 200)),
        (phone(last_step=1000), 2, range(1001, 200)),
    ],
)
def test_a_time_token_is_searched_around_its_clock_after_its_last_step(
    token: TotpToken, count: int, within: range
) -> None:
    found = candidates(token, count, 3000, 100)
    assert list(found) == list(within)


@pytest.mark.parametrize("first", [0, 1, 9_998, 9_999, 10_000, 10_001, 19_999, 20_000, 24_999])
def test_codes_in_a_row_are_found_anywhere_also_across_slices(first: int) -> None:
    assert locate(fob(0), row(first), range(25_000), lambda *_: None) == first


@pytest.mark.parametrize("first", [25_000, 25_001])
def test_codes_in_a_row_beyond_the_range_are_not_found(first: int) -> None:
    assert locate(fob(0), row(first), range(25_000), lambda *_: None) is None


def test_an_empty_range_has_no_match() -> None:
    told: list[object] = []
    assert locate(fob(0), row(0), range(5, 5), lambda *report: told.append(report)) is None
    assert told == []


def test_progress_grows_by_slices_to_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(resync, "_SLICE", 10_000)
    locate(fob(0), row(50_000), range(100, 25_000), lambda done, total: told.append((done, total)))
    assert told == [(10_000, 24_900), (20_000, 24_900), (24_900, 24_900)]
    told.clear()
    locate(fob(0), row(10_200), range(100, 25_000), lambda done, total: told.append((done, total)))
    assert told == [(10_000, 24_900), (24_900, 24_900)], "the search ends at the match"


# ---- search and update


def back(
    store: Memory,
    codes: tuple[str, ...],
    *tokens: Token,
    now: int = 3000,
    reach: int = 60_000,
    policy: Policy | None = None,
) -> Token:
    """Resynchronise the token of alice that shows `codes`, and return the token. By default, search all her tokens."""
    looked_at = tokens or store.read("alice").tokens
    return resynchronise(
        store,
        "alice",
        looked_at,
        codes,
        reach=reach,
        policy=policy or Policy(),
        now=lambda: now,
        progress=lambda _: lambda *_: None,
    )


def alice(*tokens: Token, **fields: Any) -> Memory:
    return Memory(UserRecord(user="alice", tokens=tokens, **fields))


def test_a_token_50_000_ahead_is_resynchronised_and_its_codes_used_up() -> None:
    store = alice(fob(5), failures=9, failures_at=0)
    token = back(store, row(50_000))
    assert token == fob(5).accepted(50_000, 2, 3000)
    assert store.read("alice").tokens == (token,)
    assert (store.read("alice").failures, store.read("alice").failures_at) == (5, 0)
    with pytest.raises(NotConsecutive):
        back(store, row(50_000))
    with pytest.raises(NotConsecutive):
        back(store, row(50_001))
    assert back(store, row(50_002)) == token.accepted(50_002, 2, 3000)


def test_a_resynchronisation_ends_a_lock_as_a_recovery_code_does() -> None:
    store = alice(fob(5), failures=3, failures_at=0)
    back(store, row(50_000), policy=Policy(lock_after=3))
    assert store.read("alice").failures == 2


def test_a_clock_that_is_far_off_is_corrected_by_its_drift() -> None:
    store = alice(phone(secret=KEY))
    token = back(store, row(1100), reach=1001)
    assert token == phone(secret=KEY).accepted(1100, 2, 3000)
    assert token._replace(drift=0) != token


def test_codes_that_are_reversed_or_out_of_reach_change_nothing() -> None:
    for codes, reach in [(row(0)[::-1], 100), (row(102), 100), (("000000", "000000"), 100)]:
        store = alice(fob(0), phone(secret=b"x" * 20))
        with pytest.raises(NotConsecutive):
            back(store, codes, reach=reach)
        assert store.writes == 0


def test_only_named_tokens_with_the_right_number_of_digits_are_searched() -> None:
    other = fob(0)._replace(name="other", secret=b"x" * 20)
    store = alice(other, fob(0))
    with pytest.raises(NotConsecutive):
        back(store, row(7), other)
    assert back(store, row(7), fob(0)).name == "fob"
    with pytest.raises(NotConsecutive):
        back(alice(fob(0)._replace(digits=8)), row(7))


@pytest.mark.parametrize(
    "meanwhile",
    [(), (fob(0)._replace(secret=b"x" * 20),), (fob(8),), (fob(9),), (fob(0)._replace(name="renamed"),)],
    ids=["removed", "another key", "used", "used up", "renamed"],
)
def test_a_token_that_was_changed_during_the_search_is_unchanged(meanwhile: tuple[Token, ...]) -> None:
    store = alice(*meanwhile)
    with pytest.raises(TokenChanged):
        back(store, row(7), fob(0))
    assert store.writes == 0
    assert store.read("alice").tokens == meanwhile


def test_a_user_deleted_during_the_search_is_unknown() -> None:
    with pytest.raises(NotThere):
        back(Memory(), row(7), fob(0))


def test_a_resynchronisation_confirms_an_unconfirmed_token() -> None:
    assert back(alice(fob(0)._replace(confirmed=False)), row(7)).confirmed


@pytest.mark.parametrize("token", [fob(52), phone(secret=KEY, last_step=51)])
def test_only_the_last_used_codes_are_recognised_as_used(token: Token) -> None:
    assert is_last_accepted(token, row(50))
    assert is_last_accepted(token, row(49, 3))
    for others in (row(49), row(51), row(52), row(50, 3), (hotp(KEY, 51), hotp(KEY, 50)), ("0000000", "0000000")):
        assert not is_last_accepted(token, others), others


@pytest.mark.parametrize("token", [fob(0), fob(1), phone(secret=KEY), phone(secret=KEY, last_step=0)])
def test_a_token_with_few_used_codes_recognises_none_before_them(token: Token) -> None:
    assert not is_last_accepted(token, row(0))
