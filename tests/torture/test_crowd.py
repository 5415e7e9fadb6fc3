"""Tests that simultaneous refusals under one name do not reveal whether the user is enrolled.

`make test` does not compare times. `make torture` applies a rank test to the times from answer to refusal.
tests/logins/test_equal_work.py compares the work of the helper.
"""

from __future__ import annotations

import random
import statistics
from itertools import chain

import pytest

from pam_totp.core.policy import Policy
from pam_totp.operations.authenticate import REFUSED, refusal_delay
from tests.conftest import as_root
from tests.support.pamconf import Result
from tests.support.site import Site
from tests.torture.crowd import refusals
from tests.torture.pace import LONG, report, rounds
from tests.torture.ranks import Rounds, detectable, favour, p_value

USERS = {"enrolled": "daemon", "not enrolled": "nobody", "no account": "no-such-account"}
PAIRS = (("enrolled", "not enrolled"), ("enrolled", "no account"), ("not enrolled", "no account"))
CROWD = 60 if LONG else 8  # logins at once
ALPHA = 0.001  # for each of six comparisons
LEAST_ROUNDS = 12  # a difference cannot be significant with fewer rounds


@as_root
def test_simultaneous_refusals_do_not_show_if_a_user_is_enrolled(site: Site, way: str) -> None:
    site.configure("demo", "no_second_prompt", way)
    site.enrol(user=USERS["enrolled"])
    times: dict[str, list[list[float]]] = {kind: [] for kind in USERS}
    order = random.Random(way)
    for _ in range(rounds(1, 24)):
        for kind in order.sample(list(USERS), len(USERS)):
            seen = refusals(site, USERS[kind], CROWD)
            assert {(refusal.result, refusal.messages) for refusal in seen} == {(Result.AUTH_ERR, (REFUSED,))}
            times[kind].append([refusal.seconds for refusal in seen])
    assert min(seconds for kind in times.values() for crowd in kind for seconds in crowd) >= refusal_delay(Policy())
    if LONG:
        compare(times, way)


def compare(times: dict[str, list[list[float]]], way: str) -> None:
    """Print the medians, and fail if the rank test finds a difference."""
    medians = {kind: statistics.median(chain.from_iterable(crowds)) for kind, crowds in times.items()}
    report(f"{way}, {CROWD} at once, medians: {', '.join(f'{k} {1000 * m:.1f} ms' for k, m in medians.items())}")
    values = {}
    for first, second in PAIRS:
        a, b = times[first], times[second]
        values[first, second] = p_value(a, b)
        report(
            f"{way}, {first} against {second}: {len(a) * CROWD} refusals each, slower in {100 * favour(a, b):.1f} % of "
            f"pairs, p = {values[first, second]:.4f}; a shift of {detectable(a, b, ALPHA)} ms is found with power 0.9"
        )
    assert len(times["enrolled"]) < LEAST_ROUNDS or min(values.values()) >= ALPHA, values


def drawn(shift: float, seed: int) -> tuple[Rounds, Rounds]:
    """Return two samples of times, in rounds of different load; those of the second are longer by `shift` seconds."""
    draw = random.Random(seed)
    loads = [draw.uniform(0.1, 0.3) for _ in range(20)]
    first = [[load + draw.gauss(0, 0.02) for _ in range(60)] for load in loads]
    return first, [[load + shift + draw.gauss(0, 0.02) for _ in range(60)] for load in loads]


def test_the_rank_test_finds_the_difference_of_a_lasting_lock() -> None:
    """The difference is that of the measured medians: 163 ms with a common lock, and 112 ms with separate locks."""
    first, second = drawn(0.051, 1)
    assert p_value(first, second) < ALPHA
    assert favour(second, first) > 0.6
    first, second = drawn(0.0, 1)
    found = detectable(first, second, ALPHA)
    assert found is not None
    assert found <= 50, "the number of rounds must be enough for such a difference"


@pytest.mark.parametrize("seed", range(5))
def test_the_rank_test_finds_no_difference_in_equal_samples(seed: int) -> None:
    first, second = drawn(0.0, seed)
    assert p_value(first, second) >= ALPHA
    assert 0.4 < favour(first, second) < 0.6


def test_the_rank_sum_of_known_samples_is_mann_whitneys() -> None:
    assert favour([[3.0, 4.0]], [[1.0, 2.0]]) == 1
    assert favour([[1.0, 3.0]], [[2.0, 3.0]]) == (0 + 0 + 1 + 0.5) / 4
