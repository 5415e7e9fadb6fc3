"""Limits on requests, counted in memory.

Rules:
- A request counts against all of its budgets. A request is refused, and does not count, if one budget is used up.
- The budgets of networks are for three sizes (core.address), so that a large network cannot act as many clients.
- An account has a budget over all networks together. This budget excludes networks of the smallest size from which
  the account has signed in, so that guesses from elsewhere cannot lock the user out. The budget is larger than
  that of any single network.
- Two keys are equal if their texts are equal. The caller looks up the account of a name.
- Each table has a fixed maximum of keys, and of requests. A full table drops the keys with the fewest requests, of
  these the oldest. Therefore, keys with one request cannot displace keys with more requests.
- Clients cannot choose the length or value of a stored key, which is a digest with a random secret of the process.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0  # seconds
MAX_KEYS = 50_000  # of each table
MAX_TIMES = 2_000_000  # of each table: requests that count
BYTES_OF_KEY, BYTES_OF_TIME = 400, 9  # the most memory for each of them: a full table needs at most 38 MB
MAX_KNOWN = 20  # networks of each account
MAX_KNOWN_ACCOUNTS = 50_000  # accounts; their networks need at most 75 MB
_DIGEST = 16  # bytes


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `count` requests in `seconds`, for each pair of `rates`. Keys in different tables count separately."""

    table: str
    rates: tuple[tuple[int, float], ...]

    def is_used_up(self, times: array[float], now: float) -> bool:
        """Return True if a request at `now`, after those at `times`, would exceed a rate."""
        return any(len(times) >= count and times[-count] > now - seconds for count, seconds in self.rates)

    def wait(self, times: array[float], now: float) -> float:
        """Return the seconds from `now` until a request, after those at `times`, exceeds no rate."""
        return max(times[-count] + seconds - now if len(times) >= count else 0.0 for count, seconds in self.rates)

    @property
    def longest(self) -> float:
        return max(seconds for _, seconds in self.rates)


class _Table:
    """The times of the requests that count, by key. The keys are in the order of their last request."""

    def __init__(self) -> None:
        self._times: OrderedDict[bytes, array[float]] = OrderedDict()
        self._total = 0

    def __len__(self) -> int:
        return len(self._times)

    def recent(self, key: bytes, since: float) -> array[float]:
        """Drop the requests of `key` up to the time `since`. Return the times of the others."""
        times = self._times.get(key, array("d"))
        count = bisect_right(times, since)
        del times[:count]
        self._total -= count
        if not times:
            self._times.pop(key, None)
        return times

    def add(self, key: bytes, now: float, since: float) -> None:
        """Add a request at `now`. Drop some keys without requests after `since`, and shrink a full table."""
        if len(self._times) >= MAX_KEYS or self._total >= MAX_TIMES:
            self._make_room(since)
        self._times.setdefault(key, array("d")).append(now)
        self._times.move_to_end(key)
        self._total += 1
        for _ in range(2):  # two for each added key, so that the table shrinks
            self.recent(next(iter(self._times)), since)  # not the last key, which has a request now

    def _make_room(self, since: float) -> None:
        """Drop keys until a tenth of the table is free: first those with the fewest requests, of these the oldest."""
        for key in tuple(self._times):
            self.recent(key, since)
        for key in sorted(self._times, key=lambda key: len(self._times[key])):
            if len(self._times) <= 0.9 * MAX_KEYS and self._total <= 0.9 * MAX_TIMES:
                break
            self._total -= len(self._times.pop(key))


class Limits:
    """The counts of one process. Any thread may call any method. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._secret = secrets.token_bytes(32)
        self._tables: dict[str, _Table] = {}
        self._known: OrderedDict[bytes, tuple[bytes, ...]] = OrderedDict()  # by account: the networks of its sign-ins

    def admit(self, charges: Iterable[tuple[Budget, str]]) -> bool:
        """Count one request for each budget and key, and return True. Return False if one budget is used up."""
        now, listed = self._clock(), [(budget, self._digest(key)) for budget, key in charges]
        with self._lock:
            for budget, key in listed:
                table = self._tables.setdefault(budget.table, _Table())
                if budget.is_used_up(table.recent(key, now - budget.longest), now):
                    return False
            for budget, key in listed:
                self._tables[budget.table].add(key, now, now - budget.longest)
        return True

    def wait(self, charges: Iterable[tuple[Budget, str]]) -> float:
        """Return the seconds until `admit` counts the request, if no other request is counted before. Count nothing."""
        now, waits = self._clock(), [0.0]
        with self._lock:
            for budget, key in charges:
                table = self._tables.setdefault(budget.table, _Table())
                waits.append(budget.wait(table.recent(self._digest(key), now - budget.longest), now))
        return max(waits)

    def remember(self, user: str, network: str) -> None:
        """Store that `user` has signed in from `network`."""
        account, newest = self._digest(user), self._digest(network)
        with self._lock:
            others = (known for known in self._known.get(account, ()) if known != newest)
            self._known[account] = (*others, newest)[-MAX_KNOWN:]
            self._known.move_to_end(account)
            if len(self._known) > MAX_KNOWN_ACCOUNTS:
                self._known.popitem(last=False)

    def has_signed_in(self, user: str, network: str) -> bool:
        account, sought = self._digest(user), self._digest(network)
        with self._lock:
            return sought in self._known.get(account, ())

    def _digest(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=_DIGEST, key=self._secret).digest()
