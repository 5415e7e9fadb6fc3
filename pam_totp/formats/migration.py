"""otpauth-migration://offline?data=...: URIs that Google Authenticator exports as one or more QR codes.

`data` is base64 of a protocol-buffers message. Field 1 is a token, and may be repeated. Fields 3, 4 and 5 are the
number of parts, the index of this part and the number of the export. A token's fields are 1 key, 2 label, 3 issuer,
4 algorithm, 5 digits, 6 type and 7 counter. The parser reads varints and byte strings. Each of these fields, except
a token, must occur at most once.
"""

from __future__ import annotations

import base64
import binascii
import urllib.parse
from collections.abc import Iterator

from pam_totp.formats.format import Format, ParsedFile, ParseOptions, parsed_at_once
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import FormatError, as_utf8, first_lines, numbered_lines
from pam_totp.formats.picture import is_picture, read_picture, without_symbol

MAX_PARTS = 100
MAX_TOKENS = 1000  # tokens in one part: a QR code holds less than 3 KiB
MAX_URI = 8192  # characters
SCHEME = "otpauth-migration"

_ALGORITHMS = {0: "SHA1", 1: "SHA1", 2: "SHA256", 3: "SHA512"}
_DIGITS = {0: 6, 1: 6, 2: 8}
_TYPES = {1: "hotp", 2: "totp"}
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types
_MAX_VARINT = 10  # bytes, for 64 bits

Message = dict[int, list[int | bytes]]


class Migration(Format):
    """The export of the Google Authenticator app, as text or as pictures of its QR codes."""

    name = "migration"
    labels_name_users = True
    several_files = True

    def sniff(self, data: bytes) -> bool:
        return any(without_symbol(line).lower().startswith(f"{SCHEME}:") for line in first_lines(data, 1))

    def decode(self, data: bytes) -> bytes:
        return read_picture(data) if is_picture(data) else as_utf8(data)

    def parse(self, data: bytes, options: ParseOptions) -> ParsedFile:
        """Return the tokens of all parts: one URI per line, in any order. Each part must occur exactly once."""
        tokens: list[ImportedToken] = []
        lines: dict[int, int] = {}  # by part
        export: tuple[int, int] | None = None  # (number of parts, number of the export)
        last_line = 1
        for line, text in numbered_lines(data):
            last_line = line
            message = _message(_payload(without_symbol(text.strip()), line), line)
            # The format's names are batch_size, batch_index and batch_id.
            size, part, batch = (_number(message, field, line) for field in (3, 4, 5))
            size = max(size, 1)
            if size > MAX_PARTS or part >= size:
                raise FormatError(line, f"must be a numbered part of an export with at most {MAX_PARTS} parts")
            if export not in (None, (size, batch)):
                raise FormatError(line, "must be a part of the same export as the lines before")
            if part in lines:
                raise FormatError(line, f"part {part + 1} is a duplicate of line {lines[part]}")
            export, lines[part] = (size, batch), line
            messages = message.get(1, [])
            if len(messages) > MAX_TOKENS:
                raise FormatError(line, f"must have at most {MAX_TOKENS} tokens")
            tokens += [_token(token, line) for token in messages]
        if export is None:
            raise FormatError(1, "must be an otpauth-migration://offline?data=... URI")
        missing = [str(part + 1) for part in range(export[0]) if part not in lines]
        if missing:
            parts = ", ".join(missing)
            raise FormatError(last_line, f"part {parts} of {export[0]} is missing (give all QR codes of the export)")
        return parsed_at_once(tokens)


def _payload(uri: str, line: int) -> bytes:
    if len(uri) > MAX_URI:
        raise FormatError(line, f"the URI must be at most {MAX_URI} characters")
    try:
        parts = urllib.parse.urlsplit(uri)
        fields = urllib.parse.parse_qsl(parts.query.replace("+", "%2B"), strict_parsing=True, max_num_fields=5)
        if (parts.scheme, parts.netloc, [key for key, _ in fields]) != (SCHEME, "offline", ["data"]):
            raise ValueError
    except ValueError:
        raise FormatError(line, "must be an otpauth-migration://offline?data=... URI") from None
    try:
        return base64.b64decode(fields[0][1], validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(line, "the data must be base64") from None


def _token(message: int | bytes, line: int) -> ImportedToken:
    if not isinstance(message, bytes):
        raise FormatError(line, "field 1 of the data must be a message")
    fields = _message(message, line)
    kind, digits = _TYPES.get(_number(fields, 6, line)), _DIGITS.get(_number(fields, 5, line))
    algorithm = _ALGORITHMS.get(_number(fields, 4, line))
    counter = _number(fields, 7, line)
    unsupported = None
    if kind is None or digits is None or algorithm is None:
        unsupported = "unknown type, number of digits or algorithm"
    return ImportedToken(
        line=line,
        type=kind or "hotp",
        secret=_octets(fields, 1, line),
        algorithm=algorithm or "SHA1",
        digits=digits or 6,
        counter=counter if kind == "hotp" else 0,
        user=_text(fields, 2, line).rpartition(":")[2].strip() or None,
        unsupported=unsupported,
    )


def _message(data: bytes, line: int) -> Message:
    """Return the values of a message by field number."""
    message: Message = {}
    for number, value in _fields(data, line):
        message.setdefault(number, []).append(value)
    return message


def _fields(data: bytes, line: int) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at, line)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, at = _varint(data, at, line)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, at = _varint(data, at, line)
        elif wire_type in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if wire_type == _EIGHT_BYTES else 4
        else:
            raise FormatError(line, "the data must be a protocol-buffers message")
        if number == 0 or length > len(data) - at:
            raise FormatError(line, "a field of the data must be complete, and have a number above 0")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int, line: int) -> tuple[int, int]:
    """Return the unsigned 64-bit number at index `at`, and the index after the number.

    Each byte holds seven bits, the lowest bits first.
    """
    value = 0
    for i in range(_MAX_VARINT):
        if at + i >= len(data):
            break
        value |= (data[at + i] & 0x7F) << 7 * i
        if data[at + i] < 0x80:
            if value >= 1 << 64:
                break
            return value, at + i + 1
    raise FormatError(line, "a number in the data must be complete, and have at most 64 bits")


def _only(fields: Message, number: int, line: int, default: int | bytes) -> int | bytes:
    """Return the value of field `number`, or `default` if it is absent.

    Raise FormatError if the field is repeated or has another type than `default`.
    """
    values = fields.get(number, [default])
    if len(values) != 1 or type(values[0]) is not type(default):
        kind = "a number" if isinstance(default, int) else "a byte string"
        raise FormatError(line, f"field {number} of the data must be {kind}, and occur at most once")
    return values[0]


def _number(fields: Message, number: int, line: int) -> int:
    value = _only(fields, number, line, 0)
    assert isinstance(value, int)
    return value


def _octets(fields: Message, number: int, line: int) -> bytes:
    value = _only(fields, number, line, b"")
    assert isinstance(value, bytes)
    return value


def _text(fields: Message, number: int, line: int) -> str:
    try:
        return _octets(fields, number, line).decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(line, f"field {number} of the data must be UTF-8") from None
