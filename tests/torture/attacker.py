"""Simulation of a year: an owner logs in twenty times a day, and an attacker with the password guesses codes.

`pam_totp.core` decides on every answer; the time is simulated. The greedy attacker guesses before each login of the
owner, until two codes in a row are required. After two codes of the owner, the count is at most five failures. The
count decreases by one a day, so the attacker has five guesses and then one guess a day. The patient attacker has four
guesses and then one a day, so a single code is always enough for the owner. In a flood, the attacker also guesses two
codes in a row, until three codes are required.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pam_totp.core.answer import Answer
from pam_totp.core.oath import hotp
from pam_totp.core.policy import THREE_CODES_FROM, TWO_CODES_FROM, Policy
from pam_totp.core.record import DAY, HotpToken, Token, TotpToken, UserRecord
from pam_totp.core.verify import Earlier, Outcome, acceptable, verify
from tests.support.site import KEY

LOGINS_A_DAY = 20
BEGIN = 1_700_006_400  # a midnight, UTC


@dataclass
class Year:
    """The result of a year.

    `chance` is the probability of at least one right guess, from the number of valid codes at each guess.
    """

    guesses: Counter[int] = field(default_factory=Counter)  # key: number of codes; answers with too few are not counted
    hits: int = 0
    log_of_no_hit: float = 0.0
    logins: int = 0
    answers_needed: Counter[int] = field(default_factory=Counter)  # key: number of codes in an accepted answer

    @property
    def chance(self) -> float:
        return -math.expm1(self.log_of_no_hit)


class World:
    """The state of the simulation: the owner's record and token, the time, and the results so far."""

    def __init__(self, kind: str, digits: int, policy: Policy, seed: int) -> None:
        common: dict[str, Any] = {"name": "t", "secret": KEY, "digits": digits, "created": 0}
        token: Token = HotpToken(**common) if kind == "hotp" else TotpToken(**common)
        self.record = UserRecord(user="owner", tokens=(token,))
        self.policy = policy
        self.digits = digits
        self.random = random.Random(seed)
        self.now = BEGIN
        self.presses = 0  # number of button presses of the key fob
        self.year = Year()

    @property
    def failures(self) -> int:
        return self.record.failures_now(self.now)[0]

    # The attacker

    def guess(self, count: int = 1) -> None:
        """Answer with `count` random codes. Count a right answer as a hit, and discard its change of the record."""
        digits = self.digits * count
        answer = str(self.random.randrange(10**digits)).zfill(digits).encode()
        token = self.record.tokens[0]
        if count == self.policy.codes_needed(self.failures):
            self.year.guesses[count] += 1
            candidates = len(acceptable(token, count, self.now, self.policy))
            self.year.log_of_no_hit += math.log1p(-candidates / 10**digits)
        decision = verify(self.record, Answer.parse(answer), self.now, self.policy)
        if decision.outcome.accepted:
            self.year.hits += 1
        else:
            self.record = decision.record

    def be_greedy(self) -> None:
        while self.failures < TWO_CODES_FROM:
            self.guess()

    def be_patient(self) -> None:
        while self.failures < TWO_CODES_FROM - 1:
            self.guess()

    def flood(self) -> None:
        """Guess until three codes in a row are required, then guess three more times."""
        while self.failures < THREE_CODES_FROM:
            self.guess(self.policy.codes_needed(self.failures))
        for _ in range(3):
            self.guess(3)

    def try_a_pair_in_two_stages(self, first: int, tries: int) -> int:
        """Use a guessed pair of codes, from counter `first`, in `tries` dialogues, each with a different third code.

        Return the number of verified third codes: a dialogue asks for a third code only after two codes in a row.
        """
        token, thirds = self.record.tokens[0], 0
        for number in range(tries):
            earlier = Earlier.NONE
            for code in (*(hotp(token.secret, first + i, self.digits) for i in (0, 1)), str(number).zfill(self.digits)):
                thirds += len(earlier.answers) == 2
                answer = Answer.parse(code.encode())
                decision = verify(self.record, answer, self.now, self.policy, earlier=earlier)
                assert not decision.outcome.accepted or decision.outcome is Outcome.CONSECUTIVE
                self.record = decision.record
                earlier = earlier.followed_by(answer, decision, prompted=True)
                if len(earlier.answers) == 2 and decision.next_code is None:
                    break
        return thirds

    # The owner

    def show(self, count: int) -> str:
        """Return the token's next `count` codes. For a TOTP token, advance the time to the step of the last code."""
        token = self.record.tokens[0]
        if isinstance(token, HotpToken):
            self.presses += count
            steps = range(self.presses - count, self.presses)
        else:
            assert isinstance(token, TotpToken)
            first = self.now // token.period
            self.now += (count - 1) * token.period
            steps = range(first, first + count)
        return "".join(hotp(token.secret, step, self.digits) for step in steps)

    def owner_mistypes(self) -> None:
        """Count a wrong answer of the owner. The failure only reduces the guesses of the attacker."""
        wrong = str((int(self.show(1)) + 500_000) % 10**self.digits).zfill(self.digits).encode()
        self.record = verify(self.record, Answer.parse(wrong), self.now, self.policy).record

    def owner_logs_in(self, flooded: bool = False) -> None:
        """Log in with a single code, then with two codes in a row, then with three, until an answer is accepted.

        Raise AssertionError if all three answers are refused.
        """
        for count in (1, 2, 3):
            if flooded:
                self.flood()
            decision = verify(self.record, Answer.parse(self.show(count).encode()), self.now, self.policy)
            self.record = decision.record
            if decision.outcome.accepted:
                self.year.logins += 1
                self.year.answers_needed[count] += 1
                return
        raise AssertionError(f"the owner is locked out at {self.now}: {decision.outcome}")


def live(
    kind: str,
    digits: int,
    *,
    greedy: bool,
    days: int = 365,
    policy: Policy | None = None,
    flood_every: int = 0,
    seed: int = 0,
) -> Year:
    """Run the simulation, and return the results of the year.

    Every n-th login happens during a flood of wrong answers if `flood_every` is n.
    """
    world = World(kind, digits, policy or Policy(), seed=seed)
    for day in range(days):
        for login in range(LOGINS_A_DAY):
            world.now = BEGIN + day * DAY + 8 * 3600 + login * 1800
            if greedy:
                world.be_greedy()
            else:
                world.be_patient()
            number = day * LOGINS_A_DAY + login
            world.owner_logs_in(flooded=flood_every > 0 and number % flood_every == flood_every - 1)
    return world.year


def formula(
    kind: str, digits: int, *, greedy: bool, days: int = 365, policy: Policy | None = None, floods: int = 0
) -> float:
    """Return the probability of a right guess according to SECURITY.md.

    `floods` is the number of the owner's logins before which the attacker also guesses two codes in a row.
    """
    policy = policy or Policy()
    one = policy.look_ahead + 1 if kind == "hotp" else 2 * policy.window + 1
    two = policy.resync_window + 1 if kind == "hotp" else one
    guesses = (TWO_CODES_FROM if greedy else TWO_CODES_FROM - 1) + days - 1
    pairs = floods * (THREE_CODES_FROM - TWO_CODES_FROM)
    return -math.expm1(guesses * math.log1p(-one / 10**digits) + pairs * math.log1p(-two / 10 ** (2 * digits)))
