"""The share of logins that need two codes in a row because the owner mistypes codes, without an attacker.

The owner logs in twenty times a day, and mistypes each code with the same probability, independently of the other
codes. The owner repeats a refused dialogue until the login is accepted. `share_of_two_codes` computes the share of
logins from a Markov chain. `simulated_share` counts the logins, with `pam_totp.core` and a simulated clock.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from pam_totp.core.answer import Answer
from pam_totp.core.oath import hotp
from pam_totp.core.policy import Policy
from pam_totp.core.record import DAY, HotpToken, UserRecord
from pam_totp.core.verify import Earlier, Outcome, verify
from tests.support.site import KEY
from tests.torture.attacker import BEGIN, LOGINS_A_DAY

NEGLIGIBLE = 1e-15  # probability
PRECISION = 1e-12  # probability

State = tuple[int, int]  # failures, logins since the last decrease of the failures
Login = dict[tuple[int, bool], float]  # (failures after the login, two codes needed) -> probability


class End(NamedTuple):
    """The end of a dialogue. `correct` contains True for each code that was typed correctly."""

    correct: tuple[bool, ...]
    outcome: Outcome
    record: UserRecord


def dialogue(record: UserRecord, now: int, presses: int, typed: Iterator[bool]) -> End:
    """Return the end of one dialogue, in which the fob shows the codes from counter `presses` on."""
    earlier, done = Earlier.NONE, list[bool]()
    for right in typed:
        code = int(hotp(KEY, presses + len(done))) + (0 if right else 500_000)
        answer = Answer.parse(f"{code % 10**6:06}".encode())
        decision = verify(record, answer, now, Policy(), earlier=earlier)
        record, earlier = decision.record, earlier.followed_by(answer, decision, prompted=True)
        done.append(right)
        if decision.outcome.accepted or (len(done) > 1 and decision.next_code is None):
            break
    return End(tuple(done), decision.outcome, record)


def owner(failures: int) -> UserRecord:
    """Return the record of an owner with `failures` failures."""
    token = HotpToken(name="fob", secret=KEY, created=0)
    return UserRecord(user="owner", tokens=(token,), failures=failures, failures_at=BEGIN)


# ---- the Markov chain


@cache
def dialogues(failures: int) -> tuple[End, ...]:
    """Return all ends of a dialogue that begins with `failures` failures."""
    every = itertools.product((True, False), repeat=3)
    ends = (dialogue(owner(failures), BEGIN, 0, iter(typed)) for typed in every)
    return tuple({end.correct: end for end in ends}.values())


def login(failures: int, mistyped: float) -> Login:
    """Return the probability of each end of a login that begins with `failures` failures."""
    found: Login = defaultdict(float)
    waiting = {failures: 1.0}
    while waiting:
        refused: dict[int, float] = defaultdict(float)
        for count, chance in waiting.items():
            for end in dialogues(count):
                right = sum(end.correct)
                share = chance * (1 - mistyped) ** right * mistyped ** (len(end.correct) - right)
                if end.outcome.accepted:
                    found[end.record.failures, end.outcome is Outcome.CONSECUTIVE] += share
                elif share > NEGLIGIBLE:
                    refused[end.record.failures] += share
        waiting = refused
    return found


def share_of_two_codes(mistyped: float) -> float:
    """Return the share of logins that need two codes in a row, in the stationary state."""
    logins = [login(count, mistyped) for count in range(Policy().most_failures_kept + 1)]
    states: dict[State, float] = {(0, 0): 1.0}
    share, before = 0.0, -1.0
    while abs(share - before) > PRECISION:
        before, share = share, 0.0
        for _ in range(10 * LOGINS_A_DAY):
            needed, states = _next(states, logins)
            share += needed / (10 * LOGINS_A_DAY)
    return share


def _next(states: dict[State, float], logins: list[Login]) -> tuple[float, dict[State, float]]:
    """Return the probability that the next login needs two codes, and the states after this login."""
    needed, after = 0.0, defaultdict[State, float](float)
    for (count, age), chance in states.items():
        for (left, two_codes), share in logins[count].items():
            needed += chance * share * two_codes
            older = 1 if count == 0 else age + 1  # the time of the next decrease starts at the first failure
            state = (0, 0) if left == 0 else (left - 1, 0) if older == LOGINS_A_DAY else (left, older)
            after[state] += chance * share
    return needed, dict(after)


# ---- the simulation


def simulated_share(mistyped: float, days: int, seed: int) -> float:
    """Return the share of logins in `days` days that needed two codes in a row. Each login ends with an acceptance."""
    chance, record, presses, needed = random.Random(seed), owner(0), 0, 0
    typed = iter(lambda: chance.random() >= mistyped, None)
    for number in range(days * LOGINS_A_DAY):
        while True:
            end = dialogue(record, BEGIN + number * DAY // LOGINS_A_DAY, presses, typed)
            record, presses = end.record, presses + len(end.correct)
            if end.outcome.accepted:
                break
        needed += end.outcome is Outcome.CONSECUTIVE
    return needed / (days * LOGINS_A_DAY)
