"""A token for tests, with a port, a thread that serves the port, and the owner's commands.

Rules:
- Every call runs in the serving thread, between two steps.
- A call never sleeps: it advances the token's time instead. The true time of the simulation is therefore ahead of
  the host's clock.
- `close` ends the thread and removes the port.
"""

from __future__ import annotations

import threading
from typing import Any, Self

from token_sim.device import memory, models
from token_sim.device.chip import BOOT_MS
from token_sim.device.states import State
from token_sim.factory import manufacture
from token_sim.run.loop import Runner
from token_sim.run.simulation import Simulation
from token_sim.run.wall_time import now_ms
from token_sim.wire.pty import Pty

__all__ = ["LiveToken", "NoCode"]

PATIENCE_MS = 120_000  # the maximum wait for a code, in the token's time: more than three times any display time
_STUCK = (State.BLANK, State.FAILED, State.EXHAUSTED, State.DEAD, State.ZEROISED)


class NoCode(AssertionError):
    """The token shows no code. The message states the token's state."""


class LiveToken:
    """A new token. `key` is its seed (given, or random), `port` the path that pyserial opens.

    `profile` and `slot` (kind, digits, algorithm, period, key) have the values of `token-sim new`. `now` is the true
    time in Unix ms (default: the host's time).
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
        model = models.PROFILES[profile]
        self.slot = manufacture.new_slot(model, **slot)
        self.serial = serial or manufacture.serial_number(model, 1)
        spare = model.slots - 1
        image = memory.build(self.serial, (self.slot, *[None] * spare), (counter, *[0] * spare))
        self._simulation = Simulation.in_memory(image, model, now_ms() if now is None else now, seed)
        self._runner = Runner(self._simulation, [Pty(link)], speed=speed)
        self._simulation.elapse(BOOT_MS)
        self.port = self._runner.ports[0][0].url()
        self._stopping = False
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
        code: str = self._runner.call(lambda: self._press(ms))
        return code

    def command(self, do: str, **more: Any) -> dict[str, Any]:
        """Execute a command of the control socket, and return its reply."""
        reply: dict[str, Any] = self._runner.call(lambda: self._simulation.command({"do": do, **more}))
        return reply

    def advance(self, by: str, *, temp: int = 25, only_token: bool = False) -> dict[str, Any]:
        """Let a span of time pass at once, such as 90d, 36h or 1h30m. Return the hidden state."""
        return self.command("advance", by=by, temp=temp, only_token=only_token)

    def fault(self, name: str, *, times: int | None = 1, number: int | None = None) -> None:
        self.command("fault", name=name, times=times, number=number)

    def clear(self, name: str) -> None:
        self.command("clear", name=name)

    def oracle(self) -> dict[str, Any]:
        """Return the hidden state: the true counter, the true time and the last code."""
        return self.command("oracle")

    def unplug(self) -> None:
        self.command("unplug")
        self._runner.call(lambda: None)  # returns after a step of the loop: `step` removes the port

    def plug(self) -> None:
        self.command("plug")
        self._runner.call(lambda: None)
        self.port = self._runner.ports[0][0].url()

    def snapshot(self, path: str) -> None:
        self.command("snapshot", to=path)

    def restore(self, path: str) -> None:
        self.command("restore", **{"from": path})

    def close(self) -> None:
        self._stopping = True
        self._thread.join()
        self._runner.close()

    def _serve(self) -> None:
        while not self._stopping:
            self._runner.step()

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
