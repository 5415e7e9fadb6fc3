"""Tests of logins while the primary of a PostgreSQL store is killed, and its synchronous standby is promoted.

Rules:
- An accepted code is never accepted again. No counter decreases.
- A login is refused while the database is out of reach, and logins succeed again afterwards.
- Two processes log in, as on two hosts.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from pam_totp.core.oath import hotp, totp
from pam_totp.store import clock_of
from pam_totp.store.postgres import PostgresStore, initialise
from pam_totp.store.postgres_connection import Connection
from pam_totp.store.postgres_schema import SYNCHRONOUS
from tests.core.racing import in_processes, in_threads
from tests.support.cluster import Server, replicated, with_postgresql
from tests.support.site import KEY, PATIENCE, until
from tests.torture.failover import PHONE, RECOVERY, USERS, Crowd, check, enrol, log_in
from tests.torture.pace import report, rounds

pytestmark = with_postgresql
MANY = 50


def url_of(*cluster: Server) -> str:
    return f"postgresql://owner@/postgres?host={','.join(str(server.folder) for server in cluster)}"


@pytest.mark.timeout(3600)
def test_a_promoted_standby_accepts_no_used_code_again() -> None:
    for number in range(rounds(1, 20)):
        with replicated() as (primary, standby):
            url = url_of(primary, standby)
            initialise(url, SYNCHRONOUS)
            store = PostgresStore(url, wait=PATIENCE)
            for user in USERS:
                enrol(store, user)
            crowd = Crowd([url, url])
            try:
                before = rounds(40, 400)
                until(lambda crowd=crowd, n=before: len(crowd.accepted()) >= n, "the crowd logs in")  # type: ignore[misc]
                primary.kill()
                standby.promote()
                known = len(crowd.accepted())
                degraded = log_in(PostgresStore(url, wait=5.0, pool=1), RECOVERY)
                assert degraded == "unavailable", "the new primary has no standby yet"
                standby.set(synchronous_standby_names="'other'", synchronous_commit="on")
                initialise_without_replication(standby)
                until(lambda crowd=crowd, n=known: len(crowd.accepted()) >= n + 10, "logins succeed again")  # type: ignore[misc]
                crowd.stop()
                accepted, refused = crowd.accepted(), crowd.refused()
            finally:
                crowd.remove()
            check(store, accepted)
            report(f"failover {number + 1}: {len(accepted)} accepted, {refused} refused meanwhile, none again")


def initialise_without_replication(server: Server) -> None:
    """Configure the store for a primary without standbys, like the new primary."""
    server.sql("UPDATE pam_totp.store SET replication = 'none'", "ALTER SYSTEM RESET synchronous_standby_names")
    server.sql("SELECT pg_reload_conf()")
    server.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE client_port = -1"
        " AND pid <> pg_backend_pid() AND application_name = 'pam_totp'"
    )


@pytest.mark.parametrize("ignores_notices", [False, True])
def test_a_store_that_ignores_notices_accepts_a_code_twice(
    monkeypatch: pytest.MonkeyPatch, *, ignores_notices: bool
) -> None:
    """The primary commits without its standby, because an administrator cancels the wait."""
    if ignores_notices:
        monkeypatch.setattr(Connection, "_on_notice", lambda self, result: None)
    with replicated() as (primary, standby):
        url = url_of(primary, standby)
        initialise(url, SYNCHRONOUS)
        store = PostgresStore(url, wait=PATIENCE)
        enrol(store)
        standby.stop()
        words: list[str] = []
        login = threading.Thread(target=lambda: words.append(log_in(store, hotp(KEY, 0))))
        login.start()
        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        until(lambda: primary.sql(waiting), "the commit waits for the standby")
        primary.sql(f"SELECT pg_cancel_backend({primary.sql(waiting)})")
        login.join()
        primary.kill()
        standby.start()
        standby.promote()
        initialise_without_replication(standby)
        words.append(log_in(store, hotp(KEY, 0)))
    assert words == (["code", "code"] if ignores_notices else ["unavailable", "code"])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Yield the URL of an empty store with a synchronous standby."""
    with replicated() as (primary, standby):
        initialise(url_of(primary, standby), SYNCHRONOUS)
        yield url_of(primary, standby)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["hotp", "totp", "recovery"])
def test_only_one_of_fifty_racing_logins_in_two_processes_succeeds(url: str, kind: str) -> None:
    store = PostgresStore(url, wait=PATIENCE)
    for _ in range(rounds(2, 50)):
        enrol(store)
        now = clock_of(store, lambda: 0)()
        answer = {"hotp": hotp(KEY, 0), "totp": totp(PHONE.secret, now, period=86_400), "recovery": RECOVERY}[kind]
        words = racers(url, answer)
        refused = "wrong" if kind == "recovery" else "replayed"
        accepted = "recovery" if kind == "recovery" else "code"
        assert Counter(words) == {accepted: 1, refused: MANY - 1}
    report(f"{MANY} racers in two processes, one answer ({kind}): one success in each round")


def racers(url: str, answer: str) -> list[str]:
    """Log in with one answer, in 25 threads of each of two processes. Return the outcomes."""
    store = PostgresStore(url, PATIENCE, wait=PATIENCE)
    lines = in_processes(2, lambda _: " ".join(in_threads(MANY // 2, lambda _: log_in(store, answer))))
    return [word for line in lines for word in line.split()]
