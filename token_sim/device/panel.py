"""The side of the chip that a person sees: the display, what is told on the line, and when each thing is over.

The law: a display that is on has an end, unless a finger holds it on; every moment is one of the body's age.
"""

from __future__ import annotations

from dataclasses import dataclass

from token_sim.device.hardware import Body
from token_sim.device.models import Profile
from token_sim.device.states import Signal


@dataclass(frozen=True, slots=True)
class Event:
    """Something that can be seen from outside, at a moment of the world's time (Unix ms)."""

    at: int
    name: str  # OTP, DISP, BATT, ERR or TYPE
    text: str


class Panel:
    """`text` is what the display is driven with, `events` what is to be told, `deadlines` what ends at which age."""

    def __init__(self, profile: Profile, body: Body) -> None:
        self.profile, self.body = profile, body
        self.text = ""
        self.events: list[Event] = []
        self.deadlines: dict[Signal, int] = {}  # TIMER, OFF and ROLL

    def tell(self, name: str, text: str) -> None:
        self.events.append(Event(self.body.now, name, text))

    def after(self, signal: Signal, ms: int) -> None:
        self.deadlines[signal] = self.body.age + ms

    def show(self, text: str) -> None:
        self.text = text
        if self.profile.display_ms:
            self.after(Signal.OFF, self.profile.display_ms)

    def go_dark(self) -> None:
        was_lit, self.text = bool(self.text), ""
        self.deadlines.pop(Signal.OFF, None)
        self.deadlines.pop(Signal.ROLL, None)
        if was_lit:
            self.tell("DISP", "OFF")
