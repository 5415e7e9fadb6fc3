"""Codes from a token on a serial port (extra `serial`: pyserial)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import serial

PRESS_TIMEOUT = 120  # seconds to find the token and press its button
_EVENT = re.compile(r"\+OTP (\d{6,8})")
_LINE_WITH_CODE = re.compile(r"[^\d=+]*(?<!\d)(\d{6,8})[^\d=+]*")
_MAX_LINE = 256  # bytes


def open_port(device: str) -> serial.Serial:
    """Return an open port for a device, or for a URL that pyserial supports. Raise OSError."""
    return serial.serial_for_url(device, timeout=1)


def code_in(line: str) -> str | None:
    """Return the code in a `+OTP` event, or the only number in the line if it has 6 to 8 digits."""
    match = _EVENT.fullmatch(line) or _LINE_WITH_CODE.fullmatch(line)
    return match[1] if match else None


def read_codes(port: serial.Serial, count: int) -> Iterator[str]:
    """Yield the next `count` codes. Skip a repeated code. Raise TimeoutError after PRESS_TIMEOUT."""
    deadline = time.monotonic() + PRESS_TIMEOUT
    pending, last = b"", None
    while count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the codes did not arrive within {PRESS_TIMEOUT} s (check the port)")
        pending = (pending + port.read(max(1, port.in_waiting)))[-_MAX_LINE:]
        *lines, pending = re.split(rb"[\r\n]", pending)
        for line in lines:
            code = code_in(line.decode("ascii", "replace").strip())
            if code is not None and code != last and count:
                last, count = code, count - 1
                yield code
