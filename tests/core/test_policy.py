"""Tests of the policy: its bounds, its defaults, and the number of codes that failures require."""

from __future__ import annotations

import pytest

from pam_totp.core.policy import Policy, PolicyError

BOUNDS = {"look_ahead": 100, "window": 10, "resync_window": 10_000, "resync_steps": 2_880, "lock_after": 1_000_000}


def test_the_defaults() -> None:
    policy = Policy()
    assert (policy.look_ahead, policy.window, policy.resync_window) == (10, 1, 1000)
    assert (policy.resync_steps, policy.lock_after) == (0, 0)
    assert set(Policy.RULES) == set(Policy._fields) == set(BOUNDS)


@pytest.mark.parametrize("name", BOUNDS)
def test_every_number_has_its_bounds(name: str) -> None:
    high = BOUNDS[name]
    for good in (0, 1, high):
        assert getattr(Policy(**{name: good}), name) == good
    for bad in (-1, high + 1, 2**64, 1.0, True, False, "1", None):
        with pytest.raises(PolicyError, match=f"^{name}: must be a whole number from 0 to {high}$"):
            Policy(**{name: bad})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("failures", "needed"), [(0, 1), (4, 1), (5, 2), (6, 2), (19, 2), (20, 3), (21, 3), (10**9, 3), (2**62, 3)]
)
def test_from_5_failures_two_codes_are_required_and_from_20_three(failures: int, needed: int) -> None:
    assert Policy().codes_needed(failures) == needed


def test_an_account_is_locked_from_its_limit_on_and_never_without_a_limit() -> None:
    assert [Policy(lock_after=3).locks(n) for n in (0, 2, 3, 4)] == [False, False, True, True]
    assert not any(Policy(lock_after=0).locks(n) for n in (0, 1, 10**9))


@pytest.mark.parametrize(("lock_after", "kept"), [(0, 5), (1, 0), (2, 1), (5, 4), (6, 5), (7, 5), (1_000_000, 5)])
def test_an_owner_keeps_at_most_5_failures_and_is_not_locked(lock_after: int, kept: int) -> None:
    policy = Policy(lock_after=lock_after)
    assert policy.most_failures_kept == kept
    assert not policy.locks(kept)
    assert policy.codes_needed(kept) <= 2
