"""From what a file describes to what becomes of the records: whose each token is, and what is left out, and why. Pure.

The law: every token of the file has one row in the end, that says whose it became or why it did not come in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pam_totp.formats.found import Found
from pam_totp.record import MAX_TOKENS, RecordError, Token, UserRecord
from pam_totp.store import StoreError
from pam_totp.store.file import file_name


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A token and its user; `place` is where it was read, as it is said to a person."""

    place: str
    user: str
    found: Found


@dataclass(slots=True)
class Plan:
    """The tokens that have a user, by user, and the rows of those that have none."""

    entries: dict[str, list[Entry]]
    left_out: list[Row]

    def add(self, place: str, found: Found, user: str | None, missing: str) -> None:
        """Plan for one token of `user`; `missing` is the reason that is told where there is none."""
        reason = found.unfit or (missing if user is None else _bad_name(user))
        if reason is not None or user is None:
            self.left_out.append(left_out(place, found, user, reason or missing))
        else:
            self.entries.setdefault(user, []).append(Entry(place=place, user=user, found=found))


def added(record: UserRecord, entries: Iterable[Entry], now: int) -> tuple[UserRecord, list[Row]]:
    """`record` with the tokens that can come in, under names that are free; and what became of each."""
    rows = []
    for entry in entries:
        record, row = _with(record, entry, now)
        rows.append(row)
    return record, rows


def left_out(place: str, found: Found, user: str | None, reason: str, *, known: bool = False) -> Row:
    """The row of a token that does not come in."""
    return Row(
        place=place,
        line=found.line,
        user=user,
        token=found.name,
        type=found.kind,
        serial=found.serial,
        remarks=found.remarks,
        left_out=reason,
        known=known,
    )


def _with(record: UserRecord, entry: Entry, now: int) -> tuple[UserRecord, Row]:
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
    row = left_out(place, found, user, "")
    return record, replace(row, token=token.name, left_out=None)


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
