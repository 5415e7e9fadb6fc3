"""Codes from a token on a serial port (extra `serial`: pyserial)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import serial

PERSON_WAIT = 120  # seconds: to find the token and press it
_EVENT = re.compile(r"\+OTP (\d{6,8})")
_LONE_CODE = re.compile(r"[^\d=+]*(?<!\d)(\d{6,8})[^\d=+]*")
_LONGEST_LINE = 256  # bytes


def opened(device: str) -> serial.Serial:
    """The device, or any URL that pyserial knows. Raises OSError (serial.SerialException is one)."""
    return serial.serial_for_url(device, timeout=1)


def code_in(line: str) -> str | None:
    """The code in one line: that of a `+OTP` event, or the only number of the line, of 6 to 8 digits."""
    match = _EVENT.fullmatch(line) or _LONE_CODE.fullmatch(line)
    return match[1] if match else None


def read_codes(port: serial.Serial, count: int) -> Iterator[str]:
    """The next `count` codes. The same code again is a display that was looked at twice. Raises TimeoutError."""
    give_up = time.monotonic() + PERSON_WAIT
    pending, last = b"", None
    while count:
        if time.monotonic() > give_up:
            raise TimeoutError(f"no code came within {PERSON_WAIT} s; is it the right port?")
        pending = (pending + port.read(max(1, port.in_waiting)))[-_LONGEST_LINE:]
        *lines, pending = re.split(rb"[\r\n]", pending)
        for line in lines:
            code = code_in(line.decode("ascii", "replace").strip())
            if code is not None and code != last and count:
                last, count = code, count - 1
                yield code
