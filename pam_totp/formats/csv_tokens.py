"""CSV of hardware tokens, in the columns of privacyIDEA and LinOTP: serial, key, [type, [digits, [counter or period]]].

The key is hexadecimal; the type hotp (also where there is none) or totp. A sixth column may name the algorithm, which
is SHA1 otherwise. And the two columns of a map: serial, user.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from pam_totp.core.oath import ALGORITHMS, DEFAULT_PERIOD, MAX_DIGITS, MIN_DIGITS, MOVING_FACTOR_LIMIT
from pam_totp.core.record import DAY
from pam_totp.formats.imported_token import FormatError, Found, hexadecimal, lines_of, whole

_LENGTHS = {32: "SHA256", 64: "SHA512"}  # bytes of keys that are likely to be for another algorithm (RFC 6238 §1.2)


def parse(data: bytes, now: int) -> list[Found]:
    """All tokens of the file. Raises FormatError."""
    return list(each(data, now))


def each(data: bytes, now: int) -> Iterator[Found]:
    """All tokens of the file, one after the other. Raises FormatError where it comes to it."""
    lines: dict[str, int] = {}  # by serial
    for line, columns in _rows(data):
        token = _token(line, columns)
        assert token.serial is not None
        if token.serial in lines:
            raise FormatError(line, f"its serial is in line {lines[token.serial]} too")
        lines[token.serial] = line
        yield token


def parse_map(data: bytes) -> dict[str, str]:
    """Users by serial, from two columns; a first line `serial,user` is a heading. Raises FormatError."""
    found: dict[str, str] = {}
    for line, columns in _rows(data):
        if len(columns) != 2 or not all(columns):
            raise FormatError(line, "not a serial and a user")
        serial, user = columns
        if (serial.lower(), user.lower()) == ("serial", "user"):
            continue
        if serial in found:
            raise FormatError(line, "its serial is there twice")
        found[serial] = user
    return found


def _rows(data: bytes) -> Iterator[tuple[int, list[str]]]:
    for number, line in lines_of(data):
        if line.lstrip().startswith("#"):
            continue
        try:
            (columns,) = csv.reader([line], strict=True)
        except csv.Error:
            raise FormatError(number, "its quotation marks do not match") from None
        yield number, [column.strip() for column in columns]


def _token(line: int, columns: list[str]) -> Found:
    if not 2 <= len(columns) <= 6:
        raise FormatError(
            line, f"{len(columns)} columns instead of 2 … 6: serial, key, type, digits, counter or period"
        )
    serial, key, kind, digits, moving, algorithm = [*columns, *[""] * (6 - len(columns))]
    if not serial:
        raise FormatError(line, "no serial")
    kind = kind.lower() or "hotp"
    algorithm = algorithm.upper().replace("-", "") or "SHA1"
    if algorithm not in ALGORITHMS:
        raise FormatError(line, f"the algorithm is not one of {', '.join(ALGORITHMS)}")
    if kind not in ("hotp", "totp"):
        return Found(line=line, serial=serial, unfit="its type is neither hotp nor totp")
    secret = hexadecimal(key, line, "the key")
    counter, period = 0, DEFAULT_PERIOD
    if kind == "hotp":
        counter = whole(moving or "0", line, "counter", high=MOVING_FACTOR_LIMIT - 1)
    else:
        period = whole(moving or str(DEFAULT_PERIOD), line, "period", low=1, high=DAY)
    likely = _LENGTHS.get(len(secret)) if len(columns) < 6 else None
    return Found(
        line=line,
        kind=kind,
        secret=secret,
        algorithm=algorithm,
        digits=whole(digits or str(MIN_DIGITS), line, "digits", low=MIN_DIGITS, high=MAX_DIGITS),
        counter=counter,
        period=period,
        serial=serial,
        remarks=(f"taken for SHA1; a key of its length may be for {likely} (say so in column 6)",) if likely else (),
    )
