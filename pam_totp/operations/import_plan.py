"""From what a file describes to what becomes of the records: whose each token is, and what is left out, and why. Pure.

The law: every token of the file has one row in the end, that says whose it became or why it did not come in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pam_totp.core.record import MAX_TOKENS, RecordError, Token, UserRecord
from pam_totp.formats.imported_token import Found
from pam_totp.store import StoreError
from pam_totp.store.file import file_name


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one token: it came in where `left_out` is None. `known`: it was there already."""

    place: str
    line: int
    user: str | None
    token: str | None
    type: str
    serial: str | None
    remarks: tuple[str, ...]
    left_out: str | None = None
    known: bool = False


_encoded = json.JSONEncoder(separators=(",", ":")).encode
_IN = b"[null,"


def packed(row: Row) -> bytes:
    """The row as few bytes: there may be a million of them to be kept until it is known that all came in."""
    facts = [row.left_out, row.place, row.line, row.user, row.token, row.type, row.serial, row.remarks, row.known]
    return _encoded(facts).encode("ascii")


def unpacked(data: bytes) -> Row:
    """Undo `packed`."""
    reason, place, line, user, token, kind, serial, remarks, known = json.loads(data.decode("ascii"))
    return Row(place, line, user, token, kind, serial, tuple(remarks), reason, known)


def came_in(data: bytes) -> bool:
    """Whether a packed row is one without a reason to be left out."""
    return data.startswith(_IN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A token and its user; `place` is where it was read, as it is said to a person."""

    place: str
    user: str
    found: Found


def planned(place: str, found: Found, user: str | None, missing: str) -> Entry | Row:
    """The token of `user`, or the row that says why it stays out; `missing` is the reason where there is no user."""
    reason = found.unfit or (missing if user is None else _bad_name(user))
    if reason is not None or user is None:
        return left_out(place, found, user, reason or missing)
    return Entry(place=place, user=user, found=found)


def left_out(place: str, found: Found, user: str | None, reason: str, *, known: bool = False) -> Row:
    """The row of a token that does not come in."""
    return _row(place, found, user, found.name, reason, known=known)


def _row(place: str, found: Found, user: str | None, token: str | None, reason: str | None, *, known: bool) -> Row:
    return Row(
        place=place,
        line=found.line,
        user=user,
        token=token,
        type=found.kind,
        serial=found.serial,
        remarks=found.remarks,
        left_out=reason,
        known=known,
    )


def added(record: UserRecord, entry: Entry, now: int) -> tuple[UserRecord, Row]:
    """`record` with the token, if it can come in, under a name that is free; and what became of it."""
    place, found, user = entry.place, entry.found, entry.user
    try:
        token = found.token(now)
    except RecordError as e:
        return record, left_out(place, found, user, str(e))
    same = next((t for t in record.tokens if t.secret == token.secret), None)
    if same is not None:
        return record, left_out(place, found, user, f"there already, as {same.name}", known=True)
    if len(record.tokens) >= MAX_TOKENS:
        return record, left_out(place, found, user, f"{user} has {MAX_TOKENS} tokens, which is the most")
    try:
        if record.token(token.name) is not None:
            token = token.renamed(_free_name(token, record))
        record = record.with_token(token)
    except RecordError as e:
        return record, left_out(place, found, user, str(e))
    return record, _row(place, found, user, token.name, None, known=False)


def _free_name(token: Token, record: UserRecord) -> str:
    name, number = token.name, 2
    while record.token(name) is not None:
        name, number = f"{token.name}-{number}", number + 1
    return name


def _bad_name(user: str) -> str | None:
    try:
        file_name(user)
    except StoreError:
        return "that is no name that a user can have"
    return UserRecord.RULES["user"](user)
