"""otpauth-migration://offline?data=…: what Google Authenticator's "export accounts" shows, in one or more QR codes.

`data` is base64 of a protocol-buffers message: 1 the tokens (each: 1 key, 2 label, 3 issuer, 4 algorithm, 5 digits,
6 type, 7 counter), 2 version, 3 how many parts there are, 4 which one this is, 5 which export they belong to. Only
what protocol buffers need for that is read here: varints and byte strings, each once but the tokens.
"""

from __future__ import annotations

import base64
import binascii
import subprocess
import urllib.parse
from collections.abc import Iterator

from pam_totp.formats.imported_token import FormatError, Found, lines_of

MAX_PARTS = 100
MAX_TOKENS = 1000  # in one part: a QR code holds fewer than 3 KiB
MAX_URI = 8192  # characters
READING_TAKES = 60  # seconds at most, for zbarimg to find the codes of a picture
PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")  # how PNG and JPEG files begin

_ALGORITHMS = {0: "SHA1", 1: "SHA1", 2: "SHA256", 3: "SHA512"}
_DIGITS = {0: 6, 1: 6, 2: 8}
_KINDS = {1: "hotp", 2: "totp"}
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5  # wire types

Message = dict[int, list[int | bytes]]


def parse(data: bytes, now: int) -> list[Found]:
    """The tokens of all parts, one URI a line, in any order. Raises FormatError; also where a part is missing."""
    found: list[Found] = []
    seen: dict[int, int] = {}
    whole: tuple[int, int] | None = None
    last = 1
    for line, text in lines_of(data):
        last = line
        message = _message(_payload(text.strip(), line), line)
        size, part, batch = (_number(message, field, line) for field in (3, 4, 5))
        size = max(size, 1)
        if size > MAX_PARTS or part >= size:
            raise FormatError(line, "its part has no place among the others")
        if whole not in (None, (size, batch)):
            raise FormatError(line, "a part of another export")
        if part in seen:
            raise FormatError(line, f"part {part + 1} is there twice; it is in line {seen[part]} too")
        whole, seen[part] = (size, batch), line
        tokens = message.get(1, [])
        if len(tokens) > MAX_TOKENS:
            raise FormatError(line, f"more than {MAX_TOKENS} tokens")
        found += [_token(token, line) for token in tokens]
    if whole is None:
        raise FormatError(1, "no otpauth-migration://offline?data=… URI")
    missing = sorted(set(range(whole[0])) - seen.keys())
    if missing:
        parts = ", ".join(str(part + 1) for part in missing)
        raise FormatError(last, f"part {parts} of {whole[0]} is missing: give all QR codes of the export")
    return found


def is_picture(data: bytes) -> bool:
    return data.startswith(PICTURES)


def read_picture(data: bytes) -> bytes:
    """The QR codes of a PNG or JPEG picture, one a line, as zbarimg (Debian: zbar-tools) reads them.

    Raises FormatError.
    """
    command = ["zbarimg", "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", "-"]
    try:
        done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=READING_TAKES)
    except FileNotFoundError:
        raise FormatError(None, "a picture needs zbarimg (apt-get install zbar-tools), or the text of its QR") from None
    except subprocess.TimeoutExpired:
        raise FormatError(None, f"no QR code was found within {READING_TAKES} s") from None
    if done.returncode != 0 or not done.stdout.strip():
        raise FormatError(None, "no QR code was found in this picture")
    return done.stdout


def _payload(uri: str, line: int) -> bytes:
    if len(uri) > MAX_URI:
        raise FormatError(line, f"longer than {MAX_URI} characters")
    try:
        parts = urllib.parse.urlsplit(uri)
        fields = urllib.parse.parse_qsl(parts.query.replace("+", "%2B"), strict_parsing=True, max_num_fields=5)
        if (parts.scheme, parts.netloc, [key for key, _ in fields]) != ("otpauth-migration", "offline", ["data"]):
            raise ValueError
    except ValueError:
        raise FormatError(line, "not an otpauth-migration://offline?data=… URI") from None
    try:
        return base64.b64decode(fields[0][1], validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(line, "its data is not base64") from None


def _token(message: int | bytes, line: int) -> Found:
    if not isinstance(message, bytes):
        raise FormatError(line, "a token is not a message")
    fields = _message(message, line)
    kind, digits = _KINDS.get(_number(fields, 6, line)), _DIGITS.get(_number(fields, 5, line))
    algorithm = _ALGORITHMS.get(_number(fields, 4, line))
    counter = _number(fields, 7, line)
    unfit = None
    if kind is None or digits is None or algorithm is None:
        unfit = "its type, its digits or its algorithm (MD5?) is not known here"
    return Found(
        line=line,
        kind=kind or "hotp",
        secret=_octets(fields, 1, line),
        algorithm=algorithm or "SHA1",
        digits=digits or 6,
        counter=counter if kind == "hotp" else 0,
        user=_text(fields, 2, line).rpartition(":")[2].strip() or None,
        unfit=unfit,
    )


def _message(data: bytes, line: int) -> Message:
    """Field numbers and values; fields 1 of the outermost message are the only ones that may be repeated."""
    found: Message = {}
    for number, value in _fields(data, line):
        found.setdefault(number, []).append(value)
    return found


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
            raise FormatError(line, "its data is no protocol-buffers message")
        if number == 0 or length > len(data) - at:
            raise FormatError(line, "its data ends too early")
        yield number, data[at : at + length]
        at += length


def _varint(data: bytes, at: int, line: int) -> tuple[int, int]:
    """An unsigned number of at most 64 bits, seven to a byte, the lowest first; and where it ends."""
    value = 0
    for i in range(10):
        if at + i >= len(data):
            break
        value |= (data[at + i] & 0x7F) << 7 * i
        if data[at + i] < 0x80:
            if value >= 1 << 64:
                break
            return value, at + i + 1
    raise FormatError(line, "its data has a number that does not end")


def _one(fields: Message, number: int, line: int, default: int | bytes) -> int | bytes:
    values = fields.get(number, [default])
    if len(values) != 1 or type(values[0]) is not type(default):
        raise FormatError(line, f"field {number} of its data is not as it should be")
    return values[0]


def _number(fields: Message, number: int, line: int) -> int:
    value = _one(fields, number, line, 0)
    assert isinstance(value, int)
    return value


def _octets(fields: Message, number: int, line: int) -> bytes:
    value = _one(fields, number, line, b"")
    assert isinstance(value, bytes)
    return value


def _text(fields: Message, number: int, line: int) -> str:
    try:
        return _octets(fields, number, line).decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(line, f"field {number} of its data is not UTF-8") from None
