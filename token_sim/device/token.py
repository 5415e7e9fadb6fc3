"""A token: chip, button, battery and clock, which `elapse` advances in time.

Rules:
- Time is an argument, in whole milliseconds. This module reads no clock.
- Random choices use a seeded generator. Only the memory does input and output.
- The same calls at the same times cause the same events, for any length of the time steps.
- The device records events in order, and the caller fetches them with `take_events`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from token_sim.device import memory, seven_segment
from token_sim.device.chip import Event
from token_sim.device.faults import PERMANENT, UNTIL_CLEARED, Fault, Faults
from token_sim.device.firmware import Firmware
from token_sim.device.hardware import Hardware
from token_sim.device.models import Profile
from token_sim.device.states import Signal, State

BOUNCE_MS = 3  # the length of a bounce of a worn contact
_TIMED = (Signal.TIMER, Signal.ROLL, Signal.OFF)  # the order of signals that are due at the same time
_BUSY = frozenset((State.BOOT, State.DEBOUNCE, State.HELD, State.COMMIT, State.COMPUTE, State.TYPING))


class Device:
    """A token. `elapse` advances the time; `press` (or `close` and `open`) uses the button."""

    def __init__(self, nvram: memory.Nvram, profile: Profile, hardware: Hardware, seed: int = 0) -> None:
        self.memory, self.profile, self.hardware = nvram, profile, hardware
        self.faults = Faults()
        self.chip = Firmware(nvram, profile, hardware, self.faults)
        self.is_button_closed = False  # the contact of the button
        self._random = random.Random(seed)
        self._contact_changes: list[tuple[int, bool]] = []  # scheduled changes: age, and whether the contact closes
        self._is_low_reported = False
        self._check_battery()

    def __repr__(self) -> str:
        return f"<Device {self.profile.name} {self.state}>"

    @property
    def state(self) -> State:
        return self.chip.state

    @property
    def serial(self) -> str:
        return self.chip.serial

    @property
    def is_healthy(self) -> bool:
        """Return True if the memory passes its self-test now."""
        return self.chip.is_healthy()

    def reset(self) -> None:
        """Disconnect the power and connect it again."""
        self.chip.signal(Signal.RESET)

    def take_events(self) -> list[Event]:
        """Return the events since the last call."""
        events, self.chip.events = self.chip.events, []
        return events

    # --- time. The device schedules events by age, because the true time can jump, or stop while the token ages.

    def elapse(self, ms: int, *, world: bool = True) -> None:
        """Advance the token by `ms` milliseconds. The true time changes only if `world` is true.

        Raise ValueError if `ms` < 0.
        """
        if ms < 0:
            raise ValueError("the time to pass must be 0 ms or more")
        end = self.hardware.age + ms
        while (due := self.next_due()) is not None and due <= end:
            self._advance_to(due, world)
            self._process_due()
        self._advance_to(end, world)

    def next_due(self) -> int | None:
        """Return the age (ms) of the next scheduled event, or None."""
        dues = [*self.chip.deadlines.values(), *(at for at, _ in self._contact_changes[:1])]
        if self.state is not State.DEAD:
            levels = (0,) if self._is_low_reported else (0, self.hardware.low_charge)
            left = (self.hardware.ms_until(level, self._current_na()) for level in levels)
            dues += [self.hardware.age + ms for ms in left if ms is not None]
        return min(dues, default=None)

    def next_change(self) -> int | None:
        """Return the earlier of two ages (ms): `next_due`, and the age from which a press has an effect again."""
        due = self.next_due()
        if self.chip.is_ready():
            return due
        return self.chip.ready_at if due is None else min(due, self.chip.ready_at)

    def _advance_to(self, age: int, world: bool) -> None:
        self.hardware.elapse(max(0, age - self.hardware.age), self._current_na(), world=world)

    def _process_due(self) -> None:
        age, deadlines = self.hardware.age, self.chip.deadlines
        if self._contact_changes and self._contact_changes[0][0] <= age:
            self._contact(self._contact_changes.pop(0)[1])
        else:
            due = next((s for s in _TIMED if s in deadlines and deadlines[s] <= age), None)
            if due is not None:
                del deadlines[due]
                self.chip.signal(due)
        self._check_battery()

    def _current_na(self) -> int:
        return self.profile.lit_na if self.chip.text else self.profile.sleep_na

    def _check_battery(self) -> None:
        if self.state is State.DEAD:
            return
        if self.hardware.charge == 0:
            self.chip.signal(Signal.EMPTY)
        elif self.hardware.is_battery_low and not self._is_low_reported:
            self._is_low_reported = True
            self.chip.emit("BATT", "LOW")

    # --- faults

    def inject(self, fault: Fault, times: int | None = 1, number: int | None = None) -> None:
        """Apply a permanent fault immediately, or arm another fault for `times` times.

        Raise ValueError for an invalid number.
        """
        if fault is Fault.SEGMENT:
            segment = 0 if number is None else number
            if not 0 <= segment < seven_segment.CELLS * 10 or segment % 10 >= len(seven_segment.SEGMENTS):
                raise ValueError("the number must be cell × 10 + segment, with cells 0 to 7 and segments 0 to 6")
            self.faults.segments.add(segment)
        elif fault in PERMANENT:
            _PERMANENT[fault](self)
        if fault not in PERMANENT:
            self.faults.arm(fault, None if fault in UNTIL_CLEARED else times, number)
        if fault is Fault.STUCK_BUTTON:
            self.close()
        self._check_battery()

    def clear_fault(self, fault: Fault) -> None:
        """Undo `fault`. Raise ValueError if the fault cannot be undone."""
        if fault in (Fault.WEAK_BATTERY, Fault.DEAD_BATTERY):
            self.hardware.charge, self._is_low_reported = self.hardware.capacity, False
            self.chip.signal(Signal.FRESH)
        elif fault in PERMANENT:
            raise ValueError(f"{fault} cannot be undone (restore a snapshot, or make a new token)")
        self.faults.clear(fault)
        if fault is Fault.SEGMENT:
            self.faults.segments.clear()
        if fault is Fault.STUCK_BUTTON:
            self.open()

    def permanent_faults(self) -> list[Fault]:
        """Return the permanent faults that the token has now, from any cause."""
        hardware = self.hardware
        try:
            contents = memory.load(self.memory.read())
        except memory.Corrupt:
            at_limit, is_zeroised = False, False
        else:
            is_zeroised = contents.is_zeroised
            pairs = zip(contents.slots, contents.counters, strict=True)
            at_limit = any(slot is not None and counter >= slot.limit for slot, counter in pairs)
        present = {
            Fault.BIT_ROT: not self.is_healthy,
            Fault.WEAK_BATTERY: hardware.is_battery_low and hardware.charge > 0,
            Fault.DEAD_BATTERY: hardware.charge == 0,
            Fault.COUNTER_LIMIT: at_limit,
            Fault.TAMPER: is_zeroised,
        }
        return [fault for fault, is_present in present.items() if is_present]

    def restore(self, image: bytes, hardware: Hardware) -> None:
        """Load the memory `image`, and the charge and the clock error of `hardware`, and restart.

        The token's age and the true time are unchanged.
        """
        self.memory.write(0, image)
        self.hardware.charge, self.hardware.crystal = hardware.charge, hardware.crystal
        self.hardware.set_error(hardware.error_ms)
        self.chip.last_code = ""
        self._is_low_reported = False
        self.chip.signal(Signal.FRESH)
        self._check_battery()

    def _flip_bit(self) -> None:
        offset = memory.seed_offset(0) + self._random.randrange(memory.SEED_SIZE)
        bit = 1 << self._random.randrange(8)
        self.memory.write(offset, bytes((self.memory.read()[offset] ^ bit,)))

    def _reach_limit(self) -> None:
        for slot in range(self.profile.slots):
            for page in memory.at_limit(self.memory.read(), slot):
                self.memory.write(*page)

    def _drain(self, per_cent: int) -> None:
        self.hardware.charge = min(self.hardware.charge, self.hardware.capacity * per_cent // 100)

    def visible_text(self) -> str:
        """Return the text that the display shows with its broken segments."""
        return seven_segment.read(self.lit_segments())

    def lit_segments(self) -> tuple[int, ...]:
        return seven_segment.light(self.chip.text, self.faults.segments)

    def seconds_left(self) -> tuple[int, int] | None:
        """Return the remaining seconds and the period if a time-based code is shown, else None."""
        return self.chip.seconds_left() if self.chip.text else None

    # --- the button

    @property
    def is_busy(self) -> bool:
        """Return True if a press now has no effect."""
        return bool(self._contact_changes) or not self.chip.is_ready() or self.state in _BUSY

    def press(self, ms: int | None = None) -> None:
        """Press the button now, and release it after `ms` milliseconds (default: the model's value)."""
        down = self.hardware.age
        up = down + (self.profile.press_ms if ms is None else ms)
        has_bounce = Fault.BOUNCE in self.faults and self.faults.trigger(Fault.BOUNCE)
        bounce_ms = self.faults.number(Fault.BOUNCE, BOUNCE_MS)
        for at, closed in ((down, True), (up, False)):
            self._contact_changes.append((at, closed))
            if has_bounce:
                self._contact_changes += [(at + bounce_ms, not closed), (at + 2 * bounce_ms, closed)]
        self._contact_changes.sort(key=lambda change: change[0])
        self.elapse(0)

    def close(self) -> None:
        self._contact(True)

    def open(self) -> None:
        self._contact(False)

    def _contact(self, closed: bool) -> None:
        if closed is not self.is_button_closed and (closed or Fault.STUCK_BUTTON not in self.faults):
            self.is_button_closed = closed
            self.chip.signal(Signal.CLOSE if closed else Signal.OPEN)


_PERMANENT: dict[Fault, Callable[[Device], None]] = {
    Fault.BIT_ROT: Device._flip_bit,
    Fault.COUNTER_LIMIT: Device._reach_limit,
    Fault.WEAK_BATTERY: lambda device: device._drain(5),
    Fault.DEAD_BATTERY: lambda device: device._drain(0),
    Fault.TAMPER: lambda device: device.chip.signal(Signal.TAMPER),
}
