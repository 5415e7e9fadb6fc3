"""The stock of hardware tokens: import, assign to a user, take back, replace.

Rules:
1. A function changes the record of a user and the stock together (`store.stock`). A serial number has one owner, also
   after a race or a kill.
2. An assigned token is unconfirmed until codes prove that its user has it: at the desk, or by `self_service.claim`.
   `replace` states the exception. A token that another user has used needs two codes in a row.
3. A returned token keeps its counter or last step, and needs codes in a row: no code is accepted again for the next
   user.
4. A function that fails raises StoreError, or `StockError` with a `Reason` for programs, and changes nothing.
5. The caller logs the change, with the user and the token of the result. The time is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pam_totp.core.answer import Answer
from pam_totp.core.record import MAX_TOKENS, RecordError, Token, UserRecord
from pam_totp.core.serials import serial_key
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.operations.enroll import verify_first_code
from pam_totp.operations.self_service import Reason as ConflictReason
from pam_totp.operations.self_service import conflict
from pam_totp.store import NotThere, Store, StoreError, claims
from pam_totp.store.empty import EmptyStore
from pam_totp.store.file import FileStore
from pam_totp.store.stock import Held, NotInStock, Progress, StockEntry, stock_of

NAME = "token"  # the name of an assigned token in the user's record

Also = Callable[[UserRecord], UserRecord]  # the new record -> the record to store; it may raise an exception


def _unchanged(record: UserRecord) -> UserRecord:
    return record


class State(StrEnum):
    """The state of a serial number, as one word for programs."""

    NEW = "new"  # in stock, and never returned by a user
    RETURNED = "returned"  # in stock again, after a user has confirmed it
    ASSIGNED = "assigned"  # a user has it


class Reason(StrEnum):
    """The reason of a change that failed."""

    NOT_IN_STOCK = "not-in-stock"  # the serial number is unknown
    ASSIGNED = "assigned"  # a user has the token, see `StockError.user`
    NOT_ASSIGNED = "not-assigned"  # no user has the token
    CONFIRMED = "confirmed"  # `unassign` takes back unconfirmed tokens only
    UNCONFIRMED = "unconfirmed"  # `give_back` takes back confirmed tokens only
    WRONG_CODE = "wrong-code"
    CODES_NEEDED = "codes-needed"  # another user has used the token: two codes in a row are needed
    TOO_MANY_TOKENS = "too-many-tokens"
    NAME_IN_USE = "name-in-use"
    TOKEN_KNOWN = "token-known"
    INVALID_VALUE = "invalid-value"


TEXTS = {
    Reason.NOT_IN_STOCK: "the token with the serial number {serial} is not in stock",
    Reason.ASSIGNED: "{user} has the token with the serial number {serial}",
    Reason.NOT_ASSIGNED: "no user has a token with the serial number {serial}",
    Reason.CONFIRMED: "the token with the serial number {serial} must be unconfirmed, but {user} has confirmed it",
    Reason.UNCONFIRMED: "the token with the serial number {serial} must be confirmed, but {user} has not confirmed it",
    Reason.WRONG_CODE: "wrong code of the token with the serial number {serial}",
    Reason.CODES_NEEDED: "the token with the serial number {serial} was used before: two codes in a row are required",
    Reason.TOO_MANY_TOKENS: f"{{user}} has {MAX_TOKENS} tokens, which is the maximum",
    Reason.NAME_IN_USE: "{user} already has a token of that name",
    Reason.TOKEN_KNOWN: "{user} already has a token with the same key",
    Reason.INVALID_VALUE: "{detail}",
}
_CONFLICTS = {
    ConflictReason.TOO_MANY_TOKENS: Reason.TOO_MANY_TOKENS,
    ConflictReason.NAME_IN_USE: Reason.NAME_IN_USE,
    ConflictReason.TOKEN_KNOWN: Reason.TOKEN_KNOWN,
}


class StockError(Exception):
    """The error for an impossible change of the stock. The text is for administrators, and has no code or key."""

    def __init__(self, reason: Reason, serial: str, user: str | None = None, detail: str = "") -> None:
        super().__init__(TEXTS[reason].format(serial=serial, user=user, detail=detail))
        self.reason, self.serial, self.user = reason, serial, user


@dataclass(frozen=True, slots=True)
class Given:
    """A token in a user's record, after `assign` or `confirm`."""

    user: str
    token: Token


@dataclass(frozen=True, slots=True)
class Taken:
    """A token before its removal from the record of `user`. `is_last` is True if the user has no other token now."""

    user: str
    token: Token
    is_last: bool


@dataclass(frozen=True, slots=True)
class Replaced:
    """The replacement of the token `old` by the token `new` in the record of `user`."""

    user: str
    old: Token
    new: Token


@dataclass(frozen=True, slots=True)
class Item:
    """A serial number of the stock. `token` is None, and `user` is set, if a user has the token."""

    serial: str
    batch: str | None
    state: State
    user: str | None
    imported: int
    returned: int | None
    token: Token | None


class AddStatus(StrEnum):
    """The result of an import into the stock for one token, as one word for programs."""

    ADDED = "added"
    ALREADY_ADDED = "already-added"
    SERIAL_TAKEN = "serial-taken"  # a user, or another token in stock, has this serial number
    NO_SERIAL = "no-serial"
    UNSUPPORTED = "unsupported"  # pam_totp does not support the kind of token; the format gives the reason
    INVALID = "invalid"  # a field breaks the rules of `core.record`


@dataclass(frozen=True, slots=True)
class Added:
    """The result of an import into the stock for one token of the file. `reason` is the reason to skip the token."""

    status: AddStatus
    token: ImportedToken
    reason: str | None = None


# ---- read the stock


def find(store: Store, serial: str) -> Item | None:
    """Return the item of a serial number that is or was in stock, or None. Raise StoreError."""
    held = stock_of(store).find(serial)
    return None if held is None else _item(held)


def items(store: Store, *, batch: str | None = None, free: bool = False) -> Iterator[Item | StoreError]:
    """Yield the items of a batch, or of all batches, ordered by serial number.

    If `free` is True, yield tokens in stock only. Yield a StoreError for an entry that cannot be read.
    """
    found: list[Item] = []
    for held in stock_of(store).entries():
        if isinstance(held, StoreError):
            yield held
        elif (batch is None or held.entry.batch == batch) and not (free and held.entry.token is None):
            found.append(_item(held))
    yield from sorted(found, key=lambda item: serial_key(item.serial))


def list_free(store: Store, *, batch: str | None = None) -> list[Item]:
    """Return the tokens in stock, ordered by serial number. Raise StoreError, also for a damaged entry."""
    found = []
    for item in items(store, batch=batch, free=True):
        if isinstance(item, StoreError):
            raise item
        found.append(item)
    return found


# ---- change the stock


def add(
    store: Store,
    tokens: Sequence[ImportedToken],
    *,
    now: int,
    batch: str | None = None,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> list[Added]:
    """Add the usable tokens of a file to the stock: after a kill, all of them or none. Return a result for each token.

    A second `add` of the same file adds nothing. A dry run changes nothing. Raise StoreError.
    """
    results = [_candidate(token, now, batch) for token in tokens]
    entries = [each for each in results if isinstance(each, StockEntry)]
    taken = _known(store, entries) if dry_run or not entries else stock_of(store).add(entries, progress)
    known = iter(taken)
    return [
        each if isinstance(each, Added) else _added(store, each, token, next(known))
        for token, each in zip(tokens, results, strict=True)
    ]


def set_token(store: Store, serial: str, token: Token) -> None:
    """Replace a token in stock by its later state, after the restore of a backup. Raise StockError or StoreError."""
    try:
        stock_of(store).update(serial, lambda entry: entry.holding(token))
    except NotInStock as e:
        raise _not_in_stock(store, serial, e.owner) from None


def remove(store: Store, serial: str) -> Token:
    """Delete a token in stock, with its key, and return it. Raise StockError or StoreError."""
    try:
        entry = stock_of(store).update(serial, lambda entry: None)
    except NotInStock as e:
        raise _not_in_stock(store, serial, e.owner) from None
    assert entry.token is not None
    return entry.token


def assign(
    store: Store,
    serial: str,
    user: str,
    *,
    now: int,
    name: str | None = None,
    codes: bytes | None = None,
    also: Also = _unchanged,
) -> Given:
    """Assign the token in stock with this serial number to a user. Return the user and the token.

    The token is unconfirmed if `codes` is None. Otherwise `codes` confirm the token, and are used up: one code, or two
    in a row for a returned token. `name` is the token's name, or None for a free name. `now` is in Unix seconds. The
    user need not have a record. `also` completes the record in the same change. Raise StockError or StoreError.
    """

    def change(
        record: UserRecord, found: Mapping[str, StockEntry | None]
    ) -> tuple[UserRecord, list[StockEntry], Token]:
        token = _handed_out(found[serial], serial, now, name or _free_name(record), codes)
        reason = conflict(record, token)
        if reason is not None:
            raise StockError(_CONFLICTS[reason], serial, user)
        return also(record.with_token(token)), [], token

    return Given(user, _exchange(store, user, change, [serial], create=True))


def confirm(store: Store, serial: str, *, now: int, codes: bytes) -> Given:
    """Confirm an assigned token by its codes, as in `assign`, and return it. Raise StockError or StoreError."""
    user = _owner(store, serial)

    def change(record: UserRecord) -> tuple[UserRecord, Token]:
        token = _own(record, serial)
        if token.confirmed:
            raise StockError(Reason.CONFIRMED, serial, user)
        confirmed = _confirmed(token, codes, serial, now)
        return record.with_changed(token, confirmed), confirmed

    try:
        return Given(user, store.update(user, change))
    except NotThere:
        raise StockError(Reason.NOT_ASSIGNED, serial) from None


def unassign(store: Store, serial: str, *, now: int) -> Taken:
    """Take an unconfirmed token back into stock, and return it. Raise StockError (CONFIRMED for other tokens) or
    StoreError.
    """

    def back(token: Token, entry: StockEntry) -> StockEntry:
        if token.confirmed:
            raise StockError(Reason.CONFIRMED, serial, user)
        return entry.holding(_in_stock(token))

    user = _owner(store, serial)
    return _take(store, user, serial, back, now)


def give_back(store: Store, serial: str, *, now: int) -> Taken:
    """Take a confirmed token back into stock, with its counter or last step. Return the token.

    The token needs codes in a row from then on.

    Raise StockError (UNCONFIRMED for other tokens) or StoreError.
    """

    def back(token: Token, entry: StockEntry) -> StockEntry:
        if not token.confirmed:
            raise StockError(Reason.UNCONFIRMED, serial, user)
        return _returned(token, entry, now)

    user = _owner(store, serial)
    return _take(store, user, serial, back, now)


def replace(
    store: Store,
    old: str,
    new: str,
    *,
    now: int,
    codes: bytes | None = None,
    lost: bool = False,
    also: Also = _unchanged,
) -> Replaced:
    """Replace the user's token `old` by the token `new` in stock, in one change, under the old name.

    `old` and `new` are serial numbers. `old` returns to the stock, or is deleted with its key if `lost` is True.
    `codes` confirm the new token, as in `assign`. Without codes, the new token is confirmed if `old` was confirmed:
    otherwise the user would no longer be enrolled. `also` completes the record in the same change. Raise StockError
    or StoreError.
    """
    user = _owner(store, old)

    def change(
        record: UserRecord, found: Mapping[str, StockEntry | None]
    ) -> tuple[UserRecord, list[StockEntry], tuple[Token, Token]]:
        last = _own(record, old)
        token = _handed_out(found[new], new, now, last.name, codes)
        if codes is None and last.confirmed:
            token = token.confirmed_without_code()
        if any(other.secret == token.secret for other in record.tokens if other is not last):
            raise StockError(Reason.TOKEN_KNOWN, new, user)
        entry = _entry(found[old], last, now)
        back = _returned(last, entry, now) if last.confirmed else entry.holding(_in_stock(last))
        return also(record.with_changed(last, token)), [] if lost else [back], (last, token)

    return Replaced(user, *_exchange(store, user, change, [old, new]))


# ---- parts


def _candidate(token: ImportedToken, now: int, batch: str | None) -> StockEntry | Added:
    """Return the entry of a file's token, or the result if the token cannot be used."""
    if token.unsupported is not None:
        return Added(AddStatus.UNSUPPORTED, token, token.unsupported)
    if token.serial is None:
        return Added(AddStatus.NO_SERIAL, token, "the token has no serial number")
    try:
        kept = _with(token.token(now), name=NAME, confirmed=False, last_used=None)
        return StockEntry(serial=token.serial, batch=batch, imported=now, token=kept)
    except RecordError as e:
        return Added(AddStatus.INVALID, token, str(e))


def _added(store: Store, entry: StockEntry, token: ImportedToken, taken: tuple[str | None] | None) -> Added:
    """Return the result for a token that `Stock.add` has added, or whose serial number was in use."""
    if taken is None:
        return Added(AddStatus.ADDED, token)
    (user,) = taken
    held = None if isinstance(store, EmptyStore) else stock_of(store).find(entry.serial)
    if user is not None:
        status = AddStatus.SERIAL_TAKEN if held is None else AddStatus.ALREADY_ADDED
        return Added(status, token, f"{user} has the token with this serial number")
    own = entry.token
    if held is None or held.entry.token is None or own is None or held.entry.token.secret == own.secret:
        return Added(AddStatus.ALREADY_ADDED, token, "already in stock")
    return Added(AddStatus.SERIAL_TAKEN, token, "another token in stock has this serial number")


def _known(store: Store, entries: Sequence[StockEntry]) -> list[tuple[str | None] | None]:
    """Return the results that `Stock.add` would return, and change nothing."""
    if isinstance(store, EmptyStore):
        owner_of: Callable[[str], str | None] = store.owner_of_serial
    else:
        owner_of = claims.Owners(store).of if type(store) is FileStore else store.owner_of_serial
    results: list[tuple[str | None] | None] = []
    seen: set[str] = set()
    for entry in entries:
        held = None if isinstance(store, EmptyStore) else stock_of(store).find(entry.serial)
        owner = owner_of(entry.serial) if held is None else held.owner
        is_free = held is None and owner is None and serial_key(entry.serial) not in seen
        results.append(None if is_free else (owner,))
        seen.add(serial_key(entry.serial))
    return results


def _item(held: Held) -> Item:
    entry = held.entry
    in_stock = State.NEW if entry.returned is None else State.RETURNED
    state = State.ASSIGNED if entry.token is None else in_stock
    return Item(entry.serial, entry.batch, state, held.owner, entry.imported, entry.returned, entry.token)


def _owner(store: Store, serial: str) -> str:
    """Return the owner of the token. Raise StockError."""
    owner = store.owner_of_serial(serial)
    if owner is None:
        raise StockError(Reason.NOT_ASSIGNED, serial)
    return str(owner)


def _own(record: UserRecord, serial: str) -> Token:
    """Return the token with this serial number. Raise StockError if the record has no such token."""
    for token in record.tokens:
        if token.serial is not None and serial_key(token.serial) == serial_key(serial):
            return token
    raise StockError(Reason.NOT_ASSIGNED, serial)


def _not_in_stock(store: Store, serial: str, owner: str | None = None) -> StockError:
    user = owner or store.owner_of_serial(serial)
    return StockError(Reason.NOT_IN_STOCK if user is None else Reason.ASSIGNED, serial, user)


class _Missing(Exception):
    """The error for a serial number that is not in stock."""

    def __init__(self, serial: str) -> None:
        super().__init__(serial)
        self.serial = serial


def _exchange(store: Store, user: str, change: Callable[..., Any], serials: list[str], *, create: bool = False) -> Any:
    try:
        return stock_of(store).exchange(user, change, serials, create=create)
    except _Missing as e:
        raise _not_in_stock(store, e.serial) from None
    except NotThere:
        raise StockError(Reason.NOT_ASSIGNED, serials[0]) from None


def _handed_out(entry: StockEntry | None, serial: str, now: int, name: str, codes: bytes | None) -> Token:
    """Return the token of an entry for a user's record: unconfirmed, or confirmed by codes."""
    if entry is None or entry.token is None:
        raise _Missing(serial)
    try:
        token = _with(entry.token, name=name, created=now)
    except RecordError as e:
        raise StockError(Reason.INVALID_VALUE, serial, detail=str(e)) from None
    return token if codes is None else _confirmed(token, codes, serial, now)


def _confirmed(token: Token, codes: bytes, serial: str, now: int) -> Token:
    """Return the token, confirmed by its codes. Raise StockError."""
    answer = Answer.parse(codes)
    confirmed = verify_first_code(token, answer, now)
    if confirmed is None:
        is_row = len(answer.codes({token.digits}) or ()) > 1
        raise StockError(Reason.CODES_NEEDED if token.row_needed and not is_row else Reason.WRONG_CODE, serial)
    return confirmed


def _take(store: Store, user: str, serial: str, back: Callable[[Token, StockEntry], StockEntry], now: int) -> Taken:
    """Move the user's token into the stock, as the entry that `back` returns. Return the token and its last user."""

    def change(
        record: UserRecord, found: Mapping[str, StockEntry | None]
    ) -> tuple[UserRecord | None, list[StockEntry], Taken]:
        token = _own(record, serial)
        entry = back(token, _entry(found[serial], token, now))
        rest = record.without_token(token.name)
        return (rest if rest.tokens else None), [entry], Taken(user, token, is_last=not rest.tokens)

    taken: Taken = _exchange(store, user, change, [serial])
    return taken


def _entry(found: StockEntry | None, token: Token, now: int) -> StockEntry:
    """Return the entry of a user's token, or a new entry for a token that was never in stock."""
    if found is not None:
        return found
    assert token.serial is not None
    return StockEntry(serial=token.serial, imported=now)


def _in_stock(token: Token) -> Token:
    """Return a user's token as it is kept in stock: without the facts about its last user."""
    return _with(token, name=NAME, confirmed=False, enabled=True, last_used=None)


def _returned(token: Token, entry: StockEntry, now: int) -> StockEntry:
    return entry.holding(_in_stock(token).with_row_needed(), returned=now)


def _free_name(record: UserRecord) -> str:
    name, number = NAME, 2
    while record.token(name) is not None:
        name, number = f"{NAME}-{number}", number + 1
    return name


def _with(token: Token, **changes: object) -> Token:
    """Return the token with other values of some fields. Raise RecordError."""
    fields: dict[str, Any] = {name: getattr(token, name) for name in token._fields}
    return type(token)(**(fields | changes))
