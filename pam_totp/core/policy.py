"""Policy: how far windows reach, and when a lock falls. Pure numbers; where they come from is `settings`' business."""

from __future__ import annotations

from typing import ClassVar

from pam_totp.core.fields import Rule, Value, whole_number

TWO_IN_A_ROW_FROM = 5  # failures: from here on a lone code is not enough
THREE_IN_A_ROW_FROM = 20  # failures: nor are two


class PolicyError(ValueError):
    """A setting outside its bounds; the text names it."""


class Policy(Value):
    """What `verify` goes by. Counters for HOTP, steps for TOTP.

    `look_ahead` and `window` are for a lone code; `resync_window` and `resync_steps` for codes in a row (RFC 4226
    §7.4, RFC 6238 §6), 0 meaning no farther than a lone code reaches. `lock_after` failures refuse all but a
    recovery code; 0 means never.
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
        """How many codes in a row one answer must have after `failures` wrong ones."""
        return 1 + (failures >= TWO_IN_A_ROW_FROM) + (failures >= THREE_IN_A_ROW_FROM)

    def locks(self, failures: int) -> bool:
        return 0 < self.lock_after <= failures
