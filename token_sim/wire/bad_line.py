"""A serial line with faults: noise, lost and doubled bytes, delays, and the wrong speed.

Rules:
- The module does no input or output. Random choices use a seeded generator.
- A line without faults passes every byte unchanged.
"""

from __future__ import annotations

import random

from token_sim.device.chip import Event
from token_sim.device.faults import Fault, Faults
from token_sim.wire.protocol import Session

DEFAULT_PER_CENT = 5  # of the bytes
DEFAULT_STALL_MS = 1_000


class Line:
    """A session and its line. `receive` passes input to the session, and `take_output` returns the session's output."""

    def __init__(self, session: Session, faults: Faults, seed: int = 0) -> None:
        self.session = session
        self._faults = faults
        self._random = random.Random(seed)
        self._stalled = bytearray()
        self._stalled_until: int | None = None

    def reset(self) -> None:
        """Reset the session and the delay, for a new client."""
        self.session.reset()
        self._stalled.clear()
        self._stalled_until = None

    def receive(self, data: bytes) -> None:
        self.session.receive(self._distort(data))

    def notify(self, event: Event) -> None:
        self.session.notify(event)

    def take_output(self, age: int) -> bytes:
        """Return the output since the last call, or b"" while the output is delayed. `age` is the token's age (ms)."""
        out = self._distort(self.session.take_output())
        if out and self._stalled_until is None and self._faults.trigger(Fault.LINE_STALL):
            self._stalled_until = age + self._faults.number(Fault.LINE_STALL, DEFAULT_STALL_MS)
        self._stalled += out
        if self._stalled_until is not None and age < self._stalled_until:
            return b""
        self._stalled_until = None
        out = bytes(self._stalled)
        self._stalled.clear()
        return out

    @property
    def has_output(self) -> bool:
        """Return True if output is delayed."""
        return bool(self._stalled)

    def _distort(self, data: bytes) -> bytes:
        if Fault.LINE_BAUD in self._faults:
            data = at_double_speed(data)
        if Fault.LINE_DROP in self._faults:
            data = bytes(byte for byte in data if not self._is_hit(Fault.LINE_DROP))
        if Fault.LINE_DOUBLE in self._faults:
            data = b"".join(bytes((byte,)) * (1 + self._is_hit(Fault.LINE_DOUBLE)) for byte in data)
        if Fault.LINE_NOISE in self._faults:
            data = bytes(byte ^ (1 << self._random.randrange(8)) * self._is_hit(Fault.LINE_NOISE) for byte in data)
        return data

    def _is_hit(self, fault: Fault) -> bool:
        """Return True if `fault` changes the next byte. The fault's number is its probability in per cent."""
        return self._random.randrange(100) < self._faults.number(fault, DEFAULT_PER_CENT)


def at_double_speed(data: bytes) -> bytes:
    """Return the bytes that a receiver at twice the sender's speed reads for `data`.

    The receiver samples each bit of 8N1 twice, and treats every fall from idle as a start bit. The result has about two
    bytes for each sent byte, and nearly all of them are wrong.
    """
    samples: list[int] = []
    for byte in data:
        bits = [0, *(byte >> n & 1 for n in range(8)), 1]  # start, least significant bit first, stop
        samples += [bit for bit in bits for _ in (0, 1)]
    out, at = bytearray(), 0
    while at < len(samples):
        if samples[at]:
            at += 1
            continue
        frame = (samples[at + 1 : at + 9] + [1] * 8)[:8]
        out.append(sum(bit << n for n, bit in enumerate(frame)))
        at += 10
    return bytes(out)
