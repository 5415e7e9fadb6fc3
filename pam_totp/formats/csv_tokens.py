"""CSV files of tokens, and maps from serial numbers to users.

Without a heading, the columns are those of privacyIDEA and LinOTP: serial, key, type, digits, counter or period,
algorithm. Only the first two are required. privacyIDEA's token janitor writes the user in an additional first column.

With a heading, as in files of Entra ID (Azure) and Token2, `_NAMES` gives each column its meaning. `_assumed_type`
returns the type if the heading omits the type: totp for a heading with a period and without a counter, otherwise hotp.

The exports of KeePassXC, 1Password, Bitwarden and other password managers have a column for codes (`totp_field`). A row
with an empty value in this column has no token.

`yubico_log` recognises the rows of the log of Yubico's personalisation tool, which has no heading.

`csv_rows` reads the rows. A token of an unsupported type, algorithm or length gets the reason (`unsupported`).
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from pam_totp.core.oath import ALGORITHMS, DEFAULT_PERIOD, MAX_DIGITS, MIN_DIGITS, MOVING_FACTOR_LIMIT
from pam_totp.core.serials import serial_key
from pam_totp.formats.csv_rows import Heading, first_row, heading_of, rows
from pam_totp.formats.format import Format, ParsedFile, ParseOptions, parsed_by_line
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import Encoding, FormatError, algorithm_of, is_key, key_of, period_of, whole_number
from pam_totp.formats.totp_field import token_of_field
from pam_totp.formats.yubico_log import is_yubico_log, yubico_token

# Names in a heading -> the field. Case, spaces and separators in a name are ignored.
_SERIALS = (
    "serial serialnumber serialno serialnum serialnr sn tokenserial tokenserialnumber deviceserial deviceserialnumber"
)
_KEYS = "key secret secretkey seed tokenseed tokenkey otpkey sharedsecret hmackey otpsecret"
_HEXADECIMAL_KEYS = "hexkey keyhex hexseed seedhex hexsecret secrethex secretkeyhex hexsecretkey seedinhex"
_BASE32_KEYS = "base32key keybase32 base32seed seedbase32 base32secret secretbase32 secretkeybase32 seedinbase32"
_USERS = "user upn userprincipalname username userid login loginname loginusername owner account uid assignedto"
_TOTP = "totp logintotp totpuri totpsecret otpauth otpauthuri otpauthurl otpuri"
_FIELDS = {
    "serial": _SERIALS,
    "key": _KEYS,
    "hexadecimal key": _HEXADECIMAL_KEYS,
    "base32 key": _BASE32_KEYS,
    "totp": _TOTP,
    "user": _USERS,
    "type": "type tokentype otptype oathtype",
    "digits": "digits otplen otplength length codelength otpdigits numberofdigits tokenlength",
    "counter": "counter movingfactor eventcounter startcounter count counterorperiod",
    "period": "period timeinterval interval timestep step timeperiod refreshinterval",
    "algorithm": "algorithm algo hash hashlib hashalgorithm hashfunction hmacalgorithm hmac",
}
_NAMES = {name: field for field, names in _FIELDS.items() for name in names.split()}
_MAP_NAMES = {name: field for name, field in _NAMES.items() if field in ("serial", "user")}
_LOGIN_NAMES = {name: field for name, field in _NAMES.items() if field in ("serial", "user", "totp")}
_MEANINGS = {field: field for field in _FIELDS} | {"serial": "serial number", "totp": "key or otpauth URI"}
_KEY_FIELDS: dict[str, Encoding | None] = {"key": None, "hexadecimal key": "hexadecimal", "base32 key": "base32"}

_COLUMNS = ("serial", "key", "type", "digits", "counter", "algorithm")
_COLUMNS_TEXT = "serial, key, type, digits, counter or period, algorithm"
_TYPES = {"hotp": "hotp", "event": "hotp", "eventbased": "hotp", "totp": "totp", "time": "totp", "timebased": "totp"}
# Keys of these lengths (bytes) usually belong to an algorithm other than SHA1 (RFC 6238 1.2).
_USUAL_ALGORITHMS = {32: "SHA256", 64: "SHA512"}
_ROUNDED = re.compile(r"\d(?:[.,]\d+)?E\+\d+", re.IGNORECASE)  # a long number that a spreadsheet has rounded

RowParser = Callable[[int, list[str]], ImportedToken | None]  # None for a row without a token


class CsvTokens(Format):
    """A token list of a vendor, of privacyIDEA, LinOTP or Yubico's personalisation tool."""

    name = "csv"

    def sniff(self, data: bytes) -> bool:
        row = first_row(data)
        return is_yubico_log(row) or _heading(row) is not None or any(map(is_key, row[1:3]))

    def parse(self, data: bytes, options: ParseOptions) -> ParsedFile:
        row = next((columns for _, columns in rows(data)), [])
        parser, understood = _row_parser(row)
        skip = int(_heading(row) is not None)
        return parsed_by_line(data, functools.partial(_tokens, parser=parser, skip=skip), understood)


def parse_map(data: bytes) -> dict[str, str]:
    """Return a map from serial numbers to users. Raise FormatError."""
    users: dict[str, str] = {}
    seen: set[str] = set()
    heading = None
    for number, (line, columns) in enumerate(rows(data)):
        if number == 0 and (heading := heading_of(columns, _MAP_NAMES)) is not None:
            continue
        if heading is not None:
            columns = [heading.value(columns, "serial"), heading.value(columns, "user")]  # noqa: PLW2901
            if not columns[1]:
                continue  # the token has no user
        if len(columns) != 2 or not all(columns):
            raise FormatError(line, "must have two columns: serial number and user")
        serial, user = _serial(columns[0], line), columns[1]
        if serial_key(serial) in seen:
            raise FormatError(line, "duplicate serial number")
        seen.add(serial_key(serial))
        users[serial] = user
    return users


def understood_map(data: bytes) -> str | None:
    """Return the meaning of a map's columns, or None if the heading is missing or is `serial,user`."""
    row = next((columns for _, columns in rows(data)), [])
    heading = heading_of(row, _MAP_NAMES)
    is_usual = [name.lower() for name in row] == ["serial", "user"]
    return None if heading is None or is_usual else heading.understood(_MEANINGS)


def _heading(row: list[str]) -> Heading | None:
    """Return the heading in the first row if it names a key, or the column for codes of a password manager."""
    for names, required in ((_NAMES, _KEY_FIELDS.keys()), (_LOGIN_NAMES, {"totp"})):
        heading = heading_of(row, names)
        if heading is not None and heading.columns.keys() & required:
            return heading
    return None


def _row_parser(row: list[str]) -> tuple[RowParser, tuple[str, ...]]:
    """Return the parser for the rows of a file with this first `row`, and lines of text about the columns."""
    if is_yubico_log(row):
        return yubico_token, ("the log of Yubico's personalisation tool",)
    heading = _heading(row)
    if heading is not None and not heading.columns.keys() & _KEY_FIELDS.keys():
        return functools.partial(_login_token, heading=heading), (heading.understood(_MEANINGS),)
    if heading is not None:
        kind = _assumed_type(heading)
        assumed = f"type: {kind}, because no column names it"
        understood = (heading.understood(_MEANINGS), *(() if "type" in heading.columns else (assumed,)))
        return functools.partial(_headed_token, heading=heading, kind=kind), understood
    if len(row) > 2 and not is_key(row[1]) and is_key(row[2]):
        understood = (f"columns: user, {_COLUMNS_TEXT}",)
        return functools.partial(_token, names=("user", *_COLUMNS)), understood
    return functools.partial(_token, names=_COLUMNS), ()


def _tokens(data: bytes, parser: RowParser, skip: int) -> Iterator[ImportedToken]:
    lines: dict[str, int] = {}  # by serial
    for line, columns in itertools.islice(rows(data), skip, None):
        token = parser(line, columns)
        if token is None:
            continue
        if token.serial is not None:
            key = serial_key(token.serial)
            if key in lines:
                raise FormatError(line, f"the serial number is a duplicate of line {lines[key]}")
            lines[key] = line
        yield token


def _token(line: int, columns: list[str], names: tuple[str, ...]) -> ImportedToken:
    """Return the token of a row without a heading."""
    least = names.index("key") + 1
    if not least <= len(columns) <= len(names):
        first = "user, " if "user" in names else ""
        what = f"must have {least} to {len(names)} columns ({first}{_COLUMNS_TEXT}), has {len(columns)}"
        raise FormatError(line, what)
    fields = dict(zip(names, columns, strict=False))
    if not fields.get("serial"):
        raise FormatError(line, "missing serial number")
    fields["period"] = fields.get("counter", "")
    return _from_fields(line, fields, None)


def _headed_token(line: int, columns: list[str], heading: Heading, kind: str) -> ImportedToken:
    fields = {field: heading.value(columns, field) for field in heading.columns}
    name = next(field for field in heading.columns if field in _KEY_FIELDS)
    fields["key"] = fields[name]
    fields["type"] = fields.get("type") or kind
    if "period" not in fields and fields.get("counter", "0").strip("0"):
        fields["period"] = fields["counter"]  # privacyIDEA writes the period of a totp token in this column
    if not fields.get("serial") and not fields.get("user"):
        raise FormatError(line, "must have a serial number or a user")
    return _from_fields(line, fields, _KEY_FIELDS[name])


def _login_token(line: int, columns: list[str], heading: Heading) -> ImportedToken | None:
    """Return the token of a password manager's row, or None if the row lacks a token.

    The user in the column takes precedence over the user in the URI.
    """
    text, user = heading.value(columns, "totp"), heading.value(columns, "user") or None
    if not text:
        return None
    token = token_of_field(text, line, user)
    serial = _serial(heading.value(columns, "serial"), line) or None
    return replace(token, user=user or token.user, serial=serial)


def _assumed_type(heading: Heading) -> str:
    return "totp" if "period" in heading.columns and "counter" not in heading.columns else "hotp"


def _from_fields(line: int, fields: dict[str, str], encoding: Encoding | None) -> ImportedToken:
    token = ImportedToken(
        line=line,
        serial=_serial(fields.get("serial", ""), line) or None,
        user=fields.get("user") or None,
    )
    kind = _TYPES.get(_letters(fields.get("type") or "hotp").removeprefix("oath"))
    if kind is None:
        return replace(token, unsupported="unknown type: must be hotp or totp")
    algorithm = algorithm_of(fields.get("algorithm") or "SHA1")
    if algorithm is None:
        return replace(token, type=kind, unsupported=f"unsupported algorithm: must be {', '.join(ALGORITHMS)}")
    digits = whole_number(fields.get("digits") or str(MIN_DIGITS), line, "digits")
    if not MIN_DIGITS <= digits <= MAX_DIGITS:
        unsupported = f"unsupported number of digits: must be {MIN_DIGITS} to {MAX_DIGITS}"
        return replace(token, type=kind, unsupported=unsupported)
    secret = key_of(fields["key"], line, "key", encoding)
    counter, period = 0, DEFAULT_PERIOD
    if kind == "hotp":
        counter = whole_number(fields.get("counter") or "0", line, "counter", high=MOVING_FACTOR_LIMIT - 1)
    else:
        period = period_of(fields.get("period") or str(DEFAULT_PERIOD), line, "period")
    usual = None if fields.get("algorithm") else _USUAL_ALGORITHMS.get(len(secret))
    remark = f"assumed SHA1, though keys of this length usually mean {usual} (name the algorithm in the file)"
    return replace(
        token,
        type=kind,
        secret=secret,
        algorithm=algorithm,
        digits=digits,
        counter=counter,
        period=period,
        remarks=(remark,) if usual else (),
    )


def _serial(text: str, line: int) -> str:
    if _ROUNDED.fullmatch(text):
        raise FormatError(line, "serial number: rounded by a spreadsheet (format the column as text, and export again)")
    return text


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))
