"""Limits on requests, counted in memory.

Rules:
- A request is counted in all of its budgets, or refused and counted in none.
- The budgets of networks are counted at three sizes (core.address), so that a large network is not many clients.
- An account has a budget over all networks together. Networks that have signed this account in do not share it, so
  guesses from elsewhere cannot lock the owner out. The budget is larger than the budget of any one network.
- An account counts under the name in its passwd entry, whatever spelling the request has.
- A refused request adds no key, and keeps the keys that it names in use. When a table is full, the key that was used
  longest ago is dropped.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0  # seconds
MAX_KEYS = 50_000  # of each table; a full table needs about 15 MB
MAX_KNOWN = 20  # networks of each account


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `count` requests in `seconds`, for each pair of `rates`. `table` keeps equal keys apart."""

    table: str
    rates: tuple[tuple[int, float], ...]

    def is_used_up(self, times: list[float], now: float) -> bool:
        """Return True if a request at `now`, after those at `times`, would exceed a rate."""
        return any(len(times) >= count and times[-count] > now - seconds for count, seconds in self.rates)

    @property
    def longest(self) -> float:
        return max(seconds for _, seconds in self.rates)


class Limits:
    """The counts of one process. Any thread may call any method. `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tables: dict[str, OrderedDict[str, list[float]]] = {}
        self._known: dict[str, OrderedDict[str, None]] = {}  # by account: the networks that have signed it in

    def admit(self, charges: Iterable[tuple[Budget, str]]) -> bool:
        """Count one request for each budget and key. Return False and count none if one of them is used up."""
        now, listed = self._clock(), list(charges)  # before the lock, which an iterator may need
        with self._lock:
            found = [(budget, key, self._recent(budget, key, now)) for budget, key in listed]
            if any(budget.is_used_up(times, now) for budget, _, times in found):
                return False
            for budget, key, times in found:
                times.append(now)
                self._keep(budget, key, times, now)
        return True

    def _recent(self, budget: Budget, key: str, now: float) -> list[float]:
        """Return the times of the key's requests that still count, and mark the key as used."""
        table = self._tables.setdefault(budget.table, OrderedDict())
        if key not in table:
            return []
        table.move_to_end(key)
        times = table[key]
        ended = bisect_right(times, now - budget.longest)
        del times[: min(ended, len(times) - 1)]  # one time stays, for `_keep`
        return times

    def _keep(self, budget: Budget, key: str, times: list[float], now: float) -> None:
        """Store the times of a key. Drop old keys that no longer count, or one more if the table is full."""
        table = self._tables[budget.table]
        table[key] = times
        for _ in range(2):  # more than are added, so that the table shrinks
            oldest = next(iter(table.values()))
            if len(table) > MAX_KEYS or oldest[-1] <= now - budget.longest:
                table.popitem(last=False)

    def remember(self, user: str, network: str) -> None:
        """Note that the network has signed `user` in."""
        with self._lock:
            networks = self._known.setdefault(user, OrderedDict())
            networks[network] = None
            networks.move_to_end(network)
            if len(networks) > MAX_KNOWN:
                networks.popitem(last=False)

    def has_signed_in(self, user: str, network: str) -> bool:
        with self._lock:
            return network in self._known.get(user, ())
