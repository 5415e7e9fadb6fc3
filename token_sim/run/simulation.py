"""The simulation of a token: the device, the lines to the device, and the commands of the owner.

Rules:
- Time is an argument, and no function waits. Results are the same for all kinds of ports.
- Only `command` executes the owner's commands (faults, time, snapshots, the oracle). The lines refuse these commands.
- No reply contains a seed.
- The same token, seed and calls always give an identical log.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from token_sim.device.faults import CLEARABLE, Fault
from token_sim.device.hardware import new_hardware
from token_sim.device.memory import Corrupt, Ram, load
from token_sim.device.models import Profile
from token_sim.device.token import Device
from token_sim.run.token_file import TokenFile, write_durably
from token_sim.run.wall_time import parse_span
from token_sim.run.words import choose, unknown
from token_sim.wire.bad_line import Line
from token_sim.wire.protocol import LONGEST_PRESS, Session

LOG_LINES = 2_000
COLDEST, HOTTEST = -40, 85  # °C: the usual range in the data sheets of crystals

Request = dict[str, Any]


class BadRequest(ValueError):
    """The error for an invalid command. The message contains the requirement."""


class Simulation:
    """A token and its lines. `file` is the token file, with an empty path if the token is in memory."""

    def __init__(self, device: Device, file: TokenFile, seed: int = 0) -> None:
        self.device, self.file = device, file
        self.lines: list[Line] = []
        self.is_plugged = True
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self._seed = seed

    @classmethod
    def of_file(cls, file: TokenFile, seed: int = 0) -> Simulation:
        """Return the simulation of the token in `file`. The token writes its memory to that file."""
        return cls(Device(file, file.profile, file.hardware, seed), file, seed)

    @classmethod
    def in_memory(cls, image: bytes, profile: Profile, now: int, seed: int = 0) -> Simulation:
        """Return the simulation of a token without a file. The token's clock is correct at `now` (Unix ms)."""
        hardware = new_hardware(profile, now)
        file = TokenFile("", profile, image, hardware)
        return cls(Device(Ram(image), profile, hardware, seed), file, seed)

    def attach(self) -> Line:
        """Return a new line to the device."""
        line = Line(Session(self.device), self.device.faults, self._seed + len(self.lines))
        self.lines.append(line)
        return line

    def receive(self, line: Line, data: bytes) -> None:
        """Process input of `line`."""
        line.receive(data)
        for request in line.session.take_requests():
            self._log_text(self._log_prefix("<", line), request)
        self._deliver_events()

    def elapse(self, ms: int, *, world: bool = True) -> None:
        """Advance the simulation by `ms` milliseconds. The true time changes only if `world` is true."""
        self.device.elapse(ms, world=world)
        self._deliver_events()

    def take_output(self, line: Line) -> bytes:
        """Return the output of `line` since the last call, or b"" while the output is delayed."""
        out = line.take_output(self.device.hardware.age)
        for text in out.splitlines():
            self._log_text(self._log_prefix(">", line), text.decode("ascii", "backslashreplace"))
        return out

    def _deliver_events(self) -> None:
        for event in self.device.take_events():
            if not self.is_plugged or not self.lines:
                self._log_text("(not sent)", f"+{event.name} {event.text!r}")
            for line in self.lines if self.is_plugged else ():
                line.notify(event)

    def _log_prefix(self, direction: str, line: Line) -> str:
        return direction if len(self.lines) == 1 else f"{self.lines.index(line) + 1}{direction}"

    def _log_text(self, direction: str, text: str) -> None:
        self.log.append(f"{show_time(self.device.hardware.now)} {direction} {text}")

    # --- the owner's commands

    def command(self, request: Request) -> Request:
        """Execute the request `{"do": NAME, …}`, and return the reply. Raise BadRequest."""
        execute = _COMMANDS.get(str(request.get("do")))
        if execute is None:
            raise BadRequest(unknown(request.get("do"), _COMMANDS, "command"))
        try:
            return execute(self, request) or {}
        except (ValueError, TypeError, KeyError) as error:
            raise BadRequest(str(error)) from error
        except OSError as error:
            raise BadRequest(f"{error.filename or 'the file'}: {(error.strerror or str(error)).lower()}") from error
        finally:
            self._deliver_events()

    def _press(self, request: Request) -> None:
        ms = request.get("ms")
        if ms is not None and not (type(ms) is int and 1 <= ms <= LONGEST_PRESS):
            raise BadRequest(f"a press must last 1 to {LONGEST_PRESS} ms")
        self.device.press(ms)

    def _hold(self, _: Request) -> None:
        self.device.close()

    def _release(self, _: Request) -> None:
        self.device.open()

    def _advance(self, request: Request) -> Request:
        ms = parse_span(str(request.get("by", "")))
        hardware, before = self.device.hardware, self.device.hardware.temperature
        hardware.temperature = _temperature(request.get("temp", before))
        try:
            self.elapse(ms, world=not request.get("only_token", False))
        finally:
            hardware.temperature = before
        return self.oracle()

    def _fault(self, request: Request) -> Request:
        times, number = request.get("times", 1), request.get("number")
        if not (times is None or (type(times) is int and times >= 1)) or not (number is None or type(number) is int):
            raise BadRequest("times must be 1 or more, and number must be an integer")
        self.device.inject(_fault_in(request), times, number)
        return {"faults": self.faults()}

    def _clear(self, request: Request) -> Request:
        """Undo the fault that the request names, otherwise all faults that can be undone."""
        if request.get("name") is not None:
            faults = [_fault_in(request)]
        else:
            faults = [fault for fault in CLEARABLE if fault in self.faults()]
        for fault in faults:
            self.device.clear_fault(fault)
        return {"faults": self.faults()}

    def _snapshot(self, request: Request) -> Request:
        to = str(request["to"])
        if os.path.lexists(to):
            raise BadRequest(f"{to} already exists (choose another name)")
        write_durably(to, self._as_file().text().encode())
        return {"snapshot": to}

    def _restore(self, request: Request) -> Request:
        """Load a snapshot's memory, charge and clock error, as in a clone. The true time is unchanged."""
        path = str(request["from"])
        with open(path, encoding="utf-8") as stream:
            old = TokenFile.parse(path, stream.read())
        if old.profile is not self.device.profile or len(old.read()) != len(self.device.memory.read()):
            size = len(self.device.memory.read())
            required = f"must be a snapshot of a {self.device.profile.name} token with {size} bytes of memory"
            raise BadRequest(f"{path} cannot be restored: {required}")
        self.device.restore(old.read(), old.hardware)
        return self.oracle()

    def _as_file(self) -> TokenFile:
        return TokenFile(self.file.path, self.device.profile, self.device.memory.read(), self.device.hardware)

    def _unplug(self, _: Request) -> None:
        self.is_plugged = False

    def _plug(self, _: Request) -> None:
        self.is_plugged = True

    def _log(self, _: Request) -> Request:
        return {"log": list(self.log)}

    def faults(self) -> Request:
        """Return the armed faults with their remaining times, and the permanent faults that the token has (None)."""
        present: Request = dict(self.device.faults.armed_faults())
        if self.device.faults.segments:
            present[str(Fault.SEGMENT)] = sorted(self.device.faults.segments)
        return present | dict.fromkeys(map(str, self.device.permanent_faults()))

    def oracle(self, _: Request | None = None) -> Request:
        """Return the hidden state, such as true counters, true time and the last code, but no seed."""
        device = self.device
        try:
            counters = list(load(device.memory.read()).counters)
        except Corrupt:
            counters = []
        return {
            "serial": device.serial,
            "profile": device.profile.name,
            "state": str(device.state),
            "counter": counters[0] if counters else None,
            "counters": counters,
            "time_ms": device.hardware.now,
            "clock_ms": device.hardware.clock_ms,
            "error_ms": device.hardware.error_ms,
            "age_ms": device.hardware.age,
            "display": device.chip.text,
            "last_code": device.chip.last_code,
            "battery": device.hardware.battery_level,
            "plugged": self.is_plugged,
            "faults": self.faults(),
        }


def show_time(ms: int) -> str:
    """Return a time (Unix ms) as text of a fixed width: UTC, with milliseconds."""
    seconds, rest = divmod(ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}.{rest:03d}"


def _fault_in(request: Request) -> Fault:
    return Fault(choose(request.get("name"), Fault, "fault"))


def _temperature(value: object) -> int:
    if type(value) is not int or not COLDEST <= value <= HOTTEST:
        raise BadRequest(f"the temperature must be {COLDEST} to {HOTTEST} °C")
    return value


_COMMANDS: dict[str, Callable[[Simulation, Request], Request | None]] = {
    "press": Simulation._press,
    "hold": Simulation._hold,
    "release": Simulation._release,
    "advance": Simulation._advance,
    "fault": Simulation._fault,
    "clear": Simulation._clear,
    "snapshot": Simulation._snapshot,
    "restore": Simulation._restore,
    "oracle": Simulation.oracle,
    "unplug": Simulation._unplug,
    "plug": Simulation._plug,
    "log": Simulation._log,
}
# Commands that also work on a token file without a running token.
AT_REST = frozenset(("advance", "fault", "clear", "snapshot", "restore", "oracle"))
