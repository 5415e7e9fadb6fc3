"""CSV files of tokens, in the format of privacyIDEA and LinOTP.

The columns are serial, key, type, digits, counter or period, algorithm; only the first two are required. The key is
hexadecimal, the type hotp (default) or totp, the algorithm SHA1 by default. A map from serials to users is CSV too,
with the columns serial and user.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from pam_totp.core.oath import ALGORITHMS, DEFAULT_PERIOD, MAX_DIGITS, MIN_DIGITS, MOVING_FACTOR_LIMIT
from pam_totp.core.record import DAY
from pam_totp.formats.format import Format, ParsedFile, ParseOptions, parsed_by_line
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import FormatError, first_lines, hexadecimal, numbered_lines, whole_number

_COLUMNS = "serial, key, type, digits, counter or period, algorithm"
_MAX_COLUMNS = 6
# Keys of these lengths (bytes) usually belong to an algorithm other than SHA1 (RFC 6238 1.2).
_USUAL_ALGORITHMS = {32: "SHA256", 64: "SHA512"}


class CsvTokens(Format):
    """A token list of privacyIDEA or LinOTP."""

    name = "csv"

    def sniff(self, data: bytes) -> bool:
        lines = first_lines(data, 1)
        columns = [column.strip().strip('"').strip() for column in lines[0].split(",")] if lines else []
        return 2 <= len(columns) <= _MAX_COLUMNS and columns[1] != "" and not columns[1].strip("0123456789abcdefABCDEF")

    def parse(self, data: bytes, options: ParseOptions) -> ParsedFile:
        return parsed_by_line(data, _tokens)


def parse_map(data: bytes) -> dict[str, str]:
    """Return a map from serials to users. A line `serial,user` is a heading. Raise FormatError."""
    users: dict[str, str] = {}
    for line, columns in _rows(data):
        if len(columns) != 2 or not all(columns):
            raise FormatError(line, "must have two columns: serial and user")
        serial, user = columns
        if (serial.lower(), user.lower()) == ("serial", "user"):
            continue
        if serial in users:
            raise FormatError(line, "duplicate serial")
        users[serial] = user
    return users


def _tokens(data: bytes) -> Iterator[ImportedToken]:
    lines: dict[str, int] = {}  # by serial
    for line, columns in _rows(data):
        token = _token(line, columns)
        assert token.serial is not None
        if token.serial in lines:
            raise FormatError(line, f"the serial is a duplicate of line {lines[token.serial]}")
        lines[token.serial] = line
        yield token


def _rows(data: bytes) -> Iterator[tuple[int, list[str]]]:
    for number, line in numbered_lines(data):
        if line.lstrip().startswith("#"):
            continue
        try:
            (columns,) = csv.reader([line], strict=True)
        except csv.Error:
            raise FormatError(number, "quotation marks must be balanced") from None
        yield number, [column.strip() for column in columns]


def _token(line: int, columns: list[str]) -> ImportedToken:
    if not 2 <= len(columns) <= _MAX_COLUMNS:
        raise FormatError(line, f"must have 2 to {_MAX_COLUMNS} columns ({_COLUMNS}), has {len(columns)}")
    serial, key, kind, digits, moving_factor, algorithm = [*columns, *[""] * (_MAX_COLUMNS - len(columns))]
    if not serial:
        raise FormatError(line, "missing serial")
    kind = kind.lower() or "hotp"
    algorithm = algorithm.upper().replace("-", "") or "SHA1"
    if algorithm not in ALGORITHMS:
        raise FormatError(line, f"algorithm: must be {', '.join(ALGORITHMS)}")
    if kind not in ("hotp", "totp"):
        return ImportedToken(line=line, serial=serial, unsupported="unknown type: must be hotp or totp")
    secret = hexadecimal(key, line, "key")
    counter, period = 0, DEFAULT_PERIOD
    if kind == "hotp":
        counter = whole_number(moving_factor or "0", line, "counter", high=MOVING_FACTOR_LIMIT - 1)
    else:
        period = whole_number(moving_factor or str(DEFAULT_PERIOD), line, "period", low=1, high=DAY)
    usual = _USUAL_ALGORITHMS.get(len(secret)) if len(columns) < _MAX_COLUMNS else None
    return ImportedToken(
        line=line,
        type=kind,
        secret=secret,
        algorithm=algorithm,
        digits=whole_number(digits or str(MIN_DIGITS), line, "digits", low=MIN_DIGITS, high=MAX_DIGITS),
        counter=counter,
        period=period,
        serial=serial,
        remarks=(f"assumed SHA1, though keys of this length usually mean {usual} (set column 6)",) if usual else (),
    )
