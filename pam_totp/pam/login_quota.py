"""Login quota: the limit on logins that an account may have at once.

Rules:
1. Each account other than root has a quota of connections, and their total has a quota too. All uids without a passwd
   entry share a small quota, because a user may own thousands of them (subuid(5)).
2. Logins from root programs have a separate total. When it is used up, the relay starts helpers, so no other account
   can prevent a login by sudo.
3. A login from a root program for another account also counts for that account, because su and sudo run as root for the
   user that calls them.
"""

from __future__ import annotations

from collections import Counter

MAX_LOGINS = 128  # at once, for one account
MAX_WITHOUT_ENTRY = 16  # at once, for all uids without a passwd entry
MAX_TOTAL_LOGINS = 1024  # at once, for all accounts except root
MAX_CARRIED_LOGINS = 4096  # at once, by root's programs
ROOT = 0
WITHOUT_ENTRY = -1

Account = int | str  # a uid if the kernel names the account, a name if a program of root's does


class LoginQuota:
    """The quotas of one process: an equal share for each of the service's `workers` processes.

    Each total is at most a quarter of the `descriptors` that the process may have.
    """

    def __init__(self, workers: int, descriptors: int) -> None:
        self._workers = workers
        self._total = max(min(MAX_TOTAL_LOGINS // workers, descriptors // 4), 1)
        self._carried = min(MAX_CARRIED_LOGINS // workers, descriptors // 4)
        self._logins: Counter[Account] = Counter()
        self._others = 0  # connections of all accounts except root

    @property
    def is_full(self) -> bool:
        """True if root carries more logins than it may."""
        return self._logins[ROOT] > self._carried

    def acquire(self, account: Account) -> bool:
        """Count a login for `account`. Return False, and count nothing, if its quota or the total is used up."""
        if account == "root":
            return True
        limit = MAX_WITHOUT_ENTRY if account == WITHOUT_ENTRY else MAX_LOGINS
        other = isinstance(account, int) and account != ROOT
        if account != ROOT and self._logins[account] >= max(limit // self._workers, 1):
            return False
        if other and self._others >= self._total:
            return False
        self._logins[account] += 1
        self._others += other
        return True

    def release(self, account: Account) -> None:
        """Count a login that was acquired no more."""
        if account == "root":
            return
        self._others -= isinstance(account, int) and account != ROOT
        self._logins[account] -= 1
        if not self._logins[account]:
            del self._logins[account]
