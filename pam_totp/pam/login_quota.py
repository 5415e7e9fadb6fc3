"""How many logins the accounts may have under way at once.

The law: no account but root's holds more than a few, and all of them together leave room for root's logins. A login
that root's program carries for somebody else, as su and sudo do for whoever calls them, is that account's too.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MOST_OF_ONE_ACCOUNT = 128  # logins under way at once; root has no such limit
MOST_OF_OTHERS = 1024  # of all accounts but root's together: one person may have thousands (subuid(5))
ROOT = (0, "root")

Account = int | str  # by uid where the kernel names it, by name where a program of root's does


class Places:
    """The places of one process out of `workers` that share them."""

    def __init__(self, workers: int) -> None:
        self._of_one, self._of_others = MOST_OF_ONE_ACCOUNT // workers, MOST_OF_OTHERS // workers
        self._lock = threading.Lock()
        self._taken: Counter[Account] = Counter()

    @contextmanager
    def of_a_login(self) -> Iterator[Callable[[Account], bool]]:
        """Yield what takes a place for an account, and says whether it had one; all are given back together."""
        mine: list[Account] = []

        def take(account: Account) -> bool:
            if account in ROOT:
                return True
            with self._lock:
                if self._taken[account] >= self._of_one or self._taken.total() >= self._of_others:
                    return False
                self._taken[account] += 1
            mine.append(account)
            return True

        try:
            yield take
        finally:
            with self._lock:
                for account in mine:
                    self._taken[account] -= 1
                    if not self._taken[account]:
                        del self._taken[account]
