"""A token that lives in real time: the loop between its ports, its owner, its clock and its finger.

The law:
- one thread; a signal's handler only leaves a note, and `step` reads it;
- the token hears of the time before it hears of anything else;
- however the loop ends, what was published is gone and the token's file is whole.
"""

from __future__ import annotations

import queue
import select
import time
from collections.abc import Callable
from typing import Any

from token_sim.run.control import Control
from token_sim.run.simulation import Simulation
from token_sim.wire.bad_line import Line
from token_sim.wire.pty import Transport

POLL_S = 0.02  # how often a port without a client is looked at: nothing tells that one came
LONGEST_BACKLOG = 64 * 1024  # bytes for a client that does not read; then the line drops, as a real one does


class Runner:
    """`step` waits for at most `timeout` seconds and does what came up. `speed`: the token's seconds in a real one."""

    def __init__(
        self, simulation: Simulation, transports: list[Transport], control: Control | None = None, speed: float = 1.0
    ) -> None:
        self.simulation, self.control, self.speed = simulation, control, speed
        self.ports: list[tuple[Transport, Line, bytearray]] = [
            (t, simulation.attach(), bytearray()) for t in transports
        ]
        self.requested_presses = 0  # asked for by a signal
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._last = time.monotonic()
        self._lag_ms = 0.0  # ms of the token's time, less than one after each step

    def step(self, timeout: float = POLL_S) -> None:
        readable = [fd for transport, _, _ in self.ports for fd in transport.descriptors()]
        if self.control is not None:
            readable += self.control.descriptors()
        select.select(readable, [], [], max(0.0, min(timeout, self._until_due(), POLL_S)))
        self._catch_up()
        self._process_owner()
        for transport, line, backlog in self.ports:
            (transport.plug if self.simulation.is_plugged else transport.unplug)()
            if transport.take_new_client():
                line.reset()
                backlog.clear()
            if data := transport.read():
                self.simulation.receive(line, data)
        for transport, line, backlog in self.ports:
            backlog.extend(self.simulation.take_output(line))
            del backlog[: transport.write(bytes(backlog))]
            if len(backlog) > LONGEST_BACKLOG:
                backlog.clear()

    def close(self) -> None:
        for transport, _, _ in self.ports:
            transport.close()
        if self.control is not None:
            self.control.close()

    def call(self, function: Callable[[], Any], timeout: float = 30.0) -> Any:
        """Have another thread's loop do something between two steps, and return or raise what it did."""
        done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                done.put((function(), None))
            except Exception as error:  # handed to the thread that asked
                done.put((None, error))

        self._calls.put(run)
        result, error = done.get(timeout=timeout)
        if error is not None:
            raise error
        return result

    def _process_owner(self) -> None:
        while self.requested_presses:
            self.requested_presses -= 1
            self.simulation.command({"do": "press"})
        while not self._calls.empty():
            self._calls.get()()
        if self.control is not None:
            self.control.serve(self.simulation.command)

    def _until_due(self) -> float:
        due = self.simulation.device.next_due()
        if due is None:
            return POLL_S
        return (due - self.simulation.device.hardware.age - self._lag_ms) / 1000 / self.speed

    def _catch_up(self) -> None:
        now = time.monotonic()
        self._lag_ms += (now - self._last) * 1000 * self.speed
        self._last = now
        whole = int(self._lag_ms)
        if whole > 0:
            self._lag_ms -= whole
            self.simulation.elapse(whole)
