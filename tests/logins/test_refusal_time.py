"""Tests of the duration of a refusal: the duration does not depend on the user.

The tests check only lower bounds, because a busy machine would exceed upper bounds.
"""

from __future__ import annotations

import pytest

from pam_totp.core.policy import Policy
from pam_totp.operations.authenticate import REFUSAL_DELAY, refusal_delay
from tests.support.pamconf import Result
from tests.support.site import Site


def test_every_refusal_delay_grows_with_the_search_range() -> None:
    assert refusal_delay(Policy()) == REFUSAL_DELAY
    assert refusal_delay(Policy(resync_window=10_000)) >= 8 * 10_000 * 5e-6, (
        "the delay covers a search of eight tokens, at 5 µs per counter"
    )
    assert refusal_delay(Policy(resync_steps=2_880)) >= 8 * 2 * 2_880 * 5e-6


@pytest.mark.parametrize("user", ["zoe", "alice"])
def test_an_unenrolled_user_waits_as_long_as_the_longest_search(site: Site, user: str) -> None:
    site.enrol(user="alice")
    site.configure("demo", "resync_window=10000")
    done = site.login("000000 111111", user=user)
    assert done.result is Result.AUTH_ERR
    assert done.seconds >= refusal_delay(Policy(resync_window=10_000))
