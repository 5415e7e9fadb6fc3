"""Policy: the limits on codes, the number of codes that an answer needs, and the lock.

Rules:
1. A policy has five whole numbers within bounds. `core.settings` reads them from the site file and module arguments.
2. From 5 failures on, an answer needs two codes in a row; from 20 on, three. No setting changes these numbers.
3. Codes in a row, or a right code of 80 bits, lower the count of failures to at most five. Only time, an unlock and
   codes in a row after failures of the same dialogue lower the count further.
4. Locking is off by default, because an attacker could use it to lock a user out.
"""

from __future__ import annotations

from pam_totp.core.fields import Rule, Value, whole_number
from pam_totp.core.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import ClassVar

TWO_CODES_FROM = 5  # number of failures from which an answer needs two codes in a row
THREE_CODES_FROM = 20  # number of failures from which an answer needs three codes in a row


class PolicyError(ValueError):
    """The error for a setting that is out of bounds. The text names the setting."""


class Policy(Value):
    """The limits that `verify` applies.

    `look_ahead` (HOTP, counters) and `window` (TOTP, steps) apply to one code. `resync_window` and `resync_steps` apply
    to codes in a row (RFC 4226 §7.4, RFC 6238 §6); 0 means the limit for one code. From `lock_after` failures on, only
    a recovery code or a temporary code is accepted; 0 disables the lock.
    """

    look_ahead: int = 10
    window: int = 1
    resync_window: int = 1000
    resync_steps: int = 0
    lock_after: int = 0

    ERROR = PolicyError
    RULES: ClassVar[dict[str, Rule]] = {
        "look_ahead": whole_number(0, 100),
        "window": whole_number(0, 10),
        "resync_window": whole_number(0, 10_000),
        "resync_steps": whole_number(0, 2_880),
        "lock_after": whole_number(0, 1_000_000),
    }

    def codes_needed(self, failures: int) -> int:
        """Return the number of codes in a row that an answer needs at this count of failures: 1, 2 or 3."""
        return 1 + (failures >= TWO_CODES_FROM) + (failures >= THREE_CODES_FROM)

    @property
    def most_failures_kept(self) -> int:
        """The highest count of failures that remains after codes in a row or a recovery code (law 8).

        This count is below `lock_after`, so that a recovery code ends a lock. The count is above 0 unless `lock_after`
        is 1, because an attacker can guess again after each login of the user.
        """
        return min(TWO_CODES_FROM, self.lock_after - 1) if self.lock_after > 0 else TWO_CODES_FROM

    def locks(self, failures: int) -> bool:
        """Return True if this count of failures locks the user."""
        return 0 < self.lock_after <= failures
