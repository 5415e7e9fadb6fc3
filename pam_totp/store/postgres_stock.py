"""The stock in PostgreSQL: the table `stock`, and the rows of `serial` without an owner.

Rules:
1. A row of `stock` refers to its row of `serial`. If a user's token is removed, both rows go.
2. `exchange` is one transaction: the user's record, the owners, and the entries. If another process has changed one of
   them meanwhile, the process decides again.
3. `add` is one transaction for all entries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pam_totp.core.record import UserRecord
from pam_totp.core.serials import serial_key
from pam_totp.store import StoreError
from pam_totp.store.file import file_name
from pam_totp.store.postgres_batch import AT_ONCE, WAIT
from pam_totp.store.postgres_connection import Refused
from pam_totp.store.postgres_records import serials, user_name
from pam_totp.store.stock import Held, NotInStock, Progress, StockEntry, document_of, parse_entry

if TYPE_CHECKING:
    from pam_totp.store import R
    from pam_totp.store.postgres import PostgresStore, Work
    from pam_totp.store.postgres_connection import Row
    from pam_totp.store.stock import Exchange

_NO_TABLE = "42P01"  # undefined table
_FIND = """SELECT s.serial, s.body, n.name FROM pam_totp.stock AS s JOIN pam_totp.serial AS n ON n.serial = s.serial
 WHERE s.serial = $1"""
_PAGE = """SELECT s.serial, s.body, n.name FROM pam_totp.stock AS s JOIN pam_totp.serial AS n ON n.serial = s.serial
 WHERE s.serial > $1 ORDER BY s.serial LIMIT $2::bigint"""
_OWNERS = """SELECT s.serial, s.name FROM jsonb_array_elements_text($1::jsonb) AS n(serial)
 JOIN pam_totp.serial AS s ON s.serial = n.serial"""
_GIVE = "UPDATE pam_totp.serial SET name = $2 WHERE serial = $1 AND name IS NULL RETURNING 1"
_TAKE = "UPDATE pam_totp.serial SET name = NULL WHERE serial = $1 AND name = $2 RETURNING 1"
_EMPTY = "UPDATE pam_totp.stock SET body = $3 WHERE serial = $1 AND body = $2 RETURNING 1"
_PUT = """INSERT INTO pam_totp.stock (serial, body) VALUES ($1, $2)
 ON CONFLICT (serial) DO UPDATE SET body = EXCLUDED.body"""


class PostgresStock:
    """The stock of a store in PostgreSQL. It implements `Stock`."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store

    def find(self, serial: str) -> Held | None:
        with _with_table():
            return self._store.use(lambda work: _find(work, serial), reads_only=True)

    def entries(self) -> Iterator[Held | StoreError]:
        last = ""
        while rows := self._page(last):
            for row in rows:
                last = _text(row[0])
                try:
                    yield _held(row)
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
        """Add the entries in one transaction. Logins do not wait for it."""

        def run(sql: str, *parameters: str) -> list[Row]:
            return work.connection.run(sql, *parameters, deadline=time.monotonic() + WAIT)

        self._store.require_safe(work)
        results: list[tuple[str | None] | None] = []
        run("BEGIN")
        for start in range(0, len(entries), AT_ONCE):
            progress(start, len(entries))
            some = entries[start : start + AT_ONCE]
            rows: dict[str, str] = {}
            for entry in some:
                rows.setdefault(serial_key(entry.serial), document_of(entry).decode("ascii"))
            free = {_text(key) for (key,) in run(work.statements.claim_stock, json.dumps(sorted(rows)))}
            owners = {_text(key): name for key, name in run(_OWNERS, json.dumps(sorted(rows.keys() - free)))}
            added = [{"serial": key, "body": body} for key, body in rows.items() if key in free]
            inserted = run(work.statements.add_stock, json.dumps(added))
            if len(inserted) != len(added) or owners.keys() != rows.keys() - free:
                raise self._store.contended()  # or the database no longer keeps changes safely
            for entry in some:
                key = serial_key(entry.serial)
                name = owners.get(key)
                results.append(None if key in free else (None if name is None else user_name(_text(name)),))
                free.discard(key)  # the second entry of a serial number
        run("COMMIT")
        progress(len(entries), len(entries))
        return results

    def update(self, serial: str, change: Callable[[StockEntry], StockEntry | None]) -> StockEntry:
        def attempt(work: Work) -> StockEntry:
            held = _find(work, serial)
            if held is None or held.entry.token is None:
                raise NotInStock(serial, None if held is None else held.owner)
            self._store.require_safe(work)
            old, new = document_of(held.entry), change(held.entry)
            if new is None:
                done = work.run(work.statements.remove_stock, serial_key(serial), old)
            else:
                done = work.run(work.statements.change_stock, serial_key(serial), old, document_of(new))
            if not done:
                raise self._store.contended()
            return held.entry

        with _with_table():
            return self._store.use(attempt)

    def exchange(self, user: str, change: Exchange[R], serials: Sequence[str], *, create: bool = False) -> R:
        name = file_name(user)

        def decide(work: Work, old: UserRecord) -> tuple[UserRecord | None, Callable[[], None], R]:
            held = {serial: _find(work, serial) for serial in serials}
            found = {serial: None if each is None else each.entry for serial, each in held.items()}
            new, incoming, result = change(old, found)

            def move() -> None:
                if not _move(work, name, _leaving(found, old, new), incoming):
                    raise self._store.contended()

            return new, move, result

        with _with_table():
            return self._store.update_with(user, decide, create=create)


@contextmanager
def _with_table() -> Iterator[None]:
    """Replace the error for a database of an older pam_totp, which has no table of the stock."""
    try:
        yield
    except Refused as e:
        if e.state != _NO_TABLE:
            raise
        raise StoreError("the database has no table of the stock (run 'pam-totp store init URL')") from None


def _find(work: Work, serial: str) -> Held | None:
    rows = work.run(_FIND, serial_key(serial))
    return _held(rows[0]) if rows else None


def _held(row: Row) -> Held:
    serial, body, name = row
    return Held(parse_entry(body or b"", f"stock/{_text(serial)}"), None if name is None else user_name(_text(name)))


def _leaving(found: Mapping[str, StockEntry | None], old: UserRecord, new: UserRecord | None) -> list[StockEntry]:
    """Return the entries of the tokens that leave the stock: the new record has them, and the old record lacks them."""
    added = serials(new).keys() - serials(old).keys()
    return [entry for serial, entry in found.items() if entry and entry.token and serial_key(serial) in added]


def _move(work: Work, name: str, leaving: Sequence[StockEntry], incoming: Sequence[StockEntry]) -> bool:
    """Move the tokens between the user `name` and the stock. Return False if another process has moved one."""
    for entry in sorted(leaving, key=lambda entry: serial_key(entry.serial)):
        key, empty = serial_key(entry.serial), document_of(entry.without_token())
        if not work.run(_GIVE, key, name) or not work.run(_EMPTY, key, document_of(entry), empty):
            return False
    for entry in sorted(incoming, key=lambda entry: serial_key(entry.serial)):
        key = serial_key(entry.serial)
        if not work.run(_TAKE, key, name):
            return False
        work.run(_PUT, key, document_of(entry))
    return True


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8")
