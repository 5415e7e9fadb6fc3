"""Tests of a fleet under load: members race with one code over two authorities, and authorities are killed.

Rules:
- A code is accepted once, even if users send it to several members and authorities.
- A member without a reply asks the other authority. Every login receives a result, and each answer counts once.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from functools import partial
from http.client import HTTPException

import pytest

from pam_totp.core.answer import recovery_digest
from pam_totp.core.oath import hotp, totp
from pam_totp.member.wire import Question, Verdict
from tests.core.racing import in_threads
from tests.support.cluster import with_postgresql
from tests.support.fleet import Client, Fleet, Member, question
from tests.support.site import KEY, PATIENCE, fob, phone, until
from tests.torture.pace import report, rounds

pytestmark = with_postgresql
RACERS = 50
SALT, RECOVERY = "5a" * 16, "0123456789ABCDEF"
PHONE = phone(period=86_400)  # steps end at midnight UTC only, so the code of the current step stays valid
OTHER_KEY = b"another key of 20 B."


def code_of(kind: str, number: int) -> str:
    """Return the code of round `number`."""
    if kind == "hotp":
        return hotp(KEY, number)
    return totp(PHONE.secret, int(time.time()), period=PHONE.period) if kind == "totp" else RECOVERY


def user_of(fleet: Fleet, kind: str) -> str:
    if kind == "recovery":
        return fleet.user(salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))
    return fleet.user(tokens=(fob() if kind == "hotp" else PHONE,))


@pytest.fixture
def clients(fleet: Fleet) -> list[Client]:
    """Return a connection from one of two members to one of two authorities for each racer."""
    members = [fleet.member() for _ in range(2)]
    return [members[number % 2].client(number // 2 % 2) for number in range(RACERS)]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["hotp", "totp", "recovery"])
def test_of_fifty_racers_over_two_authorities_one_is_accepted(fleet: Fleet, clients: list[Client], kind: str) -> None:
    user = user_of(fleet, kind)
    for number in range(rounds(1, 50)):
        if kind != "hotp":
            user = user_of(fleet, kind)
        answer = code_of(kind, number)

        def race(n: int, user: str = user, answer: str = answer) -> str:
            return clients[n].ask(question(user, answer)).verdict

        results = Counter(in_threads(RACERS, race))
        assert results == {"accepted": 1, "refused": RACERS - 1}, results
    for client in clients:
        client.close()
    report(f"{kind}: {rounds(1, 50)} rounds of {RACERS} racers, one accepted in each")


class Host:
    """A member that logs in with one token of a user, and asks the other authority after a failed request.

    After every eighth login, the member removes a user from `victims`, and sends a wrong answer for this user.
    """

    def __init__(self, member: Member, user: str, key: bytes, victims: list[str], first: int) -> None:
        self._member, self._user, self._key, self._victims, self._authority = member, user, key, victims, first
        self._clients: dict[int, Client] = {}
        self.accepted = 0
        self.guessed: list[str] = []
        self.asked_again = 0
        self.problem: BaseException | None = None

    def run(self, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                verdict = self._ask(question(self._user, hotp(self._key, self.accepted)))
                assert verdict.accepted, f"{self._user} {self.accepted}: lost"
                self.accepted += 1
                if self._victims and self.accepted % 8 == 0:
                    victim = self._victims.pop()
                    assert not self._ask(question(victim, "000000")).accepted
                    self.guessed.append(victim)
        except BaseException as e:
            self.problem = e
        finally:
            for client in self._clients.values():
                client.close()

    def _ask(self, asked: Question) -> Verdict:
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            try:
                if self._authority not in self._clients:
                    self._clients[self._authority] = self._member.client(self._authority)
                return self._clients[self._authority].ask(asked)
            except (OSError, HTTPException):
                self._clients.pop(self._authority).close()
            self._authority = 1 - self._authority
            self.asked_again += 1
        raise AssertionError("no authority answers")


@pytest.mark.timeout(3600)
def test_a_killed_authority_loses_no_login_and_counts_each_answer_once(fleet: Fleet) -> None:
    """Two members ask about the user `shared` at the same time, with two tokens."""
    kills = rounds(2, 40)
    members = [fleet.member(), fleet.member()]
    shared = fleet.user(tokens=(fob(), fob(name="second", secret=OTHER_KEY)))
    victims = [fleet.user() for _ in range(8 * kills)]
    places = [(shared, KEY), (shared, OTHER_KEY), (fleet.user(), KEY), (fleet.user(), KEY)]
    hosts = [Host(members[n % 2], user, key, victims, n % 2) for n, (user, key) in enumerate(places)]
    stop = threading.Event()
    threads = [threading.Thread(target=partial(host.run, stop)) for host in hosts]
    for thread in threads:
        thread.start()
    try:
        for number in range(kills):
            wanted = progress(hosts) + 40
            until(lambda wanted=wanted: progress(hosts) >= wanted or has_ended(hosts), "logins")  # type: ignore[misc]
            fleet.authorities[number % 2].end(signal.SIGKILL)
            fleet.authorities[number % 2].start()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [host.problem for host in hosts if host.problem is not None] == []
    for host, (user, key) in zip(hosts, places, strict=True):
        (token,) = (token for token in fleet.store.read(user).tokens if token.secret == key)
        assert token.next_factor == host.accepted
    guessed = [victim for host in hosts for victim in host.guessed]
    assert {fleet.store.read(victim).failures for victim in guessed} <= {1}
    again = sum(host.asked_again for host in hosts)
    assert again > 0, "no authority was killed during a question"
    logins = f"{progress(hosts)} logins and {len(guessed)} wrong answers"
    report(f"{kills} authorities killed: {logins}, {again} asked again, all answered, each counted once")


def progress(hosts: list[Host]) -> int:
    return sum(host.accepted for host in hosts)


def has_ended(hosts: list[Host]) -> bool:
    return any(host.problem is not None for host in hosts)
