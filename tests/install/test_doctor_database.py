"""Tests of doctor's findings about the database of a store, each on a PostgreSQL server that causes it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pam_totp.core.record import UserRecord
from pam_totp.store import StoreError
from pam_totp.store.postgres import PostgresStore, initialise
from pam_totp.store.postgres_fence import fence
from pam_totp.store.postgres_schema import NONE, SYNCHRONOUS
from pam_totp.system import database, service_network
from pam_totp.system.doctor import checks_database, checks_people
from pam_totp.system.doctor.checks_machine import store
from pam_totp.system.doctor.context import Context
from pam_totp.system.machine import Machine
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding, Severity
from tests.conftest import as_root
from tests.support.cluster import Server, as_account, emptied, owned, with_postgresql
from tests.support.site import PATIENCE, fob, until

pytestmark = with_postgresql
PGBOUNCER = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")
FOLLOWING = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state IN ('sync', 'potential')"


@pytest.fixture(scope="module")
def standbys(postgresql: Server) -> Iterator[list[Server]]:
    """Yield two running standbys of the session's server."""
    made = []
    try:
        for name in ("near", "far"):
            folder = Path(tempfile.mkdtemp(prefix="pam_totp-pg-"))
            folder.chmod(0o755)
            made.append(postgresql.standby(folder, name))
            made[-1].start()
        yield made
    finally:
        for standby in made:
            standby.stop()
            shutil.rmtree(standby.folder)


@pytest.fixture
def url(postgresql: Server, standbys: list[Server]) -> Iterator[str]:
    """Yield the URL of a store that requires a standby, in a database with two standbys."""
    url = emptied(postgresql)
    postgresql.set(synchronous_standby_names="'near, far'")
    until(lambda: postgresql.sql(FOLLOWING) == "2", "one standby is synchronous, the other potential")
    initialise(url, SYNCHRONOUS)
    yield url
    postgresql.sql("ALTER SYSTEM RESET ALL", "ALTER ROLE owner RESET ALL", "SELECT pg_reload_conf()")
    until(lambda: postgresql.sql("SHOW synchronous_standby_names") == "", "all settings are reset")


def examine(url: str, folder: Path, wait: float = PATIENCE, more: str = "") -> list[Finding]:
    """Return the findings about the store of a host without a pam_totp.so line, such as an authority."""
    (folder / "etc").mkdir(exist_ok=True)
    site = folder / "etc" / "pam_totp.toml"
    site.write_text(f'[store]\nurl = "{url}"\nwait = {wait}\n{more}')
    site.chmod(0o644)
    return list(store(Context(Machine(str(folder)), [])))


def codes(findings: list[Finding]) -> list[tuple[Severity, Code]]:
    return [(finding.severity, finding.code) for finding in findings]


def test_a_database_with_two_standbys_has_no_findings(url: str, tmp_path: Path) -> None:
    assert examine(url, tmp_path) == []


def test_a_database_without_the_epoch_of_the_site_file_is_outdated(url: str, tmp_path: Path) -> None:
    epoch = fence(PostgresStore(url, wait=PATIENCE, pool=1)).epoch
    [finding] = examine(url, tmp_path)
    assert (finding.severity, finding.code) == (NOTE, Code.DATABASE_EPOCH)
    assert finding.remedy == f"set epoch = {epoch} in [store] of /etc/pam_totp.toml"
    assert examine(url, tmp_path, more=f"epoch = {epoch}\n") == []
    [finding] = examine(url, tmp_path, more=f"epoch = {(epoch or 0) + 1}\n")
    assert (finding.severity, finding.code) == (ERROR, Code.DATABASE_OUTDATED)
    assert "run 'pam-totp authority restore --log FILE...'" in finding.remedy


def test_a_database_of_another_server_is_a_warning_until_a_fence(url: str, postgresql: Server, tmp_path: Path) -> None:
    postgresql.sql("UPDATE pam_totp.store SET cluster = '1'")
    [finding] = examine(url, tmp_path)
    assert (finding.severity, finding.code) == (WARNING, Code.DATABASE_RESTORED)
    epoch = fence(PostgresStore(url, wait=PATIENCE, pool=1), forget=False).epoch
    assert examine(url, tmp_path, more=f"epoch = {epoch}\n") == []


def test_a_single_standby_is_a_warning(url: str, postgresql: Server, standbys: list[Server], tmp_path: Path) -> None:
    standbys[0].stop()
    try:
        until(lambda: postgresql.sql(FOLLOWING) == "1", "the other standby is synchronous")
        [finding] = examine(url, tmp_path)
    finally:
        standbys[0].start()
    assert (finding.severity, finding.check, finding.code) == (WARNING, "store", Code.DATABASE_ONE_STANDBY)
    assert finding.what == "the database has one standby; every code is refused while this standby is not connected"
    assert finding.remedy == "add a second standby, at another site or zone"


def test_a_standby_that_is_not_synchronous_is_an_error(url: str, postgresql: Server, tmp_path: Path) -> None:
    postgresql.set(synchronous_standby_names="'third'")
    [finding] = examine(url, tmp_path)
    assert (finding.severity, finding.code) == (ERROR, Code.DATABASE_NO_STANDBY)
    assert finding.what == "every code is refused until a synchronous standby connects"


SETTINGS = {
    "synchronous_standby_names = ''": (
        ERROR,
        Code.DATABASE_REFUSED,
        "every code is refused: synchronous_standby_names is empty",
        "set synchronous_standby_names (with Patroni: synchronous_mode and synchronous_mode_strict)",
    ),
    "synchronous_commit = 'local'": (
        ERROR,
        Code.DATABASE_REFUSED,
        "every code is refused: synchronous_commit is local",
        "set synchronous_commit = on for the server, the database and the role owner",
    ),
    "client_min_messages = 'error'": (
        ERROR,
        Code.DATABASE_REFUSED,
        "every code is refused: client_min_messages hides warnings",
        "remove client_min_messages from the settings of the server and of the role owner",
    ),
    "fsync = 'off'": (
        ERROR,
        Code.DATABASE_REFUSED,
        "every code is refused: fsync is off",
        "set fsync = on in the settings of the server, and reload the server",
    ),
    "full_page_writes = 'off'": (
        WARNING,
        Code.DATABASE_TORN_PAGES,
        "full_page_writes is off: a power failure can damage records of the database",
        "set full_page_writes = on in the settings of the server, and reload the server",
    ),
    "statement_timeout = '90s'": (
        WARNING,
        Code.DATABASE_TIMEOUT,
        "statement_timeout is 90s: this setting cancels an answer that waits for the standby",
        "run 'ALTER ROLE owner SET statement_timeout = 0' in the database",
    ),
    "idle_in_transaction_session_timeout = '1min'": (
        WARNING,
        Code.DATABASE_TIMEOUT,
        "idle_in_transaction_session_timeout is 1min: this setting ends an import or a copy of the store",
        "run 'ALTER ROLE owner SET idle_in_transaction_session_timeout = 0' in the database",
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_that_loses_or_refuses_changes_is_found(
    url: str, postgresql: Server, tmp_path: Path, setting: str
) -> None:
    name, value = setting.split(" = ")
    postgresql.set(**{name: value})
    severity, code, what, remedy = SETTINGS[setting]
    assert examine(url, tmp_path) == [Finding(severity, "store", code, what, remedy)]


def test_a_timeout_of_the_role_is_found(url: str, postgresql: Server, tmp_path: Path) -> None:
    postgresql.sql("ALTER ROLE owner SET statement_timeout = '1h'")
    assert codes(examine(url, tmp_path)) == [(WARNING, Code.DATABASE_TIMEOUT)]


def test_a_role_that_may_not_see_the_standbys_is_a_note(url: str, postgresql: Server, tmp_path: Path) -> None:
    postgresql.sql("DROP ROLE IF EXISTS authority", "CREATE ROLE authority LOGIN")
    initialise(url, None, "authority")
    try:
        [finding] = examine(url.replace("owner@", "authority@"), tmp_path)
        assert (finding.severity, finding.code) == (NOTE, Code.DATABASE_STANDBYS_HIDDEN)
        assert finding.remedy == "run 'GRANT pg_read_all_stats TO authority' as a superuser of the database"
        postgresql.sql("GRANT pg_read_all_stats TO authority")
        assert examine(url.replace("owner@", "authority@"), tmp_path) == []
    finally:
        postgresql.sql("DROP OWNED BY authority", "DROP ROLE authority")


def test_a_store_that_requires_no_standby_is_a_note(url: str, tmp_path: Path) -> None:
    initialise(url, NONE)
    [finding] = examine(url, tmp_path)
    assert (finding.severity, finding.code) == (NOTE, Code.DATABASE_NOT_REPLICATED)
    assert finding.remedy == "add a synchronous standby, and run 'pam-totp store init URL --replication synchronous'"


def test_a_clock_that_is_a_second_off_is_a_warning(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    for seconds, where in ((-2.0, "2.0 s ahead of"), (3.0, "3.0 s behind")):
        monkeypatch.setattr(time, "time", lambda off=seconds: real() + off)
        [finding] = examine(url, tmp_path)
        assert (finding.severity, finding.code) == (WARNING, Code.DATABASE_CLOCK)
        assert finding.what == f"the clock of the database, which decides about TOTP codes, is {where} this host's"


def test_a_slow_round_trip_is_a_warning(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_database, "_LONGEST_TRIP", 0.0)
    [finding] = examine(url, tmp_path)
    assert (finding.severity, finding.code) == (WARNING, Code.DATABASE_SLOW)
    assert finding.what.startswith("a round trip to the database takes ")


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("DROP SCHEMA pam_totp CASCADE", "every code is refused: the database has no tables of pam_totp"),
        ("DELETE FROM pam_totp.store", "every code is refused: the database has no tables of pam_totp"),
        (
            "UPDATE pam_totp.store SET version = 2",
            "every code is refused: the database has tables of version 2, but this pam_totp needs 1",
        ),
    ],
)
def test_missing_tables_are_an_error(url: str, postgresql: Server, tmp_path: Path, statement: str, what: str) -> None:
    postgresql.sql("SET client_min_messages = warning", statement)
    found = examine(url, tmp_path)
    assert codes(found) == [(ERROR, Code.DATABASE_TABLES)]
    assert found[0].what == what


def test_records_that_were_copied_away_are_one_error(url: str, postgresql: Server, tmp_path: Path) -> None:
    postgresql.sql("ALTER TABLE pam_totp.record RENAME TO copied_record")
    [finding] = examine(url, tmp_path)
    assert (finding.severity, finding.code) == (ERROR, Code.DATABASE_TABLES)
    assert finding.what == "every code is refused here: the records were copied from this database to another store"
    assert finding.remedy == "use that store (see [store] of the site file), or create a new database for a new fleet"


def test_a_damaged_record_in_a_database_is_an_error(
    url: str, postgresql: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = UserRecord(user="alice", tokens=(fob(),))
    PostgresStore(url, wait=PATIENCE).update("alice", lambda _: (record, None), create=True)
    postgresql.sql("UPDATE pam_totp.record SET version = version + 1, body = '{}'")
    monkeypatch.setattr(Context, "people", property(lambda _: ["alice"]))
    [finding] = examine(url, tmp_path)
    assert (finding.severity, finding.code) == (ERROR, Code.RECORD_UNREADABLE)
    assert finding.what.startswith("alice: ")


def with_su(folder: Path) -> None:
    """Write a stack that asks for a code. The store is that of the site file."""
    (folder / "etc" / "pam.d").mkdir(parents=True)
    (folder / "etc" / "pam.d" / "su").write_text("auth required pam_unix.so\nauth required pam_totp.so\n")


@as_root
def test_users_of_a_database_are_not_reported_as_locked_out(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_su(tmp_path)
    examine(url, tmp_path)
    monkeypatch.setattr(Context, "people", property(lambda _: ["root", "daemon"]))
    monkeypatch.setattr(checks_people, "login_check", lambda _: lambda name: True)
    context = Context(Machine(str(tmp_path)), ["su"], user="root")
    assert [f.code for f in checks_people.users(context)] == [Code.USER_WITHOUT_TOKEN]
    record = UserRecord(user="root", tokens=(fob(),))
    PostgresStore(url, wait=PATIENCE).update("root", lambda _: (record, None), create=True)
    context = Context(Machine(str(tmp_path)), ["su"], user="root")
    [finding] = checks_people.users(context)
    assert finding.what == "su: these users have no token and are locked out: daemon"


def test_a_unit_without_a_network_is_an_error_for_logins(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_network, "obstacle", lambda: "PrivateNetwork=yes")
    assert examine(url, tmp_path) == [], "no login of this host asks for a code"
    with_su(tmp_path)
    [finding] = store(Context(Machine(str(tmp_path)), ["su"]))
    assert (finding.severity, finding.code) == (ERROR, Code.SERVICE_WITHOUT_NETWORK)
    assert finding.what == (
        "every login here is refused: the unit pam_totp.service blocks the network (PrivateNetwork=yes)"
    )


def test_a_database_out_of_reach_is_one_error(tmp_path: Path) -> None:
    [finding] = examine(f"postgresql:///x?host={tmp_path}", tmp_path, wait=1.0)
    assert (finding.severity, finding.code) == (ERROR, Code.STORE_UNREACHABLE)
    assert finding.what.startswith("every code is refused: the database is out of reach: ")


def test_a_password_in_the_url_is_an_error_without_the_password(tmp_path: Path) -> None:
    for url in ("postgresql://owner:hunter2@db1/otp", "postgresql://db1/otp?password=hunter2"):
        [finding] = examine(url, tmp_path)
        assert (finding.severity, finding.code) == (ERROR, Code.DATABASE_PASSWORD)
        assert "hunter2" not in finding.what + finding.remedy


def test_a_missing_library_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise StoreError("a store in PostgreSQL needs psycopg: no module named 'psycopg'")

    monkeypatch.setattr(database, "postgres", fails)
    assert examine("postgresql:///x", tmp_path) == [
        Finding(
            ERROR,
            "store",
            Code.DATABASE_LIBRARY,
            "every code is refused: a store in PostgreSQL needs psycopg: no module named 'psycopg'",
            "run 'apt-get install python3-psycopg'",
        )
    ]


# ---- a pooler


@pytest.fixture
def pooler(postgresql: Server, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Yield a function that starts pgbouncer in a pool mode, and returns the store's URL through pgbouncer."""
    if PGBOUNCER is None:
        pytest.skip("needs the package pgbouncer")
    folder = Path(tempfile.mkdtemp(prefix="pam_totp-pooler-"))
    owned(folder)
    running: list[subprocess.Popen[bytes]] = []

    def start(mode: str) -> str:
        (folder / "users").write_text('"owner" ""\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\npostgres = host={postgresql.folder}\n[pgbouncer]\nunix_socket_dir = {folder}\n"
            f"listen_port = 6432\nauth_type = trust\nauth_file = {folder}/users\npool_mode = {mode}\n"
        )
        command = [*as_account(), str(PGBOUNCER), "-q", str(folder / "pgbouncer.ini")]
        running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        until((folder / ".s.PGSQL.6432").exists, "the pooler listens")
        return f"postgresql://owner@/postgres?host={folder}&port=6432"

    yield start
    for process in running:
        process.kill()
        process.wait()
    shutil.rmtree(folder)


@pytest.mark.parametrize(("mode", "kind"), [("session", "a pooler"), ("transaction", "a pooler in transaction mode")])
def test_a_pooler_is_a_warning(url: str, pooler: Callable[[str], str], tmp_path: Path, mode: str, kind: str) -> None:
    [finding] = examine(pooler(mode), tmp_path)
    assert (finding.severity, finding.code) == (WARNING, Code.DATABASE_POOLER)
    assert finding.what == (
        f"{kind} is between this host and the database: its query_timeout cancels the wait for the standby"
    )


# ---- Patroni


@pytest.fixture
def patroni(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Yield the settings that a fake Patroni returns, on the address in Patroni's configuration."""
    settings: dict[str, Any] = {"synchronous_mode": True, "synchronous_mode_strict": True}

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(settings).encode() if self.path == "/config" else b""
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    folder = tmp_path / "etc" / "patroni"
    folder.mkdir(parents=True)
    (folder / "config.yml").write_text(
        f"scope: otp\nrestapi:  # here\n  listen: 0.0.0.0:8008\n\n  connect_address: 127.0.0.1:{server.server_port}\n"
        "postgresql:\n  connect_address: db1:5432\n"
    )
    yield settings
    server.shutdown()
    thread.join()
    server.server_close()


def of_patroni(folder: Path, **state: object) -> list[Finding]:
    context = Context(Machine(str(folder)), [])
    return list(checks_database._patroni(context, {"is_patroni": True, "replication": SYNCHRONOUS, **state}))


def test_a_patroni_that_is_strict_has_no_findings(patroni: dict[str, Any], tmp_path: Path) -> None:
    assert of_patroni(tmp_path) == []


@pytest.mark.parametrize("name", ["synchronous_mode", "synchronous_mode_strict"])
@pytest.mark.parametrize("value", [False, "true", None])
def test_a_patroni_that_is_not_strict_is_an_error(
    patroni: dict[str, Any], tmp_path: Path, name: str, value: object
) -> None:
    patroni[name] = value
    what = f"{name} of Patroni must be true: every code is refused when the last standby is lost"
    remedy = f"run 'patronictl -c /etc/patroni/config.yml edit-config --set {name}=true'"
    assert of_patroni(tmp_path) == [Finding(ERROR, "store", Code.PATRONI_NOT_STRICT, what, remedy)]
    assert of_patroni(tmp_path, is_patroni=False) == []
    assert of_patroni(tmp_path, replication=NONE) == []


def test_a_patroni_on_other_hosts_is_a_note_that_lists_the_checks(tmp_path: Path) -> None:
    note = [(NOTE, Code.PATRONI_NOT_CHECKED)]
    assert codes(of_patroni(tmp_path)) == note
    (tmp_path / "etc" / "patroni").mkdir(parents=True)
    file = tmp_path / "etc" / "patroni" / "config.yml"
    with socket.socket() as unused:  # its port refuses connections
        unused.bind(("127.0.0.1", 0))
        for text in ("", "restapi:\n", f"restapi:\n  connect_address: 127.0.0.1:{unused.getsockname()[1]}\n"):
            file.write_text(text)
            assert codes(of_patroni(tmp_path)) == note
    os.unlink(file)
