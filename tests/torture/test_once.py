"""Tests of fifty concurrent logins with the same code: exactly one login succeeds, for every kind of code.

The logins use the service, helpers, or both.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter

import pytest

from pam_totp.core.answer import recovery_digest
from pam_totp.core.oath import totp
from tests.services.namespace import Machine, Sshd
from tests.services.terminal import Talk
from tests.support.pamconf import Result
from tests.support.site import Site, codes, fob, phone
from tests.torture.crowd import in_processes, in_threads
from tests.torture.pace import LONG, report, rounds
from tests.torture.sites import FOLDERS, site_on

MANY = 50
SALT = "5a" * 16
RECOVERY = "0123456789ABCDEF"
PHONE = phone(period=86_400)  # steps end at midnight UTC only, so the code of the current step stays valid
WAYS = {"socket": ("warm",), "spawn": ("cold",), "mixed": ("warm", "cold")}
KINDS = ("hotp", "row", "totp", "recovery")
EVERY = list(itertools.product(KINDS, WAYS, FOLDERS))
# The short form contains the cases that tests/logins/test_races.py lacks: recovery codes, service and helper at once,
# and a store on a disk.
SOME = [("recovery", "mixed", "disk"), ("hotp", "mixed", "tmpfs"), ("totp", "socket", "tmpfs")]
ROUNDS = {"socket": rounds(2, 100), "spawn": rounds(1, 100), "mixed": rounds(1, 100)}


def ready(site: Site) -> None:
    site.start()
    site.configure("warm", way="socket")
    site.configure("cold", way="spawn")


def enrolled(site: Site, kind: str) -> str:
    """Enrol the user again, with unused tokens. Return an answer that must be accepted exactly once."""
    site.enrol(fob(), PHONE, salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))
    if kind == "totp":
        return totp(PHONE.secret, int(time.time()), period=PHONE.period)
    return {"hotp": codes(0), "row": codes(0, 3), "recovery": RECOVERY}[kind]


def one_succeeded(counted: Counter[Result], place: str) -> bool:
    """Return True if exactly one login succeeded, and all other logins were refused.

    The last of fifty logins might exceed the time limit of the lock on a slow disk.
    """
    late = {Result.AUTHINFO_UNAVAIL} if place == "disk" else set()
    return counted[Result.SUCCESS] == 1 and counted.keys() <= {Result.SUCCESS, Result.AUTH_ERR} | late


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("kind", "way", "place"), EVERY if LONG else SOME)
def test_of_fifty_processes_with_one_code_one_succeeds(kind: str, way: str, place: str) -> None:
    with site_on(place) as site:
        ready(site)
        for number in range(ROUNDS[way] if kind != "row" else -(-ROUNDS[way] // 5)):
            counted = in_processes(site, [enrolled(site, kind)] * MANY, WAYS[way])
            assert one_succeeded(counted, place), f"round {number}: {counted}"
            assert site.record().failures == 0, "replays and wrong recovery codes are not counted"
        report(f"{MANY} processes, one answer ({kind}, {way}, {place}): {number + 1} rounds, one success in each")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("kind", "way", "place"), EVERY if LONG else [("recovery", "socket", "tmpfs"), ("row", "mixed", "disk")]
)
def test_of_fifty_threads_of_one_host_with_one_code_one_succeeds(kind: str, way: str, place: str) -> None:
    with site_on(place) as site:
        ready(site)
        for number in range(rounds(1, 10)):
            counted = in_threads(site, [enrolled(site, kind)] * MANY, WAYS[way])
            assert one_succeeded(counted, place), f"round {number}: {counted}"
        report(f"{MANY} threads, one answer ({kind}, {way}, {place}): {number + 1} rounds, one success in each")


def test_each_of_ten_codes_given_five_times_succeeds_at_most_once() -> None:
    """Some codes never succeed, because a code is refused after a code with a higher counter."""
    with site_on("tmpfs") as site:
        ready(site)
        for _ in range(rounds(1, 50)):
            site.enrol()
            counted = in_processes(site, [codes(n % 10) for n in range(MANY)], WAYS["mixed"])
            assert 1 <= counted[Result.SUCCESS] <= 10, counted
            assert site.counter() == 10


@pytest.mark.parametrize("way", ["spawn", "socket"])
def test_of_three_concurrent_logins_through_real_sshd_one_succeeds(machine: Machine, sshd: Sshd, way: str) -> None:
    if way == "socket":
        machine.serve()
    machine.stack("sshd", machine.module_line(way=way))
    times = rounds(1, 100)
    for _ in range(times):
        machine.enrol("alice", fob())
        everybody: list[Talk] = [sshd.ssh("alice", "NumberOfPasswordPrompts=1") for _ in range(3)]
        for talk in everybody:
            talk.asks("One-time code: ")
        for talk in everybody:  # answer all three prompts before waiting for the first result
            talk.says(codes(0))
        ends = [talk.ends() for talk in everybody]
        assert sorted(status for status, _ in ends) == [0, 255, 255], ends
        assert sum("in as alice" in shown for _, shown in ends) == 1
        assert machine.record("alice").failures == 0
    report(f"3 logins through sshd, one code ({way}): {times} rounds, one success in each")
