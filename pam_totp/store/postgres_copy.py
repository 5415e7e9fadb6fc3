"""The copy of all records of a store on this host into a database, or back. The old store then refuses every login.

Rules:
1. The copy is complete or without effect. Both stores refuse every login while the copy runs, so no login is lost
   between the stores.
2. The process renames the folder before it reads the records, so that no login can begin. The process then locks all
   records, and thereby waits for the logins that have begun.
3. Every later decision in a copied folder fails, also for a login that opened the folder before: the lock file becomes
   a folder. A file takes the place of the folder, so that no command creates an empty store there.
4. The transaction of the copy renames the table of a copied database.
5. The process reads all records back, and compares each byte, before the copy is valid.
6. The same transaction copies the stock of tokens.
7. Only the old store may accept logins after a kill of the process. A second run of the command completes the copy.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from pam_totp.core.record import RecordError
from pam_totp.core.serials import serial_key
from pam_totp.core.slots import new_file, slot_size
from pam_totp.store import StoreError, claims, journal, stock_entries
from pam_totp.store import postgres_schema as schema
from pam_totp.store.byte_lock import acquire_all
from pam_totp.store.file import LOCK, FileStore, file_name, parse_record
from pam_totp.store.locations import NOTICE, notice
from pam_totp.store.postgres import statements_of
from pam_totp.store.postgres_bulk import AT_ONCE, WAIT
from pam_totp.store.postgres_connection import Connection, Refused, Row, connect
from pam_totp.store.postgres_records import serials, user_name
from pam_totp.store.secret_file import create, flush_all
from pam_totp.store.stock import document_of, parse_entry
from pam_totp.store.stock_files import FileStock

if TYPE_CHECKING:
    from pam_totp.store import Codec

COPYING, COPIED = ".copying", ".copied"  # suffixes of the folder's name during and after the copy
_LOCK_WAIT = 30.0  # seconds: every login that has begun ends within 10 s
_CONNECT = 10.0  # seconds
_EVERY_LOCK = "LOCK TABLE pam_totp.record IN ACCESS EXCLUSIVE MODE"
_BODIES = "SELECT name, body FROM pam_totp.{0} WHERE name > $1 ORDER BY name LIMIT $2::bigint"
_MOVE = "ALTER TABLE pam_totp.record RENAME TO copied_record"
_MOVE_STOCK = "ALTER TABLE IF EXISTS pam_totp.stock RENAME TO copied_stock"
_STOCK = "SELECT serial, body FROM pam_totp.{0} WHERE serial > $1 ORDER BY serial LIMIT $2::bigint"
_TABLE = "SELECT 1 WHERE to_regclass($1) IS NOT NULL"

AsRoot = Callable[
    [], AbstractContextManager[None]
]  # returns a context manager, in which the process may rename the folder


class Copied(NamedTuple):
    """The number of copied records, and the new name of the old folder or table."""

    records: int
    old: str


def to_database(folder: str, url: str, as_root: AsRoot, codec: Codec | None = None) -> Copied:
    """Copy the records of the folder at the path `folder` to the database at `url`. Raise StoreError.

    Return the number of records, and the new path of the folder.
    """
    aside, done = folder + COPYING, _free_name(folder + COPIED)
    if os.path.isdir(os.path.join(aside, LOCK)):  # a killed process had completed the copy
        number = sum(1 for _ in FileStore(aside).users())
    else:
        number = _copy_rows(folder, aside, url, as_root, codec)
    _put_notice(folder, url, as_root)
    _rename(aside, done, as_root)
    return Copied(number, done)


def _copy_rows(folder: str, aside: str, url: str, as_root: AsRoot, codec: Codec | None) -> int:
    """Copy the records, and return their number. The folder gets the name `aside`, and then refuses every login."""
    is_resumed, is_sent = os.path.isdir(aside), False
    with _connected(url) as run:
        if not is_resumed:
            _require_folder(folder, codec)
            _rename(folder, aside, as_root)
        try:
            store = FileStore(aside, codec=codec)
            with _locked(store) as opened:
                number = _write_rows(run, _documents(store, opened), codec)
                _write_stock(run, store, opened)
                is_sent = True
                run("COMMIT")
                _refuse(opened)
        except BaseException as e:
            if not is_resumed and (not is_sent or isinstance(e, Refused)):  # otherwise, the database might be in use
                _rename(aside, folder, as_root)
            raise
    return number


def to_folder(url: str, folder: str, owner: tuple[int, int], as_root: AsRoot, codec: Codec | None = None) -> Copied:
    """Copy the records of the database at `url` to a new folder, which belongs to `owner` (uid and gid).

    Return the number of records, and the new name of the table. Raise StoreError. The folder replaces the notice of an
    earlier copy to the database.
    """
    aside = folder + COPYING
    if os.path.lexists(folder) and notice(folder) is None:
        raise StoreError(f"{folder}: already exists (move it away, or name another folder)")
    with _connected(url) as run:
        is_moved = bool(run(_TABLE, "pam_totp.copied_record")) and not run(_TABLE, "pam_totp.record")
        if is_moved and not os.path.isdir(aside):
            raise StoreError("the records of this database were copied before (see the table pam_totp.copied_record)")
        if not is_moved:
            _require_safe(run)
        is_sent = False  # the commit
        try:
            run("BEGIN")
            if not is_moved:
                run(_EVERY_LOCK)
                run(_MOVE)
                run(_MOVE_STOCK)
            _make_folder(aside, owner, as_root)
            number = _write_files(FileStore(aside, codec=codec), run)
            is_sent = True
            run("COMMIT")
        except BaseException as e:
            if not is_moved and (not is_sent or isinstance(e, Refused)):
                _remove_folder(aside, as_root)
            raise
        with as_root():
            if notice(folder) is not None:
                os.unlink(folder)
        _rename(aside, folder, as_root)
    return Copied(number, "pam_totp.copied_record")


# ---- the database

Run = Callable[..., list[Row]]


@contextmanager
def _connected(url: str) -> Iterator[Run]:
    """Yield a function that runs a statement on a new connection."""
    connection: Connection = connect(url, time.monotonic() + _CONNECT)
    try:

        def run(sql: str, *parameters: str | int | bytes) -> list[Row]:
            return connection.run(sql, *parameters, deadline=time.monotonic() + WAIT)

        yield run
    finally:
        connection.close()


def _statements(run: Run) -> schema.Statements:
    has_tables = run(_TABLE, "pam_totp.store") and run(_TABLE, "pam_totp.record")
    return statements_of(run(schema.STORE) if has_tables else [])


def _require_safe(run: Run) -> None:
    """Raise StoreError if the database would not keep a change of the tables safely."""
    ((*_, problem),) = run(_statements(run).read, "")
    if problem is not None:
        raise StoreError(f"the database does not keep changes safely: {problem.decode()}")


def _write_rows(run: Run, documents: Iterator[tuple[str, bytes]], codec: Codec | None) -> int:
    """Write the documents to the empty table, read them back, and return their number. The caller commits."""
    _require_safe(run)
    statements = _statements(run)
    run("BEGIN")
    run(_EVERY_LOCK)
    is_empty = not run(schema.HAS_RECORDS)
    digests: dict[str, bytes] = {}
    owners: dict[str, str] = {}
    rows: list[dict[str, str]] = []

    def write() -> None:
        if rows and is_empty and len(run(statements.insert_all, json.dumps(rows))) != len(rows):
            raise StoreError("the database no longer keeps changes safely")
        rows.clear()

    for name, document in documents:
        digests[name] = sha256(document).digest()
        _claim(owners, name, document, codec)
        rows.append({"name": name, "body": document.decode("ascii")})
        if len(rows) == AT_ONCE:
            write()
    write()
    if is_empty:
        for serial, name in owners.items():
            if not run(schema.CLAIM, serial, name):
                raise StoreError(f"the database has another owner of the serial number {serial} of {user_name(name)}")
    if {name: sha256(body).digest() for name, body in _rows(run, "record")} != digests:
        what = "differ from those that were written" if is_empty else "exist, and differ from those of the folder"
        raise StoreError(f"the records in the database {what}; nothing was changed")
    return len(digests)


def _write_stock(run: Run, store: FileStore, opened: int) -> None:
    """Write the stock to the empty table, and read it back. The caller commits."""
    entries = _stock_files(store, opened)
    if not entries and not run(_TABLE, "pam_totp.stock"):
        return  # a database of an older pam_totp
    statements, there = _statements(run), _stock_rows(run, "stock")
    keys = list(entries) if not there else []
    for start in range(0, len(keys), AT_ONCE):
        some = keys[start : start + AT_ONCE]
        run(statements.claim_stock, json.dumps(some))  # a token of a user has its row already
        rows = [{"serial": key, "body": entries[key].decode("ascii")} for key in some]
        if len(run(statements.add_stock, json.dumps(rows))) != len(rows):
            raise StoreError("the database no longer keeps changes safely")
    if _stock_rows(run, "stock") != entries:
        raise StoreError("the stock in the database differs from that of the folder; nothing was changed")


def _stock_rows(run: Run, table: str) -> dict[str, bytes]:
    """Return the documents of a table of the stock by the keys of the serial numbers."""
    found: dict[str, bytes] = {}
    last = ""
    while rows := run(_STOCK.format(table), last, AT_ONCE):
        for key, body in rows:
            last = (key or b"").decode()
            found[last] = body or b""
    return found


def _stock_files(store: FileStore, opened: int) -> dict[str, bytes]:
    """Return the documents of the stock of a folder by the keys of the serial numbers. Raise StoreError."""
    found = {}
    for held in FileStock(store).entries():
        if isinstance(held, StoreError):
            raise held
        if held.owner is not None or held.entry.token is not None:
            raw = stock_entries.document(opened, claims.file_of(held.entry.serial))
            is_complete = parse_entry(raw, held.entry.serial, store.codec) == held.entry
            found[serial_key(held.entry.serial)] = raw if is_complete else document_of(held.entry, store.codec)
    return found


def _claim(owners: dict[str, str], name: str, document: bytes, codec: Codec | None) -> None:
    for key, serial in serials(parse_record(document, user_name(name), name, codec)).items():
        if owners.setdefault(key, name) != name:
            users = f"{user_name(owners[key])} and {user_name(name)}"
            raise StoreError(f"{users} have a token with the serial number {serial} (remove the token from one user)")


def _rows(run: Run, table: str) -> Iterator[tuple[str, bytes]]:
    """Yield the names and the documents of a table, in the order of the names."""
    last = ""
    while rows := run(_BODIES.format(table), last, AT_ONCE):
        for name, body in rows:
            last = (name or b"").decode()
            yield last, body or b""


# ---- the folder


def _require_folder(folder: str, codec: Codec | None) -> None:
    """Raise StoreError unless the folder is a store of this process's account, without an incomplete import."""
    store = FileStore(folder, codec=codec)
    journal.recover(store)
    with store.opened() as opened:
        if os.path.lexists(os.path.join(folder, ".import")):
            raise StoreError(f"{folder}: an import is running (try again when it has finished)")
        FileStock(store).complete(opened)
        for name in os.listdir(opened):
            if name.endswith(".json") and not name.startswith("."):
                user = user_name(name.removesuffix(".json"))
                store.update(user, lambda record: (record, None))  # converts a file of version 1


@contextmanager
def _locked(store: FileStore) -> Iterator[int]:
    """Open the folder of `store`, and lock all records. Yield the descriptor of the folder."""
    with store.opened() as opened:
        lock = acquire_all(opened, LOCK, _LOCK_WAIT)
        try:
            yield opened
        finally:
            os.close(lock)


def _documents(store: FileStore, opened: int) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the document of each record. Raise StoreError for a damaged record, or for version 1."""
    names = set()
    for file in sorted(os.listdir(opened)):
        if file.endswith(".record") and not file.startswith("."):
            slots = store.load(opened, file)
            assert slots is not None  # the caller holds the locks
            names.add(file.removesuffix(".record"))
            yield file.removesuffix(".record"), slots.document
    if missing := {user for user in store.users() if file_name(user) not in names}:
        raise StoreError(
            f"the record of {min(missing)} has version 1 (run 'pam-totp list {min(missing)}', and try again)"
        )


def _refuse(opened: int) -> None:
    """Make every later decision in the folder fail. A folder in place of the lock file cannot be locked."""
    os.unlink(LOCK, dir_fd=opened)
    os.mkdir(LOCK, 0o700, dir_fd=opened)
    os.fsync(opened)


def _write_files(store: FileStore, run: Run) -> int:
    """Write the records of the copied table to the folder, durably. Read them back, and return their number."""
    digests: dict[str, bytes] = {}
    with store.opened() as opened:
        entries = _stock_rows(run, "copied_stock") if run(_TABLE, "pam_totp.copied_stock") else {}
        for key, body in entries.items():
            stock_entries.make_folder(opened)
            path = stock_entries.path_of(claims.file_of(key))
            create(opened, path, body, f"{stock_entries.FOLDER}/.new", durably=False)
        for name, body in _rows(run, "copied_record"):
            try:
                record = parse_record(body, user_name(name), name, store.codec)
                content = new_file(body, slot_size(record, body))
            except RecordError as e:
                raise StoreError(f"{name}: {e}") from None
            create(opened, f"{name}.record", content, f".{name}.record", durably=False)
            digests[name] = sha256(body).digest()
        store.prepare()
        claims.make(store, opened)
        flush_all(opened)
        if {name: sha256(document).digest() for name, document in _documents(store, opened)} != digests:
            raise StoreError("the records in the folder differ from those in the database; nothing was changed")
        if _stock_files(store, opened) != entries:
            raise StoreError("the stock in the folder differs from that in the database; nothing was changed")
    return len(digests)


def _make_folder(path: str, owner: tuple[int, int], as_root: AsRoot) -> None:
    _remove_folder(path, as_root)  # left by a killed copy
    with as_root():
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)  # independent of the umask
        if os.geteuid() == 0:
            os.chown(path, *owner)


def _remove_folder(path: str, as_root: AsRoot) -> None:
    with as_root(), suppress(FileNotFoundError):
        shutil.rmtree(path)


def _put_notice(folder: str, url: str, as_root: AsRoot) -> None:
    with as_root(), open(folder, "w", encoding="utf-8") as file:
        file.write(f"{NOTICE}{url}\n")
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())


def _rename(old: str, new: str, as_root: AsRoot) -> None:
    """Rename a folder durably."""
    try:
        with as_root():
            os.rename(old, new)
            parent = os.open(os.path.dirname(new), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
    except OSError as e:
        raise StoreError(f"{old}: cannot be renamed to {new}: {(e.strerror or str(e)).lower()}") from e


def _free_name(path: str) -> str:
    number, name = 2, path
    while os.path.lexists(name):
        number, name = number + 1, f"{path}-{number}"
    return name
