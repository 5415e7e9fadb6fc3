"""Tests of concurrent logins: one of fifty with the same code succeeds.

The store is in memory: the last login could exceed the time limit of the lock on a slow disk (see tests/torture).
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier

import pytest

from pam_totp.core.oath import totp
from tests.support.pamconf import Result
from tests.support.site import Site, codes, fob, phone
from tests.torture.sites import site_on

MANY = 50


@pytest.fixture
def site() -> Iterator[Site]:
    with site_on("tmpfs") as made:
        yield made


def _wait_then_answer(site: Site, answer: str, together: Barrier, results: multiprocessing.Queue[int]) -> None:
    def at_the_prompt(_: object) -> str:
        together.wait()
        return answer

    results.put(site.login(at_the_prompt).result)


def _race(site: Site, answers: list[str]) -> Counter[Result]:
    """Log in with all answers at once, each in its own process that waits for all others. Return the counts."""
    fork = multiprocessing.get_context("fork")
    together, results = fork.Barrier(len(answers)), fork.Queue()
    processes = [fork.Process(target=_wait_then_answer, args=(site, a, together, results)) for a in answers]
    for process in processes:
        process.start()
    counted = Counter(Result(results.get(timeout=60)) for _ in processes)
    for process in processes:
        process.join()
    return counted


@pytest.mark.parametrize("kind", ["hotp", "totp"])
def test_a_code_is_accepted_once_under_concurrency(site: Site, way: str, kind: str) -> None:
    token = phone(period=86_400)
    site.enrol(fob() if kind == "hotp" else token)
    code = codes(0) if kind == "hotp" else totp(token.secret, int(time.time()), period=token.period)
    counted = _race(site, [code] * MANY)
    assert counted == {Result.SUCCESS: 1, Result.AUTH_ERR: MANY - 1}


def test_every_failure_is_counted_under_concurrency(site: Site, way: str) -> None:
    site.enrol()
    assert _race(site, ["000000"] * MANY) == {Result.AUTH_ERR: MANY}
    assert site.record().failures == MANY


def test_the_right_code_among_guesses_fails_once_two_codes_are_required(site: Site, way: str) -> None:
    site.enrol(failures=5, failures_at=int(time.time()))
    assert _race(site, ["000000"] * 25 + [codes(0)] + ["111111"] * 24) == {Result.AUTH_ERR: MANY}
    assert site.gets_in(codes(0, 3))
