"""Connections to PostgreSQL with a deadline for every wait, and a pool of connections.

Rules:
1. This process never cancels a query, even at Ctrl-C or at a deadline. A cancel would end the wait for the standby, and
   the primary alone would commit. Instead, this process closes the socket.
2. A statement might be in force after `Unanswered`, now or later, and after `Noticed`. The statement is not in force
   after `OutOfReach` and `Refused`.
3. A notice makes a statement fail with `Noticed`, because the primary reports a commit without the standby in a notice.
4. A process does not use the connections of its parent process.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pam_totp.store import StoreError
from pam_totp.store.fair_semaphore import FairSemaphore
from pam_totp.store.postgres_schema import Statements

_BYTEA = 17  # the object identifier of the type bytea
_HOST_SETTINGS = ("host", "hostaddr", "port")  # of a URL: each can be a list, with an entry for each server
NO_TABLE, NO_COLUMN, NOT_GRANTED = "42P01", "42703", "42501"  # undefined table or column, insufficient privilege
_READ_ONLY = "25006"
_UNKNOWN_RESULT = ("08", "40003")  # class 08: connection exception; statement completion unknown
_AGAIN = ("40001", "40P01")  # serialization failure, deadlock

Parameter = str | int | bytes | None
Prepare = Callable[["Connection", float], None]  # with a new connection, and a deadline in monotonic seconds
Row = tuple[bytes | None, ...]


class OutOfReach(StoreError):
    """The error if no server accepts a connection. The statement was not sent."""


class Unanswered(StoreError):
    """The error for a statement that was sent, and has an unknown result."""


class Noticed(StoreError):
    """The error for a reply with a notice. The primary might have committed without a standby."""


class Refused(StoreError):
    """The error for a statement that the server refused with the SQLSTATE `state`. The statement is not in force."""

    def __init__(self, text: str, state: str) -> None:
        super().__init__(text)
        self.state = state

    @property
    def can_be_repeated(self) -> bool:
        """Return True if another attempt might succeed: on another server, or after the other transaction."""
        return self.state == _READ_ONLY or self.state in _AGAIN


class Connection:
    """One connection. `run` closes the connection after an error that leaves the connection's state unknown."""

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self._pgconn = pgconn
        self.statements: Statements | None = None  # of the store; the caller sets them
        self._notices: list[str] = []
        pgconn.nonblocking = 1
        pgconn.notice_handler = self._on_notice

    @property
    def is_usable(self) -> bool:
        """Return True if the connection is open and outside a transaction, and no unexpected data has arrived."""
        pgconn = self._pgconn
        is_idle = pgconn.status == pq.ConnStatus.OK and pgconn.transaction_status == pq.TransactionStatus.IDLE
        return is_idle and not _wait(pgconn.socket, select.POLLIN, 0.0)

    @property
    def server_process(self) -> int:
        """Return the process id of the server, as the program at the other end of the connection reports it."""
        return self._pgconn.backend_pid

    def run(self, sql: str, *parameters: Parameter, deadline: float) -> list[Row]:
        """Run one statement, and return its rows in PostgreSQL's binary format. Raise a StoreError.

        `deadline` is in monotonic seconds.
        """
        self._notices.clear()
        try:
            self._pgconn.send_query_params(
                sql.encode("utf-8"),
                [p if p is None or isinstance(p, bytes) else str(p).encode("utf-8") for p in parameters],
                param_types=[_BYTEA if isinstance(p, bytes) else 0 for p in parameters],
                param_formats=[pq.Format.BINARY if isinstance(p, bytes) else pq.Format.TEXT for p in parameters],
                result_format=pq.Format.BINARY,
            )
            results = self._results(deadline)
        except psycopg.Error as e:
            self.close()
            raise Unanswered(f"the connection to the database was lost: {_line(str(e))}") from None
        except BaseException:
            self.close()
            raise
        return self._rows(results)

    def _results(self, deadline: float) -> list[pq.abc.PGresult]:
        """Return all results of the statement. Raise Unanswered at the deadline."""
        pgconn = self._pgconn
        while pgconn.flush():
            self._await(select.POLLIN | select.POLLOUT, deadline)
            pgconn.consume_input()
        results: list[pq.abc.PGresult] = []
        while True:
            while pgconn.is_busy():
                self._await(select.POLLIN, deadline)
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                return results
            results.append(result)

    def _await(self, events: int, deadline: float) -> None:
        if not _wait(self._pgconn.socket, events, deadline - time.monotonic()):
            raise Unanswered("the database gave no answer in time (is a standby connected?)")

    def _rows(self, results: list[pq.abc.PGresult]) -> list[Row]:
        failed = [r for r in results if r.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)]
        if failed or not results:
            state = (failed[0].error_field(pq.DiagnosticField.SQLSTATE) or b"").decode() if failed else ""
            text = f"the database reports: {_line((failed[0] if failed else self._pgconn).error_message.decode())}"
            if self._pgconn.status != pq.ConnStatus.OK or not state or state.startswith(_UNKNOWN_RESULT):
                self.close()
                raise Unanswered(text)
            if state == _READ_ONLY:  # this server is no longer the primary
                self.close()
            if state == NO_TABLE:
                text = (
                    "the database has no tables of pam_totp: they were copied to another store, or must be created"
                    " (run 'pam-totp store init URL')"
                )
            raise Refused(text, state)
        if self._notices:
            self.close()
            raise Noticed(f"the database answered with a notice: {self._notices[0]}")
        result = results[-1]
        return [tuple(result.get_value(n, c) for c in range(result.nfields)) for n in range(result.ntuples)]

    def _on_notice(self, result: pq.abc.PGresult) -> None:
        self._notices.append(_line((result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode()))

    def close(self) -> None:
        self._pgconn.finish()


def connect(url: str, deadline: float, prepare: Prepare = lambda connection, deadline: None) -> Connection:
    """Connect to the first server of `url` that accepts writes, and for which `prepare` does not raise OutOfReach.

    Raise OutOfReach if there is no such server.
    """
    reasons, servers = [], _servers(url)
    for number, server in enumerate(servers):
        begun = time.monotonic()
        end = begun + (deadline - begun) / (len(servers) - number)
        try:
            connection = _connect(server, end)
            try:
                prepare(connection, end)
            except BaseException:
                connection.close()
                raise
            return connection
        except (OutOfReach, psycopg.Error) as e:
            reasons.append(_line(str(e)))
    raise OutOfReach(f"the database is out of reach: {'; '.join(reasons)}")


def has_password(url: str) -> bool:
    """Return True if the URL contains a password. The store refuses such a URL."""
    try:
        return bool(conninfo_to_dict(url).get("password"))
    except psycopg.Error:
        return False


def _servers(url: str) -> list[bytes]:
    """Return the connection string of each server in `url`, because libpq has no time limit for a single server."""
    try:
        settings = conninfo_to_dict(url)
    except psycopg.Error as e:
        raise OutOfReach(f"the URL of the database cannot be parsed: {_line(str(e))}") from None
    if has_password(url):
        raise OutOfReach("the URL of the database must contain no password (use a password file or a certificate)")
    lists = {name: str(settings[name]).split(",") for name in _HOST_SETTINGS if settings.get(name)}
    number = max((len(values) for values in lists.values()), default=1)
    fixed = {"client_encoding": "utf8", "target_session_attrs": "read-write", "fallback_application_name": "pam_totp"}
    servers = []
    for i in range(number):
        own = {name: values[i] if i < len(values) else values[-1] for name, values in lists.items()}
        servers.append(make_conninfo("", **{**settings, **fixed, **own}).encode("utf-8"))
    return servers


def _connect(server: bytes, deadline: float) -> Connection:
    pgconn = pq.PGconn.connect_start(server)
    try:
        while True:
            if pgconn.status == pq.ConnStatus.BAD:
                raise OutOfReach(pgconn.error_message.decode("utf-8", "replace"))
            polled = pgconn.connect_poll()
            if polled == pq.PollingStatus.OK:
                return Connection(pgconn)
            if polled == pq.PollingStatus.FAILED:
                raise OutOfReach(pgconn.error_message.decode("utf-8", "replace"))
            events = select.POLLIN if polled == pq.PollingStatus.READING else select.POLLOUT
            if not _wait(pgconn.socket, events, deadline - time.monotonic()):
                raise OutOfReach("a server gave no answer in time")
    except BaseException:
        pgconn.finish()
        raise


def _wait(descriptor: int, events: int, seconds: float) -> bool:
    """Return True if one of the events, or an error, occurred within `seconds`."""
    poll = select.poll()
    poll.register(descriptor, events)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _line(text: str) -> str:
    """Return a text of libpq, which can have several lines, as one line."""
    return " ".join(text.split()).removeprefix("ERROR: ").removeprefix("FATAL: ")


def text_of(value: bytes | None) -> str:
    """Return `value` of a row as text: "" for None."""
    return (value or b"").decode("utf-8")


def number_of(value: bytes | None) -> int:
    """Return `value` of a row as a whole number: 0 for None."""
    return int.from_bytes(value or b"", "big", signed=True)


class Pool:
    """A pool of at most `size` connections to `url`, which serves the threads of this process in the order of their
    requests.

    The pool passes `prepare` to `connect`.
    """

    def __init__(self, url: str, size: int, prepare: Prepare = lambda connection, deadline: None) -> None:
        self._url, self._prepare = url, prepare
        self._free = FairSemaphore(size)
        self._idle: list[Connection] = []  # the last used connection is the last
        self._process = os.getpid()

    @contextmanager
    def connection(self, deadline: float) -> Iterator[Connection]:
        """Yield a connection for one unit of work. Raise OutOfReach if no connection is free at the deadline."""
        if not self._free.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise OutOfReach("all connections to the database are in use")
        try:
            connection = self._idle_connection() or connect(self._url, deadline, self._prepare)
            try:
                yield connection
            finally:
                if connection.is_usable:
                    self._idle.append(connection)
                else:  # also in the middle of a transaction: the server then rolls it back
                    connection.close()
        finally:
            self._free.release()

    @property
    def is_inherited(self) -> bool:
        """Return True if the parent process created this pool."""
        return self._process != os.getpid()

    @property
    def waiting(self) -> int:
        """Return the number of threads that wait for a connection."""
        return self._free.waiting

    def _idle_connection(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
            connection.close()
        return None

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()
