"""The loop that runs a token in real time: it serves the ports, the owner's socket, the clock and the button.

Rules:
- The loop uses one thread. The handler of SIGUSR1 only increments a counter of presses, which `step` reads.
- Each step advances the token's time before it processes input.
- The loop continues if all descriptors are in use: a port that cannot be opened stays unplugged, and a client waits.
- The loop uses the kernel's clock, which continues while the host is suspended or a test replaces Python's clocks.
- `close` removes links and sockets.
"""

from __future__ import annotations

import queue
import select
import time
from collections.abc import Callable
from typing import Any

from token_sim.run.control import Control
from token_sim.run.simulation import BadRequest, Request, Simulation
from token_sim.wire.bad_line import Line
from token_sim.wire.pty import Transport

POLL_S = 0.02  # seconds between two checks for a new client of a pseudo-terminal, which `poll` cannot report
CALL_S = 30.0  # the maximum wait of a thread for its call
CALL_POLL_S = 0.1  # seconds between two checks that the loop's thread still runs
LONGEST_BACKLOG = 64 * 1024  # bytes for a client that does not read; a longer backlog is dropped, as on a real line


class Stopped(RuntimeError):
    """The error if the loop has ended or does not answer. The message contains the reason."""


def loop_clock() -> float:
    """Return the seconds since the start of the host, including the time in which the host was suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Runner:
    """The loop. `speed` is in token seconds per real second."""

    def __init__(
        self, simulation: Simulation, transports: list[Transport], control: Control | None = None, speed: float = 1.0
    ) -> None:
        self.simulation, self.control, self.speed = simulation, control, speed
        self.ports: list[tuple[Transport, Line, bytearray]] = [
            (t, simulation.attach(), bytearray()) for t in transports
        ]
        self.requested_presses = 0  # presses that a signal requested
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._last = loop_clock()
        self._lag_ms = 0.0  # ms: the delay of the token behind real time, less than 1 after each step

    def step(self, timeout: float = POLL_S) -> None:
        """Wait for at most `timeout` seconds, and process all input."""
        readable = [fd for transport, _, _ in self.ports for fd in transport.descriptors()]
        if self.control is not None:
            readable += self.control.descriptors()
        self._wait(readable, max(0.0, min(timeout, self._until_due(), POLL_S)))
        self._catch_up()
        self._process_owner()
        for transport, line, backlog in self.ports:
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
            if not (backlog or line.has_output or self.simulation.device.is_busy):
                transport.drop_ended_client()

    def command(self, request: Request) -> Request:
        """Execute `request`, a command of the owner, and plug or unplug the ports. Raise BadRequest."""
        was_plugged = self.simulation.is_plugged
        reply = self.simulation.command(request)
        if self.simulation.is_plugged is not was_plugged:
            self._move_plugs()
        return reply

    def _move_plugs(self) -> None:
        try:
            for transport, _, _ in self.ports:
                (transport.plug if self.simulation.is_plugged else transport.unplug)()
        except OSError as error:
            self.simulation.is_plugged = False
            for transport, _, _ in self.ports:
                transport.unplug()
            where = f"{error.filename}: " if error.filename else ""
            raise BadRequest(f"the port cannot be opened: {where}{(error.strerror or str(error)).lower()}") from error

    def close(self) -> None:
        for transport, _, _ in self.ports:
            transport.close()
        if self.control is not None:
            self.control.close()

    def call(self, function: Callable[[], Any], is_running: Callable[[], bool], timeout: float = CALL_S) -> Any:
        """Run `function` in the thread of the loop, between two steps. Return its result, or raise its error.

        Raise Stopped if `is_running` returns False, because the thread has ended, or after `timeout` seconds.
        """
        outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                outcome.put((function(), None))
            except Exception as error:  # `call` raises the error in the caller's thread
                outcome.put((None, error))

        self._calls.put(run)
        end = loop_clock() + timeout
        while True:
            ran = is_running()  # before `get`, because a thread that has ended adds no later outcome
            try:
                result, error = outcome.get(timeout=CALL_POLL_S if ran else 0)
                break
            except queue.Empty:
                if not ran:
                    raise Stopped("the loop's thread does not run") from None
                if loop_clock() > end:
                    raise Stopped(f"the loop did not answer in {timeout:g} s") from None
        if error is not None:
            raise error
        return result

    @staticmethod
    def _wait(readable: list[int], seconds: float) -> None:
        """Wait at most `seconds` for input, with `poll` because `select` is limited to low descriptors."""
        poll = select.poll()
        for descriptor in readable:
            poll.register(descriptor, select.POLLIN)
        poll.poll(seconds * 1000)

    def _process_owner(self) -> None:
        while self.requested_presses:
            self.requested_presses -= 1
            self.simulation.command({"do": "press"})
        while not self._calls.empty():
            self._calls.get()()
        if self.control is not None:
            self.control.serve(self.command)

    def _until_due(self) -> float:
        due = self.simulation.device.next_due()
        if due is None:
            return POLL_S
        return (due - self.simulation.device.hardware.age - self._lag_ms) / 1000 / self.speed

    def _catch_up(self) -> None:
        now = loop_clock()
        self._lag_ms += (now - self._last) * 1000 * self.speed
        self._last = now
        whole = int(self._lag_ms)
        if whole > 0:
            self._lag_ms -= whole
            self.simulation.elapse(whole)
