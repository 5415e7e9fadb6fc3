"""What import does: a token after the other, into the store or for show.

The law: what is held of a token while the others are read is one row of a few dozen bytes. So a token is decided upon
and written aside as it is read, and read again where that must be decided anew.
"""

from __future__ import annotations

import heapq
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Generic, TypeVar

from pam_totp.cli.common import INTERRUPTED, CommandError
from pam_totp.cli.progress import Bar
from pam_totp.core.record import UserRecord
from pam_totp.operations.import_plan import Entry, Row, added, came_in, packed, unpacked
from pam_totp.store import NotThere, Store
from pam_totp.store.batch import Change, Changes, update_many
from pam_totp.store.file import JOURNAL, FileStore

A_LOT = 5000  # tokens

T = TypeVar("T")
R = TypeVar("R")


class Again(Generic[T]):
    """What can be gone through more than once, made anew each time instead of being held."""

    def __init__(self, make: Callable[[], Iterator[T]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[T]:
        return self._make()


class Rows:
    """What became of every token, in the order of the file; can be gone through more than once."""

    def __init__(self, done: list[bytes], left_out: list[bytes]) -> None:
        self._parts = [part for part in (done, left_out) if part]
        self.came_in = sum(map(came_in, done))
        self.left_out = len(done) + len(left_out) - self.came_in
        self.good = all(row.known for row in self if row.left_out is not None) if self.left_out else True

    def __iter__(self) -> Iterator[Row]:
        return heapq.merge(*(map(unpacked, part) for part in self._parts), key=lambda row: row.line)


class Tokens:
    """The changes that bring tokens in, for `update_many`, and the rows of those that stay out whatever the store has.

    `base` is, for a user who is not there yet, what comes in besides the tokens.
    """

    def __init__(self, plan: Iterable[Entry | Row], count: int, base: Mapping[str, UserRecord], now: int) -> None:
        self._plan, self._count, self._base, self._now = plan, count, base, now
        self._left_out: dict[int, bytes] = {}  # by number: the plan may be gone through twice

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, Change[bytes]]]:
        for number, planned in enumerate(_by_the_hundred(self._plan)):
            if isinstance(planned, Row):
                self._left_out[number] = packed(planned)
            else:
                yield planned.user, self._change(planned)

    def rows(self, done: list[bytes]) -> Rows:
        """What became of every token; `done` is what its changes returned."""
        return Rows(done, list(self._left_out.values()))

    def _change(self, entry: Entry) -> Change[bytes]:
        def changed(record: UserRecord) -> tuple[UserRecord, bytes]:
            new = entry.user in self._base and record == UserRecord(user=entry.user)
            after, row = added(self._base[entry.user] if new else record, entry, self._now)
            return (after if row.left_out is None else record), packed(row)

        return changed


def _by_the_hundred(plan: Iterable[T]) -> Iterator[T]:
    """The same, a few ahead of what is done with them: to read lines and ask for accounts, and then to write records,
    is an eighth faster than to turn from one to the other at each."""
    ahead = iter(plan)
    while some := list(islice(ahead, 100)):
        yield from some


def tried(store: Store, changes: Changes[R]) -> list[R]:
    """What `taken` would return, with the store as it is.

    Users who are named more than once are gone through a second time, and only their records are held.
    """
    bar = Bar("trying", long=len(changes) >= A_LOT)
    results: list[R] = []
    seen: set[str] = set()
    records: dict[str, UserRecord] = {}
    for user, change in changes:
        if user in seen:
            records[user] = _read(store, user)
        seen.add(user)
        results.append(change(_read(store, user))[1])
        if len(results) % 500 == 0:
            bar.show(len(results), len(changes))
    for number, (user, change) in enumerate(changes if records else ()):
        if user in records:
            records[user], results[number] = change(records[user])
    bar.show(len(changes), len(changes))
    return results


def taken(store: Store, changes: Changes[R]) -> list[R]:
    """Make the changes, all of them or nothing. One's own file holds one record, and so needs no more than that one is
    changed."""
    if type(store) is FileStore:
        try:
            return update_many(store, changes, Bar("importing", long=len(changes) >= A_LOT).show)
        except KeyboardInterrupt:  # which has undone what was done, unless there was another one meanwhile
            half = os.path.lexists(os.path.join(store.folder, JOURNAL))
            said = "interrupted while it was being undone; the next command does the rest" if half else INTERRUPTED
            raise CommandError(said, 128 + signal.SIGINT) from None
    own = list(changes)
    for user in dict.fromkeys(user for user, _ in own):
        _read(store, user)  # raises for whoever's file it is not

    def together(record: UserRecord) -> tuple[UserRecord, list[R]]:
        results = []
        for _, change in own:
            record, result = change(record)
            results.append(result)
        return record, results

    return store.update(own[0][0], together, create=True) if own else []


def _read(store: Store, user: str) -> UserRecord:
    try:
        return store.read(user)
    except NotThere:
        return UserRecord(user=user)
