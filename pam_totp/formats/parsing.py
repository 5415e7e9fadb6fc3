"""Shared code of the parsers: bounded input, numbered lines, numbers, and an error that names the line.

Rules:
- A parser reads at most MAX_INPUT bytes, in lines of at most MAX_LINE characters.
- An error names the line and the requirement there, and never shows a value.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from pam_totp.core.oath import MOVING_FACTOR_LIMIT

MAX_INPUT = 64 * 1024 * 1024  # bytes: a million lines of users.oath
MAX_LINE = 4096  # characters
_MAX_DIGITS = len(str(MOVING_FACTOR_LIMIT))


class FormatError(ValueError):
    """A file breaks the rules of its format."""

    def __init__(self, line: int | None, text: str) -> None:
        super().__init__(text if line is None else f"line {line}: {text}")


def numbered_lines(data: bytes) -> Iterator[tuple[int, str]]:
    """Yield the line number, from 1, and the text of each line that is not blank, without its end (LF or CR LF).

    Memory holds one line at a time. Raise FormatError for a file that is too large, is not UTF-8 or contains NUL.
    """
    if len(data) > MAX_INPUT:
        raise FormatError(None, f"the file must be at most {MAX_INPUT // 1024 // 1024} MiB")
    for number, raw in enumerate(io.BytesIO(data), 1):
        try:
            line = raw.decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError:
            raise FormatError(number, "must be UTF-8") from None
        if "\0" in line:
            raise FormatError(number, "must not contain a NUL character")
        if len(line) > MAX_LINE:
            raise FormatError(number, f"a line must be at most {MAX_LINE} characters")
        if line and not line.isspace():
            yield number, line.removesuffix("\r")


def first_lines(data: bytes, count: int) -> list[str]:
    """Return up to `count` lines from the beginning of the file, for `sniff`. Skip blank lines and comments.

    Bytes that are not UTF-8 are ignored.
    """
    beginning = data[:MAX_LINE].decode("utf-8", "ignore").splitlines()
    return [line.strip() for line in beginning if line.strip() and not line.lstrip().startswith("#")][:count]


def whole_number(text: str, line: int, what: str, *, low: int = 0, high: int = MOVING_FACTOR_LIMIT) -> int:
    """Return a whole number from `low` to `high`, in ASCII digits. A minus sign is valid if `low` is negative.

    Raise FormatError.
    """
    digits = text[1:] if text[:1] == "-" and low < 0 else text
    if digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS and low <= int(text) <= high:
        return int(text)
    raise FormatError(line, f"{what}: must be a whole number from {low} to {high}")


def hexadecimal(text: str, line: int, what: str) -> bytes:
    """Return the bytes of hexadecimal `text`, in upper or lower case and without spaces. Raise FormatError."""
    if not text or len(text) % 2 or text.strip("0123456789abcdefABCDEF"):
        raise FormatError(line, f"{what}: must be hexadecimal")
    return bytes.fromhex(text)
