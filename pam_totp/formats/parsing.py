"""Shared code of the parsers: bounded input, numbered lines, keys, numbers, and an error that names the line.

Rules:
- A parser reads at most MAX_INPUT bytes. A line has at most MAX_LINE characters, unless the format has a higher limit.
- Text is UTF-8, or UTF-16 with a byte order mark. A byte order mark is dropped. Lines end with LF, CR LF or CR.
- A key, an algorithm and a period are read as vendors, apps and spreadsheets write them.
- An error names the line and the requirement there, and never shows a value.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from typing import Literal

from pam_totp.core.oath import MOVING_FACTOR_LIMIT
from pam_totp.core.record import DAY

MAX_INPUT = 64 * 1024 * 1024  # bytes: a million lines of users.oath
MAX_LINE = 4096  # characters
_MAX_DIGITS = len(str(MOVING_FACTOR_LIMIT))
_MARK = "\ufeff"  # the byte order mark as a character
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NOT_UTF_8 = "must be UTF-8 (convert the file, for example with 'iconv -f WINDOWS-1252 -t UTF-8')"
_HEXADECIMAL = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_BASE32_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_BASE32 = str.maketrans(_BASE32_LETTERS, "0123456789ABCDEFGHIJKLMNOPQRSTUV")
_SHORTEST_KEY = 10  # bytes: the length of keys in old files
_SEPARATORS = re.compile(r"[\s:-]+")
_ALGORITHM = re.compile(r"(?:ALGORITHM|HMAC|HOTP|TOTP)*(SHA(?:1|256|512))")
_PERIOD = re.compile(r"([0-9]+)\s*(?:s|secs?|seconds?)?", re.IGNORECASE | re.ASCII)

Encoding = Literal["hexadecimal", "base32"]


class FormatError(ValueError):
    """A file breaks the rules of its format."""

    def __init__(self, line: int | None, text: str) -> None:
        super().__init__(text if line is None else f"line {line}: {text}")


def as_utf8(data: bytes) -> bytes:
    """Return the text `data` as UTF-8 without a byte order mark. Raise FormatError for damaged UTF-16.

    Return text without a byte order mark unchanged, in any encoding.
    """
    if data.startswith(_UTF_16):
        try:
            return data.decode("utf-16").encode("utf-8")
        except UnicodeError:
            raise FormatError(None, "must be complete UTF-16, or UTF-8") from None
    return data.removeprefix(codecs.BOM_UTF8)


def numbered_lines(data: bytes, longest: int = MAX_LINE) -> Iterator[tuple[int, str]]:
    """Yield the line number, from 1, and the text of each non-blank line, without the line end.

    A line has at most `longest` characters. Memory holds one line of UTF-8 at a time. Raise FormatError for a file that
    is too large, is not text or contains NUL.
    """
    data = as_utf8(data)
    if len(data) > MAX_INPUT:
        raise FormatError(None, f"the file must be at most {MAX_INPUT // 1024 // 1024} MiB")
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")
    for number, raw in enumerate(io.BytesIO(data), 1):
        try:
            line = raw.decode("utf-8").removesuffix("\n").lstrip(_MARK)
        except UnicodeDecodeError:
            raise FormatError(number, _NOT_UTF_8) from None
        if "\0" in line:
            raise FormatError(number, "must not contain a NUL character")
        if len(line) > longest:
            raise FormatError(number, f"a line must be at most {longest} characters")
        if line and not line.isspace():
            yield number, line.removesuffix("\r")


def first_lines(data: bytes, count: int) -> list[str]:
    """Return up to `count` lines from the beginning of the file, for `sniff`. Skip blank lines and comments.

    Bytes that are not text are ignored.
    """
    beginning = data[:MAX_LINE].decode("utf-16" if data.startswith(_UTF_16) else "utf-8", "ignore")
    lines = (line.strip().strip(_MARK).strip() for line in beginning.splitlines())
    return [line for line in lines if line and not line.startswith("#")][:count]


def whole_number(text: str, line: int | None, what: str, *, low: int = 0, high: int = MOVING_FACTOR_LIMIT) -> int:
    """Return a whole number from `low` to `high`, in ASCII digits. A minus sign is valid if `low` is negative.

    Raise FormatError, which names `line` and `what`.
    """
    text = text.strip()
    digits = text[1:] if text[:1] == "-" and low < 0 else text
    if digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS and low <= int(text) <= high:
        return int(text)
    raise FormatError(line, f"{what}: must be a whole number from {low} to {high}")


def period_of(text: str, line: int | None, what: str, high: int = DAY) -> int:
    """Return a period of at most `high` seconds, from `30`, `30s` or `30 seconds`. Raise FormatError."""
    match = _PERIOD.fullmatch(text.strip())
    return whole_number(match[1] if match else "", line, what, low=1, high=high)


def algorithm_of(text: str) -> str | None:
    """Return SHA1, SHA256 or SHA512 for `sha-1`, `HMAC-SHA256`, `HmacSHA512` and `Algorithm.sha1`, else None."""
    match = _ALGORITHM.fullmatch("".join(filter(str.isalnum, text.upper())))
    return match[1] if match else None


def key_of(text: str, line: int | None, what: str, encoding: Encoding | None = None) -> bytes:
    """Return the bytes of a key in hexadecimal, with or without `0x`, or in base32. Raise FormatError.

    Case, spaces, hyphens, colons and padding are ignored. Without `encoding`, a text of hexadecimal digits is read as
    hexadecimal. 32 random letters of base32 are such a text with a probability of 1 in 4e13. Without `encoding`, base32
    must have at least 80 bits, because a shorter text is probably a word.
    """
    squeezed = _SEPARATORS.sub("", text)
    has_prefix = squeezed[:2].lower() == "0x"
    if has_prefix or encoding == "hexadecimal" or (encoding is None and _HEXADECIMAL.fullmatch(squeezed)):
        digits = squeezed[2:] if has_prefix else squeezed
        if not _HEXADECIMAL.fullmatch(digits):
            raise FormatError(line, f"{what}: must be hexadecimal")
        return bytes.fromhex(digits)
    key = _from_base32(squeezed.upper().rstrip("="))
    if key is None or (encoding is None and len(key) < _SHORTEST_KEY):
        raise FormatError(line, f"{what}: must be {encoding or 'hexadecimal or base32'}")
    return key


def is_key(text: str) -> bool:
    """Return True if `text` looks like a key of at least 80 bits, for `sniff`.

    A key must have a digit, and letters of one case, because a word of 16 letters would also be base32.
    """
    if not any(map(str.isdigit, text)) or text not in (text.upper(), text.lower(), f"0x{text[2:].upper()}"):
        return False
    try:
        return len(key_of(text, None, "")) >= _SHORTEST_KEY
    except FormatError:
        return False


def _from_base32(letters: str) -> bytes | None:
    """Return the bytes of `letters`, or None. Spare bits at the end are dropped, as in phone apps."""
    size, spare = divmod(5 * len(letters), 8)
    if not letters or not letters.isascii() or letters.strip(_BASE32_LETTERS) or spare >= 5:
        return None
    return (int(letters.translate(_BASE32), 32) >> spare).to_bytes(size, "big")
