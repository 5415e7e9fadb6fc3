"""The secret file: the encoding of a `UserRecord` as bytes.

Rules:
1. A record has one encoding. `parse` accepts only this encoding, so `serialize(parse(data)) == data`. The exception is
   an older document, which lacks all keys of `_NEW_KEYS`, and may lack all keys of `_NEW_IN_TOKEN`.
2. The file is one JSON document in ASCII, with fixed keys in a fixed order, as json.dumps writes it with indent=1.
3. An error names the field or the line, and the requirement. An error never shows a value.
"""

from __future__ import annotations

from pam_totp.core.fields import Value
from pam_totp.core.lean import TYPE_CHECKING, encode_basestring_ascii, json_loads
from pam_totp.core.record import (
    TOKEN_TYPES,
    Grace,
    RecordError,
    TemporaryCode,
    Ticket,
    Token,
    UserRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    V = TypeVar("V", bound=Value)

VERSION = 1
MAX_FILE = 64 * 1024  # bytes

_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"  # RFC 4648 §6
_DIGITS_32 = str.maketrans(_BASE32, "0123456789abcdefghijklmnopqrstuv")  # base32 digit -> digit of int(text, 32)
_NEW_IN_TOKEN = {"row_needed": False}  # keys of a token that older documents lack -> their value for these documents
# Keys of the record that older documents lack -> their value for these documents.
_NEW_KEYS: dict[str, Any] = {"ticket": None, "temporary": None, "recent": "", "changes": ""}
_PARTS: dict[str, type[Value]] = {"ticket": Ticket, "temporary": TemporaryCode}  # keys with an object or null
SEALED = "sealed:"  # the start of a secret that `store.seal` has encrypted
_NOT_BASE32 = "must be base32 in upper case without padding"


def parse(data: bytes) -> UserRecord:
    """Return the record that `data`, the content of a secret file, encodes.

    Raise RecordError unless `data` is the encoding of a valid record.
    """
    if len(data) > MAX_FILE:
        raise RecordError(f"must be at most {MAX_FILE} bytes")
    try:
        document = json_loads(data.decode("ascii"))
    except UnicodeDecodeError:
        raise RecordError("must be ASCII") from None
    except (ValueError, RecursionError) as e:
        from json import JSONDecodeError

        place = f" (error at line {e.lineno})" if isinstance(e, JSONDecodeError) else ""
        raise RecordError(f"must be JSON{place}") from None
    is_old = type(document) is dict and document.keys().isdisjoint(_NEW_KEYS)
    fields = _members(document | _NEW_KEYS if is_old else document, "", ("version", *UserRecord._fields))
    if type(fields["version"]) is not int or fields.pop("version") != VERSION:
        raise RecordError(f"version: must be {VERSION}")
    documents = _items(fields, "tokens")
    is_older = is_old and _is_older(documents)
    fields["tokens"] = tuple(
        _token(_NEW_IN_TOKEN | t if is_older else t, f"tokens[{i}]") for i, t in enumerate(documents)
    )
    fields["grace"] = tuple(_part(Grace, item, f"grace[{i}]") for i, item in enumerate(_items(fields, "grace")))
    for name, kind in _PARTS.items():
        fields[name] = None if fields[name] is None else _part(kind, fields[name], name)
    fields["recovery"] = tuple(_items(fields, "recovery"))
    record = _made(UserRecord, fields, "")
    encoding = serialize(record)
    if is_old:
        encoding = encoding.removesuffix(_END_NEW_KEYS) + b"\n}\n"
    if (_without_added(encoding) if is_older else encoding) != data:
        raise RecordError("must be in the canonical encoding (key order, indentation, escapes)")
    return record


def serialize(record: UserRecord) -> bytes:
    """Return the secret file's content: one JSON document, in the order and layout that `parse` requires."""
    return f"{_object(record)}\n".encode("ascii")


def base32(secret: bytes) -> str:
    """Return `secret` in base32 (RFC 4648 §6) without padding, as in otpauth URIs."""
    count = -(-8 * len(secret) // 5)  # digits
    number = int.from_bytes(secret, "big") << 5 * count - 8 * len(secret)
    return "".join([_BASE32[number >> shift & 31] for shift in range(5 * count - 5, -5, -5)])


def unbase32(text: str) -> bytes:
    """Return the bytes that `base32` encodes as `text`.

    Raise ValueError for lower case, padding, other characters, or spare bits that are not zero.
    """
    size, spare = divmod(5 * len(text), 8)
    if not text or text.strip(_BASE32) or spare >= 5:  # five spare bits are a superfluous character
        raise ValueError(_NOT_BASE32)
    number = int(text.translate(_DIGITS_32), 32)
    if number & (1 << spare) - 1:
        raise ValueError(_NOT_BASE32)
    return (number >> spare).to_bytes(size, "big")


# ---- writing: ten times as fast as json.dumps with indent=1, which runs Python generators


def _layout(members: dict[str, str], end: str) -> str:
    """Return the JSON text of an object with these members. `end` is a line break and the object's indentation."""
    lines = ",".join(f'{end} "{key}": {text}' for key, text in members.items())
    return f"{{{lines}{end}}}"


def _placeholders(names: Iterable[str]) -> dict[str, str]:
    return {name: f"%({name})s" for name in names}


_LAYOUTS: dict[type[Value], str] = {
    UserRecord: _layout({"version": str(VERSION)} | _placeholders(UserRecord._fields), "\n"),
    **{
        cls: _layout(_placeholders(["name"]) | {"type": f'"{kind}"'} | _placeholders(cls._fields), "\n  ")
        for kind, cls in TOKEN_TYPES.items()
    },
    Grace: _layout(_placeholders(Grace._fields), "\n  "),
    **{kind: _layout(_placeholders(kind._fields), "\n ") for kind in (Ticket, TemporaryCode)},
}


def _object(value: Value) -> str:
    return _LAYOUTS[type(value)] % {name: _TEXTS[type(field)](field) for name, field in vars(value).items()}


def _list(items: tuple[object, ...]) -> str:
    """Return the JSON text of a list that is a member of the record."""
    texts = ",\n  ".join([_TEXTS[type(item)](item) for item in items])
    return f"[\n  {texts}\n ]" if texts else "[]"


_TEXTS: dict[type, Callable[[Any], str]] = {
    str: encode_basestring_ascii,
    bytes: lambda secret: f'"{base32(secret)}"',
    int: str,
    bool: {True: "true", False: "false"}.__getitem__,
    type(None): {None: "null"}.__getitem__,
    tuple: _list,
    **dict.fromkeys(_LAYOUTS, _object),
}


# The end of the encoding of a record that has only the defaults of _NEW_KEYS.
_END_NEW_KEYS = b',\n "ticket": null,\n "temporary": null,\n "recent": "",\n "changes": ""\n}\n'


# ---- reading


def _is_older(tokens: list[Any]) -> bool:
    """Return True if the tokens are older than the keys of `_NEW_IN_TOKEN`."""
    return len(tokens) > 0 and all(type(t) is dict and t.keys().isdisjoint(_NEW_IN_TOKEN) for t in tokens)


def _without_added(data: bytes) -> bytes:
    """Return an encoding without the keys of `_NEW_IN_TOKEN`. JSON strings are unchanged: they contain no line end."""
    for name, value in _NEW_IN_TOKEN.items():
        data = data.replace(f'   "{name}": {_TEXTS[type(value)](value)},\n'.encode("ascii"), b"")
    return data


def _token(document: object, place: str) -> Token:
    kind = document.get("type") if type(document) is dict else None
    if type(kind) is not str or kind not in TOKEN_TYPES:
        raise RecordError(f"{place}.type: must be one of {', '.join(TOKEN_TYPES)}")
    cls = TOKEN_TYPES[kind]
    fields = _members(document, place, ("type", *cls._fields))
    del fields["type"]
    if type(fields["secret"]) is str and fields["secret"].startswith(SEALED):
        raise RecordError(f"{place}.secret: is sealed, and this process has no key (see 'pam-totp seal status')")
    try:
        fields["secret"] = unbase32(fields["secret"]) if type(fields["secret"]) is str else None
    except ValueError as e:
        raise RecordError(f"{place}.secret: {e}") from None
    return _made(cls, fields, place)


def _members(document: object, place: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Return a copy of `document`. Raise RecordError unless `document` is a dict with exactly the keys `names`."""
    if type(document) is not dict:
        raise RecordError(f"{place or 'document'}: must be an object")
    if tuple(document) != names:  # faster than a search for each name
        for name in names:
            if name not in document:
                raise RecordError(f"{place and place + '.'}{name}: missing")
        if len(document) > len(names):
            raise RecordError(f"{place or 'document'}: unknown key")
    return dict(document)


def _part(kind: type[V], document: object, place: str) -> V:
    """Return the value of `kind` that `document`, a part of a record, encodes."""
    return _made(kind, _members(document, place, kind._fields), place)


def _items(fields: dict[str, Any], name: str) -> list[Any]:
    items = fields[name]
    if not isinstance(items, list):
        raise RecordError(f"{name}: must be a list")
    return items


def _made(cls: type[V], fields: dict[str, Any], place: str) -> V:
    try:
        return cls(**fields)
    except RecordError as e:
        raise RecordError(f"{place}.{e}" if place else str(e)) from None
