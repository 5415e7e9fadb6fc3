"""Tests of the epoch of a database: outdated copies are refused, and a fence is complete or has no effect."""

from __future__ import annotations

import time

import pytest

from pam_totp.core.record import UserRecord
from pam_totp.store import StoreError, postgres
from pam_totp.store import postgres_schema as schema
from pam_totp.store.postgres import AlreadyAnswered, PostgresStore, Question, initialise
from pam_totp.store.postgres_fence import Withdrawn, fence, members, others
from pam_totp.store.postgres_members import Members
from pam_totp.store.postgres_state import state_of
from tests.support.cluster import OWNER, Server, servers, with_postgresql
from tests.support.site import PATIENCE, fob

pytestmark = with_postgresql
DIGEST = b"d" * 32


@pytest.fixture
def store(database: str, monkeypatch: pytest.MonkeyPatch) -> PostgresStore:
    monkeypatch.setattr(postgres, "_databases", {})  # the epochs that this process has read
    made = PostgresStore(database, wait=PATIENCE)
    record = UserRecord(user="alice", tokens=(fob(),))
    made.update("alice", lambda _: (record, None), create=True)
    return made


SHORT = 3.0  # seconds: the time limit for retries with an outdated server; a busy machine connects within this time


def set_epoch(server: Server, epoch: int) -> None:
    server.sql(f"UPDATE pam_totp.store SET epoch = {epoch}")


def test_each_fence_begins_a_higher_epoch(store: PostgresStore) -> None:
    first = fence(store).epoch
    assert first is not None
    assert first == pytest.approx(time.time(), abs=60)
    assert fence(store, above=first + 500).epoch == first + 501
    assert fence(store).epoch == first + 502
    assert fence(store, above=None).epoch is None


def test_a_server_with_a_lower_epoch_is_not_used(postgresql: Server, store: PostgresStore) -> None:
    set_epoch(postgresql, 7)
    assert PostgresStore(store.url, wait=PATIENCE, pool=2, epoch=7).read("alice").user == "alice"
    with pytest.raises(StoreError, match="outdated copy of the database: the epoch must be at least 8, not 7"):
        PostgresStore(store.url, wait=SHORT, pool=3, epoch=8).read("alice")


def test_a_process_remembers_the_highest_epoch(postgresql: Server, store: PostgresStore) -> None:
    impatient = PostgresStore(store.url, wait=SHORT)
    store.read("alice")
    set_epoch(postgresql, 7)
    PostgresStore(store.url, wait=PATIENCE, epoch=7).read("alice")  # shares the connections of `impatient`
    set_epoch(postgresql, 6)
    assert impatient.read("alice").user == "alice", "the epoch is read once for each connection"
    terminate_others(postgresql)
    with pytest.raises(StoreError, match="the epoch must be at least 7, not 6"):
        impatient.read("alice")


def terminate_others(server: Server) -> None:
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pam_totp'")


def test_the_next_server_of_the_url_is_used_instead_of_an_outdated_one(
    postgresql: Server, store: PostgresStore
) -> None:
    with servers() as outdated:  # this server accepts writes, like a failed primary that was restarted
        initialise(outdated.url, schema.NONE)
        epoch = fence(store).epoch
        assert epoch is not None
        url = f"postgresql://{OWNER}@/postgres?host={outdated.folder},{postgresql.folder}"
        assert list(PostgresStore(url, wait=PATIENCE, pool=1).users()) == [], "no `epoch`: the first server is used"
        assert list(PostgresStore(url, wait=PATIENCE, pool=2, epoch=epoch).users()) == ["alice"]


def test_tables_of_an_older_version_have_the_epoch_0(postgresql: Server, store: PostgresStore) -> None:
    postgresql.sql("ALTER TABLE pam_totp.store DROP COLUMN epoch, DROP COLUMN cluster")
    terminate_others(postgresql)
    assert PostgresStore(store.url, wait=PATIENCE, pool=5).read("alice").user == "alice"
    with pytest.raises(StoreError, match="does not permit a new epoch"):
        fence(PostgresStore(store.url, wait=PATIENCE, pool=5))
    initialise(store.url)
    assert fence(PostgresStore(store.url, wait=PATIENCE, pool=6)).epoch is not None


def test_a_fence_forgets_verdicts_and_join_tokens(store: PostgresStore) -> None:
    question = Question(DIGEST, lambda result: "yes")
    store.update_once("alice", lambda record: (record.refused_uncounted(), None), question)
    with pytest.raises(AlreadyAnswered):
        store.update_once("alice", lambda record: (record, None), question)
    registered = Members(store)
    registered.add("web1", ["web"], None, DIGEST, 60)
    assert fence(store, forget=False).deleted == 0
    assert registered.joining(DIGEST) == "web1"
    assert fence(store).deleted == 1
    assert registered.joining(DIGEST) is None
    store.update_once("alice", lambda record: (record.refused_uncounted(), None), question)
    assert store.read("alice").refused == 2


def test_rights_are_withdrawn_in_one_transaction(store: PostgresStore) -> None:
    registered = Members(store)
    for number, name in enumerate(("web1", "web2", "web3")):
        registered.add(name, ["a", "b"], None, bytes([number]) * 32, 60)
        registered.join(bytes([number]) * 32, bytes([number]) * 32)
    registered.allow("a", ["all", "staff"])
    registered.put("staff", ["ann", "b/b"])
    withdrawn = Withdrawn(
        revoke=["web1"],
        rejoin=["web2"],
        limit=[("web3", ["a"], ["sshd"]), ("web2", [], None)],
        deny=[("a", "all")],
        take=[("staff", "b/b")],
    )
    fence(store, withdrawn)
    rows = {row.name: row for row in members(store)}
    assert (rows["web1"].is_revoked, rows["web2"].is_revoked) == (True, False)
    assert (rows["web2"].fingerprints, rows["web2"].joined, rows["web2"].groups) == ((), None, ())
    assert (rows["web3"].groups, rows["web3"].services) == (("a",), ("sshd",))
    assert rows["web3"].fingerprints == ("02" * 32,)
    assert registered.groups()[:2] == ({"a": ("staff",)}, {"staff": ("ann",)})


def test_an_unsafe_database_makes_no_change(postgresql: Server, store: PostgresStore) -> None:
    registered = Members(store)
    registered.add("web1", ["a"], None, DIGEST, 60)
    initialise(store.url, schema.SYNCHRONOUS)
    strict = PostgresStore(store.url, wait=PATIENCE, pool=7)
    with pytest.raises(StoreError, match="does not keep changes safely: synchronous_standby_names is empty"):
        fence(strict, Withdrawn(revoke=["web1"]))
    assert [row.is_revoked for row in members(store)] == [False]
    initialise(store.url, schema.NONE)


def test_the_server_is_noted_at_the_first_tables_and_at_a_fence(postgresql: Server, store: PostgresStore) -> None:
    identifier = postgresql.sql(schema.CLUSTER)
    assert identifier.startswith(postgresql.sql("SELECT system_identifier FROM pg_control_system()"))
    assert postgresql.sql("SELECT cluster FROM pam_totp.store") == identifier
    postgresql.sql("UPDATE pam_totp.store SET cluster = '1'")
    initialise(store.url)
    assert postgresql.sql("SELECT cluster FROM pam_totp.store") == "1", "`initialise` must not hide a restore"
    fence(store)
    assert postgresql.sql("SELECT cluster FROM pam_totp.store") == identifier


def test_the_role_of_an_authority_begins_epochs_and_sees_restored_dumps(
    postgresql: Server, store: PostgresStore
) -> None:
    postgresql.sql("DROP ROLE IF EXISTS plain", "CREATE ROLE plain LOGIN")
    url = store.url.replace(f"{OWNER}@", "plain@")
    try:
        initialise(store.url, grant="plain")
        postgresql.sql("REVOKE UPDATE (epoch, cluster) ON pam_totp.store FROM plain")
        with pytest.raises(
            StoreError, match=r"does not permit a new epoch \(run 'pam-totp store init URL --grant ROLE'"
        ):
            fence(PostgresStore(url, wait=PATIENCE))
        initialise(store.url, grant="plain")
        postgresql.sql("UPDATE pam_totp.store SET cluster = '1/1'")
        assert state_of(url, PATIENCE).is_moved
        assert fence(PostgresStore(url, wait=PATIENCE)).epoch is not None
        assert not state_of(url, PATIENCE).is_moved
    finally:
        postgresql.sql("DROP OWNED BY plain", "DROP ROLE plain")


def test_other_connections_are_counted(store: PostgresStore) -> None:
    alone = PostgresStore(store.url, wait=PATIENCE, pool=1)
    before = others(alone)
    busy = PostgresStore(store.url, wait=PATIENCE, pool=8)
    busy.read("alice")
    assert others(alone) == before + 1
