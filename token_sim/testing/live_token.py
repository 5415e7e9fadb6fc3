"""A token for tests, with a port, a thread that serves the port, and the owner's commands.

Rules:
- Presses and commands run in the serving thread, between two steps.
- A press never sleeps: it advances the token's time instead. The true time of the simulation is therefore ahead of
  the host's clock.
- The true time follows the host's clock if a test moves or stops that clock, unless `now` is given.
- The port disappears if the thread dies. The next call, or `close`, then raises the error of the thread.
- `close` ends the thread and removes the port.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any, Self

from token_sim.device import memory, models
from token_sim.device.chip import BOOT_MS
from token_sim.device.states import State
from token_sim.factory import manufacture
from token_sim.run import words
from token_sim.run.loop import Runner, Stopped, loop_clock
from token_sim.run.simulation import Simulation
from token_sim.run.wall_time import now_ms
from token_sim.wire.pty import Pty

__all__ = ["LiveToken", "NoCode", "Stopped"]

PATIENCE_MS = 120_000  # the maximum wait for a code, in the token's time: more than three times any display time
JUMP_MS = 1_000  # ms: a smaller difference to the host's clock comes from the simulation
DARK_MS = 60_000  # every display is off after this time
SLOT = ("kind", "digits", "algorithm", "period", "key")
_STUCK = (State.BLANK, State.FAILED, State.EXHAUSTED, State.DEAD, State.ZEROISED)


class NoCode(AssertionError):
    """The error if the token shows no code. The message contains the token's state."""


def slot_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a slot, with `kind` for its other name `type`. Raise TypeError for an unknown name."""
    for name in options:
        if name not in (*SLOT, "type"):
            raise TypeError(words.unknown(name, (*OPTIONS, *SLOT, "type"), "option"))
    if "type" not in options:
        return options
    if "kind" in options:
        raise TypeError("type and kind are the same option (give one)")
    return {"kind" if name == "type" else name: value for name, value in options.items()}


class LiveToken:
    """A new token. `key` is its seed (given, or random), `port` the path that pyserial opens.

    `profile` and `slot` (kind or type, digits, algorithm, period, key) have the values of `token-sim new`. A key is
    bytes, or text in hex or base32. `now` is the true time in Unix ms (default: the host's time).
    """

    def __init__(
        self,
        link: str | None = None,
        *,
        profile: str = "generic",
        counter: int = 0,
        serial: str | None = None,
        now: int | None = None,
        speed: float = 1.0,
        seed: int = 0,
        **slot: Any,
    ) -> None:
        model = models.PROFILES[words.choose(profile, models.PROFILES, "profile")]
        self.slot = manufacture.new_slot(model, **slot_options(slot))
        self.serial = serial or manufacture.serial_number(model, 1)
        spare = model.slots - 1
        image = memory.build(self.serial, (self.slot, *[None] * spare), (counter, *[0] * spare))
        host = now_ms()
        self._simulation = Simulation.in_memory(image, model, host if now is None else now, seed)
        self._follows = now is None
        self._host_ms, self._loop_s = host, loop_clock()  # the start, on both clocks
        self._runner = Runner(self._simulation, [Pty(link)], speed=speed)
        self._simulation.elapse(BOOT_MS)
        self.port = self._runner.ports[0][0].url()
        self._stopping = False
        self._error: BaseException | None = None  # of the thread
        self._thread = threading.Thread(target=self._serve, name=f"token {self.serial}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<LiveToken {self.serial} on {self.port}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def key(self) -> bytes:
        return self.slot.key

    def press(self, ms: int | None = None) -> str:
        """Press the button until the token shows or types a new code, and return the code. Raise NoCode."""
        code: str = self._call(lambda: self._press(ms))
        return code

    def command(self, do: str, **more: Any) -> dict[str, Any]:
        """Execute a command of the control socket, and return its reply."""
        reply: dict[str, Any] = self._call(lambda: self._runner.command({"do": do, **more}))
        return reply

    def advance(self, by: str, *, temp: int = 25, only_token: bool = False) -> dict[str, Any]:
        """Advance the token's time by `by` (90d, 1h30m), at `temp` °C, without waiting. Return the hidden state."""
        return self.command("advance", by=by, temp=temp, only_token=only_token)

    def fault(self, name: str, *, times: int | None = 1, number: int | None = None) -> None:
        self.command("fault", name=name, times=times, number=number)

    def clear(self, name: str | None = None) -> None:
        """Remove the fault `name`, or all faults that can be undone."""
        self.command("clear", name=name)

    def oracle(self) -> dict[str, Any]:
        """Return the hidden state: the true counter, the true time and the last code."""
        return self.command("oracle")

    def unplug(self) -> None:
        self.command("unplug")

    def plug(self) -> None:
        self.command("plug")
        self.port = self._runner.ports[0][0].url()

    def snapshot(self, path: str) -> None:
        self.command("snapshot", to=path)

    def restore(self, path: str) -> None:
        self.command("restore", **{"from": path})

    def close(self) -> None:
        self._stopping = True
        self._thread.join()
        self._runner.close()
        if self._error is not None:
            error, self._error = self._error, None
            raise Stopped(f"token {self.serial}: its thread has died: {_text(error)}") from error

    def _serve(self) -> None:
        try:
            while not self._stopping:
                self._runner.step()
        except BaseException as error:  # the next call, or `close`, raises it
            self._error = error
            self._runner.close()  # so that a client gets an error at once

    def _call(self, function: Callable[[], Any]) -> Any:
        host = now_ms()  # in this thread, because a test may freeze the time of only its own thread

        def run() -> Any:
            self._follow(host)
            return function()

        try:
            return self._runner.call(run, self._thread.is_alive)
        except Stopped as stopped:
            error, self._error = self._error, None
            if error is None:
                reasons = "it has died, or this process is a fork"
                why = "it was closed" if self._stopping else f"its thread does not run ({reasons})"
                raise Stopped(f"token {self.serial}: {why}") from stopped
            raise Stopped(f"token {self.serial}: its thread has died: {_text(error)}") from error

    def _follow(self, host: int) -> None:
        """Move the true time by the jump of the host's clock, if any. The display is dark after a jump of more than
        DARK_MS."""
        jump = host - self._host_ms - int((loop_clock() - self._loop_s) * 1000)
        if not self._follows or abs(jump) < JUMP_MS:
            return
        self._host_ms, self._loop_s = host, loop_clock()
        passed = DARK_MS if abs(jump) > DARK_MS else max(0, jump)  # the token ages by this part of the jump only
        self._simulation.elapse(passed)
        self._simulation.device.hardware.now += jump - passed

    def _press(self, ms: int | None) -> str:
        device, chip = self._simulation.device, self._simulation.device.chip
        shown, end = chip.codes_shown, device.hardware.age + PATIENCE_MS
        errors = 0
        while chip.codes_shown == shown:
            due = device.next_change()
            idle = not device.is_busy and device.state in (State.ASLEEP, State.DISPLAY, State.ERROR)
            if device.hardware.age > end:
                raise NoCode(f"token {self.serial} shows no code after repeated presses: its state is {device.state}")
            if idle and (device.state is not State.DISPLAY or device.profile.lit_press != "same"):
                errors += device.state is State.ERROR
                self._simulation.command({"do": "press", "ms": ms})
            elif device.state in _STUCK or errors > 1 or due is None or due > end:
                display = device.visible_text() or "dark"
                raise NoCode(f"token {self.serial} shows no code: its state is {device.state}, its display {display}")
            else:
                self._simulation.elapse(max(0, due - device.hardware.age))
        return chip.last_code


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


OPTIONS = tuple(name for name in inspect.signature(LiveToken).parameters if name not in ("link", "slot"))
