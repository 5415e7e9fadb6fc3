"""The login quota: the limit on logins that an account may have at once.

Rules:
1. Each account other than root has a quota of logins, and these accounts also have a limit together. All uids without a
   passwd entry share a small quota, because a user can own thousands of them (subuid(5)).
2. Uids outside /etc/passwd count towards a separate limit until their lookup, so that they cannot block local accounts.
3. Logins from root programs have a separate limit. Other accounts cannot prevent a login by sudo, because the relay
   starts helpers when this limit is reached.
4. A login from a root program also counts towards the quota of the caller that the program names, because su and sudo
   run as root. A remote caller is a name and a remote host together, because a remote user can claim any name.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

MAX_LOGINS = 128  # at once, for one account
MAX_WITHOUT_ENTRY = 16  # at once, for all uids without a passwd entry
MAX_TOTAL_LOGINS = 1024  # at once, for all accounts except root; as many for uids that are not looked up
MAX_CARRIED_LOGINS = 4096  # at once, by root's programs
ROOT = 0
WITHOUT_ENTRY = -1


class NotLookedUp(NamedTuple):
    """A uid outside /etc/passwd, before its lookup."""

    uid: int


class Caller(NamedTuple):
    """The account that started a root program, as named by that program."""

    uid: int
    ruser: str | None
    rhost: str | None


Account = int | NotLookedUp | Caller  # int: a uid that was looked up, or WITHOUT_ENTRY


class LoginQuota:
    """The quotas of one process, one of the service's `workers` processes.

    Each process has an equal share of the totals. An account may use up to half of the share, because the kernel does
    not share the connections equally. Each total is at most a quarter of the `descriptors` that the process may have.
    """

    def __init__(self, workers: int, descriptors: int) -> None:
        self._total = max(min(MAX_TOTAL_LOGINS // workers, descriptors // 4), 1)
        self._carried = min(MAX_CARRIED_LOGINS // workers, descriptors // 4)
        self._limit = min(MAX_LOGINS, max(MAX_LOGINS // workers, self._total // 2))
        self._without_entry = max(MAX_WITHOUT_ENTRY // workers, 1)
        self._logins: Counter[Account] = Counter()
        self._totals: Counter[type] = Counter()  # by type of account, without root

    @property
    def is_full(self) -> bool:
        """Return True if root programs have more logins than their limit."""
        return self._logins[ROOT] > self._carried

    def acquire(self, account: Account) -> bool:
        """Count a login for `account`, and return True. Return False if a limit is reached."""
        if account != ROOT:
            limit = self._without_entry if account == WITHOUT_ENTRY else self._limit
            is_full = not isinstance(account, Caller) and self._totals[type(account)] >= self._total
            if is_full or self._logins[account] >= limit:
                return False
            self._totals[type(account)] += 1
        self._logins[account] += 1
        return True

    def release(self, account: Account) -> None:
        """Release a login that `acquire` has counted."""
        if account != ROOT:
            self._totals[type(account)] -= 1
        self._logins[account] -= 1
        if not self._logins[account]:
            del self._logins[account]
