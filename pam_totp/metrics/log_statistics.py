"""The statistics of a log: answers by service, outcome and reason, and the distances of accepted codes.

Rules:
1. User, name and time of creation identify a token, as in a restored backup (`operations.restored`).
2. The serial prefix of a key fob is the beginning of its serial number.
3. The times and the lines are arguments.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from pam_totp.metrics.counters import ACCEPTED, FIELDS
from pam_totp.metrics.store_statistics import TokenFacts

TokenKey = tuple[str, str, int]  # user, name, creation
NO_PREFIX = "(none)"
SUFFIX_LENGTH = 4  # characters at the end of a serial number: they distinguish the tokens of one prefix
_DISTANCE = re.compile(r"-?[0-9]{1,10}")


class Distances:
    """The distances of accepted codes from the expected codes: number, sum, minimum and maximum."""

    def __init__(self) -> None:
        self.codes = self.total = 0
        self.least: int | None = None
        self.most: int | None = None

    def add(self, distance: int) -> None:
        self.codes += 1
        self.total += distance
        self.least = distance if self.least is None else min(self.least, distance)
        self.most = distance if self.most is None else max(self.most, distance)

    def add_all(self, other: Distances) -> None:
        self.codes, self.total = self.codes + other.codes, self.total + other.total
        for name, better in (("least", min), ("most", max)):
            values = [v for v in (getattr(self, name), getattr(other, name)) if v is not None]
            setattr(self, name, better(values, default=None))

    @property
    def mean(self) -> float:
        return self.total / self.codes if self.codes else 0.0


class SerialPrefix(NamedTuple):
    """A serial prefix, with the number of its key fobs and the distances of their codes."""

    prefix: str
    tokens: int
    ahead: Distances


class Clock(NamedTuple):
    """A token with a clock. `facts` is None if the store lacks the token."""

    user: str
    token: str
    facts: TokenFacts | None
    drift: Distances


class LogStatistics:
    """The statistics of the lines that were added."""

    def __init__(self) -> None:
        self.lines = self.errors = 0
        self.first: int | None = None  # Unix seconds
        self.last: int | None = None
        self.answers: Counter[tuple[str, str, str]] = Counter()  # by service, outcome and reason
        self.ahead: dict[TokenKey, Distances] = {}
        self.drift: dict[TokenKey, Distances] = {}

    def add(self, at: int | None, service: str, verb: str, fields: Mapping[str, str]) -> None:
        """Add a line that was written at `at` (Unix seconds), if that is known."""
        self.lines += 1
        if at is not None:
            self.first = at if self.first is None else min(self.first, at)
            self.last = at if self.last is None else max(self.last, at)
        self.errors += verb == "error"
        if verb not in FIELDS or "again" in fields:  # an authority logs a repeated question again
            return
        self.answers[service, verb, fields.get(FIELDS[verb], "?")] += 1
        user, name, created = fields.get("user"), fields.get("token"), fields.get("created", "")
        if verb != ACCEPTED or user is None or name is None or not (created.isascii() and created.isdecimal()):
            return
        for field, of in (("ahead", self.ahead), ("drift", self.drift)):
            if _DISTANCE.fullmatch(text := fields.get(field, "")):
                of.setdefault((user, name, int(created[:20])), Distances()).add(int(text))

    def prefixes(self, known: Mapping[TokenKey, TokenFacts], length: int | None = None) -> list[SerialPrefix]:
        """Return the serial prefixes with accepted codes. The prefix with the largest mean distance is first.

        `known` has the tokens of the store.
        The first `length` characters of a serial number are its prefix; by default, all but the last SUFFIX_LENGTH.
        """
        ahead: dict[str, Distances] = {}
        tokens: Counter[str] = Counter()
        for key, distances in self.ahead.items():
            facts = known.get(key)
            prefix = NO_PREFIX if facts is None or facts.serial is None else prefix_of(facts.serial, length)
            ahead.setdefault(prefix, Distances()).add_all(distances)
            tokens[prefix] += 1
        found = [SerialPrefix(prefix, tokens[prefix], distances) for prefix, distances in ahead.items()]
        return sorted(found, key=lambda group: (-group.ahead.mean, group.prefix))

    def clocks(self, known: Mapping[TokenKey, TokenFacts]) -> list[Clock]:
        """Return the tokens with clocks, the token with the largest mean drift first.

        `known` has the tokens of the store.
        """
        found = [Clock(key[0], key[1], known.get(key), distances) for key, distances in self.drift.items()]
        return sorted(found, key=lambda clock: (-abs(clock.drift.mean), clock.user, clock.token))


def prefix_of(serial: str, length: int | None = None) -> str:
    """Return the first `length` characters of a serial number.

    By default, return all but the last SUFFIX_LENGTH. Return NO_PREFIX if none remain.
    """
    text = serial[:length] if length is not None else serial[:-SUFFIX_LENGTH]
    return text or NO_PREFIX
