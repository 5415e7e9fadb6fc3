"""PostgreSQL servers for tests: each in a temporary folder, listening only on a Unix socket, and run by an unprivileged
account.

Rules:
- A server runs the programs of Debian's package `postgresql`. pytest skips the tests if these programs are missing.
- Root changes the owner of the folder to another account, because PostgreSQL refuses to run as root.
- `stop` and `kill` end only the process that `start` started, and its children.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest

from pam_totp.store.postgres_schema import NONE
from tests.support.site import PATIENCE, UNPRIVILEGED_UID, until


def _programs() -> Path | None:
    """Return the folder with the programs of the newest PostgreSQL, or None."""
    found = {int(path.parent.name): path for path in Path("/usr/lib/postgresql").glob("[0-9]*/bin")}
    return found[max(found)] if found else None


PROGRAMS = _programs()
with_postgresql = pytest.mark.skipif(PROGRAMS is None, reason="requires the package postgresql")
OWNER = "owner"  # the role that creates the tables
SETTINGS = {
    "listen_addresses": "''",
    "shared_buffers": "16MB",
    "max_connections": "100",
    "fsync": "on",
    "autovacuum": "off",
    "max_wal_size": "128MB",
    "min_wal_size": "32MB",
    "wal_keep_size": "32MB",
    "wal_sender_timeout": "0",
    "log_min_messages": "warning",
}


class Server:
    """A PostgreSQL server in `folder`, which is empty or contains a base backup in `data`."""

    def __init__(self, folder: Path, name: str = "primary") -> None:
        self.folder, self.name = folder, name
        self.data, self.log = folder / "data", folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://{OWNER}@/postgres?host={self.folder}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def initialise(self) -> None:
        self.program("initdb", "-D", self.data, "-U", OWNER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = {value}\n" for name, value in SETTINGS.items())
            file.write(f"unix_socket_directories = '{self.folder}'\n")

    def standby(self, folder: Path, name: str = "standby") -> Server:
        """Return a new standby of this running server, in the empty folder `folder`."""
        standby = Server(folder, name)
        owned(folder)
        standby.program(
            "pg_basebackup",
            "-D",
            standby.data,
            "-h",
            self.folder,
            "-U",
            OWNER,
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
            "-N",
        )
        with (standby.data / "postgresql.conf").open("a") as file:
            file.write(f"unix_socket_directories = '{folder}'\nsynchronous_standby_names = ''\n")
        source = f"host={self.folder} user={OWNER} application_name={name}"
        with (standby.data / "postgresql.auto.conf").open("a") as file:
            file.write(f"primary_conninfo = '{source}'\nwal_retrieve_retry_interval = '100ms'\n")
        return standby

    def start(self) -> None:
        assert PROGRAMS is not None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*as_account(), PROGRAMS / "postgres", "-D", self.data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._is_ready, f"{self.name} accepts connections")

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()
        assert PROGRAMS is not None
        ready: list[str | Path] = [PROGRAMS / "pg_isready", "-q", "-h", self.folder]
        return subprocess.run(ready, check=False).returncode == 0

    def program(self, name: str, *arguments: str | Path) -> str:
        """Run a program of PostgreSQL as the server's account, and return its output."""
        assert PROGRAMS is not None
        done = subprocess.run(
            [*as_account(), PROGRAMS / name, *arguments],
            cwd=self.folder,
            text=True,
            capture_output=True,
            check=False,
            timeout=3 * PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def sql(self, *statements: str, wait_for_standby: bool = False) -> str:
        """Run statements one by one. Return the rows of the last statement as lines, with `|` between fields.

        A commit waits for the standby only if `wait_for_standby` is true.
        """
        options = "" if wait_for_standby else "-c synchronous_commit=local"
        lines: list[str] = []
        with psycopg.connect(self.url, autocommit=True, options=options, connect_timeout=int(PATIENCE)) as connection:
            for statement in statements:
                cursor = connection.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description else []
                lines = ["|".join(_text(value) for value in row) for row in rows]
        return "\n".join(lines)

    def set(self, **settings: str) -> None:
        """Change settings of the running server, and wait until they are in force."""
        for name, value in settings.items():
            self.sql(f"ALTER SYSTEM SET {name} = {value}")
        self.sql("SELECT pg_reload_conf()")
        for name, value in settings.items():
            until(partial(self._has, name, value.strip("'")), f"{name} is {value}")

    def _has(self, name: str, value: str) -> bool:
        return self.sql(f"SHOW {name}", wait_for_standby=True) == value

    def promote(self) -> None:
        self.sql("SELECT pg_promote()")
        until(lambda: self.sql("SELECT pg_is_in_recovery()") == "False", f"{self.name} is the primary")

    def kill(self) -> None:
        """Kill the postmaster and its child processes with SIGKILL, to simulate a power cut."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            with suppress(ProcessLookupError):  # a child ends by itself when the postmaster has ended
                os.kill(pid, signal.SIGKILL)
        self._process.wait(PATIENCE)
        self._process = None

    def stop(self) -> None:
        """Stop the server without waiting for its clients."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(PATIENCE)
            self._process = None


def _text(value: object) -> str:
    return "" if value is None else str(value)


def owned(folder: Path) -> None:
    """Change the owner of `folder` to the servers' account."""
    os.chown(folder, *_owner())


def _owner() -> tuple[int, int]:
    return (UNPRIVILEGED_UID, UNPRIVILEGED_UID) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def as_account() -> list[str]:
    """Return the beginning of a command that runs under the servers' account."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={UNPRIVILEGED_UID}", f"--regid={UNPRIVILEGED_UID}", "--clear-groups"]


@contextmanager
def servers() -> Iterator[Server]:
    """Yield a running server. `Server.standby` can use folders beside the folder of this server."""
    folder = Path(tempfile.mkdtemp(prefix="pam_totp-pg-"))
    folder.chmod(0o755)
    server = Server(folder / "primary")
    server.folder.mkdir()
    owned(server.folder)
    try:
        server.initialise()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@contextmanager
def replicated(settings: Mapping[str, str] | None = None) -> Iterator[tuple[Server, Server]]:
    """Yield a primary and its synchronous standby, both running. `settings` are additional settings of both servers."""
    folder = Path(tempfile.mkdtemp(prefix="pam_totp-pg-"))
    folder.chmod(0o755)
    with servers() as primary:
        if settings:
            primary.stop()
            with (primary.data / "postgresql.conf").open("a") as file:
                file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
            primary.start()
        standby = primary.standby(folder)
        try:
            standby.start()
            primary.set(synchronous_standby_names="'standby'")
            synchronous = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'"
            until(lambda: primary.sql(synchronous) == "1", "the standby is synchronous")
            yield primary, standby
        finally:
            standby.stop()
            shutil.rmtree(folder)


def emptied(server: Server, replication: str = NONE) -> str:
    """Delete the tables of the store, and create them without records. Return the URL of the store."""
    from pam_totp.store.postgres import initialise
    from pam_totp.store.postgres_connection import connect

    deadline = time.monotonic() + PATIENCE
    connection = connect(server.url, deadline)
    # A process to terminate might already have exited, which causes a warning.
    connection.run("SET client_min_messages = error", deadline=deadline)
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND client_port = -1"
    connection.run(others, deadline=deadline)
    connection.run("DROP SCHEMA IF EXISTS pam_totp CASCADE", deadline=deadline)
    connection.close()
    initialise(server.url, replication)
    return server.url
