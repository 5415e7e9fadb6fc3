"""The faults that a token can have, and the set of armed faults.

Rules:
- An armed fault happens only at the point that its name states. It happens a given number of times, or until it is
  cleared.
- A new token has no armed fault.
"""

from __future__ import annotations

from enum import StrEnum


class Fault(StrEnum):
    POWER_BEFORE_WRITE = "power-before-write"
    POWER_AFTER_WRITE = "power-after-write"
    TORN_WRITE = "torn-write"
    WRITE_ERROR = "write-error"
    BIT_ROT = "bit-rot"
    STUCK_BUTTON = "stuck-button"
    BOUNCE = "bounce"
    WEAK_BATTERY = "weak-battery"
    DEAD_BATTERY = "dead-battery"
    SEGMENT = "segment"
    COUNTER_LIMIT = "counter-limit"
    TAMPER = "tamper"
    LINE_NOISE = "line-noise"
    LINE_DROP = "line-drop"
    LINE_DOUBLE = "line-double"
    LINE_STALL = "line-stall"
    LINE_BAUD = "line-baud"


DESCRIPTIONS = {
    Fault.POWER_BEFORE_WRITE: "power fails before the counter is written",
    Fault.POWER_AFTER_WRITE: "power fails after the counter is written, before the code is shown: one code is skipped",
    Fault.TORN_WRITE: "power fails during the write: the page is corrupt, and one code is skipped",
    Fault.WRITE_ERROR: "the memory write fails: an error is shown instead of a code",
    Fault.BIT_ROT: "a bit in the seed's page flips: the self-test fails at the next press",
    Fault.STUCK_BUTTON: "the button stays down until the fault is cleared",
    Fault.BOUNCE: "the contact bounces at each press (number: milliseconds of each bounce, default 3)",
    Fault.WEAK_BATTERY: "the battery is nearly empty",
    Fault.DEAD_BATTERY: "the battery is empty",
    Fault.SEGMENT: "a segment of the display stays dark (number: cell × 10 + segment; segments a to g are 0 to 6)",
    Fault.COUNTER_LIMIT: "the counter is at its limit: no more codes",
    Fault.TAMPER: "the case was opened: the seed is wiped",
    Fault.LINE_NOISE: "bits flip on the line (number: per cent of the bytes, default 5)",
    Fault.LINE_DROP: "bytes are lost on the line (number: per cent of the bytes, default 5)",
    Fault.LINE_DOUBLE: "bytes are doubled on the line (number: per cent of the bytes, default 5)",
    Fault.LINE_STALL: "the token's output is delayed (number: milliseconds, default 1000)",
    Fault.LINE_BAUD: "the token uses half the speed of the line",
}

PERMANENT = frozenset(  # `inject` applies these faults to the token immediately, and arms all other faults
    (Fault.BIT_ROT, Fault.WEAK_BATTERY, Fault.DEAD_BATTERY, Fault.COUNTER_LIMIT, Fault.TAMPER)
)
CLEARABLE = tuple(  # a new battery undoes WEAK_BATTERY and DEAD_BATTERY
    fault for fault in Fault if fault not in PERMANENT or fault in (Fault.WEAK_BATTERY, Fault.DEAD_BATTERY)
)
UNTIL_CLEARED = frozenset(
    (Fault.STUCK_BUTTON, Fault.SEGMENT, Fault.LINE_NOISE, Fault.LINE_DROP, Fault.LINE_DOUBLE, Fault.LINE_BAUD)
)


class Faults:
    """The armed faults. Each fault has a number, and a count of remaining times (None: until it is cleared)."""

    def __init__(self) -> None:
        self._left: dict[Fault, int | None] = {}
        self._numbers: dict[Fault, int] = {}
        self.segments: set[int] = set()  # broken display segments: cell × 10 + segment

    def arm(self, fault: Fault, times: int | None = 1, number: int | None = None) -> None:
        self._left[fault] = times
        if number is not None:
            self._numbers[fault] = number

    def clear(self, fault: Fault) -> None:
        self._left.pop(fault, None)
        self._numbers.pop(fault, None)

    def trigger(self, fault: Fault) -> bool:
        """Return True if `fault` is armed, and decrement its remaining times."""
        if fault not in self._left:
            return False
        left = self._left[fault]
        if left is not None:
            if left <= 1:
                del self._left[fault]
            else:
                self._left[fault] = left - 1
        return True

    def number(self, fault: Fault, default: int) -> int:
        """Return the number with which `fault` was armed, or `default`."""
        return self._numbers.get(fault, default)

    def __contains__(self, fault: Fault) -> bool:
        return fault in self._left

    def armed_faults(self) -> dict[str, int | None]:
        """Return the remaining times of each armed fault."""
        return {str(fault): times for fault, times in sorted(self._left.items())}
