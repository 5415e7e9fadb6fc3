"""The secret file: the one encoding of a `UserRecord`.

The law: `parse` takes the canonical encoding and no other, so `serialize(parse(data)) == data` for all that parses.
An error names the place and what is wanted there, and never echoes a value.
"""

from __future__ import annotations

import base64
import binascii
import json
from json.encoder import encode_basestring_ascii
from typing import Any, TypeVar

from pam_totp.record import TOKEN_TYPES, Grace, RecordError, Token, UserRecord
from pam_totp.values import Value

VERSION = 1
MAX_FILE = 64 * 1024  # bytes

_WORDS = {None: "null", True: "true", False: "false"}

V = TypeVar("V", bound=Value)


def parse(data: bytes) -> UserRecord:
    """Read a secret file's content. Raises RecordError for anything but the canonical encoding of a valid record."""
    if len(data) > MAX_FILE:
        raise RecordError(f"larger than {MAX_FILE} bytes")
    try:
        document = json.loads(data.decode("ascii"))
    except UnicodeDecodeError:
        raise RecordError("not ASCII") from None
    except (ValueError, RecursionError) as e:
        where = f"line {e.lineno}" if isinstance(e, json.JSONDecodeError) else "somewhere"
        raise RecordError(f"not JSON: {where}") from None
    fields = _members(document, "", ("version", *UserRecord._fields))
    if type(fields["version"]) is not int or fields.pop("version") != VERSION:
        raise RecordError(f"version: not {VERSION}")
    fields["tokens"] = tuple(_token(t, f"tokens[{i}]") for i, t in enumerate(_items(fields, "tokens")))
    fields["grace"] = tuple(
        _made(Grace, _members(g, f"grace[{i}]", Grace._fields), f"grace[{i}]")
        for i, g in enumerate(_items(fields, "grace"))
    )
    fields["recovery"] = tuple(_items(fields, "recovery"))
    record = _made(UserRecord, fields, "")
    if serialize(record) != data:
        raise RecordError("not the canonical encoding (key order, indentation, escapes)")
    return record


def serialize(record: UserRecord) -> bytes:
    """The secret file's content: one JSON document, in the order and layout that `parse` demands."""
    document = {"version": VERSION} | {n: getattr(record, n) for n in UserRecord._fields}
    document["tokens"] = [_token_document(t) for t in record.tokens]
    document["grace"] = [{n: getattr(g, n) for n in Grace._fields} for g in record.grace]
    return (_json(document, "\n") + "\n").encode("ascii")


def _json(value: Any, end: str) -> str:
    """What json.dumps with indent=1 says, at a third of the time: that one runs in Python, through generators.

    `end` is what ends a line at this depth: a line feed and the indentation.
    """
    kind = type(value)
    if kind is str:
        return encode_basestring_ascii(value)
    if value is None or kind is bool:
        return _WORDS[value]
    if kind is int:
        return str(value)
    if kind is dict:
        members = [f"{encode_basestring_ascii(name)}: {_json(v, end + ' ')}" for name, v in value.items()]
        return f"{{{end} {f',{end} '.join(members)}{end}}}"
    items = [_json(v, end + " ") for v in value]
    return f"[{end} {f',{end} '.join(items)}{end}]" if items else "[]"


def base32(secret: bytes) -> str:
    """RFC 4648 §6 without padding, as in otpauth URIs."""
    return base64.b32encode(secret).decode("ascii").rstrip("=")


def unbase32(text: str) -> bytes:
    """Undo `base32`; ValueError for lower case, padding, other characters or left-over bits."""
    try:
        secret = base64.b32decode(text + "=" * (-len(text) % 8))
    except binascii.Error:
        secret = b""
    if not secret or base32(secret) != text:
        raise ValueError("not base32 in upper case without padding")
    return secret


def _token_document(token: Token) -> dict[str, object]:
    fields = {n: getattr(token, n) for n in token._fields}
    return {"name": fields.pop("name"), "type": token.type} | fields | {"secret": base32(token.secret)}


def _token(document: object, place: str) -> Token:
    kind = document.get("type") if type(document) is dict else None
    if type(kind) is not str or kind not in TOKEN_TYPES:
        raise RecordError(f"{place}.type: not one of {', '.join(TOKEN_TYPES)}")
    cls = TOKEN_TYPES[kind]
    fields = _members(document, place, ("type", *cls._fields))
    del fields["type"]
    try:
        fields["secret"] = unbase32(fields["secret"]) if type(fields["secret"]) is str else None
    except ValueError as e:
        raise RecordError(f"{place}.secret: {e}") from None
    return _made(cls, fields, place)


def _members(document: object, place: str, names: tuple[str, ...]) -> dict[str, Any]:
    """The document as a dict with exactly these keys."""
    if type(document) is not dict:
        raise RecordError(f"{place or 'document'}: not an object")
    prefix = f"{place}." if place else ""
    for name in names:
        if name not in document:
            raise RecordError(f"{prefix}{name}: missing")
    if len(document) > len(names):
        raise RecordError(f"{place or 'document'}: a key that does not belong there")
    return dict(document)


def _items(fields: dict[str, Any], name: str) -> list[Any]:
    items = fields[name]
    if not isinstance(items, list):
        raise RecordError(f"{name}: not a list")
    return items


def _made(cls: type[V], fields: dict[str, Any], place: str) -> V:
    try:
        return cls(**fields)
    except RecordError as e:
        raise RecordError(f"{place}.{e}" if place else str(e)) from None
