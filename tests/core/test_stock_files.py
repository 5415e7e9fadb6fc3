"""Tests of the stock in a file store: kills at each step of a change, races, doctor, and the speed of an import."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from pam_totp.core.oath import hotp
from pam_totp.core.record import HotpToken
from pam_totp.core.secretfile import base32
from pam_totp.core.serials import serial_key
from pam_totp.operations import stock
from pam_totp.store import NotThere, StoreError, claims, stock_entries, stock_files, upkeep
from pam_totp.store.file import FileStore
from pam_totp.store.stock import StockEntry, stock_of
from tests.core.stores import LOCK_TIMEOUT, emptied
from tests.core.test_claims import give, take_away
from tests.core.test_claims import token as token_of
from tests.support.nth_call import killed

# The system calls by which the store makes a change durable, by the name of the function in `os`.
CALLS = ["symlink", "fsync", "link", "unlink", "write", "mkdir", "rename", "pwritev", "rmdir", "close"]
NOW = 1_700_000_000


def key(serial: str) -> bytes:
    return serial.encode().rjust(20, b".")


def entry(serial: str, batch: str | None = "box", counter: int = 0) -> StockEntry:
    token = HotpToken(name="token", secret=key(serial), serial=serial, created=1, confirmed=False, counter=counter)
    return StockEntry(serial=serial, batch=batch, imported=1, token=token)


def codes(serial: str, counter: int, count: int = 1) -> bytes:
    return "".join(hotp(key(serial), counter + i) for i in range(count)).encode()


@pytest.fixture
def store(folder: Path) -> FileStore:
    return FileStore(str(folder), LOCK_TIMEOUT)


def places(store: FileStore, serial: str) -> list[str]:
    """Return the owners of `serial`: each user whose record contains the token, and `stock` for the stock."""
    own = serial_key(serial)
    users = [u for u in sorted(store.users()) if any(serial_key(t.serial or "") == own for t in store.read(u).tokens)]
    found = stock.find(store, serial)
    return users + (["stock"] if found is not None and found.token is not None else [])


def keys_in_stock(store: FileStore, serial: str) -> int:
    """Return the number of stock files that contain the key of the token `serial`."""
    text = base32(key(serial)).encode()
    files = [path for path in Path(store.folder).glob(".stock*/*") if path.is_file()]
    return sum(text in path.read_bytes() for path in files)


def counter(store: FileStore, serial: str) -> int:
    """Return the counter of the token `serial`, which has exactly one owner."""
    (place,) = places(store, serial)
    if place == "stock":
        found = stock.find(store, serial)
        token = None if found is None else found.token
    else:
        token = next(t for t in store.read(place).tokens if serial_key(t.serial or "") == serial_key(serial))
    assert isinstance(token, HotpToken)
    return token.counter


# ---- kills


def hand_out(store: FileStore) -> None:
    stock.assign(store, "T-1", "alice", now=NOW)


def hand_out_confirmed(store: FileStore) -> None:
    stock.assign(store, "T-1", "alice", now=NOW, codes=codes("T-1", 0))


def unassign(store: FileStore) -> None:
    stock.unassign(store, "T-1", now=NOW)


def give_back(store: FileStore) -> None:
    stock.give_back(store, "T-1", now=NOW)


def replace(store: FileStore) -> None:
    stock.replace(store, "T-1", "T-2", now=NOW, codes=codes("T-2", 0))


def replace_lost(store: FileStore) -> None:
    stock.replace(store, "T-1", "T-2", now=NOW, codes=codes("T-2", 0), lost=True)


def remove(store: FileStore) -> None:
    stock.remove(store, "T-1")


def remove_user(store: FileStore) -> None:
    store.update("alice", lambda _: (None, None))


# (changes before the kill, the killed change, serial numbers that might be without an owner afterwards)
CHANGES: dict[str, tuple[list[Callable[[FileStore], None]], Callable[[FileStore], None], set[str]]] = {
    "assign": ([], hand_out, set()),
    "assign-confirmed": ([], hand_out_confirmed, set()),
    "unassign": ([hand_out], unassign, set()),
    "return": ([hand_out_confirmed], give_back, set()),
    "assign-again": ([hand_out_confirmed, give_back], hand_out, set()),
    "replace": ([hand_out_confirmed], replace, set()),
    "replace-lost": ([hand_out_confirmed], replace_lost, {"T-1"}),
    "remove": ([], remove, {"T-1"}),
    "remove-user": ([hand_out_confirmed], remove_user, {"T-1"}),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("what", CHANGES)
def test_a_kill_of_a_change_leaves_each_token_one_owner(folder: Path, store: FileStore, what: str, call: str) -> None:
    before, change, may_go = CHANGES[what]
    store.prepare()
    number, kills = 1, 0
    while True:
        emptied(folder)
        stock_of(store).add([entry("T-1"), entry("T-2")])
        for step in before:
            step(store)
        counters = {serial: counter(store, serial) for serial in ("T-1", "T-2")}
        if not killed(lambda: change(store), call, number):
            break
        number, kills = number + 1, kills + 1
        found = {serial: places(store, serial) for serial in counters}
        for serial, owners in found.items():
            assert len(owners) == 1 or (serial in may_go and not owners), (what, call, number, serial, owners)
            if owners:
                assert counter(store, serial) >= counters[serial], "a counter must not decrease"
                user = None if owners == ["stock"] else owners[0]
                assert store.owner_of_serial(serial) == user
        list(upkeep.repair(store))
        assert {serial: places(store, serial) for serial in counters} == found, "a repair changes no owner"
        assert [defect.text for defect in upkeep.examine(store)] == []
        for serial, owners in found.items():
            assert keys_in_stock(store, serial) == (owners == ["stock"]), "a key is either in the stock or in a record"
    if call in ("fsync", "close"):
        assert kills, "at least one kill interrupted the change"


@pytest.mark.parametrize("call", CALLS)
def test_the_next_command_works_after_a_kill_of_an_assignment(folder: Path, store: FileStore, call: str) -> None:
    """The token can be assigned to bob before any repair, unless the killed process assigned the token to alice."""
    store.prepare()
    number = 1
    while True:
        emptied(folder)
        stock_of(store).add([entry("T-1")])
        if not killed(lambda: hand_out(store), call, number):
            break
        number += 1
        (place,) = places(store, "T-1")
        if place == "stock":
            with pytest.raises(StoreError, match="is in stock"):
                give(store, "zoe", "t1")
            stock.assign(store, "T-1", "bob", now=NOW)
            assert places(store, "T-1") == ["bob"]
        else:
            with pytest.raises(stock.StockError, match="alice has the token"):
                stock.assign(store, "T-1", "bob", now=NOW)
            assert places(store, "T-1") == ["alice"]


@pytest.mark.parametrize("call", CALLS)
def test_a_kill_of_a_return_never_brings_an_old_counter_back(folder: Path, store: FileStore, call: str) -> None:
    """A killed return might leave a copy in stock, which must stay unused after the user removes the token."""
    store.prepare()
    number = 1
    while True:
        emptied(folder)
        stock_of(store).add([entry("T-1")])
        hand_out_confirmed(store)
        if not killed(lambda: give_back(store), call, number):
            break
        number += 1
        if places(store, "T-1") == ["alice"]:
            store.update("alice", lambda r: (r.accepted(r.tokens[0], 50, 1, NOW), None))
            store.update("alice", lambda r: (r.without_token("token"), None))
            assert places(store, "T-1") == [], "the removed token is not in stock"
            assert keys_in_stock(store, "T-1") == 0


@pytest.mark.parametrize("call", CALLS)
def test_a_killed_import_adds_all_tokens_or_none(folder: Path, store: FileStore, call: str) -> None:
    store.prepare()
    serials = [f"T-{n}" for n in range(4)]
    number, outcomes = 1, set()
    while True:
        emptied(folder)
        if not killed(lambda: stock_of(store).add([entry(serial) for serial in serials]), call, number):
            break
        number += 1
        if number % 2:
            list(upkeep.repair(store))
            assert not list(folder.glob(".stock.*")), "a repair leaves no file of a killed import"
        there = [item.serial for item in stock.list_free(store)]
        assert there in ([], serials), (call, number)
        outcomes.add(len(there))
        stock_of(store).add([entry(serial) for serial in serials])
        assert [item.serial for item in stock.list_free(store)] == serials, "a second import adds the rest"
        list(upkeep.repair(store))
        assert [defect.text for defect in upkeep.examine(store)] == []
    if call == "fsync":
        assert outcomes == {0, 4}


# ---- races


def opened(store: FileStore) -> FileStore:
    """Open the store again, like another process, and return the store."""
    return FileStore(store.folder, LOCK_TIMEOUT)


def race(works: list[Callable[[], object]]) -> list[object]:
    """Run `works` concurrently, and return their results or their errors."""
    results: list[object] = [None] * len(works)
    ready = threading.Barrier(len(works))

    def run(number: int) -> None:
        ready.wait()
        try:
            results[number] = works[number]()
        except Exception as e:
            results[number] = e

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_twenty_racing_assignments_give_the_token_to_one_user(store: FileStore) -> None:
    store.prepare()
    stock_of(store).add([entry("T-1")])
    results = race([partial(stock.assign, opened(store), "T-1", f"user{n}", now=NOW) for n in range(20)])
    given = [result.user for result in results if isinstance(result, stock.Given)]
    assert len(given) == 1
    assert places(store, "T-1") == given
    for result in results:
        if isinstance(result, stock.StockError):
            assert (result.reason, result.user) == (stock.Reason.ASSIGNED, given[0])
        else:
            assert isinstance(result, stock.Given), result


def test_an_enrolment_and_an_assignment_race_for_one_serial_number(store: FileStore) -> None:
    store.prepare()
    stock_of(store).add([entry(f"T-{n}") for n in range(20)])
    for n in range(20):
        assigned, enrolled = race(
            [
                partial(stock.assign, opened(store), f"T-{n}", f"alice{n}", now=NOW),
                partial(give, opened(store), f"bob{n}", f"T-{n}"),
            ]
        )
        assert isinstance(assigned, stock.Given), assigned
        assert isinstance(enrolled, StoreError), "the token was in stock, or belonged to alice"
        assert places(store, f"T-{n}") == [f"alice{n}"]


def test_racing_replacements_never_lose_or_double_a_token(store: FileStore) -> None:
    """Five users exchange six tokens: after each round, every token has one owner."""
    store.prepare()
    serials = [f"T-{n}" for n in range(6)]
    stock_of(store).add([entry(serial) for serial in serials])
    for n in range(5):
        stock.assign(store, serials[n], f"user{n}", now=NOW)
    for _ in range(10):
        own = {n: next(s for s in serials if places(store, s) == [f"user{n}"]) for n in range(5)}
        (free,) = [serial for serial in serials if places(store, serial) == ["stock"]]
        results = race([partial(stock.replace, opened(store), own[n], free, now=NOW) for n in range(5)])
        assert sum(isinstance(result, stock.Replaced) for result in results) == 1, results
        assert all(len(places(store, serial)) == 1 for serial in serials)
    assert [defect.text for defect in upkeep.examine(store)] == []


def move_at_random(store: FileStore, serials: list[str], ready: int) -> None:
    """Make random changes of the stock until this process is killed. Write a byte to `ready` after each change."""
    chosen = random.Random(os.getpid())
    while True:
        one, other = chosen.sample(serials, 2)
        user = f"user{chosen.randrange(3)}"
        changes: list[Callable[[], object]] = [
            partial(stock.assign, store, one, user, now=NOW),
            partial(stock.unassign, store, one, now=NOW),
            partial(stock.replace, store, one, other, now=NOW),
            partial(stock_of(store).add, [entry(one)]),
            partial(store.update, user, lambda record: (record, None)),
        ]
        with suppress(stock.StockError, NotThere):
            chosen.choice(changes)()
        os.write(ready, b".")


@pytest.mark.parametrize("attempt", range(6))
def test_killed_processes_that_race_leave_each_token_one_owner(store: FileStore, attempt: int) -> None:
    store.prepare()
    serials = [f"T-{n}" for n in range(5)]
    stock_of(store).add([entry(serial) for serial in serials])
    read_end, write_end = os.pipe()
    workers = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                move_at_random(opened(store), serials, write_end)
            finally:
                os._exit(1)
        workers.append(pid)
    os.close(write_end)
    for number in range(len(workers)):  # kill each worker during a change
        for _ in range(10 + 7 * attempt + number):
            assert os.read(read_end, 1) == b".", "all workers have ended"
        os.kill(workers[number], signal.SIGKILL)
    ends = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
    os.close(read_end)
    assert ends == [-signal.SIGKILL] * len(workers), "no worker failed"
    found = {serial: places(store, serial) for serial in serials}
    assert all(len(owners) == 1 for owners in found.values()), found
    list(upkeep.repair(store))
    assert {serial: places(store, serial) for serial in serials} == found
    assert [defect.text for defect in upkeep.examine(store)] == []
    assert all(keys_in_stock(store, serial) == (owners == ["stock"]) for serial, owners in found.items())


# ---- files


def test_the_files_of_the_stock_have_the_mode_of_secret_files(store: FileStore, folder: Path) -> None:
    store.prepare()
    before = os.umask(0)
    try:
        stock_of(store).add([entry("T-1"), entry("T-2")])
        hand_out(store)
        unassign(store)
    finally:
        os.umask(before)
    entries = folder / stock_entries.FOLDER
    assert entries.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in entries.iterdir()} == {0o600}
    assert sorted(path.name for path in entries.iterdir()) == ["t1", "t2"]
    (entries / "t1").chmod(0o644)
    with pytest.raises(StoreError, match="its mode must be 0600"):
        hand_out(store)


def test_a_damaged_entry_is_reported_and_keeps_its_serial_number(store: FileStore, folder: Path) -> None:
    store.prepare()
    stock_of(store).add([entry("T-1"), entry("T-2")])
    (folder / stock_entries.path_of("t1")).write_text("{}")
    with pytest.raises(StoreError, match=r"\.stock/t1"):
        give(store, "alice", "T-1")
    errors = [item for item in stock.items(store) if isinstance(item, StoreError)]
    assert len(errors) == 1
    assert any(".stock/t1" in defect.text and defect.repair is None for defect in upkeep.examine(store))
    assert [item.serial for item in stock.items(store) if isinstance(item, stock.Item)] == ["T-2"]


def test_a_stock_without_claims_gets_them_again(store: FileStore, folder: Path) -> None:
    store.prepare()
    stock_of(store).add([entry("T-1"), entry("T-2")])
    stock.assign(store, "T-2", "alice", now=NOW)
    shutil.rmtree(folder / claims.FOLDER)
    assert any(claims.FOLDER in defect.text for defect in upkeep.examine(store))
    list(upkeep.repair(store))
    assert [defect.text for defect in upkeep.examine(store)] == []
    (folder / claims.FOLDER / "t1").unlink()
    with pytest.raises(StoreError, match="is in stock"):
        give(store, "bob", "T-1")
    list(upkeep.repair(store))
    assert os.readlink(folder / claims.FOLDER / "t1") == "../.stock/t1"
    assert [defect.text for defect in upkeep.examine(store)] == []


def test_a_backup_of_a_half_made_assignment_gives_the_token_to_the_user(store: FileStore, folder: Path) -> None:
    """A backup can contain the new record of alice, but the claim and the entry from before the assignment."""
    store.prepare()
    stock_of(store).add([entry("T-1")])
    old = (folder / stock_entries.path_of("t1")).read_bytes()
    stock.assign(store, "T-1", "alice", now=NOW)
    (folder / stock_entries.path_of("t1")).write_bytes(old)
    (folder / claims.FOLDER / "t1").unlink()
    (folder / claims.FOLDER / "t1").symlink_to("../.stock/t1")
    assert any("is in stock too" in defect.text for defect in upkeep.examine(store))
    list(upkeep.repair(store))
    assert places(store, "T-1") == ["alice"]
    assert store.owner_of_serial("T-1") == "alice"
    assert [defect.text for defect in upkeep.examine(store)] == []


def test_a_removed_users_token_leaves_no_entry(store: FileStore, folder: Path) -> None:
    store.prepare()
    stock_of(store).add([entry("T-1")])
    stock.assign(store, "T-1", "alice", now=NOW)
    remove_user(store)
    assert stock.find(store, "T-1") is None
    assert list((folder / stock_entries.FOLDER).iterdir()) == []
    give(store, "bob", "T-1")
    take_away(store, "bob")
    assert stock_of(store).add([entry("T-1")]) == [None]


def test_an_import_reports_the_owners_of_taken_serial_numbers(store: FileStore) -> None:
    store.prepare()
    give(store, "alice", "T-1")
    added = stock_of(store).add([entry("T-1"), entry("T-2"), entry("t2"), entry("T-3")])
    assert added == [("alice",), None, (None,), None]
    assert stock_of(store).add([entry("T-2")]) == [(None,)]
    assert not os.path.lexists(f"{store.folder}/{stock_files.NEW}")
    assert not os.path.lexists(f"{store.folder}/{stock_files.READY}")
    assert token_of("alice", "T-1").secret == store.read("alice").tokens[0].secret


@pytest.mark.parametrize("call", ["write_new", "flush_all"])
def test_a_failed_import_leaves_no_file(store: FileStore, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    store.prepare()
    before = sorted(os.listdir(store.folder))

    def fail(*arguments: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "flush_all":
        monkeypatch.setattr(stock_files, "flush_all", fail)
    else:
        documents = iter([b"half"])
        monkeypatch.setattr(stock_files, "document_of", lambda *entry: next(documents, None) or fail())
    with pytest.raises(StoreError, match="No space left"):
        stock_of(store).add([entry("T-1"), entry("T-2")])
    assert set(os.listdir(store.folder)) - {claims.FOLDER, stock_entries.FOLDER} == set(before)
    assert os.listdir(f"{store.folder}/{stock_entries.FOLDER}") == []
