"""Named places at which a token can go wrong, and which of them are armed.

The law: a fault strikes as often as it was armed for, and only where its name says; an unarmed token has none.
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
    Fault.POWER_BEFORE_WRITE: "the power goes as the counter is about to be written",
    Fault.POWER_AFTER_WRITE: "the power goes after the counter was written, before the code is shown: one is skipped",
    Fault.TORN_WRITE: "the power goes in the middle of the write: the page is spoiled, one code is skipped",
    Fault.WRITE_ERROR: "the memory refuses the write: an error is shown, and no code",
    Fault.BIT_ROT: "a bit of the seed's page flips: the self-test sees it at the next press",
    Fault.STUCK_BUTTON: "the button stays down until the fault is cleared",
    Fault.BOUNCE: "the contact chatters at each press (a number: for so many ms each way, 3 if not said)",
    Fault.WEAK_BATTERY: "the battery is nearly empty",
    Fault.DEAD_BATTERY: "the battery is empty",
    Fault.SEGMENT: "a segment of the display never lights (a number: cell × 10 + segment a…g as 0…6)",
    Fault.COUNTER_LIMIT: "the counter is at its limit: no more codes",
    Fault.TAMPER: "the case was opened: the seed is wiped",
    Fault.LINE_NOISE: "bits flip on the line (a number: in so many per cent of the bytes, 5 if not said)",
    Fault.LINE_DROP: "bytes are lost (likewise)",
    Fault.LINE_DOUBLE: "bytes come twice (likewise)",
    Fault.LINE_STALL: "what the token sends is held back (a number: for so many ms, 1000 if not said)",
    Fault.LINE_BAUD: "the token listens and talks at half the speed",
}

PERMANENT = frozenset(  # those that are in the token, or on its file, from now on; the others wait to strike
    (Fault.BIT_ROT, Fault.WEAK_BATTERY, Fault.DEAD_BATTERY, Fault.COUNTER_LIMIT, Fault.TAMPER)
)
UNTIL_CLEARED = frozenset(
    (Fault.STUCK_BUTTON, Fault.SEGMENT, Fault.LINE_NOISE, Fault.LINE_DROP, Fault.LINE_DOUBLE, Fault.LINE_BAUD)
)


class Faults:
    """What is armed: a fault, how many more times it strikes (None: until cleared), and the number it was given."""

    def __init__(self) -> None:
        self._left: dict[Fault, int | None] = {}
        self._numbers: dict[Fault, int] = {}
        self.segments: set[int] = set()  # of the display, broken: cell × 10 + segment

    def arm(self, fault: Fault, times: int | None = 1, number: int | None = None) -> None:
        self._left[fault] = times
        if number is not None:
            self._numbers[fault] = number

    def clear(self, fault: Fault) -> None:
        self._left.pop(fault, None)
        self._numbers.pop(fault, None)

    def trigger(self, fault: Fault) -> bool:
        """Whether `fault` strikes here and now; if so, it has struck."""
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
        return self._numbers.get(fault, default)

    def __contains__(self, fault: Fault) -> bool:
        return fault in self._left

    def armed_faults(self) -> dict[str, int | None]:
        return {str(fault): times for fault, times in sorted(self._left.items())}
