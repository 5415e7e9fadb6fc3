"""Tests of the claims of serial numbers: one owner each, under races, crashes and restored backups."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pam_totp.core.record import HotpToken, Token, UserRecord
from pam_totp.store import SerialTaken, StoreError, claims, journal, secret_file, upkeep
from pam_totp.store.bulk import update_many
from pam_totp.store.file import FileStore
from tests.core.stores import LOCK_TIMEOUT, enrol, enrol_1
from tests.support.nth_call import killed

PATIENCE = 30.0  # seconds


@pytest.fixture
def store(folder: Path) -> FileStore:
    return FileStore(str(folder), LOCK_TIMEOUT)


def key_of(user: str) -> bytes:
    return user.encode().rjust(20, b".")


def token(user: str, serial: str | None = "SM-01", name: str = "fob") -> Token:
    return HotpToken(name=name, secret=key_of(user + name), serial=serial, created=0)


def give(store: FileStore, user: str, serial: str | None = "SM-01", name: str = "fob") -> None:
    store.update(user, lambda record: (record.with_token(token(user, serial, name)), None), create=True)


def take_away(store: FileStore, user: str) -> None:
    store.update(user, lambda record: (record.without_token("fob"), None))


def owners(store: FileStore) -> dict[str, str]:
    """Return the owner of each claim by the claim's name."""
    return {p.name: os.readlink(p) for p in (Path(store.folder) / claims.FOLDER).iterdir()}


def holders(store: FileStore, serial: str = "SM-01") -> list[str]:
    """Return the users whose records have a token with the serial number `serial`."""
    return [u for u in sorted(store.users()) if any(t.serial == serial for t in store.read(u).tokens)]


def test_a_serial_number_of_another_user_is_refused_and_its_owner_named(store: FileStore) -> None:
    give(store, "alice")
    for typed in ("SM-01", "sm01", "s m/01"):
        with pytest.raises(SerialTaken, match="alice has the token with the serial number") as refused:
            give(store, "bob", typed)
        assert (refused.value.owner, refused.value.serial) == ("alice", typed)
        assert store.owner_of_serial(typed) == "alice"
    assert sorted(store.users()) == ["alice"]
    give(store, "bob", "SM-02")
    assert owners(store) == {"sm01": "../alice.record", "sm02": "../bob.record"}


def test_tokens_without_serial_numbers_and_two_of_one_user_are_allowed(store: FileStore) -> None:
    for user in ("alice", "bob"):
        give(store, user, None)
    give(store, "alice", "A1", name="first")
    give(store, "alice", "a-1", name="second")
    assert store.owner_of_serial("A1") == "alice"
    store.update("alice", lambda record: (record.without_token("first"), None))
    assert store.owner_of_serial("A1") == "alice", "alice still has the second token"


@pytest.mark.parametrize("change", [take_away, lambda store, user: store.update(user, lambda _: (None, None))])
def test_a_removed_tokens_serial_number_can_be_claimed_again(
    store: FileStore, change: Callable[[FileStore, str], None]
) -> None:
    give(store, "alice")
    change(store, "alice")
    assert (store.owner_of_serial("SM-01"), owners(store)) == (None, {})
    give(store, "bob")
    assert store.owner_of_serial("SM-01") == "bob"


@pytest.mark.parametrize(
    "serial", ["../../etc/passwd", "--", ".", "sha256-00", "Ä" * 255, "a" * 255, "SN 1\u2044\u00df"]
)
def test_every_serial_number_has_a_safe_claim(store: FileStore, serial: str) -> None:
    give(store, "alice", serial)
    (name,) = owners(store)
    assert "/" not in name
    assert not name.startswith(".")
    assert len(name) <= 255
    assert store.owner_of_serial(serial) == "alice"
    with pytest.raises(SerialTaken):
        give(store, "bob", serial)


def test_twenty_racing_users_get_one_token_once(store: FileStore) -> None:
    outcomes: list[str] = []

    def race(user: str) -> None:
        try:
            give(FileStore(store.folder, LOCK_TIMEOUT), user)
            outcomes.append("given")
        except SerialTaken:
            outcomes.append("refused")

    threads = [threading.Thread(target=race, args=(f"user{n}",)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["given"] + ["refused"] * 19
    assert len(holders(store)) == 1


CALLS = ["symlink", "fsync", "link", "unlink", "write", "mkdir", "rename"]


@pytest.mark.parametrize("call", CALLS)
def test_a_kill_of_an_enrolment_leaves_one_owner_and_no_dead_claim(folder: Path, store: FileStore, call: str) -> None:
    number, kills = 1, 0
    while killed(lambda: give(store, "alice"), call, number):
        kills += 1
        owner = "alice" if holders(store) == ["alice"] else "bob"
        assert store.owner_of_serial("SM-01") == ("alice" if owner == "alice" else None)
        if owner == "alice":
            with pytest.raises(SerialTaken):
                give(store, "bob")
        else:
            give(store, "bob")
        assert holders(store) == [owner]
        shutil.rmtree(folder)
        folder.mkdir(0o700)
        number += 1
    assert kills, "at least one kill interrupted the enrolment"


@pytest.mark.parametrize("call", ["pwritev", "unlink"])
def test_a_kill_of_a_removal_never_leaves_two_owners(folder: Path, store: FileStore, call: str) -> None:
    number = 1
    while True:
        give(store, "alice")
        give(store, "alice", None, name="other")
        ended = not killed(lambda: take_away(store, "alice"), call, number)
        expected = "alice" if holders(store) else "bob"
        if expected == "alice":
            with pytest.raises(SerialTaken):
                give(store, "bob")
        else:
            give(store, "bob")
        assert holders(store) == [expected]
        shutil.rmtree(folder)
        folder.mkdir(0o700)
        if ended:
            break
        number += 1
    assert number > 1, "at least one kill interrupted the removal"


def test_an_older_stores_tokens_are_claimed_at_the_first_claim_or_lookup(folder: Path, store: FileStore) -> None:
    enrol(folder, "alice", tokens=(token("alice"),))
    enrol_1(folder, "carl", tokens=(token("carl", "SM-03"),))
    enrol(folder, "dora", tokens=(token("dora", None),))
    assert not (folder / claims.FOLDER).exists()
    with pytest.raises(SerialTaken):
        give(store, "bob")
    assert store.owner_of_serial("SM03") == "carl"
    assert owners(store) == {"sm01": "../alice.record", "sm03": "../carl.record"}


@pytest.mark.parametrize("call", ["symlink", "rename", "fsync"])
def test_a_killed_first_claim_is_made_again_completely(folder: Path, store: FileStore, call: str) -> None:
    for user, serial in (("alice", "SM-01"), ("carl", "SM-03")):
        enrol(folder, user, tokens=(token(user, serial),))
    number = 1
    while killed(lambda: store.owner_of_serial("x"), call, number):
        with pytest.raises(SerialTaken):
            give(store, "bob", "SM-03")
        assert owners(store) == {"sm01": "../alice.record", "sm03": "../carl.record"}
        shutil.rmtree(folder / claims.FOLDER)
        number += 1
    assert number > 1


def test_a_write_that_fails_leaves_no_claim(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    give(store, "zoe", "other")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        with pytest.raises(StoreError, match="No space left"):
            give(store, "alice")
    assert owners(store) == {"other": "../zoe.record"}
    give(store, "bob")


# --- imports


def added(serial: str) -> Callable[[UserRecord], tuple[UserRecord, str]]:
    def change(record: UserRecord) -> tuple[UserRecord, str]:
        return record.with_token(token(record.user, serial)), "added"

    return change


def test_an_import_omits_a_token_of_another_user(store: FileStore) -> None:
    give(store, "alice")
    changes = [("bob", added("sm 01")), ("carl", added("SM-02")), ("dora", added("sm/02")), ("emil", added("SM-03"))]
    results = update_many(store, changes, on_taken=lambda change, why: f"taken by {why.owner}")
    assert results == ["taken by alice", "added", "taken by carl", "added"]
    assert sorted(store.users()) == ["alice", "carl", "emil"]
    assert owners(store) == {"sm01": "../alice.record", "sm02": "../carl.record", "sm03": "../emil.record"}
    with pytest.raises(SerialTaken):
        update_many(store, [("fred", added("SM-04")), ("bob", added("SM-01"))])
    assert "sm04" not in owners(store), "a bulk change that is rolled back releases its claims"
    assert sorted(store.users()) == ["alice", "carl", "emil"]


def test_a_claim_of_a_running_import_is_not_stale(store: FileStore) -> None:
    seen: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        if done == 2:  # all claims exist, and the first record is still to be written
            with pytest.raises(SerialTaken, match="alice"):
                give(store, "zoe")
            seen.append("refused")

    update_many(store, [("alice", added("SM-01")), ("bob", added("SM-02"))], meanwhile)
    assert seen[:1] == ["refused"]
    assert holders(store) == ["alice"]


@pytest.mark.parametrize("call", ["symlink", "link", "fsync", "unlink"])
def test_a_killed_import_leaves_all_claims_or_none(folder: Path, store: FileStore, call: str) -> None:
    changes = [(f"user{n}", added(f"SM-{n}")) for n in range(3)]
    give(store, "zoe", "Z")
    number = 1
    while killed(lambda: update_many(store, changes), call, number):
        journal.recover(store)
        serials = {s for s in owners(store) if s != "z"}
        users = set(store.users()) - {"zoe"}
        assert users in (set(), {user for user, _ in changes})
        if users:
            assert serials == {"sm0", "sm1", "sm2"}
            break
        give(store, "bob", "SM-1")  # a claim without its record is stale
        assert holders(store, "SM-1") == ["bob"]
        store.update("bob", lambda _: (None, None))
        number += 1
    assert number > 1


def after_removal(store: FileStore) -> None:
    give(store, "bob")
    take_away(store, "bob")


def after_stale_claim(store: FileStore) -> None:
    give(store, "zoe", "other")
    (Path(store.folder) / claims.FOLDER / "sm01").symlink_to("../bob.record")  # as after a killed enrolment
    with suppress(SerialTaken):
        give(store, "alice")


@pytest.mark.parametrize("change", [after_removal, after_stale_claim])
def test_an_import_waits_for_a_process_that_deletes_its_users_claim(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, change: Callable[[FileStore], None]
) -> None:
    """An import uses bob's claim after the change has found no import, and before the change deletes the claim."""
    waits_or_ended = threading.Event()
    real_sleep = time.sleep

    def sleep(seconds: float) -> None:
        waits_or_ended.set()
        real_sleep(seconds)

    def import_for_bob() -> None:
        update_many(
            FileStore(store.folder, PATIENCE), [("bob", added("SM-01"))], on_taken=lambda _, why: str(why.owner)
        )
        waits_or_ended.set()

    importer = threading.Thread(target=import_for_bob)

    def unlink(folder: int, name: str) -> bool:
        monkeypatch.setattr(claims, "unlink", secret_file.unlink)
        importer.start()
        assert waits_or_ended.wait(PATIENCE)
        return secret_file.unlink(folder, name)

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(claims, "unlink", unlink)
    change(store)
    importer.join()
    with suppress(SerialTaken):
        give(store, "alice", name="second")
    (holder,) = holders(store)
    assert owners(store)["sm01"] == f"../{holder}.record"


# --- doctor


def texts(store: FileStore) -> list[str]:
    return [defect.text for defect in upkeep.examine(store)]


def test_a_repair_claims_the_tokens_of_restored_records(folder: Path, store: FileStore) -> None:
    store.prepare()
    give(store, "alice")
    enrol(folder, "bob", tokens=(token("bob", "SM-02"),))
    text = "bob.record: another user can get this token too: the serial number SM-02 has no claim"
    assert texts(store) == [text]
    assert list(upkeep.repair(store)) == [text]
    assert texts(store) == []
    with pytest.raises(SerialTaken, match="bob"):
        give(store, "carl", "SM-02")


def test_a_token_of_two_users_is_reported_and_left_to_the_administrator(folder: Path, store: FileStore) -> None:
    store.prepare()
    give(store, "alice")
    enrol(folder, "bob", tokens=(token("bob", "sm01"),))
    (defect,) = upkeep.examine(store)
    what = "bob.record: alice has a token with the serial number sm01 too"
    assert defect.text == f"{what} (remove the token from one user)"
    assert defect.repair is None
    take_away(store, "alice")
    assert [d.repair is not None for d in upkeep.examine(store)] == [True]


def test_a_repair_claims_the_tokens_of_a_store_without_claims(folder: Path, store: FileStore) -> None:
    store.prepare()
    enrol(folder, "alice", tokens=(token("alice"),))
    text = "two users can get the same token: .serial not found"
    assert texts(store) == [text]
    assert list(upkeep.repair(store)) == [text]
    assert (texts(store), owners(store)) == ([], {"sm01": "../alice.record"})


def test_a_repair_deletes_claims_without_a_token(folder: Path, store: FileStore) -> None:
    store.prepare()
    give(store, "alice")
    (folder / claims.FOLDER / "dead").symlink_to("../ghost.record")
    (folder / claims.FOLDER / "junk").write_text("")
    text = ".serial: 2 claims without a token"
    assert texts(store) == [text]
    assert list(upkeep.repair(store)) == [text]
    assert (texts(store), owners(store)) == ([], {"sm01": "../alice.record"})


@pytest.mark.parametrize("content", [(), ("file", "folder/file")])
def test_a_folder_instead_of_a_claim_is_replaced(folder: Path, store: FileStore, content: tuple[str, ...]) -> None:
    store.prepare()
    give(store, "alice", "SM-02")
    for claim in ("sm01", "junk"):
        for path in content or ("",):
            planted = folder / claims.FOLDER / claim / path
            (planted.parent if path else planted).mkdir(parents=True, exist_ok=True)
            planted.touch()
    give(store, "bob")
    assert list(upkeep.repair(store)) == [".serial: 1 claim without a token"]
    assert (texts(store), owners(store)) == ([], {"sm01": "../bob.record", "sm02": "../alice.record"})


def test_claims_of_unread_and_older_records_are_not_reported(folder: Path, store: FileStore) -> None:
    store.prepare()
    enrol_1(folder, "carl", tokens=(token("carl", "SM-03"),))
    give(store, "alice")
    (folder / "alice.record").chmod(0o644)
    assert texts(store) == [
        "alice.record: its mode must be 0600",
        "carl.json: the user's next login needs free disk space: the file has version 1",
    ]
    (folder / "alice.record").chmod(0o600)
    assert len(texts(store)) == 1
    assert len(owners(store)) == 2


def test_a_store_without_serial_numbers_needs_no_claims(folder: Path, store: FileStore) -> None:
    store.prepare()
    give(store, "alice", None)
    assert texts(store) == []
    assert not (folder / claims.FOLDER).exists()


def test_an_owner_is_found_by_the_same_calls_among_many_users(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare the system calls of a look-up in a small store with the calls in a larger store."""
    give(store, "alice")
    counts = []
    for users in (1, 200):
        for number in range(users):
            enrol(folder, f"u{users}-{number}", tokens=(token("u", f"S-{users}-{number}"),))
        calls: list[str] = []
        with monkeypatch.context() as patch:
            for name in ("open", "stat", "readlink", "scandir", "listdir"):
                patch.setattr(os, name, counted(calls, name))
            assert store.owner_of_serial("SM-01") == "alice"
        counts.append(sorted(calls))
    assert counts[0] == counts[1]
    assert not {"scandir", "listdir"} & set(counts[0])


def counted(calls: list[str], name: str) -> Callable[..., object]:
    function = getattr(os, name)

    def call(*arguments: object, **named: object) -> object:
        calls.append(name)
        return function(*arguments, **named)

    return call
