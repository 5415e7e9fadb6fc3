"""The import of a file's tokens into the records of their users.

Rules:
- Data flows one way: ParsedFile -> SelectedTokens (tokens with their users) -> `import_tokens` -> Report.
- Every selected token of the file has one result: imported, or skipped for a reason. Programs read the status; the
  reason is for users.
- The process rolls back an import that fails. The next command rolls back the import of a killed process.
- Memory holds only a packed result of about a hundred bytes for each token. The import writes each token to the journal
  as soon as it has read the token. The import reads the token again if another process changes the record meanwhile.
- The time, the store and the rule for user names are arguments.
"""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Protocol

from pam_totp.core.record import MAX_TOKENS, RecordError, Token, UserRecord
from pam_totp.core.serials import serial_key
from pam_totp.formats.format import Format, ParsedFile, ParseOptions
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import FormatError
from pam_totp.store import NotThere, SerialTaken, SharedStore, Store, StoreError, claims
from pam_totp.store.bulk import Change, Changes, update_many
from pam_totp.store.file import JOURNAL, FileStore, file_name
from pam_totp.store.stock import is_in_stock

Progress = Callable[[int, int], None]  # done, total
AccountName = Callable[[str], str | None]  # a user name -> the account's name in the passwd database, or None

_AHEAD = 100  # tokens to read before the first token is written, which saves an eighth of the time
_REPORT_EVERY = 500  # tokens between two reports of progress
NO_USER = "the file names no user (see --user and --map)"
NOT_IN_MAP = "the map lacks the serial number"


class Status(StrEnum):
    """The result of the import for one token, as one word for programs."""

    IMPORTED = "imported"
    ALREADY_IMPORTED = "already-imported"
    NO_USER = "no-user"
    INVALID_USER = "invalid-user"
    UNSUPPORTED = "unsupported"  # pam_totp does not support the kind of token; the format gives the reason
    INVALID = "invalid"  # a field breaks the rules of `core.record`
    TOO_MANY_TOKENS = "too-many-tokens"
    SERIAL_TAKEN = "serial-taken"  # another user has the token with this serial number
    UNREADABLE = "unreadable"  # the file cannot be read


@dataclass(frozen=True, slots=True)
class Result:
    """The result for one token. `place` is the token's line or file; `reason` is the reason to skip, or None."""

    status: Status
    place: str
    line: int
    user: str | None
    token: str | None
    type: str
    serial: str | None
    remarks: tuple[str, ...]
    reason: str | None = None
    created: int | None = None  # of an imported token, in Unix seconds
    next: int | None = None  # of an imported token: its lowest counter or step that is not used up
    has_account: bool = True  # False if the user has no account on this host


_encode = json.JSONEncoder(separators=(",", ":")).encode
_STATUSES = tuple(Status)


class PackedResult(bytes):
    """A result in compact form, because a file can have a million tokens: the number of its status, then JSON."""

    __slots__ = ()

    def __new__(cls, result: Result) -> PackedResult:
        facts = (result.place, result.line, result.user, result.token, result.type, result.serial, result.remarks)
        rest = result.reason, result.created, result.next, result.has_account
        data = _encode((*facts, *rest)).encode("ascii")
        return super().__new__(cls, bytes([_STATUSES.index(result.status)]) + data)

    @property
    def status(self) -> Status:
        return _STATUSES[self[0]]

    def unpack(self) -> Result:
        place, line, user, token, kind, serial, remarks, *more = json.loads(self[1:].decode("ascii"))
        return Result(self.status, place, line, user, token, kind, serial, tuple(remarks), *more)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token to be imported for `user`."""

    place: str
    user: str
    token: ImportedToken
    has_account: bool

    def result(
        self, status: Status, reason: str | None = None, new_token: Token | None = None, more: tuple[str, ...] = ()
    ) -> Result:
        """Return the result for the token. `new_token` is the imported token in the record; `more` has remarks."""
        facts = self.place, self.token, self.user, status
        return _result(*facts, reason=reason, new_token=new_token, more=more, has_account=self.has_account)


class Selected(Protocol):
    """The tokens to import, and the results for tokens that were skipped before the store was read.

    Every iteration yields the same tokens. The length is an upper bound.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Candidate | Result]: ...


# --- the selection of tokens and users


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The rules that select tokens of a file, and that assign a user to each token.

    `serial` selects one token. `users_by_serial` assigns tokens to users. Without `users_by_serial`, every token is for
    `user`. If `user` is None too, the file names the user of each token. With `user_selects`, only tokens that the file
    assigns to `user` are selected. Serial numbers are compared by `serial_key`.
    """

    account: AccountName
    user: str | None = None
    serial: str | None = None
    users_by_serial: Mapping[str, str] | None = None
    user_selects: bool = False

    def __post_init__(self) -> None:
        if self.users_by_serial is not None:
            by_key = {serial_key(serial): user for serial, user in self.users_by_serial.items()}
            object.__setattr__(self, "users_by_serial", by_key)

    def candidate(self, place: str, token: ImportedToken) -> Candidate | Result:
        """Return the token with its user, or the result if no user is assigned."""
        missing = NO_USER
        if self.users_by_serial is not None:
            user, missing = self.users_by_serial.get(serial_key(token.serial or "")), NOT_IN_MAP
        else:
            user = token.user if self.user is None else self.user
        return _candidate(place, token, user, self.account, missing)

    def has(self, token: ImportedToken) -> bool:
        """Return True if the token is selected."""
        if self.serial is not None and serial_key(token.serial or "") != serial_key(self.serial):
            return False
        if not self.user_selects or self.user is None:
            return True
        return token.user is not None and self.user in (token.user, self.account(token.user))


class SelectedTokens:
    """The selected tokens of one file. Iteration may raise FormatError."""

    def __init__(self, parsed: ParsedFile, selection: Selection) -> None:
        self._parsed, self._selection = parsed, selection

    def __len__(self) -> int:
        return self._parsed.max_tokens

    def __iter__(self) -> Iterator[Candidate | Result]:
        for token in self._parsed.tokens:
            if self._selection.has(token):
                yield self._selection.candidate(f"{self._parsed.unit} {token.line}", token)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFile:
    """A file of one user: its content, or the reason of a failed read."""

    path: str
    user: str | None
    data: bytes = field(default=b"", repr=False)
    problem: str | None = None


def select_user_files(
    files: Iterable[UserFile], chosen: Format, options: ParseOptions, account: AccountName
) -> list[Candidate | Result]:
    """Return the tokens of many files. An invalid file does not prevent the import of the other files."""
    selected: list[Candidate | Result] = []
    for file in files:
        problem = file.problem
        if problem is None:
            try:
                tokens = list(chosen.parse(file.data, options).tokens)
                selected += [_candidate(file.path, token, file.user, account, NO_USER) for token in tokens]
            except FormatError as e:
                problem = str(e)
        if problem is not None:
            blank = ImportedToken(line=1, type="totp")
            selected.append(_result(file.path, blank, file.user, Status.UNREADABLE, reason=problem))
    return selected


def _candidate(
    place: str, token: ImportedToken, named: str | None, account: AccountName, missing: str
) -> Candidate | Result:
    """Return the token with the account of the user `named`, or the result if the token cannot be imported."""
    found = None if named is None else account(named)
    user = named if found is None else found
    if token.unsupported is not None:
        return _result(place, token, user, Status.UNSUPPORTED, reason=token.unsupported)
    if user is None:
        return _result(place, token, user, Status.NO_USER, reason=missing)
    problem = _user_name_problem(user)
    if problem is not None:
        return _result(place, token, user, Status.INVALID_USER, reason=problem)
    return Candidate(place, user, token, has_account=found is not None)


def _result(
    place: str,
    token: ImportedToken,
    user: str | None,
    status: Status,
    *,
    reason: str | None = None,
    new_token: Token | None = None,
    more: tuple[str, ...] = (),
    has_account: bool = True,
) -> Result:
    return Result(
        status,
        place,
        token.line,
        user,
        token.name if new_token is None else new_token.name,
        token.type,
        token.serial,
        token.remarks + more,
        reason,
        created=None if new_token is None else new_token.created,
        next=None if new_token is None else new_token.next_factor,
        has_account=has_account,
    )


def _user_name_problem(user: str) -> str | None:
    try:
        file_name(user)
    except StoreError:
        return "invalid user name"
    return UserRecord.RULES["user"](user)


# --- the import


class Interrupted(Exception):
    """The error after Ctrl-C stopped the import. The next command completes the roll-back if `rolled_back` is False."""

    def __init__(self, *, rolled_back: bool) -> None:
        super().__init__("interrupted")
        self.rolled_back = rolled_back


class Report:
    """The results of all tokens, in the order of the file. The report may be iterated more than once."""

    def __init__(self, changed: list[PackedResult], skipped: list[PackedResult]) -> None:
        self._parts = [part for part in (changed, skipped) if part]
        self.imported = sum(result.status is Status.IMPORTED for result in changed)
        self.skipped = len(changed) + len(skipped) - self.imported
        expected = {Status.IMPORTED, Status.ALREADY_IMPORTED}
        self.ok = bool(self._parts) and all(result.status in expected for part in self._parts for result in part)

    def __iter__(self) -> Iterator[Result]:
        return heapq.merge(*(map(PackedResult.unpack, part) for part in self._parts), key=lambda result: result.line)


def import_tokens(
    store: Store,
    selected: Selected,
    *,
    now: int,
    new_record: UserRecord | None = None,
    dry_run: bool = False,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Add all tokens to the records of their users, in one transaction. Return the results. A dry run only reads the
    store.

    Add the tokens to `new_record` if its user has no record yet. Raise FormatError, Interrupted or StoreError; then the
    store is unchanged, unless a second Ctrl-C stopped the roll-back.
    """
    additions = _Additions(selected, new_record, now)
    if dry_run:
        results = _simulate(store, additions, progress)
    elif type(store) is FileStore:
        try:
            results = update_many(store, additions, progress, _omitted)
        except KeyboardInterrupt:
            pending = os.path.lexists(os.path.join(store.folder, JOURNAL))  # a second Ctrl-C stopped the roll-back
            raise Interrupted(rolled_back=not pending) from None
    elif isinstance(store, SharedStore):
        try:
            results = store.update_many(additions, progress, _omitted)
        except KeyboardInterrupt:
            raise Interrupted(rolled_back=True) from None  # the connection was closed before the commit
    else:
        results = _update_one(store, additions)
    return Report(results, list(additions.skipped.values()))


@dataclass(frozen=True, slots=True)
class _Addition:
    """A change that adds a token to a record, under a free name. The result has the reason if the change fails."""

    candidate: Candidate
    new_record: UserRecord | None
    now: int

    def __call__(self, record: UserRecord) -> tuple[UserRecord, PackedResult]:
        changed, result = self._add(record)
        return changed, PackedResult(result)

    def _add(self, record: UserRecord) -> tuple[UserRecord, Result]:
        candidate = self.candidate
        changed, remarks = self._with_recovery(record)
        try:
            token = candidate.token.token(self.now)
            same = next((other for other in record.tokens if other.secret == token.secret), None)
            if same is not None:
                reason = f"already imported as '{same.name}'"
                return changed, candidate.result(Status.ALREADY_IMPORTED, reason, more=remarks)
            if len(record.tokens) >= MAX_TOKENS:
                reason = f"{candidate.user} has {MAX_TOKENS} tokens, which is the maximum"
                return record, candidate.result(Status.TOO_MANY_TOKENS, reason)
            token = _with_free_name(token, record)
            return changed.with_token(token), candidate.result(Status.IMPORTED, new_token=token, more=remarks)
        except RecordError as e:
            return record, candidate.result(Status.INVALID, str(e))

    def _with_recovery(self, record: UserRecord) -> tuple[UserRecord, tuple[str, ...]]:
        """Return the record with the recovery codes of the file's record, and remarks.

        A record with a salt keeps its own codes, used or unused, because logins might have used the codes of the file.
        """
        new = self.new_record
        if new is None or new.user != record.user:
            return record, ()
        if record == UserRecord(user=record.user):
            return new, ()
        count = f"{len(new.recovery)} recovery code{'' if len(new.recovery) == 1 else 's'}"
        if new.salt is None or not new.recovery or record.salt == new.salt:
            return record, ()
        if record.salt is None:
            return record.with_recovery(new.salt, new.recovery), (f"{count} imported too",)
        is_first = self.candidate.token.line == 1
        return record, (f"{count} dropped: {record.user} already has a set of recovery codes",) if is_first else ()


def _omitted(addition: Change[PackedResult], why: SerialTaken) -> PackedResult:
    """Return the result of an addition if another user has its serial number, or if the token is in stock."""
    assert isinstance(addition, _Addition)
    reason = f"{why.owner} has a token with this serial number"
    if why.owner is None:
        reason = "the token is in stock (see 'pam-totp assign')"
    return PackedResult(addition.candidate.result(Status.SERIAL_TAKEN, reason))


def _with_free_name(token: Token, record: UserRecord) -> Token:
    name, number = token.name, 2
    while record.token(name) is not None:
        name, number = f"{token.name}-{number}", number + 1
    return token if name == token.name else token.renamed(name)


class _Additions:
    """The changes for `update_many`. Iteration adds the skipped tokens to `skipped`, by their number in the file."""

    def __init__(self, selected: Selected, new_record: UserRecord | None, now: int) -> None:
        self._selected, self._new_record, self._now = selected, new_record, now
        self.skipped: dict[int, PackedResult] = {}

    def __len__(self) -> int:
        return len(self._selected)

    def __iter__(self) -> Iterator[tuple[str, _Addition]]:
        for number, candidate in enumerate(_read_ahead(self._selected)):
            if isinstance(candidate, Result):
                self.skipped[number] = PackedResult(candidate)
            else:
                yield candidate.user, _Addition(candidate, self._new_record, self._now)


def _read_ahead(selected: Selected) -> Iterator[Candidate | Result]:
    rest = iter(selected)
    while some := list(islice(rest, _AHEAD)):
        yield from some


def _simulate(store: Store, additions: _Additions, progress: Progress) -> list[PackedResult]:
    """Return the results that `update_many` would return, and leave the store unchanged.

    Memory holds only the records of users with several tokens. For such users, a second pass applies all additions
    again, in their order.
    """
    seen: set[str] = set()
    several: set[str] = set()

    def reported() -> Iterator[tuple[str, _Addition]]:
        for number, (user, change) in enumerate(additions):
            if number % _REPORT_EVERY == 0:
                progress(number, len(additions))
            (several if user in seen else seen).add(user)
            yield user, change

    results = _Trial(store).results(reported(), several=())
    if several:
        results = _Trial(store).results(additions, several)
    progress(len(additions), len(additions))
    return results


class _Trial:
    """One pass of a dry run."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._owner_of = claims.Owners(store).of if type(store) is FileStore else store.owner_of_serial
        self._owners: dict[str, str] = {}  # of the tokens in this pass, by the result of `serial_key`

    def results(self, additions: Iterable[tuple[str, _Addition]], several: Collection[str]) -> list[PackedResult]:
        """Return the results of all additions. Keep the changed records of the users in `several` for their next
        additions."""
        results: list[PackedResult] = []
        records: dict[str, UserRecord] = {}
        for user, change in additions:
            record = records[user] if user in records else _read(self._store, user)
            changed, result = change(record)
            taken = self._taken(change, record) if result.status is Status.IMPORTED else None
            results.append(result if taken is None else _omitted(change, taken))
            if user in several:
                records[user] = changed if taken is None else record
        return results

    def _taken(self, addition: _Addition, record: UserRecord) -> SerialTaken | None:
        """Return the error if another user or the stock has the serial number. Otherwise note the owner, and
        return None.
        """
        serial, user = addition.candidate.token.serial, addition.candidate.user
        if serial is None:
            return None
        key = serial_key(serial)
        if any(token.serial is not None and serial_key(token.serial) == key for token in record.tokens):
            return None  # `update_many` also accepts a serial number that the user already has
        if key not in self._owners and is_in_stock(self._store, serial):
            return SerialTaken(serial, None)
        owner = self._owners.get(key) or self._owner_of(serial) or user
        self._owners[key] = owner
        return None if owner == user else SerialTaken(serial, owner)


def _update_one(store: Store, changes: Changes[PackedResult]) -> list[PackedResult]:
    """Apply the changes to a store with a single record, in one update. Return the results. Raise StoreError for
    another user.
    """
    pending = list(changes)
    for user in {user: None for user, _ in pending}:
        _read(store, user)

    def change_all(record: UserRecord) -> tuple[UserRecord, list[PackedResult]]:
        results = []
        for _, change in pending:
            record, result = change(record)
            results.append(result)
        return record, results

    return store.update(pending[0][0], change_all, create=True) if pending else []


def _read(store: Store, user: str) -> UserRecord:
    try:
        return store.read(user)
    except NotThere:
        return UserRecord(user=user)
