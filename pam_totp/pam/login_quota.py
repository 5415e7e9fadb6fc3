"""Login quota: the limit on logins that an account may have at once.

Rules:
1. Root has no quota.
2. Every other account has a quota, and their total has a quota too, so that root can always log in.
3. A login from a root program for another account also counts for that account, because su and sudo run as root for the
   user that calls them.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MAX_LOGINS = 128  # at once, for one account
MAX_TOTAL_LOGINS = 1024  # at once, for all accounts except root: a user may own thousands of uids (subuid(5))
ROOT = (0, "root")

Account = int | str  # a uid from the kernel, or a name from a root program


class LoginQuota:
    """The quotas of one process: an equal share for each of the service's `workers` processes."""

    def __init__(self, workers: int) -> None:
        self._limit, self._total_limit = MAX_LOGINS // workers, MAX_TOTAL_LOGINS // workers
        self._lock = threading.Lock()
        self._logins: Counter[Account] = Counter()

    @contextmanager
    def login(self) -> Iterator[Callable[[Account], bool]]:
        """Yield a function that counts this login for an account, and returns True if the quotas allow it.

        After the block, the login is no longer counted.
        """
        counted: list[Account] = []

        def acquire(account: Account) -> bool:
            if account in ROOT:
                return True
            with self._lock:
                if self._logins[account] >= self._limit or self._logins.total() >= self._total_limit:
                    return False
                self._logins[account] += 1
            counted.append(account)
            return True

        try:
            yield acquire
        finally:
            with self._lock:
                for account in counted:
                    self._logins[account] -= 1
                    if not self._logins[account]:
                        del self._logins[account]
