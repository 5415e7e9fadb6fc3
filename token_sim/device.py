"""A token: chip, button, battery and clock, moved by `elapse`.

The law:
- time is an argument, in whole milliseconds; nothing here reads a clock, draws from an unseeded source or does
  input or output, except through the memory it was given;
- how time is cut into pieces never matters: the same calls at the same moments give the same events;
- what happens is told as events, in order; nobody is called back.
"""

from __future__ import annotations

import random

from token_sim import nvram
from token_sim.body import Body
from token_sim.faults import Fault, Faults
from token_sim.firmware import Event, Firmware
from token_sim.profiles import Profile
from token_sim.states import Signal, State

BOUNCE_MS = 3  # how long a worn contact chatters each way
_TIMED = (Signal.TIMER, Signal.ROLL, Signal.OFF)  # in the order in which they go at one moment
_BUSY = frozenset((State.BOOT, State.DEBOUNCE, State.HELD, State.COMMIT, State.COMPUTE, State.TYPING))


class Device:
    """One token. `elapse` moves it, `press` (or `close` and `open`) works its button, `take_events` tells."""

    def __init__(self, memory: nvram.Nvram, profile: Profile, body: Body, seed: int = 0) -> None:
        self.memory, self.profile, self.body = memory, profile, body
        self.faults = Faults()
        self.chip = Firmware(memory, profile, body, self.faults)
        self.closed = False  # the button's contact
        self._random = random.Random(seed)
        self._finger: list[tuple[int, bool]] = []  # what the contact is going to do, by age
        self._said_low = False
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
    def healthy(self) -> bool:
        """Whether the memory passes its self-test now."""
        return self.chip.healthy()

    def reset(self) -> None:
        """Take the power away and give it back."""
        self.chip.signal(Signal.RESET)

    def take_events(self) -> list[Event]:
        events, self.chip.events = self.chip.events, []
        return events

    # --- time. Everything is scheduled by age: the world's time may leap, or stand still while the token ages.

    def elapse(self, ms: int, *, world: bool = True) -> None:
        """Let `ms` milliseconds pass. With `world` false the token ages and the world's time stays."""
        if ms < 0:
            raise ValueError("time only goes forward")
        end = self.body.age + ms
        while (due := self.next_due()) is not None and due <= end:
            self._pass(due, world)
            self._fire()
        self._pass(end, world)

    def next_due(self) -> int | None:
        """The age (ms) at which something happens by itself; None if nothing ever will."""
        dues = [*self.chip.deadlines.values(), *(at for at, _ in self._finger[:1])]
        if self.state is not State.DEAD:
            levels = (0,) if self._said_low else (0, self.body.low_charge)
            left = (self.body.until(level, self._current()) for level in levels)
            dues += [self.body.age + ms for ms in left if ms is not None]
        return min(dues, default=None)

    def _pass(self, age: int, world: bool) -> None:
        self.body.elapse(max(0, age - self.body.age), self._current(), world=world)

    def _fire(self) -> None:
        age, deadlines = self.body.age, self.chip.deadlines
        if self._finger and self._finger[0][0] <= age:
            self._contact(self._finger.pop(0)[1])
        else:
            due = next((s for s in _TIMED if s in deadlines and deadlines[s] <= age), None)
            if due is not None:
                del deadlines[due]
                self.chip.signal(due)
        self._check_battery()

    def _current(self) -> int:
        return self.profile.lit_na if self.chip.text else self.profile.sleep_na

    def _check_battery(self) -> None:
        if self.state is State.DEAD:
            return
        if self.body.charge == 0:
            self.chip.signal(Signal.EMPTY)
        elif self.body.low and not self._said_low:
            self._said_low = True
            self.chip.tell("BATT", "LOW")

    # --- the button

    @property
    def busy(self) -> bool:
        """Whether a press now would be lost."""
        return bool(self._finger) or not self.chip.rested() or self.state in _BUSY

    def press(self, ms: int | None = None) -> None:
        """Put a finger on the button now, and take it off after `ms` (the profile's own if not said)."""
        down = self.body.age
        up = down + (self.profile.press_ms if ms is None else ms)
        chatter = Fault.BOUNCE in self.faults and self.faults.strikes(Fault.BOUNCE)
        each = self.faults.number(Fault.BOUNCE, BOUNCE_MS)
        for at, closed in ((down, True), (up, False)):
            self._finger.append((at, closed))
            if chatter:
                self._finger += [(at + each, not closed), (at + 2 * each, closed)]
        self._finger.sort(key=lambda move: move[0])
        self.elapse(0)

    def close(self) -> None:
        self._contact(True)

    def open(self) -> None:
        self._contact(False)

    def _contact(self, closed: bool) -> None:
        if closed is not self.closed and (closed or Fault.STUCK_BUTTON not in self.faults):
            self.closed = closed
            self.chip.signal(Signal.CLOSE if closed else Signal.OPEN)
