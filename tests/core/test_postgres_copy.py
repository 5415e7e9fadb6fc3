"""Tests of `pam-totp store copy`: every record is copied, and afterwards only one store accepts logins."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from pam_totp.core.answer import Answer
from pam_totp.core.policy import Policy
from pam_totp.core.record import UserRecord
from pam_totp.core.secretfile import serialize
from pam_totp.operations import stock
from pam_totp.operations.authenticate import decide
from pam_totp.store import Store, StoreError, postgres_copy, upkeep
from pam_totp.store.file import FileStore
from pam_totp.store.locations import opened
from pam_totp.store.postgres import PostgresStore, initialise
from pam_totp.store.postgres_copy import Copied, to_database, to_folder
from pam_totp.store.postgres_schema import SYNCHRONOUS
from pam_totp.store.stock import stock_of
from tests.core.stores import NOW, code, enrol, enrol_1
from tests.core.test_stock import code as stock_code
from tests.core.test_stock import entry
from tests.support.cluster import Server, with_postgresql
from tests.support.site import PATIENCE, fob, phone, until

pytestmark = with_postgresql
USERS = ["alice", ".hidden", "a/b", "Ä", *(f"user{n}" for n in range(8))]


@pytest.fixture
def full(folder: Path) -> Path:
    """Return a folder with the records of USERS, after the first login of alice."""
    store = FileStore(str(folder))
    store.prepare()
    for number, user in enumerate(USERS):
        tokens = fob(serial=f"S-{number}"), phone()
        enrol(folder, user, file=store.file_of(user), tokens=tokens, failures=1, failures_at=number)
    assert log_in(store, code(0)) == "code"
    return folder


def log_in(store: Store, answer: bytes, user: str = "alice") -> str:
    """Log `user` in with `answer`. Return the outcome, or `unavailable` with the reason."""
    try:
        return decide(store, user, Answer.parse(answer), Policy(), lambda: NOW).outcome.value
    except StoreError as e:
        return f"unavailable: {e}"


def documents(store: Store) -> dict[str, bytes]:
    return {user: serialize(store.read(user)) for user in store.users()}


def to_db(folder: Path, url: str) -> Copied:
    return to_database(str(folder), url, nullcontext)


def back(url: str, folder: Path) -> Copied:
    return to_folder(url, str(folder), (os.geteuid(), os.getegid()), nullcontext)


@pytest.mark.parametrize("at_once", [1, 500])
def test_a_copy_to_a_database_and_back_keeps_the_stock(
    full: Path, database: str, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(postgres_copy, "AT_ONCE", at_once)
    before = FileStore(str(full))
    stock_of(before).add([entry(f"T-{n}") for n in range(5)])
    stock.assign(before, "T-1", "alice", now=NOW)
    stock.assign(before, "T-2", "newcomer", now=NOW, codes=stock_code("T-2", 0))
    stock.give_back(before, "T-2", now=NOW)
    expected = list(stock.items(before))
    assert len(expected) == 5
    to_db(full, database)
    store = PostgresStore(database, wait=PATIENCE)
    assert list(stock.items(store)) == expected
    with pytest.raises(stock.StockError, match="alice has the token"):
        stock.assign(store, "T-1", "bob", now=NOW)
    stock.assign(store, "T-3", "a/b", now=NOW)
    expected = list(stock.items(store))
    back(database, full)
    again = FileStore(str(full))
    assert list(stock.items(again)) == expected
    assert [defect.text for defect in upkeep.examine(again)] == []
    stock.unassign(again, "T-3", now=NOW)
    with pytest.raises(StoreError, match="no table of the stock"):
        stock.list_free(store)


@pytest.mark.parametrize("at_once", [1, 5, len(USERS), 500])
def test_a_copy_to_a_database_and_back_keeps_every_byte(
    full: Path, database: str, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(postgres_copy, "AT_ONCE", at_once)
    before = documents(FileStore(str(full)))
    assert len(before) == len(USERS)
    assert to_db(full, database) == Copied(len(USERS), f"{full}.copied")
    store = PostgresStore(database, wait=PATIENCE)
    assert documents(store) == before
    assert store.owner_of_serial("s3") == "Ä"
    assert log_in(store, code(0)) == "replayed"
    assert log_in(store, code(1)) == "code"
    before = documents(store)
    assert back(database, full) == Copied(len(USERS), "pam_totp.copied_record")
    assert documents(FileStore(str(full))) == before
    assert log_in(FileStore(str(full)), code(1)) == "replayed"
    assert log_in(FileStore(str(full)), code(2)) == "code"
    assert log_in(FileStore(str(full)), code(2), "unknown") == "not-enrolled"
    assert log_in(store, code(2)).startswith("unavailable: ")
    for left in (PostgresStore(database), PostgresStore(database)):  # two connections
        with pytest.raises(StoreError, match=r"^the database has no tables of pam_totp: they were copied to another"):
            left.read("alice")
    with pytest.raises(StoreError, match="the records were copied to another store"):
        initialise(database)


@pytest.fixture
def server(postgresql: Server) -> Server:
    return postgresql


def test_a_copied_folder_is_refused_under_its_old_and_new_name(full: Path, database: str) -> None:
    store = FileStore(str(full))
    to_db(full, database)
    for refused in (store, FileStore(f"{full}.copied"), opened(str(full))):
        for user in ("alice", "unknown"):
            assert log_in(refused, code(1), user).startswith("unavailable: ")
    with pytest.raises(StoreError):
        list(store.users())
    full.unlink()
    Path(f"{full}.copied").rename(full)
    assert log_in(store, code(1)).startswith("unavailable: "), "a renamed folder remains refused"


def test_a_copy_waits_for_a_login_and_refuses_the_next(full: Path, database: str) -> None:
    """One login holds the lock when the copy starts. Another login has opened the folder, and waits for the lock."""
    store, words = FileStore(str(full), PATIENCE), list[object]()
    begun, go_on = threading.Event(), threading.Event()

    def holds() -> None:
        def change(record: UserRecord) -> tuple[UserRecord, str]:
            begun.set()
            assert go_on.wait(PATIENCE)
            return record.refused_uncounted(), "held"

        words.append(store.update("alice", change))

    holder = threading.Thread(target=holds)
    holder.start()
    assert begun.wait(PATIENCE)
    with store.opened() as folder:
        copy = threading.Thread(target=lambda: words.append(to_db(full, database).records))
        copy.start()
        until(lambda: Path(f"{full}.copying").is_dir(), "the copy has begun")
        go_on.set()
        holder.join()
        copy.join()
        with pytest.raises(OSError, match="Is a directory"), store.locked(folder, "alice.record"):
            pass
    assert words == ["held", len(USERS)]
    assert PostgresStore(database).read("alice").refused == 1


@pytest.mark.parametrize("problem", ["damaged", "not empty", "one serial", "no tables", "no standby", "out of reach"])
def test_a_copy_that_fails_leaves_the_folder_in_use(
    server: Server, full: Path, database: str, problem: str, tmp_path: Path
) -> None:
    url = database
    if problem == "damaged":
        (full / "user7.record").write_bytes(b"x")
    elif problem == "not empty":
        PostgresStore(url).update("zoe", lambda record: (record, None), create=True)
    elif problem == "one serial":
        enrol(full, "zoe", tokens=(fob(serial="s3"),))
    elif problem == "no tables":
        server.sql("DROP SCHEMA pam_totp CASCADE")
    elif problem == "no standby":
        initialise(url, SYNCHRONOUS)
    else:
        url = f"postgresql:///x?host={tmp_path}"
    with pytest.raises(StoreError):
        to_db(full, url)
    assert log_in(FileStore(str(full)), code(1)) == "code"
    assert not Path(f"{full}.copying").exists()
    if problem not in ("no tables", "out of reach"):
        assert list(PostgresStore(database).users()) == (["zoe"] if problem == "not empty" else [])


def test_a_file_of_version_1_is_copied_too(folder: Path, database: str) -> None:
    enrol_1(folder)
    assert to_db(folder, database).records == 1
    assert PostgresStore(database).read("alice").tokens == (fob(),)


def dies(work: Callable[[], object], where: str, monkeypatch: pytest.MonkeyPatch, *, after: bool = False) -> None:
    """Run `work` in a child process that kills itself before a call of `postgres_copy.<where>`.

    The child process kills itself after the call if `after` is True.
    """
    child = os.fork()
    if child == 0:
        original = getattr(postgres_copy, where)

        def die(*arguments: object) -> None:
            if after:
                original(*arguments)
            os.kill(os.getpid(), 9)

        monkeypatch.setattr(postgres_copy, where, die)
        try:
            work()
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


@pytest.mark.parametrize(
    ("where", "after"), [("_rename", True), ("_write_rows", False), ("_write_rows", True), ("_refuse", False),
                         ("_refuse", True), ("_put_notice", False), ("_put_notice", True)]
)  # fmt: skip
def test_after_a_kill_no_two_stores_accept_logins_and_a_copy_completes(
    full: Path, database: str, monkeypatch: pytest.MonkeyPatch, where: str, *, after: bool
) -> None:
    dies(lambda: to_db(full, database), where, monkeypatch, after=after)
    assert log_in(FileStore(str(full)), code(1)).startswith("unavailable: ")
    assert to_db(full, database).records == len(USERS)
    assert log_in(PostgresStore(database), code(1)) == "code"
    assert log_in(FileStore(str(full)), code(1)).startswith("unavailable: ")


@pytest.mark.parametrize(("where", "after"), [("_make_folder", True), ("_write_files", True), ("_rename", False)])
def test_after_a_kill_a_copy_back_completes(
    full: Path, database: str, monkeypatch: pytest.MonkeyPatch, where: str, *, after: bool
) -> None:
    to_db(full, database)
    dies(lambda: back(database, full), where, monkeypatch, after=after)
    assert log_in(FileStore(str(full)), code(1)).startswith("unavailable: ")
    word = log_in(PostgresStore(database), code(1))
    assert word.startswith("unavailable: ") if where == "_rename" else word == "code"
    assert back(database, full).records == len(USERS)
    assert log_in(FileStore(str(full)), code(2)) == "code"
    assert log_in(PostgresStore(database), code(3)).startswith("unavailable: ")


def test_a_resumed_copy_never_enables_the_folder(full: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts can use the database after the commit, so the folder's records might be outdated."""
    dies(lambda: to_db(full, database), "_refuse", monkeypatch)
    assert log_in(PostgresStore(database), code(1)) == "code"
    with pytest.raises(StoreError, match="exist, and differ from those of the folder"):
        to_db(full, database)
    assert log_in(FileStore(str(full)), code(1)).startswith("unavailable: ")


def test_an_existing_folder_is_not_overwritten(full: Path, database: str) -> None:
    with pytest.raises(StoreError, match="already exists"):
        back(database, full)
    assert log_in(FileStore(str(full)), code(1)) == "code"
