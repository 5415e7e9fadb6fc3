"""The token's chip: the conditions and actions that the table in firmware.py uses.

Rules:
- The chip writes the next counter durably before it computes a HOTP code. The token therefore cannot compute the same
  code again after a power failure.
- The chip reads the memory again at every press. The display shows an error instead of a code after a failed checksum.
- Deadlines are ages of the hardware in milliseconds. This module reads no clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from pam_totp.core.oath import hotp
from token_sim.device import memory, models
from token_sim.device.faults import Fault, Faults
from token_sim.device.hardware import Hardware
from token_sim.device.memory import Contents, Slot
from token_sim.device.models import Profile
from token_sim.device.seven_segment import CELLS
from token_sim.device.states import Signal, State

BOOT_MS = 50  # the duration of the self-test
FAILURE_TEXT, WRITE_ERROR_TEXT, EXHAUSTED_TEXT = "Err 1", "Err 2", "End"


@dataclass(frozen=True, slots=True)
class Event:
    """A change that a client or user can see. `at` is the true time (Unix ms)."""

    at: int
    name: str  # OTP, DISP, BATT, ERR or TYPE
    text: str


class Chip:
    """The chip. `text` is the text on the display. `events` contains the events since the last `Device.take_events`.

    `deadlines` maps the signals TIMER, OFF and ROLL to the ages at which they are due.
    """

    def __init__(self, nvram: memory.Nvram, profile: Profile, hardware: Hardware, faults: Faults) -> None:
        self.memory, self.profile, self.hardware, self.faults = nvram, profile, hardware, faults
        self.text = ""
        self.events: list[Event] = []
        self.deadlines: dict[Signal, int] = {}
        self.state = State.BOOT
        self.last_code = ""
        self.codes_shown = 0  # since the creation of the chip; `LiveToken.press` waits for an increase
        self.ready_at = 0  # the age from which the next press has an effect
        self._pressed_at = 0
        self._slot = 0
        self._step = 0
        self._code = ""
        self._text_to_type = ""
        self._contents: Contents | None = None
        self._serial = "?" * memory.SERIAL_LENGTH

    def choose_slot(self) -> None:
        """Choose the slot by the length of the touch."""
        self._slot = int(self._long_touch())

    @property
    def slot(self) -> Slot | None:
        return None if self._contents is None else self._contents.slots[self._slot]

    @property
    def serial(self) -> str:
        """Return the serial number that the chip last read from valid memory, or question marks."""
        return self._serial

    def is_healthy(self) -> bool:
        """Return True if the memory passes its self-test now."""
        try:
            memory.load(self.memory.read())
        except memory.Corrupt:
            return False
        return True

    def seconds_left(self) -> tuple[int, int] | None:
        """Return the remaining seconds and the period if a time-based code is shown, else None."""
        slot = self.slot
        if slot is None or slot.kind != "totp" or self.text != self._code:
            return None
        return slot.period - self.hardware.clock_ms // 1000 % slot.period, slot.period

    # --- conditions

    def always(self) -> bool:
        return True

    def is_zeroised(self) -> bool:
        return self._contents is not None and self._contents.is_zeroised

    def is_broken(self) -> bool:
        return self._contents is None

    def is_blank(self) -> bool:
        return self._contents is not None and self._contents.is_blank

    def is_ready(self) -> bool:
        """Return True if a press has an effect now."""
        return self.hardware.age >= self.ready_at

    def is_lit(self) -> bool:
        return bool(self.text)

    def has_menu(self) -> bool:
        return self.profile.menu

    def is_press_to_turn_off(self) -> bool:
        """Return True if the display is on, and a press turns it off on this model."""
        return self.profile.lit_press == "off" and bool(self.text)

    def is_press_to_repeat(self) -> bool:
        """Return True if a code is shown, and a press shows it again on this model."""
        return self.profile.lit_press == "same" and bool(self.text) and self.text == self._code

    def has_no_slot(self) -> bool:
        """Return True if the touch selects no slot with a seed.

        No slot is selected by a touch between the maximum of the first slot and the minimum of the second slot.
        """
        until, from_ = self.profile.slot1_until_ms, self.profile.slot2_from_ms
        held = self.hardware.age - self._pressed_at
        return (from_ > 0 and until < held < from_) or self._touched_slot() is None

    def is_exhausted(self) -> bool:
        slot = self._touched_slot()
        return self.is_counter_based() and slot is not None and self._counter() >= slot.limit

    def is_counter_based(self) -> bool:
        slot = self._touched_slot()
        return slot is not None and slot.kind == "hotp"

    def has_no_display(self) -> bool:
        return self.profile.display_ms == 0

    def has_more_to_type(self) -> bool:
        return bool(self._text_to_type)

    def _long_touch(self) -> bool:
        from_ = self.profile.slot2_from_ms
        return 0 < from_ <= self.hardware.age - self._pressed_at

    def _touched_slot(self) -> Slot | None:
        return None if self._contents is None else self._contents.slots[int(self._long_touch())]

    def _counter(self) -> int:
        assert self._contents is not None
        return self._contents.counters[int(self._long_touch())]

    # --- actions; an action can return another signal

    def do_nothing(self) -> None:
        pass

    def restart(self) -> None:
        self.text = self._code = self._text_to_type = ""
        self.deadlines.clear()
        self._schedule(Signal.TIMER, BOOT_MS)
        self.ready_at = self.hardware.age + BOOT_MS
        self._load_memory()

    def start_debounce(self) -> None:
        self._pressed_at = self.hardware.age
        self._schedule(Signal.TIMER, self.profile.debounce_ms)

    def wake(self) -> None:
        self.ready_at = self._pressed_at + self.profile.rest_ms
        self._schedule_after_press(models.MENU_COUNTER_MS if self.profile.menu else models.HELD_TOO_LONG_MS)
        self._load_memory()

    def commit(self) -> Signal | None:
        """Write the next counter. Return a signal if the write or the power fails. The display then shows no code."""
        assert self._contents is not None
        self._step = self._contents.counters[self._slot]
        if self.faults.trigger(Fault.POWER_BEFORE_WRITE):
            return Signal.RESET
        if self.faults.trigger(Fault.WRITE_ERROR):
            return Signal.WRITE_FAILED
        offset, page = memory.counter_write(self.memory.read(), self._slot, self._step + 1)
        torn = self.faults.trigger(Fault.TORN_WRITE)
        try:
            self.memory.write(offset, page[: len(page) // 2] + b"\xff" * (len(page) - len(page) // 2) if torn else page)
        except OSError:
            return Signal.WRITE_FAILED
        if torn or self.faults.trigger(Fault.POWER_AFTER_WRITE):
            return Signal.RESET
        self._schedule(Signal.TIMER, self.profile.commit_ms)
        return None

    def compute(self) -> None:
        slot = self.slot
        assert slot is not None
        if slot.kind == "totp":
            self._step = self.hardware.clock_ms // (slot.period * 1000)
        self.hardware.discharge(self.profile.press_nah)
        self._code = hotp(slot.key, self._step, slot.digits, slot.algorithm)
        self._schedule(Signal.TIMER, self.profile.compute_ms)

    def show_code(self) -> None:
        self._show(self._code)
        self._count_code()
        self.emit("OTP", self._code)
        self._schedule_next_step()

    def show_same(self) -> None:
        """Show the same code again, and restart the display time."""
        self._show(self._code)
        self.emit("DISP", "SAME")

    def show_next_step(self) -> None:
        """Show the code of a new time step while the display is on."""
        slot = self.slot
        assert slot is not None
        if self.hardware.clock_ms // (slot.period * 1000) > self._step:
            self.compute()
            self.deadlines.pop(Signal.TIMER, None)
            self.text = self._code
            self._count_code()
            self.emit("OTP", self._code)
        self._schedule_next_step()

    def type_character(self) -> None:
        """Type the next character of the code, or the Return key after the last digit."""
        if not self._text_to_type:
            self._text_to_type = self._code + "\r"
        self.emit("TYPE", self._text_to_type[0])
        self._text_to_type = self._text_to_type[1:]
        if not self._text_to_type:
            self._count_code()
        self._schedule(Signal.TIMER, self.profile.type_ms)

    def show_counter(self) -> None:
        slot, contents = self.slot, self._contents
        factor = 0
        if slot is not None and contents is not None:
            totp = slot.kind == "totp"
            factor = self.hardware.clock_ms // (slot.period * 1000) if totp else contents.counters[0]
        self._show_menu(str(factor)[-CELLS:], models.MENU_SERIAL_MS)

    def show_serial(self) -> None:
        self._show_menu(self._contents.serial[-CELLS:] if self._contents else FAILURE_TEXT, models.MENU_BATTERY_MS)

    def show_battery(self) -> None:
        self._show_menu(f"b {self.hardware.battery_level}", models.HELD_TOO_LONG_MS)

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
            self.emit("DISP", "OFF")

    def die(self) -> None:
        """Stop, because the battery is empty."""
        self.text = self._code = self._text_to_type = ""
        self.deadlines.clear()
        self.emit("BATT", "DEAD")

    def wipe(self) -> None:
        """Erase the seeds and counters."""
        self.darken()
        self.deadlines.clear()
        self.memory.write(0, memory.wiped(self.memory.read()))
        self._load_memory()
        self.emit("ERR", "ZEROISED")

    # --- helpers

    def emit(self, name: str, text: str) -> None:
        """Add an event."""
        self.events.append(Event(self.hardware.now, name, text))

    def _schedule(self, signal: Signal, ms: int) -> None:
        self.deadlines[signal] = self.hardware.age + ms

    def _show(self, text: str) -> None:
        """Show a text, and schedule the end of its display time."""
        self.text = text
        if self.profile.display_ms:
            self._schedule(Signal.OFF, self.profile.display_ms)

    def _load_memory(self) -> None:
        """Run the self-test: read the memory, and set `_contents` to None if the memory is corrupt."""
        try:
            self._contents = memory.load(self.memory.read())
            self._serial = self._contents.serial
        except memory.Corrupt:
            self._contents = None

    def _schedule_after_press(self, ms: int) -> None:
        self.deadlines[Signal.TIMER] = self._pressed_at + ms

    def _count_code(self) -> None:
        self.last_code = self._code
        self.codes_shown += 1

    def _show_menu(self, text: str, until: int) -> None:
        self._show(text)
        self.deadlines.pop(Signal.OFF, None)
        self.deadlines.pop(Signal.ROLL, None)
        self._schedule_after_press(until)
        self.emit("DISP", text)

    def _show_error(self, text: str, name: str) -> None:
        if self.profile.display_ms:
            self._show(text)
        self.ready_at = self.hardware.age + self.profile.rest_ms
        self.emit("ERR", name)

    def _schedule_next_step(self) -> None:
        slot = self.slot
        if slot is not None and slot.kind == "totp":
            left = (self._step + 1) * slot.period * 1000 - self.hardware.clock_ms
            self._schedule(Signal.ROLL, max(1, left))
