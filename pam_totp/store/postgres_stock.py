"""The stock in PostgreSQL: the table `stock`, and the rows of `serial` without an owner.

Rules:
1. A row of `stock` refers to its row of `serial`. The removal of a user's token deletes both rows.
2. `exchange` is one transaction: the user's record, the owners, and the entries. The process decides again if
   another process has changed one of these rows meanwhile.
3. `add` is one transaction for all entries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from pam_totp.core.record import UserRecord
from pam_totp.core.serials import serial_key
from pam_totp.store import StoreError
from pam_totp.store.file import file_name
from pam_totp.store.postgres_bulk import AT_ONCE, WAIT
from pam_totp.store.postgres_connection import NO_TABLE, Refused, text_of
from pam_totp.store.postgres_records import serials as serials_of
from pam_totp.store.postgres_records import user_name
from pam_totp.store.postgres_schema import OWNERS
from pam_totp.store.seal_key import require_current
from pam_totp.store.stock import Held, NotInStock, Progress, StockEntry, document_of, parse_entry

if TYPE_CHECKING:
    from pam_totp.store import R
    from pam_totp.store.postgres import PostgresStore, Work
    from pam_totp.store.postgres_connection import Row
    from pam_totp.store.stock import Exchange

_FIND = """SELECT s.serial, s.body, n.name FROM pam_totp.stock AS s JOIN pam_totp.serial AS n ON n.serial = s.serial
 WHERE s.serial = $1"""
_PAGE = """SELECT s.serial, s.body, n.name FROM pam_totp.stock AS s JOIN pam_totp.serial AS n ON n.serial = s.serial
 WHERE s.serial > $1 ORDER BY s.serial LIMIT $2::bigint"""
_GIVE = "UPDATE pam_totp.serial SET name = $2 WHERE serial = $1 AND name IS NULL RETURNING 1"
_TAKE = "UPDATE pam_totp.serial SET name = NULL WHERE serial = $1 AND name = $2 RETURNING 1"
_EMPTY = "UPDATE pam_totp.stock SET body = $3 WHERE serial = $1 AND body = $2 RETURNING 1"
_PUT = """INSERT INTO pam_totp.stock (serial, body) VALUES ($1, $2)
 ON CONFLICT (serial) DO UPDATE SET body = EXCLUDED.body"""


class PostgresStock:
    """The stock of a store in PostgreSQL. The class implements `Stock`."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store

    def find(self, serial: str) -> Held | None:
        with _with_table():
            found = self._store.use(lambda work: self._find(work, serial), reads_only=True)
            return None if found is None else found.held

    def entries(self) -> Iterator[Held | StoreError]:
        last = ""
        while rows := self._page(last):
            for row in rows:
                last = text_of(row[0])
                try:
                    yield self._found(row).held
                except StoreError as e:
                    yield e

    def _page(self, last: str) -> list[Row]:
        with _with_table():
            return self._store.use(lambda work: work.run(_PAGE, last, AT_ONCE), reads_only=True)

    def add(
        self, entries: Sequence[StockEntry], progress: Progress = lambda done, total: None
    ) -> list[tuple[str | None] | None]:
        with _with_table():
            return self._store.use(lambda work: self._add(work, entries, progress))

    def _add(self, work: Work, entries: Sequence[StockEntry], progress: Progress) -> list[tuple[str | None] | None]:
        """Add the entries in one transaction, for which logins do not wait. Return the results of `Stock.add`."""

        def run(sql: str, *parameters: str) -> list[Row]:
            return work.connection.run(sql, *parameters, deadline=time.monotonic() + WAIT)

        require_current(self._store.url)
        self._store.require_safe(work)
        results: list[tuple[str | None] | None] = []
        run("BEGIN")
        for start in range(0, len(entries), AT_ONCE):
            progress(start, len(entries))
            some = entries[start : start + AT_ONCE]
            rows: dict[str, str] = {}
            for entry in some:
                rows.setdefault(serial_key(entry.serial), document_of(entry, self._store.codec).decode("ascii"))
            free = {text_of(key) for (key,) in run(work.statements.claim_stock, json.dumps(sorted(rows)))}
            owners = {text_of(key): name for key, name in run(OWNERS, json.dumps(sorted(rows.keys() - free)))}
            added = [{"serial": key, "body": body} for key, body in rows.items() if key in free]
            inserted = run(work.statements.add_stock, json.dumps(added))
            if len(inserted) != len(added) or owners.keys() != rows.keys() - free:
                raise self._store.contended()  # or the database no longer keeps changes safely
            for entry in some:
                key = serial_key(entry.serial)
                name = owners.get(key)
                results.append(None if key in free else (None if name is None else user_name(text_of(name)),))
                free.discard(key)  # the second entry of a serial number
        run("COMMIT")
        progress(len(entries), len(entries))
        return results

    def update(self, serial: str, change: Callable[[StockEntry], StockEntry | None]) -> StockEntry:
        def attempt(work: Work) -> StockEntry:
            found = self._find(work, serial)
            held = None if found is None else found.held
            if found is None or held is None or held.entry.token is None:
                raise NotInStock(serial, None if held is None else held.owner)
            require_current(self._store.url)
            self._store.require_safe(work)
            old, new = found.body, change(held.entry)
            if new is None:
                done = work.run(work.statements.remove_stock, serial_key(serial), old)
            else:
                done = work.run(
                    work.statements.change_stock, serial_key(serial), old, document_of(new, self._store.codec)
                )
            if not done:
                raise self._store.contended()
            return held.entry

        with _with_table():
            return self._store.use(attempt)

    def exchange(self, user: str, change: Exchange[R], serials: Sequence[str], *, create: bool = False) -> R:
        name = file_name(user)

        def decide(work: Work, old: UserRecord) -> tuple[UserRecord | None, Callable[[], None], R]:
            rows = {serial: self._find(work, serial) for serial in serials}
            found = {serial: None if each is None else each.held.entry for serial, each in rows.items()}
            new, incoming, result = change(old, found)

            def move() -> None:
                added = serials_of(new).keys() - serials_of(old).keys()
                leaving = [row for row in rows.values() if row and row.held.entry.token and row.key in added]
                if not self._move(work, name, leaving, incoming):
                    raise self._store.contended()

            return new, move, result

        with _with_table():
            return self._store.update_with(user, decide, create=create)

    def seal_again(self) -> int:
        codec, changed, last = self._store.codec, 0, ""
        assert codec is not None
        while rows := self._page(last):
            for key, body, _ in rows:
                last = text_of(key)
                if not codec.is_current(body or b""):
                    with suppress(NotInStock):  # another process has moved the token meanwhile
                        self.update(last, lambda entry: entry)
                        changed += 1
        return changed

    def documents(self) -> Iterator[bytes]:
        last = ""
        while rows := self._page(last):
            for key, body, _ in rows:
                last = text_of(key)
                yield body or b""

    def _find(self, work: Work, serial: str) -> _Found | None:
        rows = work.run(_FIND, serial_key(serial))
        return self._found(rows[0]) if rows else None

    def _found(self, row: Row) -> _Found:
        key, body, name = text_of(row[0]), row[1] or b"", row[2]
        entry = parse_entry(body, f"stock/{key}", self._store.codec)
        return _Found(Held(entry, None if name is None else user_name(text_of(name))), body)

    def _move(self, work: Work, name: str, leaving: Sequence[_Found], incoming: Sequence[StockEntry]) -> bool:
        """Move the tokens between the user `name` and the stock. Return False if another process has moved a token."""
        codec = self._store.codec
        for row in sorted(leaving, key=lambda row: row.key):
            empty = document_of(row.held.entry.without_token(), codec)
            if not work.run(_GIVE, row.key, name) or not work.run(_EMPTY, row.key, row.body, empty):
                return False
        for entry in sorted(incoming, key=lambda entry: serial_key(entry.serial)):
            key = serial_key(entry.serial)
            if not work.run(_TAKE, key, name):
                return False
            work.run(_PUT, key, document_of(entry, codec))
        return True


class _Found(NamedTuple):
    """An entry with its owner, and its document."""

    held: Held
    body: bytes

    @property
    def key(self) -> str:
        return serial_key(self.held.entry.serial)


@contextmanager
def _with_table() -> Iterator[None]:
    """Replace the error for a database of an older pam_totp, which has no table of the stock."""
    try:
        yield
    except Refused as e:
        if e.state != NO_TABLE:
            raise
        raise StoreError("the database has no table of the stock (run 'pam-totp store init URL')") from None
