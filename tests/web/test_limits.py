"""Tests of the counters of the rate limits: time windows, several limits at once, and full tables."""

from __future__ import annotations

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pam_totp.web.limits import BYTES_OF_KEY, BYTES_OF_TIME, MAX_KNOWN, Budget, Limits
from tests.web.kit import Clock

TWO_A_MINUTE = Budget("demo", ((2, 60.0),))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limits(clock: Clock) -> Limits:
    return Limits(clock)


def test_a_window_moves_with_the_time(limits: Limits, clock: Clock) -> None:
    admitted = []
    for _ in range(7):
        admitted.append(limits.admit([(TWO_A_MINUTE, "key")]))
        clock.advance(20)
    assert admitted == [True, True, False, True, True, False, True]


def test_the_strictest_rate_of_a_budget_applies(limits: Limits, clock: Clock) -> None:
    budget = Budget("demo", ((2, 60.0), (3, 3600.0)))
    admitted = []
    for _ in range(4):
        admitted += [limits.admit([(budget, "key")]) for _ in range(3)]
        clock.advance(60)
    assert admitted == [True, True, False] + [True, False, False] + [False] * 6
    clock.advance(3600)
    assert limits.admit([(budget, "key")])


def test_the_wait_is_the_time_until_the_next_request_is_admitted(limits: Limits, clock: Clock) -> None:
    charges = [(Budget("demo", ((2, 60.0), (3, 3600.0))), "key"), (Budget("other", ((9, 60.0),)), "key")]
    assert limits.wait(charges) == 0.0
    assert limits.admit(charges)
    clock.advance(15)
    assert limits.admit(charges)
    for wait in (45.0, 3540.0):
        assert limits.wait(charges) == wait
        clock.advance(wait - 1)
        assert not limits.admit(charges)
        clock.advance(1)
        assert limits.wait(charges) == 0.0
        assert limits.admit(charges)


def test_a_refused_request_does_not_count_in_its_budgets(limits: Limits) -> None:
    one, many = Budget("one", ((1, 60.0),)), Budget("many", ((10, 60.0),))
    assert limits.admit([(many, "account"), (one, "network")])
    assert not any(limits.admit([(many, "account"), (one, "network")]) for _ in range(20))
    assert [limits.admit([(many, "account")]) for _ in range(10)] == [True] * 9 + [False]


def test_refused_requests_drop_no_key(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pam_totp.web.limits.MAX_KEYS", 5)
    block = Budget("block", ((1, 60.0),))
    assert limits.admit([(block, "x")])
    assert [limits.admit([(TWO_A_MINUTE, "key")]) for _ in range(2)] == [True, True]
    assert not any(limits.admit([(TWO_A_MINUTE, f"other {i}"), (block, "x")]) for i in range(50))
    assert not limits.admit([(TWO_A_MINUTE, "key")])


def test_a_full_table_drops_the_keys_with_the_fewest_requests(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pam_totp.web.limits.MAX_KEYS", 5)
    for key in ("attacked", "attacked", "once"):
        limits.admit([(TWO_A_MINUTE, key)])
    for i in range(1000):
        limits.admit([(TWO_A_MINUTE, f"other {i}")])
    assert not limits.admit([(TWO_A_MINUTE, "attacked")]), "other keys do not displace the key with the most requests"
    assert [limits.admit([(TWO_A_MINUTE, "once")]) for _ in range(2)] == [True, True], "the oldest keys are dropped"
    assert len(limits._tables["demo"]) <= 5


def test_expired_requests_release_their_key(limits: Limits, clock: Clock, monkeypatch: Any) -> None:
    monkeypatch.setattr("pam_totp.web.limits.MAX_KEYS", 5)
    budget = Budget("demo", ((3, 60.0),))
    for _ in range(3):
        limits.admit([(budget, "past")])
    clock.advance(59)
    limits.admit([(budget, "past")])
    limits.admit([(budget, "two"), (budget, "three")])
    limits.admit([(budget, "two"), (budget, "three")])
    clock.advance(2)
    limits.admit([(budget, "past")])
    for i in range(100):
        limits.admit([(budget, f"other {i}")])
    assert [limits.admit([(budget, key)]) for key in ("two", "two", "three", "three", "past")] == [
        *(True, False),
        *(True, False),
        True,
    ]


@pytest.mark.parametrize("requests_of_a_key", [1, 25])
def test_the_memory_of_a_table_is_bounded(clock: Clock, monkeypatch: Any, requests_of_a_key: int) -> None:
    keys, times = 600, 6_000
    monkeypatch.setattr("pam_totp.web.limits.MAX_KEYS", keys)
    monkeypatch.setattr("pam_totp.web.limits.MAX_TIMES", times)
    budget, limits = Budget("demo", ((100, 1e6),)), Limits(clock)
    most = 0
    tracemalloc.start()
    try:
        for i in range(4 * keys):
            for _ in range(requests_of_a_key):
                assert limits.admit([(budget, f"{i:0255d}")])
            clock.advance(1.0)
            if i % 100 == 0:
                most = max(most, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert keys * 50 < most < keys * BYTES_OF_KEY + times * BYTES_OF_TIME


def test_keys_that_no_longer_count_are_dropped(limits: Limits, clock: Clock) -> None:
    for i in range(100):
        limits.admit([(TWO_A_MINUTE, str(i))])
    for i in range(200):
        clock.advance(61)
        limits.admit([(TWO_A_MINUTE, f"later {i}")])
    assert len(limits._tables["demo"]) <= 2


def test_networks_of_one_account_never_displace_those_of_another(limits: Limits) -> None:
    limits.remember("alice", "home")
    for i in range(3 * MAX_KNOWN):
        limits.remember("mallory", str(i))
    assert limits.has_signed_in("alice", "home")
    assert not limits.has_signed_in("bob", "home")
    assert [limits.has_signed_in("mallory", str(i)) for i in (0, 3 * MAX_KNOWN - 1)] == [False, True]


def test_threads_at_once_are_admitted_up_to_the_limit(limits: Limits) -> None:
    budget = Budget("demo", ((50, 60.0),))
    with ThreadPoolExecutor(32) as threads:
        admitted = list(threads.map(lambda _: limits.admit([(budget, "key")]), range(500)))
    assert admitted.count(True) == 50
