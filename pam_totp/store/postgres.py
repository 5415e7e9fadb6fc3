"""The store in PostgreSQL, which several hosts use at once.

Rules:
1. A change is one statement (`UPDATE ... WHERE version = ...`), or one transaction. An update holds no lock of the
   database while the process decides. The change function gets the new record, and decides again, if another process
   changed the record meanwhile.
2. A change is in force only if the database replies with one row and without a notice. A notice means that the primary
   has committed without its standby.
3. The condition of `postgres_schema.GUARDS` is a part of each change. This condition is only a safety net, because the
   checked settings can be outdated.
4. The login is refused if the database gives no reply to a change. A process searches the record for the digest of a
   question before it decides on the question. A question therefore has one verdict, even if several hosts ask the same
   question.
5. The threads of a process take turns for one user, so that answers for one user use one connection.
6. An answer for an unknown user takes a turn, too, and changes a decoy. The database chooses a decoy that no other
   process is changing: a choice by name would reveal the names that share a decoy.
7. A process uses the clock of the database, and reads the time with the record. The clocks of the hosts can differ.
8. A process uses no server whose epoch is lower than the highest epoch that the process has seen, or than `epoch` in
   the settings.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from pam_totp.core.record import UserRecord
from pam_totp.core.secretfile import parse, serialize
from pam_totp.core.serials import serial_key
from pam_totp.store import LockBusy, NotThere, SerialTaken, SharedStore, StoreError, decoys
from pam_totp.store import postgres_schema as schema
from pam_totp.store.file import LOCK_WAIT, document_of, file_name, parse_record, to_syslog
from pam_totp.store.postgres_connection import Connection, OutOfReach, Pool, Refused, Row, Unanswered
from pam_totp.store.postgres_records import serials, user_name
from pam_totp.store.seal_key import require_current

if TYPE_CHECKING:
    from pam_totp.store import Codec, R
    from pam_totp.store.bulk import Change, Changes, Progress
    from pam_totp.store.stock import Stock

POOL = 4  # connections of a process
WAIT = 3.0  # seconds that one use of the database may take
ASKED = 8  # digests in a record: a repeated question gets its verdict even after 7 other questions for the user
_PAGE = 1000  # names or records in one query
_INITIALISE = 60.0  # seconds for all statements that create the tables
_NO_TABLE = ("42P01", "3F000")  # undefined table, undefined schema
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.2  # seconds between two attempts to reach the database


class Question(NamedTuple):
    """A question of a member, identified by `digest`. `verdict` returns the text to store for a change's result.

    `recall` gets the user's stored verdicts before each decision, by the digests of their questions in hexadecimal.
    """

    digest: bytes
    verdict: Callable[[Any], str]
    recall: Callable[[Mapping[str, str]], None] = lambda verdicts: None


class AlreadyAnswered(Exception):
    """The error for a question that was answered before. `verdict` is the stored text."""

    def __init__(self, verdict: str) -> None:
        super().__init__("the question was answered before")
        self.verdict = verdict


class _Stored(NamedTuple):
    """A record in the database. `version` is None if there is no record. `problem` is the reason of GUARDS, or None."""

    version: int | None
    body: bytes
    asked: list[tuple[str, str]]  # digest in hexadecimal, verdict
    problem: str | None


class Work(NamedTuple):
    """One use of the database: a connection, its statements, and the deadline in monotonic seconds."""

    connection: Connection
    statements: schema.Statements
    deadline: float

    def run(self, sql: str, *parameters: str | int | bytes | None) -> list[Row]:
        return self.connection.run(sql, *parameters, deadline=self.deadline)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in a transaction, and commit it. The pool closes the connection after an exception."""
        self.run("BEGIN")
        yield
        self.run("COMMIT")


class _Contended(Exception):
    """The error for a record that another process changed meanwhile. The process decides again."""


class _Turns:
    """The turns of the threads of this process, one for each user name at a time."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        # name -> the lock of the name, and the number of threads that need the lock
        self._turns: dict[str, tuple[threading.Lock, int]] = {}

    @contextmanager
    def turn(self, name: str, wait: float) -> Iterator[None]:
        """Hold the turn of `name`. Raise LockBusy if other threads hold the turn for `wait` seconds."""
        with self._mutex:
            lock, count = self._turns.get(name, (threading.Lock(), 0))
            self._turns[name] = lock, count + 1
        try:
            if not lock.acquire(timeout=wait):
                raise LockBusy(f"{name}: the turn was not acquired within {wait:g} s")
            try:
                yield
            finally:
                lock.release()
        finally:
            with self._mutex:
                lock, count = self._turns.pop(name)
                if count > 1:
                    self._turns[name] = lock, count - 1


class _Database:
    """The shared state of all stores of one URL in this process: connections, turns, the clock, and the epoch."""

    def __init__(self, url: str, size: int) -> None:
        self.pool = Pool(url, size, self._prepare)
        self.epoch = 0
        self.turns = _Turns()
        self.was_reached = False
        self.clock_ahead: float | None = None  # the database's time minus the monotonic clock, in seconds
        self.decoy = _decoy()

    def _prepare(self, connection: Connection, deadline: float) -> None:
        """Read the row of the store. Raise OutOfReach for an outdated copy, so that `connect` tries the next server."""
        connection.statements = _statements(connection, deadline)
        self.require_epoch(connection.statements)
        self.epoch = max(self.epoch, connection.statements.epoch)  # another thread might have seen a higher epoch
        self.was_reached = True

    def require_epoch(self, statements: schema.Statements) -> None:
        """Raise OutOfReach if the server has a lower epoch than another server had, or than the settings require."""
        if statements.epoch < self.epoch:
            epochs = f"the epoch must be at least {self.epoch}, not {statements.epoch}"
            what = f"a server has an outdated copy of the database: {epochs}"
            raise OutOfReach(f"{what} (after a restore, run 'pam-totp authority restore')")


_databases: dict[tuple[str, int], _Database] = {}
_databases_lock = threading.Lock()


def _database(url: str, size: int) -> _Database:
    with _databases_lock:
        found = _databases.get((url, size))
        if found is None or found.pool.is_inherited:
            found = _databases[url, size] = _Database(url, size)
        return found


class PostgresStore(SharedStore):
    """The store in the database at `url`, a URL of libpq without a password.

    `lock_wait` is the longest wait for the turn of a user, and `wait` that for one use of the database, in seconds.
    `pool` connections serve all stores of this process with the same URL. The store uses no server with a lower epoch
    than `epoch`. The store passes to `warn` each problem that stops no login. `codec` seals the secrets.
    """

    def __init__(
        self,
        url: str,
        lock_wait: float = LOCK_WAIT,
        warn: Callable[[str], None] = to_syslog,
        *,
        pool: int = POOL,
        wait: float = WAIT,
        epoch: int = 0,
        codec: Codec | None = None,
    ) -> None:
        self.url, self.codec = url, codec
        self._lock_wait, self._wait, self.warn, self._pool, self._epoch = lock_wait, wait, warn, pool, epoch

    @property
    def _shared(self) -> _Database:
        shared = _database(self.url, self._pool)
        shared.epoch = max(shared.epoch, self._epoch)
        return shared

    def now(self) -> int:
        ahead = self._shared.clock_ahead
        return int(time.time() if ahead is None else time.monotonic() + ahead)

    # ---- the methods of `Store`

    def read(self, user: str) -> UserRecord:
        name = file_name(user)
        record = self._attempts(lambda work: self._read(work, name))
        if record.version is None:
            raise NotThere
        return parse_record(record.body, user, name, self.codec)

    def update(
        self,
        user: str,
        change: Callable[[UserRecord], tuple[UserRecord | None, R]],
        *,
        create: bool = False,
        decoy: bool = False,
    ) -> R:
        return self.update_once(user, change, None, create=create, decoy=decoy)

    def update_decoy(self, user: str, search: Callable[[], object]) -> None:
        shared = self._shared
        with shared.turns.turn(file_name(user), self._lock_wait):
            parse(shared.decoy)  # a login parses the user's record
            search()
            self._attempts(self._use_decoy, reads_only=False)

    def a_secret(self) -> bytes:
        """Return the document of any record with a secret; b"" if there is none."""
        rows = self._attempts(lambda work: work.run(schema.A_SECRET))
        return rows[0][0] or b"" if rows else b""

    def users(self) -> Iterator[str]:
        for (name,) in self._pages(schema.USERS):
            yield user_name((name or b"").decode())

    def owner_of_serial(self, serial: str) -> str | None:
        rows = self._attempts(lambda work: work.run(schema.OWNER, serial_key(serial)))
        return user_name((rows[0][0] or b"").decode()) if rows else None

    # ---- one change

    def asked(self, question: Question) -> _Asking:
        """Return this store for one decision on `question`. The `update` of this store may raise AlreadyAnswered."""
        return _Asking(self, question)

    def update_once(
        self,
        user: str,
        change: Callable[[UserRecord], tuple[UserRecord | None, R]],
        question: Question | None,
        *,
        create: bool = False,
        decoy: bool = False,
    ) -> R:
        """Do the same as `update`. Raise AlreadyAnswered if the record contains the digest of `question`."""
        name = file_name(user)

        def attempt(work: Work) -> R:
            record = self._read(work, name)
            _require_safe(record)
            verdict = None if question is None else _verdict(record, question)
            if verdict is not None:
                # Perhaps only the primary has committed the verdict. After this write, the verdict is durable.
                self._write_again(work, name, record)
                raise AlreadyAnswered(verdict)
            if record.version is None and not create:
                raise NotThere
            old = UserRecord(user=user) if record.version is None else parse_record(record.body, user, name, self.codec)
            if question is not None:
                question.recall(dict(record.asked))
            new, result = change(old)
            if new is None or record.version is None or (new is not old and new != old):
                asked = record.asked if question is None else _with(record.asked, question, result)
                self._write(work, name, record, (old, new), asked)
            elif decoy:
                self._use_decoy(work)
            return result

        with self._shared.turns.turn(name, self._lock_wait):
            return self._attempts(attempt, reads_only=False, repeats=question is not None)

    def update_with(
        self,
        user: str,
        change: Callable[[Work, UserRecord], tuple[UserRecord | None, Callable[[], None], R]],
        *,
        create: bool = False,
    ) -> R:
        """Do the same as `update`, with a second change in the same transaction.

        `change` gets the use of the database and the record. `change` returns the new record, the function that makes
        the second change, and the result.
        """
        name = file_name(user)

        def attempt(work: Work) -> R:
            record = self._read(work, name)
            _require_safe(record)
            if record.version is None and not create:
                raise NotThere
            old = UserRecord(user=user) if record.version is None else parse_record(record.body, user, name, self.codec)
            new, also, result = change(work, old)
            self._write(work, name, record, (old, new), record.asked, also=also)
            return result

        with self._shared.turns.turn(name, self._lock_wait):
            return self._attempts(attempt, reads_only=False)

    def seal_again(self, user: str) -> bool:
        name, codec = file_name(user), self.codec
        assert codec is not None

        def attempt(work: Work) -> bool:
            record = self._read(work, name)
            if record.version is None:
                raise NotThere
            if codec.is_current(record.body):
                return False
            _require_safe(record)
            document = document_of(parse_record(record.body, user, name, codec), name, codec)
            self._write_again(work, name, record._replace(body=document))
            return True

        with self._shared.turns.turn(name, self._lock_wait):
            return self._attempts(attempt, reads_only=False)

    def documents(self) -> Iterator[bytes]:
        for _, body in self._pages(schema.ALL_BODIES):
            yield body or b""

    def stock(self) -> Stock:
        from pam_totp.store.postgres_stock import PostgresStock  # imported here because logins do not need it

        return PostgresStock(self)

    def require_safe(self, work: Work) -> None:
        """Raise StoreError if the database would not keep a change safely."""
        _require_safe(self._read(work, ""))

    def contended(self) -> Exception:
        """Return the error for a row that another process has changed meanwhile. The process decides again."""
        return _Contended()

    def use(self, attempt: Callable[[Work], R], *, reads_only: bool = False) -> R:
        """Call `attempt` with a connection, for the tables other than `record`. Return the result of `attempt`."""
        return self._attempts(attempt, reads_only=reads_only)

    def _attempts(self, attempt: Callable[[Work], R], *, reads_only: bool = True, repeats: bool = False) -> R:
        """Call `attempt` with a connection, and return the result of `attempt`.

        Call `attempt` again, within the time of one use of the database, if

        - another process has changed the record,
        - no server accepts a connection, but this process has reached the database before,
        - the server has refused a statement that can be repeated, or
        - the connection was lost, and `reads_only` or `repeats` is True, or the change was not sent.
        """
        shared, deadline, pause = self._shared, time.monotonic() + self._wait, _FIRST_PAUSE
        while True:
            try:
                with shared.pool.connection(deadline) as connection:
                    assert connection.statements is not None  # `_Database` has prepared the connection
                    try:
                        shared.require_epoch(connection.statements)
                    except OutOfReach:
                        connection.close()
                        raise
                    return attempt(Work(connection, connection.statements, deadline))
            except _Contended:
                pause = _FIRST_PAUSE
                if time.monotonic() > deadline:
                    raise LockBusy(f"other processes changed the record during {self._wait:g} s") from None
                continue
            except (OutOfReach, Unanswered, Refused) as e:
                again = {
                    OutOfReach: shared.was_reached,
                    Unanswered: reads_only or repeats or isinstance(e, _NotSent),
                    Refused: isinstance(e, Refused) and e.can_be_repeated,
                }
                if not any(isinstance(e, kind) and allowed for kind, allowed in again.items()):
                    raise
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _read(self, work: Work, name: str) -> _Stored:
        """Return the record `name`. A lost connection loses no change, because this statement only reads."""
        try:
            (row,) = work.run(work.statements.read, name)
        except Unanswered as e:
            raise _NotSent(str(e)) from None
        return self._stored(row)

    def _stored(self, row: Row) -> _Stored:
        version, body, asked, now, problem = row
        assert now is not None
        self._shared.clock_ahead = _number(now) / 1000 - time.monotonic()
        return _Stored(
            None if version is None else _number(version),
            body or b"",
            [(digest, verdict) for digest, verdict in json.loads(asked or b"[]")],
            None if problem is None else problem.decode(),
        )

    def _write(
        self,
        work: Work,
        name: str,
        record: _Stored,
        records: tuple[UserRecord, UserRecord | None],
        asked: list[tuple[str, str]],
        *,
        also: Callable[[], None] | None = None,
    ) -> None:
        """Replace `record`, which has the first of `records`, by the second of `records`, or delete it if that is None.

        Store the digests and verdicts `asked`. Raise _Contended if another process has changed the record.
        `also` makes a second change in the same transaction, before the serial numbers get their new owners.
        """
        statements = work.statements
        old, new = records
        require_current(self.url)
        body, texts = b"" if new is None else document_of(new, name, self.codec), json.dumps(asked)
        if new is None and record.version is None:
            return
        if record.version is None:
            statement: tuple[Any, ...] = (statements.create, name, body, texts)
        elif new is None:
            statement = (statements.delete, name, record.version)
        else:
            statement = (statements.change, name, record.version, body, texts)
        before, after = serials(old), serials(new)
        if before.keys() == after.keys() and also is None:
            if not work.run(*statement):
                raise _Contended
            return
        with work.transaction():
            if not work.run(*statement):
                raise _Contended
            if also is not None:
                also()
            _move_serials(work, name, before, after)

    def _write_again(self, work: Work, name: str, record: _Stored) -> None:
        if not work.run(work.statements.change, name, record.version, record.body, json.dumps(record.asked)):
            raise _Contended

    def _use_decoy(self, work: Work) -> None:
        require_current(self.url)
        if self.codec is not None:
            self.codec.exercise()
        body = serialize(decoys.refused(parse(self._shared.decoy)))
        if not work.run(work.statements.use_decoy, body):
            self.require_safe(work)
            self.warn(f"{self.url}: decoys are missing or all in use (run 'pam-totp store init')")

    # ---- all records

    def _pages(self, sql: str) -> Iterator[Row]:
        """Yield the rows of a query that returns the rows after a name, in the order of the names."""
        last = ""
        while True:
            rows = self._attempts(partial(_page, sql, last))
            yield from rows
            if len(rows) < _PAGE:
                return
            last = (rows[-1][0] or b"").decode()

    def read_many(self, users: Sequence[str]) -> Iterator[tuple[str, UserRecord | StoreError]]:
        for first in range(0, len(users), _PAGE):
            names = {user: file_name(user) for user in users[first : first + _PAGE]}
            rows = self._attempts(partial(_bodies, json.dumps([*names.values()])))
            bodies = {(name or b"").decode(): body or b"" for name, body in rows}
            for user, name in names.items():
                if name in bodies:
                    try:
                        yield user, parse_record(bodies[name], user, name, self.codec)
                    except StoreError as e:
                        yield user, e

    def update_many(
        self,
        changes: Changes[R],
        progress: Progress = lambda done, total: None,
        on_taken: Callable[[Change[R], SerialTaken], R] | None = None,
    ) -> list[R]:
        """Do the same as `bulk.update_many`, in one transaction. Logins wait only for the last statements of the
        transaction."""
        from pam_totp.store.postgres_bulk import update_many

        require_current(self.url)
        return self._attempts(
            lambda work: update_many(work.connection, work.statements, changes, progress, on_taken, codec=self.codec),
            reads_only=False,
        )


def initialise(url: str, replication: str | None = None, grant: str | None = None) -> str:
    """Create the tables that are missing in the database at `url`, and return the required replication.

    `replication` is one of `schema.REPLICATION`; None keeps the stored requirement, or requires a standby for new
    tables. `grant` is the role that may use the tables. Raise StoreError.
    """
    deadline = time.monotonic() + _INITIALISE
    pool = Pool(url, 1)
    try:
        with pool.connection(deadline) as connection:

            def run(sql: str, *parameters: str | int | bytes) -> list[Row]:
                return connection.run(sql, *parameters, deadline=deadline)

            if run("SHOW server_encoding") != [(b"UTF8",)]:
                raise StoreError("the encoding of the database must be UTF8")
            run("SET client_min_messages = warning")  # a notice about an existing table is no error
            run("BEGIN")
            for statement in schema.CREATE:
                run(statement)
            if run(schema.IS_COPIED):
                raise StoreError("the records were copied to another store (see 'pam-totp store copy --help')")
            for slot in range(schema.DECOYS):
                run(schema.FILL_DECOY, slot, _decoy())
            rows = run(schema.STORE)
            required = replication or ((rows[0][1] or b"").decode() if rows else schema.SYNCHRONOUS)
            run(schema.SET_STORE, schema.VERSION, required)
            if run(schema.SEES_CLUSTER):
                ((identity,),) = run(schema.CLUSTER)
                run(schema.NOTE_CLUSTER, (identity or b"").decode())
            if grant is not None:
                ((role,),) = run("SELECT quote_ident($1)", grant)
                for statement in schema.GRANT:
                    run(statement.format((role or b"").decode()))
            run("COMMIT")
            run("RESET client_min_messages")
            return required
    finally:
        pool.close()


def _page(sql: str, last: str, work: Work) -> list[Row]:
    return work.run(sql, last, _PAGE)


def _bodies(names: str, work: Work) -> list[Row]:
    return work.run(schema.BODIES, names)


def _decoy() -> bytes:
    return serialize(decoys.new())


def _statements(connection: Connection, deadline: float) -> schema.Statements:
    """Return the statements for the replication that the store requires. Raise StoreError if the tables are missing."""
    try:
        rows = connection.run(schema.STORE, deadline=deadline)
    except Refused as e:
        if e.state not in _NO_TABLE:
            raise
        rows = []
    return statements_of(rows)


def statements_of(rows: list[Row]) -> schema.Statements:
    """Return the statements for `rows`, the row of the table `store`. Raise StoreError if the row is missing or has
    another version."""
    if not rows:
        raise StoreError("the database has no tables of pam_totp (run 'pam-totp store init URL')")
    version, replication = _number(rows[0][0] or b""), (rows[0][1] or b"").decode()
    if version != schema.VERSION or replication not in schema.REPLICATION:
        raise StoreError(f"the database has tables of version {version}, but this pam_totp needs {schema.VERSION}")
    return schema.Statements(replication, _number(rows[0][2] or b""))


def _require_safe(record: _Stored) -> None:
    """Raise StoreError if the database, as it was read with `record`, would not keep a change safely."""
    if record.problem is not None:
        raise StoreError(f"the database does not keep changes safely: {record.problem}")


def _verdict(record: _Stored, question: Question) -> str | None:
    """Return the stored verdict on the question, or None."""
    return next((verdict for digest, verdict in record.asked if digest == question.digest.hex()), None)


def _with(asked: list[tuple[str, str]], question: Question, result: Any) -> list[tuple[str, str]]:
    return [*asked, (question.digest.hex(), question.verdict(result))][-ASKED:]


def _number(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


class _NotSent(Unanswered):
    """The error for a connection that was lost before a change was sent."""


class _Asking:
    """A store for one decision on a question."""

    def __init__(self, store: PostgresStore, question: Question) -> None:
        self._store, self._question = store, question

    def read(self, user: str) -> UserRecord:
        return self._store.read(user)

    def update(
        self,
        user: str,
        change: Callable[[UserRecord], tuple[UserRecord | None, R]],
        *,
        create: bool = False,
        decoy: bool = False,
    ) -> R:
        return self._store.update_once(user, change, self._question, create=create, decoy=decoy)

    def update_decoy(self, user: str, search: Callable[[], object]) -> None:
        self._store.update_decoy(user, search)

    def users(self) -> Iterator[str]:
        return self._store.users()

    def owner_of_serial(self, serial: str) -> str | None:
        return self._store.owner_of_serial(serial)


def _move_serials(work: Work, name: str, before: dict[str, str], after: dict[str, str]) -> None:
    """Make `name` the owner of the serial numbers `after` instead of `before`. Raise SerialTaken."""
    for serial in sorted(before.keys() - after.keys()):
        work.run(schema.RELEASE, serial, name)
    for serial in sorted(after.keys() - before.keys()):
        if not work.run(schema.CLAIM, serial, name):
            rows = work.run(schema.OWNER, serial)
            raise SerialTaken(after[serial], user_name((rows[0][0] or b"").decode()) if rows else None)
