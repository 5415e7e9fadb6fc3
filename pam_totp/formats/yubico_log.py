"""The log of Yubico's personalisation tool, which lists the programmed YubiKeys, one per row.

The log has no heading, and one of two forms, which Yubico's documentation of the tool describes:
- traditional: event, time, slot of the YubiKey, identifier, -, key, three columns, then flags with the number of digits
- yubico: serial, identifier, mode, key, access code, time

Only rows of OATH-HOTP are tokens. The import skips other rows, and shows the reason.
"""

from __future__ import annotations

import re

from pam_totp.core.oath import MAX_DIGITS, MIN_DIGITS
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import key_of

_START = "logging start"
_OATH = "oath-hotp"
_EVENTS = frozenset((_START, _OATH, "yubico otp", "static password", "challenge-response", "scan code"))
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
_TRADITIONAL_COLUMNS, _YUBICO_COLUMNS = 6, 6
_DIGITS_COLUMN = 11
_OATH_MODE = "0"
_NOT_OATH = "unsupported mode: must be OATH-HOTP"
_IDENTIFIER = "logins refuse the identifier that the YubiKey types before each code (program the YubiKey without it)"
_NO_DIGITS = f"assumed {MIN_DIGITS} digits: the file has no number of digits"


def is_yubico_log(row: list[str]) -> bool:
    """Return True if `row` is a row of the log."""
    return _is_event(row) or (
        len(row) >= _YUBICO_COLUMNS and row[0].isdigit() and _TIME.fullmatch(row[_YUBICO_COLUMNS - 1]) is not None
    )


def yubico_token(line: int, row: list[str]) -> ImportedToken | None:
    """Return the token of a row, or None for the row that starts a log. Raise FormatError."""
    if _is_event(row):
        return _traditional(line, row)
    if not is_yubico_log(row):
        return ImportedToken(line=line, unsupported="must be a row of the personalisation tool's log")
    serial, identifier, mode, key, *_ = row
    if mode != _OATH_MODE:
        return ImportedToken(line=line, serial=serial, unsupported=_NOT_OATH)
    return _token(line, serial, identifier, key, "")


def _is_event(row: list[str]) -> bool:
    return bool(row) and row[0].lower().split(":")[0] in _EVENTS


def _traditional(line: int, row: list[str]) -> ImportedToken | None:
    if row[0].lower() == _START:
        return None
    if row[0].lower() != _OATH or len(row) < _TRADITIONAL_COLUMNS:
        return ImportedToken(line=line, unsupported=_NOT_OATH)
    digits = row[_DIGITS_COLUMN] if len(row) > _DIGITS_COLUMN else ""
    return _token(line, row[3], row[3], row[5], digits)


def _token(line: int, serial: str, identifier: str, key: str, digits: str) -> ImportedToken:
    known = digits in map(str, range(MIN_DIGITS, MAX_DIGITS + 1))
    remarks = (() if known else (_NO_DIGITS,)) + ((_IDENTIFIER,) if identifier else ())
    return ImportedToken(
        line=line,
        secret=key_of(key, line, "key", "hexadecimal"),
        digits=int(digits) if known else MIN_DIGITS,
        serial=serial or None,
        remarks=remarks,
    )
