"""The state of the database of a store, as `pam-totp doctor` needs it.

Rules:
1. The module only reads, under the role of the store.
2. A value is None if the role may not see it, or if the server lacks the setting.
3. A pooler reports its own process id, or shares one process of the server between two connections.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

from pam_totp.store import postgres_schema as schema
from pam_totp.store.postgres_connection import Connection, connect

_TIMEOUTS = ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout")
_GUARDED = ("fsync", "client_min_messages", "synchronous_standby_names", "synchronous_commit")
_SETTINGS = (*_GUARDED, "full_page_writes", *_TIMEOUTS)
_ROUND_TRIPS = 5  # measurements: the result is their median
_TABLES = "SELECT to_regclass('pam_totp.store') IS NOT NULL"
_COPIED = f"{schema.IS_COPIED} AND to_regclass('pam_totp.record') IS NULL"
_STANDBYS = "SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming' OR state IS NULL"
# Patroni passes these settings on the command line of the server; no other program does.
_PATRONI = """SELECT 1 FROM pg_settings WHERE name IN ('cluster_name', 'hot_standby') AND source = 'command line'
 HAVING count(*) = 2"""
_CLOCK = "SELECT extract(epoch FROM clock_timestamp())::text"
_PROCESS = "SELECT pg_backend_pid()::text"


@dataclass(frozen=True, slots=True)
class State:
    """The state of a database, as one connection shows it.

    `settings` are those of `_SETTINGS`. `ahead` (the database's clock minus this host's) and `round_trip` are in
    seconds. `version`, `replication` and `epoch` are those of the tables. `is_moved` is True if the tables were
    restored from a dump, or moved from another server, since the last fence. `reason` is that of GUARDS. `standbys`
    lists the `sync_state` of each standby. `pooler` is None, "a pooler", or "a pooler in transaction mode".
    """

    role: str
    settings: dict[str, str | None]
    ahead: float
    round_trip: float
    version: int | None
    replication: str | None
    epoch: int
    is_moved: bool
    reason: str | None
    standbys: list[str | None]
    pooler: str | None
    is_patroni: bool
    is_copied: bool  # the records were copied to another store

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def state_of(url: str, wait: float) -> State:
    """Return the state of the database at `url`. Raise StoreError, for example for no answer within `wait` seconds."""
    deadline = time.monotonic() + wait
    connection = connect(url, deadline)
    try:
        return _Reader(connection, deadline).state(url)
    finally:
        connection.close()


class _Reader:
    """A reader of the state over one connection."""

    def __init__(self, connection: Connection, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def _texts(self, sql: str, *parameters: str) -> list[str | None]:
        """Return the values of the first column as text."""
        rows = self._connection.run(sql, *parameters, deadline=self._deadline)
        return [None if row[0] is None else row[0].decode() for row in rows]

    def state(self, url: str) -> State:
        version, replication, epoch, cluster = self._tables()
        ahead, round_trip = self._clock()
        reason = None
        if replication in schema.REPLICATION:
            (reason,) = self._texts(f"SELECT {schema.GUARDS[replication]}")
        (role,) = self._texts("SELECT current_user::text")
        return State(
            role=role or "",
            settings={name: self._texts("SELECT current_setting($1, true)", name)[0] for name in _SETTINGS},
            ahead=ahead,
            round_trip=round_trip,
            version=version,
            replication=replication,
            epoch=epoch,
            is_moved=cluster is not None and self._cluster() not in (None, cluster),
            reason=reason,
            standbys=self._texts(_STANDBYS),
            pooler=self._pooler(url),
            is_patroni=bool(self._texts(_PATRONI)),
            is_copied=bool(self._texts(_COPIED)),
        )

    def _tables(self) -> tuple[int | None, str | None, int, str | None]:
        """Return version, replication, epoch and cluster of the tables. The version is None if there are no tables."""
        (found,) = self._connection.run(_TABLES, deadline=self._deadline)
        rows = self._connection.run(schema.STORE, deadline=self._deadline) if found[0] == b"\1" else []
        if not rows:
            return None, None, 0, None
        version, replication, epoch, cluster = rows[0]
        numbers = [int.from_bytes(value or b"", "big") for value in (version, epoch)]
        return numbers[0], (replication or b"").decode(), numbers[1], None if cluster is None else cluster.decode()

    def _cluster(self) -> str | None:
        """Return the identity of the server and of the tables, or None if the role may not see it."""
        sees = self._connection.run(schema.SEES_CLUSTER, deadline=self._deadline)
        return self._texts(schema.CLUSTER)[0] if sees else None

    def _clock(self) -> tuple[float, float]:
        """Return the database's clock minus this host's clock, and the time of a round trip, both in seconds."""
        ahead, trips = [], []
        for _ in range(_ROUND_TRIPS):
            wall, begun = time.time(), time.monotonic()
            (clock,) = self._texts(_CLOCK)
            trips.append(time.monotonic() - begun)
            ahead.append(float(clock or 0) - wall - trips[-1] / 2)
        return statistics.median(ahead), statistics.median(trips)

    def _pooler(self, url: str) -> str | None:
        (first,) = self._texts(_PROCESS)
        if first == str(self._connection.server_process):
            return None
        other = connect(url, self._deadline)
        try:
            ((second,),) = other.run(_PROCESS, deadline=self._deadline)
        finally:
            other.close()
        is_shared = second is not None and second.decode() == first
        return "a pooler in transaction mode" if is_shared else "a pooler"
