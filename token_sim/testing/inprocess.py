"""Tokens inside this process, which a client opens as `token://NAME`. These tokens need no thread, and their time is
virtual.

Rules:
- Time passes only during a read. The read advances the token's time until the token has output, or until the timeout.
- A read returns without a real delay.
"""

from __future__ import annotations

from token_sim.run.simulation import Simulation
from token_sim.wire.bad_line import Line

__all__ = ["publish", "withdraw"]

_HANDLERS = "token_sim"  # the package in which pyserial finds protocol_token, for token:// URLs


class PublishedToken:
    """A published token: its simulation and its only line."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.line: Line = simulation.attach()
        self.is_open = False
        self.inbox = bytearray()  # output for the client's next reads

    def advance(self, ms: int) -> None:
        """Advance the token's time until the token has output, by at most `ms` milliseconds."""
        device = self.simulation.device
        end = device.hardware.age + ms
        self.inbox += self.simulation.take_output(self.line)
        while not self.inbox and device.hardware.age < end:
            due = device.next_due()
            self.simulation.elapse((end if due is None else min(due, end)) - device.hardware.age)
            self.inbox += self.simulation.take_output(self.line)


_PUBLISHED: dict[str, PublishedToken] = {}


def publish(name: str, simulation: Simulation) -> str:
    """Register `simulation` under `name` in this process, and return the URL of its token."""
    import serial  # pyserial is optional

    if _HANDLERS not in serial.protocol_handler_packages:
        serial.protocol_handler_packages.append(_HANDLERS)
    _PUBLISHED[name.lower()] = PublishedToken(simulation)
    return f"token://{name}"


def withdraw(name: str) -> None:
    """Remove the token that is registered under `name`."""
    _PUBLISHED.pop(name.lower(), None)


def find(name: str) -> PublishedToken | None:
    """Return the token that is registered under `name`, or None."""
    return _PUBLISHED.get(name.lower())
