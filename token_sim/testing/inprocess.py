"""Tokens inside this process, for `token://NAME`: virtual time, no thread, no port.

The law: time passes only while somebody reads, and no faster than what happens: a read with a timeout lets the
token live until something comes or the timeout's time is over, and returns at once in real time.
"""

from __future__ import annotations

from token_sim.run.simulation import Simulation
from token_sim.wire.bad_line import Line

__all__ = ["publish", "withdraw"]

_HANDLERS = "token_sim"  # the package in which pyserial finds protocol_token, for token:// URLs


class PublishedToken:
    """A published token: its simulation and its one line."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.line: Line = simulation.attach()
        self.is_open = False
        self.inbox = bytearray()  # bytes that the client has not read yet

    def advance(self, ms: int) -> None:
        """Let up to `ms` milliseconds pass, until something has come."""
        device = self.simulation.device
        end = device.hardware.age + ms
        self.inbox += self.simulation.take_output(self.line)
        while not self.inbox and device.hardware.age < end:
            due = device.next_due()
            self.simulation.elapse((end if due is None else min(due, end)) - device.hardware.age)
            self.inbox += self.simulation.take_output(self.line)


_PUBLISHED: dict[str, PublishedToken] = {}


def publish(name: str, simulation: Simulation) -> str:
    """Make `simulation` reachable in this process, and return its URL."""
    import serial  # an extra

    if _HANDLERS not in serial.protocol_handler_packages:
        serial.protocol_handler_packages.append(_HANDLERS)
    _PUBLISHED[name.lower()] = PublishedToken(simulation)
    return f"token://{name}"


def withdraw(name: str) -> None:
    _PUBLISHED.pop(name.lower(), None)


def find(name: str) -> PublishedToken | None:
    return _PUBLISHED.get(name.lower())
