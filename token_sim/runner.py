"""A token that lives in real time: the loop between its ports, its clock and its finger.

The law: one thread, no state of its own but the time; the device hears of time before it hears of anything else.
"""

from __future__ import annotations

import select
import time

from token_sim.device import Device
from token_sim.protocol import Session
from token_sim.transports import Transport

LOOK_S = 0.02  # how often a port without a client is looked at: nothing tells that one came


class Runner:
    """`step` waits for at most `timeout` seconds, and does what came up."""

    def __init__(self, device: Device, transports: list[Transport], speed: float = 1.0) -> None:
        self.device = device
        self.lines = [(transport, Session(device)) for transport in transports]
        self.speed = speed
        self._last = time.monotonic()
        self._owed = 0.0  # ms of the token's time

    def step(self, timeout: float = 1.0) -> None:
        readable = [fd for transport, _ in self.lines for fd in transport.descriptors()]
        select.select(readable, [], [], min(timeout, self._until_due(), LOOK_S))
        self._catch_up()
        for transport, session in self.lines:
            if transport.fresh():
                session.reset()
            session.receive(transport.read())
        self._deliver()

    def run(self) -> None:
        while True:
            self.step()

    def close(self) -> None:
        for transport, _ in self.lines:
            transport.close()

    def _until_due(self) -> float:
        due = self.device.next_due()
        if due is None:
            return LOOK_S
        return max(0.0, (due - self.device.body.age - self._owed) / 1000 / self.speed)

    def _catch_up(self) -> None:
        now = time.monotonic()
        self._owed += (now - self._last) * 1000 * self.speed
        self._last = now
        whole = int(self._owed)
        if whole > 0:
            self._owed -= whole
            self.device.elapse(whole)

    def _deliver(self) -> None:
        events = self.device.take_events()
        for transport, session in self.lines:
            for event in events:
                session.tell(event)
            if out := session.take():
                transport.write(out)
