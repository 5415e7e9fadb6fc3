"""A bulk change of many records in PostgreSQL: one transaction, complete or without effect.

Rules:
1. The transaction first computes all new records, without a lock, and keeps them in a temporary table.
2. The last statements of the transaction write the records whose version is unchanged. Logins of these users wait only
   for these statements.
3. The transaction locks a record that another process changed meanwhile, and calls the changes of this record again.
4. A lost connection, an error or a signal before the commit leaves all records unchanged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from pam_totp.core.record import UserRecord
from pam_totp.store import SerialTaken, StoreError
from pam_totp.store.file import document_of, file_name, parse_record
from pam_totp.store.postgres_connection import Connection, Row, text_of
from pam_totp.store.postgres_records import serials, user_name
from pam_totp.store.postgres_schema import OWNER, OWNERS, Statements

if TYPE_CHECKING:
    from pam_totp.store import Codec, R
    from pam_totp.store.bulk import Change, Changes, Progress

WAIT = 600.0  # seconds that one statement may take: the last statements write all records
AT_ONCE = 500  # records in one statement
_STAGED = """CREATE TEMPORARY TABLE staged
 (name text COLLATE "C" PRIMARY KEY, version bigint, body bytea NOT NULL) ON COMMIT DROP"""
_FOUND = """SELECT n.name, r.version, coalesce(s.body, r.body) FROM jsonb_array_elements_text($1::jsonb) AS n(name)
 LEFT JOIN pam_totp.record AS r ON r.name = n.name LEFT JOIN staged AS s ON s.name = n.name"""
_STAGE = """INSERT INTO staged (name, version, body) SELECT n.name, n.version, convert_to(n.body, 'UTF8')
 FROM jsonb_to_recordset($1::jsonb) AS n(name text, version bigint, body text)
 ON CONFLICT (name) DO UPDATE SET body = EXCLUDED.body"""
_OUTDATED = "SELECT name FROM staged ORDER BY name"
_RELEASE_ALL = """DELETE FROM pam_totp.serial AS old USING jsonb_to_recordset($1::jsonb) AS n(serial text, name text)
 WHERE old.serial = n.serial AND old.name = n.name"""
_CLAIM_ALL = """INSERT INTO pam_totp.serial (serial, name)
 SELECT n.serial, n.name FROM jsonb_to_recordset($1::jsonb) AS n(serial text, name text) ORDER BY n.serial
 ON CONFLICT (serial) DO UPDATE SET name = EXCLUDED.name WHERE serial.name = EXCLUDED.name RETURNING serial"""


def update_many(
    connection: Connection,
    statements: Statements,
    changes: Changes[R],
    progress: Progress,
    on_taken: Callable[[Change[R], SerialTaken], R] | None,
    *,
    codec: Codec | None = None,
) -> list[R]:
    """Apply all changes in one transaction, and return the results of the changes; see `bulk.update_many`."""
    run = _Runner(connection)
    run("BEGIN")
    run(_STAGED)
    bulk = _BulkChange(run, statements, on_taken, codec)
    results: list[R] = []
    pairs = iter(changes)
    while some := list(islice(pairs, AT_ONCE)):
        progress(len(results), 2 * len(changes))
        results += bulk.stage(some)
    progress(len(changes), 2 * len(changes))
    run(statements.change_staged)
    run(statements.create_staged)
    if outdated := {text_of(name) for (name,) in run(_OUTDATED)}:
        bulk.compute_again(outdated, changes, results)
    bulk.move_serials()
    run.commit()
    progress(2 * len(changes), 2 * len(changes))
    return results


class _Runner:
    """A function that runs the statements of one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self, sql: str, *parameters: str | int | bytes | None) -> list[Row]:
        return self._connection.run(sql, *parameters, deadline=time.monotonic() + WAIT)

    def commit(self) -> None:
        try:
            self("COMMIT")
        except KeyboardInterrupt:
            raise StoreError("interrupted, perhaps after the change was made (see 'pam-totp list')") from None


class _BulkChange:
    """The records and the serial numbers of one transaction."""

    def __init__(
        self,
        run: _Runner,
        statements: Statements,
        on_taken: Callable[[Change[Any], SerialTaken], Any] | None,
        codec: Codec | None,
    ) -> None:
        self._run, self._statements, self._on_taken, self._codec = run, statements, on_taken, codec
        self._moves: dict[str, tuple[dict[str, str], dict[str, str]]] = {}  # name -> serial numbers before and after
        self._owners: dict[str, str] = {}  # key of a serial number -> the owner's name, in this bulk change

    def stage(self, pairs: list[tuple[str, Change[R]]]) -> list[R]:
        """Compute the new records, write those that differ to the temporary table, and return the results of the
        changes.
        """
        names = {user: file_name(user) for user, _ in pairs}
        found = {
            text_of(name): (version, body) for name, version, body in self._run(_FOUND, json.dumps([*names.values()]))
        }
        before = {user: self._record(user, name, found[name][1]) for user, name in names.items()}
        after = dict(before)
        others = self._owners_elsewhere(pairs, before)
        results = [self._apply(names[user], user, change, after, others) for user, change in pairs]
        rows = []
        for user, name in names.items():
            if after[user] != before[user]:
                version = found[name][0]
                number = None if version is None else int.from_bytes(version, "big")
                rows.append({"name": name, "version": number, "body": self._document(after[user], name)})
                self._move(name, before[user], after[user])
        if rows:
            self._run(_STAGE, json.dumps(rows))
        return results

    def _owners_elsewhere(self, pairs: list[tuple[str, Change[R]]], before: dict[str, UserRecord]) -> dict[str, str]:
        """Return the owners, in the database, of the serial numbers that the changes may add.

        The owner of a token in stock is an empty string.
        """
        added: set[str] = set()
        after = dict(before)
        for user, change in pairs:
            after[user], _ = change(after[user])
            added |= serials(after[user]).keys() - serials(before[user]).keys()
        rows = self._run(OWNERS, json.dumps(sorted(added))) if added else []
        return {text_of(serial): text_of(name) for serial, name in rows}

    def _apply(
        self, name: str, user: str, change: Change[R], after: dict[str, UserRecord], others: dict[str, str]
    ) -> R:
        """Apply one change to the record of `user` in `after`, unless it adds another user's serial number. Return the
        result.
        """
        changed, result = change(after[user])
        new = serials(changed)
        for key in sorted(new.keys() - serials(after[user]).keys()):
            owner = self._owners.get(key, others.get(key, name))
            if owner != name:
                problem = SerialTaken(new[key], user_name(owner) if owner else None)
                if self._on_taken is None:
                    raise problem
                refused: R = self._on_taken(change, problem)
                return refused
        after[user] = changed
        self._owners |= dict.fromkeys(new, name)
        return result

    def compute_again(self, names: set[str], changes: Changes[R], results: list[R]) -> None:
        """Lock the records `names`, which other processes changed, and apply the changes of these records again."""
        wanted: dict[str, list[tuple[int, str, Change[R]]]] = {}
        for number, (user, change) in enumerate(changes):
            if (name := file_name(user)) in names:
                wanted.setdefault(name, []).append((number, user, change))
        for name in sorted(wanted):
            while not self._lock_and_apply(name, wanted[name], results):
                pass  # another process created or deleted the record meanwhile

    def _lock_and_apply(self, name: str, again: list[tuple[int, str, Change[R]]], results: list[R]) -> bool:
        rows = self._run(self._statements.lock, name)
        version, body, asked, _, problem = rows[0] if rows else (None, None, b"[]", b"", None)
        if problem is not None:
            raise StoreError(f"the database does not keep changes safely: {problem.decode()}")
        user = again[0][1]
        before = self._record(user, name, body)
        records = {user: before}
        others = self._owners_elsewhere([(user, change) for _, _, change in again], records)
        for number, _, change in again:
            results[number] = self._apply(name, user, change, records, others)
        after = records[user]
        self._moves.pop(name, None)
        if after == before:
            return True
        self._move(name, before, after)
        document, texts = self._document(after, name).encode("ascii"), (asked or b"[]").decode()
        if version is None:
            return bool(self._run(self._statements.create, name, document, texts))
        number = int.from_bytes(version, "big")
        return bool(self._run(self._statements.change, name, number, document, texts))

    def _record(self, user: str, name: str, body: bytes | None) -> UserRecord:
        return UserRecord(user=user) if body is None else parse_record(body, user, name, self._codec)

    def _document(self, record: UserRecord, name: str) -> str:
        return document_of(record, name, self._codec).decode("ascii")

    def _move(self, name: str, before: UserRecord, after: UserRecord) -> None:
        first = self._moves[name][0] if name in self._moves else serials(before)
        self._moves[name] = first, serials(after)

    def move_serials(self) -> None:
        """Make each user the owner of the serial numbers of the user's tokens. Raise SerialTaken."""
        moves = self._moves.items()
        for some in _parts((key, name) for name, (old, new) in moves for key in old.keys() - new.keys()):
            self._run(_RELEASE_ALL, _claims(some))
        for some in _parts((key, name) for name, (old, new) in moves for key in new.keys() - old.keys()):
            claimed = {text_of(serial) for (serial,) in self._run(_CLAIM_ALL, _claims(some))}
            for key, name in some:
                if key not in claimed:  # another process claimed the serial number meanwhile
                    rows = self._run(OWNER, key)
                    raise SerialTaken(self._moves[name][1][key], user_name(text_of(rows[0][0])) if rows else None)


def _parts(claims: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    rest = iter(claims)
    while some := list(islice(rest, AT_ONCE)):
        yield some


def _claims(claims: list[tuple[str, str]]) -> str:
    return json.dumps([{"serial": serial, "name": name} for serial, name in claims])
