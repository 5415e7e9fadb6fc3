"""The token's memory: a small EEPROM, which is read completely and written by pages.

Rules:
- The token uses a page only if the page's CRC-32 is correct.
- A slot stores the counter of its *next* code in two pages, and a write replaces the older page. The newer page
  therefore remains intact if a write is interrupted.
- The counter is the valid page's counter *plus one* if the other page is corrupt, because that page might have been the
  newer page. The token can therefore skip a code, but never computes a code twice.
- `repr` never shows a key.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Protocol

from pam_totp.core.oath import ALGORITHMS

MIN_KEY, MAX_KEY = 14, 64  # bytes: 112 bits for old tokens (RFC 4226 R6 requires 128), and a SHA-512 key
SERIAL_LENGTH = 12  # characters of an OATH token identifier: maker 2, type 2, number 8

_HEADER = struct.Struct(">4sBB12s")
_SEED = struct.Struct(">BBBBHQ64s")
_COUNTER = struct.Struct(">Q")
_CRC = 4
_HEADER_SIZE, SEED_SIZE, _COUNTER_SIZE = _HEADER.size + _CRC, _SEED.size + _CRC, _COUNTER.size + _CRC
_SLOT_SIZE = SEED_SIZE + 2 * _COUNTER_SIZE

_MAGIC, _VERSION = b"TSIM", 1
_BLANK, _SEALED, _ZEROISED = range(3)
_KINDS = ("none", "hotp", "totp")


class Corrupt(Exception):
    """The error if the self-test fails. The message names the page with a wrong checksum."""


class Nvram(Protocol):
    """The storage of a device's memory. `write` is durable when it returns. `write` raises OSError if it fails."""

    def read(self) -> bytes: ...

    def write(self, offset: int, data: bytes) -> None: ...


class Ram:
    """Memory without a file, for tests and for tokens inside a process."""

    def __init__(self, image: bytes) -> None:
        self._image = bytearray(image)

    def read(self) -> bytes:
        return bytes(self._image)

    def write(self, offset: int, data: bytes) -> None:
        self._image[offset : offset + len(data)] = data


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A seed and the parameters of its codes. A HOTP token with its counter at `limit` shows no more codes."""

    kind: str
    key: bytes = field(repr=False)
    algorithm: str = "SHA1"
    digits: int = 6
    period: int = 30
    limit: int = (1 << 64) - 1

    def __post_init__(self) -> None:
        if self.kind not in _KINDS[1:] or self.algorithm not in ALGORITHMS:
            raise ValueError("the type must be hotp or totp, and the algorithm SHA1, SHA256 or SHA512")
        if not 6 <= self.digits <= 8:
            raise ValueError("the number of digits must be 6 to 8")
        if not 1 <= self.period <= 0xFFFF:
            raise ValueError("the period must be 1 to 65535 seconds")
        if not MIN_KEY <= len(self.key) <= MAX_KEY:
            raise ValueError(f"a seed must have {MIN_KEY} to {MAX_KEY} bytes")
        if not 0 <= self.limit < 1 << 64:
            raise ValueError("a counter must be 0 to 2^64-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The contents of a valid image. `repaired_slots` lists the slots with one corrupt counter page."""

    serial: str
    is_zeroised: bool
    slots: tuple[Slot | None, ...]
    counters: tuple[int, ...]
    repaired_slots: tuple[int, ...] = ()

    @property
    def is_blank(self) -> bool:
        return not any(self.slots)


def build(serial: str, slots: tuple[Slot | None, ...], counters: tuple[int, ...]) -> bytes:
    """Return the image of a new token, sealed if a slot has a seed. Raise ValueError for an invalid `serial`."""
    if len(serial) != SERIAL_LENGTH or not (serial.isascii() and serial.isalnum()):
        raise ValueError(f"a serial number must have {SERIAL_LENGTH} letters and digits, such as SMGN00000001")
    state = _SEALED if any(slots) else _BLANK
    image = _seal(_HEADER.pack(_MAGIC, _VERSION, state, serial.encode()))
    for slot, counter in zip(slots, counters, strict=True):
        page = _seal(_COUNTER.pack(counter))
        image += _seal(_pack(slot)) + page + page
    return image


def load(image: bytes) -> Contents:
    """Return the contents of `image`. Raise Corrupt if a required page has a wrong checksum."""
    magic, version, state, serial = _HEADER.unpack(_open(image, 0, _HEADER.size, "header"))
    if (magic, version) != (_MAGIC, _VERSION) or (len(image) - _HEADER_SIZE) % _SLOT_SIZE:
        raise Corrupt("header")
    slots, counters, repaired = [], [], []
    for number in range((len(image) - _HEADER_SIZE) // _SLOT_SIZE):
        slots.append(_unpack(_open(image, seed_offset(number), _SEED.size, "seed")))
        pages = [_counter(image, number, page) for page in (0, 1)]
        valid = [value for value in pages if value is not None]
        if not valid:
            raise Corrupt("counter")
        if len(valid) == 1:
            repaired.append(number)
        counters.append(max(valid) if len(valid) == 2 else valid[0] + 1)
    return Contents(
        serial=serial.decode(),
        is_zeroised=state == _ZEROISED,
        slots=tuple(slots),
        counters=tuple(counters),
        repaired_slots=tuple(repaired),
    )


def counter_write(image: bytes, slot: int, counter: int) -> tuple[int, bytes]:
    """Return the offset and the data of the write that stores `counter` as the next counter.

    The write replaces a corrupt page, otherwise the older page.
    """
    pages = [_counter(image, slot, page) for page in (0, 1)]
    page = min((0, 1), key=lambda n: -1 if (value := pages[n]) is None else value)
    return counter_offset(slot, page), _seal(_COUNTER.pack(counter))


def at_limit(image: bytes, number: int) -> list[tuple[int, bytes]]:
    """Return the writes that set the counter of a slot to its limit, or [] if the slot has no seed."""
    slot = load(image).slots[number]
    if slot is None:
        return []
    return [(counter_offset(number, page), _seal(_COUNTER.pack(slot.limit))) for page in (0, 1)]


def wiped(image: bytes) -> bytes:
    """Return a zeroised image with the serial number of `image` (zeros if `image` is corrupt)."""
    try:
        serial = load(image).serial
    except Corrupt:
        serial = "0" * SERIAL_LENGTH
    count = (len(image) - _HEADER_SIZE) // _SLOT_SIZE
    blank = build(serial, (None,) * count, (0,) * count)
    return _seal(_HEADER.pack(_MAGIC, _VERSION, _ZEROISED, serial.encode())) + blank[_HEADER_SIZE:]


def seed_offset(slot: int) -> int:
    return _HEADER_SIZE + slot * _SLOT_SIZE


def counter_offset(slot: int, page: int) -> int:
    return seed_offset(slot) + SEED_SIZE + page * _COUNTER_SIZE


def _seal(page: bytes) -> bytes:
    return page + zlib.crc32(page).to_bytes(_CRC, "big")


def _open(image: bytes, offset: int, size: int, what: str) -> bytes:
    page = image[offset : offset + size]
    if _seal(page) != image[offset : offset + size + _CRC]:
        raise Corrupt(what)
    return page


def _counter(image: bytes, slot: int, page: int) -> int | None:
    try:
        value: int = _COUNTER.unpack(_open(image, counter_offset(slot, page), _COUNTER.size, "counter"))[0]
    except Corrupt:
        return None
    return value


def _pack(slot: Slot | None) -> bytes:
    if slot is None:
        return bytes(_SEED.size)
    kind, algorithm = _KINDS.index(slot.kind), ALGORITHMS.index(slot.algorithm)
    return _SEED.pack(kind, algorithm, slot.digits, len(slot.key), slot.period, slot.limit, slot.key)


def _unpack(page: bytes) -> Slot | None:
    kind, algorithm, digits, length, period, limit, key = _SEED.unpack(page)
    if kind == 0:
        return None
    return Slot(
        kind=_KINDS[kind],
        key=key[:length],
        algorithm=ALGORITHMS[algorithm],
        digits=digits,
        period=period,
        limit=limit,
    )
