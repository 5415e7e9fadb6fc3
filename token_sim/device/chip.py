"""The token's chip: the conditions and actions that the table in firmware.py uses.

Rules:
- The next counter is durably in memory before the code is computed, so a code is shown at most once, even if power
  fails.
- Memory is read again at every press. A failed checksum is an error on the display, never a code.
- Every time is an age of the body: no clock is read here.
"""

from __future__ import annotations

from dataclasses import dataclass

from pam_totp.core.oath import hotp
from token_sim.device import memory, models
from token_sim.device.faults import Fault, Faults
from token_sim.device.hardware import Body
from token_sim.device.memory import Contents, Slot
from token_sim.device.models import Profile
from token_sim.device.seven_segment import CELLS
from token_sim.device.states import Signal, State

BOOT_MS = 50  # the self-test
FAILURE_TEXT, WRITE_ERROR_TEXT, EXHAUSTED_TEXT = "Err 1", "Err 2", "End"


@dataclass(frozen=True, slots=True)
class Event:
    """Something visible from outside, at a time of the world (Unix ms)."""

    at: int
    name: str  # OTP, DISP, BATT, ERR or TYPE
    text: str


class Chip:
    """One chip. `text` is what the display shows; `events` holds what happened since they were last taken.

    `deadlines` holds the age at which a signal is due: TIMER, OFF and ROLL.
    """

    def __init__(self, nvram: memory.Nvram, profile: Profile, body: Body, faults: Faults) -> None:
        self.memory, self.profile, self.body, self.faults = nvram, profile, body, faults
        self.text = ""
        self.events: list[Event] = []
        self.deadlines: dict[Signal, int] = {}
        self.state = State.BOOT
        self.last_code = ""
        self.codes_shown = 0  # since the chip was made; a test can wait for it to grow
        self.rested_at = 0  # a press counts again from this age on
        self._pressed_at = 0
        self._slot = 0
        self._step = 0
        self._code = ""
        self._untyped = ""
        self._contents: Contents | None = None
        self._serial = "?" * memory.SERIAL_LENGTH

    def choose_slot(self) -> None:
        """Choose the slot by how long the button was held."""
        self._slot = int(self._long_touch())

    @property
    def slot(self) -> Slot | None:
        return None if self._contents is None else self._contents.slots[self._slot]

    @property
    def serial(self) -> str:
        """The number on the back, as of the last time that the memory was valid."""
        return self._serial

    def healthy(self) -> bool:
        try:
            memory.load(self.memory.read())
        except memory.Corrupt:
            return False
        return True

    def seconds_left(self) -> tuple[int, int] | None:
        slot = self.slot
        if slot is None or slot.kind != "totp" or self.text != self._code:
            return None
        return slot.period - self.body.clock_ms // 1000 % slot.period, slot.period

    # --- conditions

    def always(self) -> bool:
        return True

    def is_zeroised(self) -> bool:
        return self._contents is not None and self._contents.zeroised

    def is_broken(self) -> bool:
        return self._contents is None

    def is_blank(self) -> bool:
        return self._contents is not None and self._contents.blank

    def rested(self) -> bool:
        return self.body.age >= self.rested_at

    def lit(self) -> bool:
        return bool(self.text)

    def has_menu(self) -> bool:
        return self.profile.menu

    def showing_code_and_turns_off(self) -> bool:
        return self.profile.lit_press == "off" and bool(self.text)

    def showing_code_and_repeats_it(self) -> bool:
        return self.profile.lit_press == "same" and bool(self.text) and self.text == self._code

    def between_slots(self) -> bool:
        """Return True if the touch chose no slot, or one without a seed. Between the two slots is a gap of time."""
        until, from_ = self.profile.slot1_until_ms, self.profile.slot2_from_ms
        held = self.body.age - self._pressed_at
        return (from_ > 0 and until < held < from_) or self._slot_pointed_at() is None

    def is_exhausted(self) -> bool:
        slot = self._slot_pointed_at()
        return self.counts() and slot is not None and self._counter() >= slot.limit

    def counts(self) -> bool:
        slot = self._slot_pointed_at()
        return slot is not None and slot.kind == "hotp"

    def types(self) -> bool:
        return self.profile.display_ms == 0

    def has_more_to_type(self) -> bool:
        return bool(self._untyped)

    def _long_touch(self) -> bool:
        from_ = self.profile.slot2_from_ms
        return 0 < from_ <= self.body.age - self._pressed_at

    def _slot_pointed_at(self) -> Slot | None:
        return None if self._contents is None else self._contents.slots[int(self._long_touch())]

    def _counter(self) -> int:
        assert self._contents is not None
        return self._contents.counters[int(self._long_touch())]

    # --- actions; each may return a signal that follows

    def nothing(self) -> None:
        pass

    def restart(self) -> None:
        self.text = self._code = self._untyped = ""
        self.deadlines.clear()
        self._after(Signal.TIMER, BOOT_MS)
        self.rested_at = self.body.age + BOOT_MS
        self._read()

    def start_debounce(self) -> None:
        self._pressed_at = self.body.age
        self._after(Signal.TIMER, self.profile.debounce_ms)

    def wake(self) -> None:
        self.rested_at = self._pressed_at + self.profile.rest_ms
        self._after_press(models.MENU_COUNTER_MS if self.profile.menu else models.HELD_TOO_LONG_MS)
        self._read()

    def commit(self) -> Signal | None:
        """Write the next counter. The code of this counter has not been computed yet, if this fails."""
        assert self._contents is not None
        self._step = self._contents.counters[self._slot]
        if self.faults.strikes(Fault.POWER_BEFORE_WRITE):
            return Signal.RESET
        if self.faults.strikes(Fault.WRITE_ERROR):
            return Signal.WRITE_FAILED
        offset, page = memory.counter_write(self.memory.read(), self._slot, self._step + 1)
        torn = self.faults.strikes(Fault.TORN_WRITE)
        try:
            self.memory.write(offset, page[: len(page) // 2] + b"\xff" * (len(page) - len(page) // 2) if torn else page)
        except OSError:
            return Signal.WRITE_FAILED
        if torn or self.faults.strikes(Fault.POWER_AFTER_WRITE):
            return Signal.RESET
        self._after(Signal.TIMER, self.profile.commit_ms)
        return None

    def compute(self) -> None:
        slot = self.slot
        assert slot is not None
        if slot.kind == "totp":
            self._step = self.body.clock_ms // (slot.period * 1000)
        self.body.spend(self.profile.press_nah)
        self._code = hotp(slot.key, self._step, slot.digits, slot.algorithm)
        self._after(Signal.TIMER, self.profile.compute_ms)

    def show_code(self) -> None:
        self._show(self._code)
        self._shown()
        self.tell("OTP", self._code)
        self._watch_step()

    def show_same(self) -> None:
        self._show(self._code)
        self.tell("DISP", "SAME")

    def show_next_step(self) -> None:
        """Show the code of a new time step while the display is on, as a token with a time bar does."""
        slot = self.slot
        assert slot is not None
        if self.body.clock_ms // (slot.period * 1000) > self._step:
            self.compute()
            self.deadlines.pop(Signal.TIMER, None)
            self.text = self._code
            self._shown()
            self.tell("OTP", self._code)
        self._watch_step()

    def type_one(self) -> None:
        if not self._untyped:
            self._untyped = self._code + "\r"
        self.tell("TYPE", self._untyped[0])
        self._untyped = self._untyped[1:]
        if not self._untyped:
            self._shown()
        self._after(Signal.TIMER, self.profile.type_ms)

    def show_counter(self) -> None:
        slot, contents = self.slot, self._contents
        factor = 0
        if slot is not None and contents is not None:
            totp = slot.kind == "totp"
            factor = self.body.clock_ms // (slot.period * 1000) if totp else contents.counters[0]
        self._show_menu(str(factor)[-CELLS:], models.MENU_SERIAL_MS)

    def show_serial(self) -> None:
        self._show_menu(self._contents.serial[-CELLS:] if self._contents else FAILURE_TEXT, models.MENU_BATTERY_MS)

    def show_battery(self) -> None:
        self._show_menu(f"b {self.body.level}", models.HELD_TOO_LONG_MS)

    def keep_lit(self) -> None:
        self._show(self.text)

    def show_failure(self) -> None:
        self._show_error(FAILURE_TEXT, "SELFTEST")

    def show_write_error(self) -> None:
        self._show_error(WRITE_ERROR_TEXT, "WRITE")

    def show_exhausted(self) -> None:
        self._show_error(EXHAUSTED_TEXT, "EXHAUSTED")

    def darken(self) -> None:
        """Turn the display off."""
        was_lit, self.text = bool(self.text), ""
        self._code = ""
        self.deadlines.pop(Signal.OFF, None)
        self.deadlines.pop(Signal.ROLL, None)
        if was_lit:
            self.tell("DISP", "OFF")

    def die(self) -> None:
        self.text = self._code = self._untyped = ""
        self.deadlines.clear()
        self.tell("BATT", "DEAD")

    def wipe(self) -> None:
        self.darken()
        self.deadlines.clear()
        self.memory.write(0, memory.wiped(self.memory.read()))
        self._read()
        self.tell("ERR", "ZEROISED")

    # --- helpers

    def tell(self, name: str, text: str) -> None:
        """Add an event."""
        self.events.append(Event(self.body.now, name, text))

    def _after(self, signal: Signal, ms: int) -> None:
        self.deadlines[signal] = self.body.age + ms

    def _show(self, text: str) -> None:
        """Show a text until the display goes off; every text has this end, except while the button is held."""
        self.text = text
        if self.profile.display_ms:
            self._after(Signal.OFF, self.profile.display_ms)

    def _read(self) -> None:
        """Run the self-test: read the memory, or note that it is corrupt."""
        try:
            self._contents = memory.load(self.memory.read())
            self._serial = self._contents.serial
        except memory.Corrupt:
            self._contents = None

    def _after_press(self, ms: int) -> None:
        self.deadlines[Signal.TIMER] = self._pressed_at + ms

    def _shown(self) -> None:
        self.last_code = self._code
        self.codes_shown += 1

    def _show_menu(self, text: str, until: int) -> None:
        self._show(text)
        self.deadlines.pop(Signal.OFF, None)
        self.deadlines.pop(Signal.ROLL, None)
        self._after_press(until)
        self.tell("DISP", text)

    def _show_error(self, text: str, name: str) -> None:
        if self.profile.display_ms:
            self._show(text)
        self.rested_at = self.body.age + self.profile.rest_ms
        self.tell("ERR", name)

    def _watch_step(self) -> None:
        slot = self.slot
        if slot is not None and slot.kind == "totp":
            left = (self._step + 1) * slot.period * 1000 - self.body.clock_ms
            self._after(Signal.ROLL, max(1, left))
