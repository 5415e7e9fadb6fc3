"""Tests of the file store: reading and writing, file names, temporary files, and the required owners and modes."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import stat
import syslog
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_totp.core.record import Grace, RecentLogin, RecordError, Token, UserRecord
from pam_totp.core.secretfile import MAX_FILE, base32, parse, serialize
from pam_totp.core.slots import BLOCK, Slots, decode, new_file
from pam_totp.store import DamagedFile, NotThere, StoreError
from pam_totp.store.claims import FOLDER as CLAIMS
from pam_totp.store.decoys import FOLDER as DECOYS
from pam_totp.store.file import FileStore, Warnings, file_name
from tests.conftest import as_root
from tests.core.stores import NOW, code, counter_of, enrol, enrol_1, holding, log_in, record_of
from tests.support.site import KEY, PATIENCE, fob, phone, until


@pytest.fixture
def store(folder: Path) -> FileStore:
    return FileStore(str(folder))


def files(folder: Path) -> list[str]:
    """Return the names in the store, without the lock file and the folders of the decoys and the claims."""
    return sorted(set(os.listdir(folder)) - {".lock", DECOYS, CLAIMS})


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return the metadata, except the access time, and the content of every file."""
    found: dict[str, tuple[object, ...]] = {}
    for name in files(folder):
        status = (folder / name).lstat()
        content = (folder / name).read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[name] = (content, status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
    return found


# ---- reading and writing


def test_an_enrolled_record_is_read_and_advanced_by_a_login(folder: Path, store: FileStore) -> None:
    path = enrol(folder)
    assert store.read("alice").tokens == (fob(),)
    assert log_in(folder, code(0)) == "code"
    assert counter_of(path) == 1
    assert store.read("alice") == record_of(path)
    assert log_in(folder, code(0)) == "replayed"
    assert files(folder) == ["alice.record"]


def test_a_key_that_another_process_removed_is_not_kept_in_memory(folder: Path, store: FileStore) -> None:
    secret = b"a key that was removed"
    enrol(folder, tokens=(fob(), fob(name="removed", secret=secret)))
    assert len(store.read("alice").tokens) == 2
    enrol(folder)
    assert store.read("alice").tokens == (fob(),)
    gc.collect()
    assert not [held for held in gc.get_objects() if isinstance(held, Token) and held.secret == secret]


def test_an_unchanged_record_is_not_written(folder: Path, store: FileStore) -> None:
    path = enrol(folder)
    before = snapshot(folder)["alice.record"]
    store.update("alice", lambda record: (record, None))
    assert log_in(folder, b"malformed") == "malformed"
    assert snapshot(folder)["alice.record"] == before
    assert log_in(folder, b"000000") == "wrong"
    assert snapshot(folder)["alice.record"] != before
    assert record_of(path).failures == 1


def test_a_failed_change_writes_nothing_and_releases_the_lock(folder: Path, store: FileStore) -> None:
    enrol(folder)
    before = snapshot(folder)["alice.record"]

    def fails(record: UserRecord) -> tuple[UserRecord, None]:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        store.update("alice", fails)
    assert snapshot(folder)["alice.record"] == before
    assert files(folder) == ["alice.record"]
    assert log_in(folder, code(0), store=FileStore(str(folder), lock_wait=0.0)) == "code"


def test_an_unknown_user_is_not_found_and_leaves_no_lock_file(folder: Path, store: FileStore) -> None:
    with pytest.raises(NotThere):
        store.read("alice")
    with pytest.raises(NotThere):
        store.update("alice", lambda record: (record, None))
    assert files(folder) == []


def test_a_user_deleted_while_the_lock_is_awaited_is_not_found(folder: Path) -> None:
    path = enrol(folder)
    inside, go_on = threading.Event(), threading.Event()
    outcomes: list[object] = []

    def removes(record: UserRecord) -> tuple[None, None]:
        inside.set()
        assert go_on.wait(30)
        return None, None

    def waits() -> None:
        try:
            outcomes.append(log_in(folder, code(0)))
        except NotThere as e:
            outcomes.append(e)

    admin = threading.Thread(target=FileStore(str(folder)).update, args=("alice", removes))
    login = threading.Thread(target=waits)
    admin.start()
    assert inside.wait(30)
    login.start()
    go_on.set()
    admin.join()
    login.join()
    assert not path.exists()
    assert isinstance(outcomes[0], NotThere)


def test_a_record_too_large_to_be_read_back_is_not_written(folder: Path, store: FileStore) -> None:
    path = enrol(folder)
    before = path.read_bytes()
    tokens = tuple(fob(name="n" * 250 + str(i), secret=bytes([i]) * 128, serial="ü" * 255) for i in range(8))
    recovery = tuple(f"{i:064x}" for i in range(100))

    def grow(record: UserRecord) -> tuple[UserRecord, None]:
        from pam_totp.core.record import Grace

        grace = tuple(Grace(service="ü" * 255, rhost=f"{i}", granted=0) for i in range(64))
        return UserRecord(user="alice", tokens=tokens, salt="00" * 16, recovery=recovery, grace=grace), None

    with pytest.raises(StoreError, match=f"the record must be at most {MAX_FILE} bytes"):
        store.update("alice", grow)
    assert path.read_bytes() == before
    assert files(folder) == ["alice.record"]


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o077)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o277, 0o777])
def test_files_are_private_to_their_owner_under_every_umask(
    folder: Path, store: FileStore, umask: Callable[[int], int], mask: int
) -> None:
    umask(mask)
    store.update("alice", lambda record: (record.with_token(fob()), None), create=True)
    store.update_decoy("zoe", int)
    umask(0o077)
    assert {name: stat.S_IMODE((folder / name).stat().st_mode) for name in os.listdir(folder)} == {
        "alice.record": 0o600,
        ".lock": 0o600,
        DECOYS: 0o700,
    }
    assert {path.stat().st_mode & 0o7777 for path in (folder / DECOYS).iterdir()} == {0o600}
    assert log_in(folder, code(0)) == "code"


def test_every_descriptor_is_closed(folder: Path, store: FileStore) -> None:
    enrol(folder)
    enrol(folder, "broken").write_bytes(b"{")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        log_in(folder, b"000000")
        store.update_decoy("zoe", int)
        list(store.users())
        for broken in ("broken", "zoe", "x" * 300):
            with pytest.raises((StoreError, NotThere)):
                store.update(broken, lambda record: (record, None))
            with pytest.raises((StoreError, NotThere)):
                store.read(broken)
    assert len(os.listdir("/proc/self/fd")) == len(before)


# ---- updates for an unknown user


def decoys(folder: Path) -> dict[str, Slots]:
    return {path.name: decode(path.read_bytes()) for path in (folder / DECOYS).iterdir()}


def test_a_decoy_has_the_size_of_a_record_and_a_unique_key(folder: Path, store: FileStore) -> None:
    store.update("alice", lambda record: (record.with_token(fob()), None), create=True)
    size = (folder / "alice.record").stat().st_size
    assert {path.stat().st_size for path in (folder / DECOYS).iterdir()} == {size}
    assert {slots.other is not None and slots.other != b"" for slots in decoys(folder).values()} == {True}
    assert len({parse(slots.document).tokens[0].secret for slots in decoys(folder).values()}) == 64


def test_missing_and_damaged_decoys_are_created_again(folder: Path, store: FileStore) -> None:
    store.prepare()
    before = decoys(folder)
    (folder / DECOYS / "07").unlink()
    (folder / DECOYS / "08").write_bytes(b"")
    (folder / DECOYS / ".new").write_bytes(b"left behind")
    (folder / ".lock").unlink()
    store.prepare()
    after = decoys(folder)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"07", "08"}
    assert (folder / ".lock").stat().st_size == 0


def test_a_new_record_creates_missing_decoys_if_the_disk_has_space(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", full)
        store.update("alice", lambda record: (record.with_token(fob()), None), create=True)
    assert not (folder / DECOYS).exists()
    store.update("bob", lambda record: (record.with_token(fob()), None), create=True)
    assert len(decoys(folder)) == 64


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, lambda path: path.write_bytes(b"x"), lambda path: path.chmod(0o640)],
    ids=["none", "damaged", "mode"],
)
def test_missing_decoys_are_logged_and_raise_no_error(folder: Path, damage: Callable[[Path], object]) -> None:
    warnings: list[str] = []
    store = FileStore(str(folder), warn=warnings.append)
    store.prepare()
    for path in (folder / DECOYS).iterdir():
        damage(path)
    store.update_decoy("zoe", int)
    assert warnings == [f"{folder}/.decoy: decoys are missing or damaged (run 'pam-totp doctor --repair')"]


def test_known_and_unknown_users_wait_only_for_their_own_lock(folder: Path) -> None:
    impatient = FileStore(str(folder), lock_wait=0.01)
    impatient.prepare()
    enrol(folder)
    work: dict[str, Callable[[], None]] = {
        "alice": lambda: impatient.update("alice", lambda record: (record, None)),
        "zoe": lambda: impatient.update_decoy("zoe", int),
    }
    for name, own in work.items():
        lock = holding(folder, f"{name}.record")
        with pytest.raises(StoreError, match=rf"{name}.record: the lock was not acquired within 0.01 s"):
            own()
        for other in work.keys() - {name}:
            work[other]()
        impatient.update_decoy("yan", int)
        os.close(lock)


def test_a_lock_file_that_was_replaced_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of the old file has no effect, because other processes lock the new file."""
    path = enrol(folder)
    acquire = fcntl.fcntl
    held: list[int] = []

    def replaced(file: int, command: int, argument: bytes) -> object:
        if not held:
            held.append(file)
            (folder / ".lock").unlink()
            other = holding(folder, "alice.record")
            threading.Timer(0.05, os.close, [other]).start()
        return acquire(file, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", replaced)
    assert log_in(folder, code(0)) == "code"
    assert counter_of(path) == 1
    assert held


def test_a_lock_file_that_was_deleted_is_created_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = enrol(folder)
    acquire = fcntl.fcntl
    calls: list[int] = []

    def deletes(file: int, command: int, argument: bytes) -> object:
        if not calls:
            (folder / ".lock").unlink()
        calls.append(file)
        return acquire(file, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", deletes)
    assert log_in(folder, code(0)) == "code"
    assert counter_of(path) == 1
    assert (folder / ".lock").exists()


# ---- slots


def test_a_login_writes_in_place(folder: Path) -> None:
    path = enrol(folder)
    before = path.stat()
    for counter in range(4):
        assert log_in(folder, code(counter)) == "code"
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)
    found = decode(path.read_bytes())
    assert (found.sequence, parse(found.other or b"").tokens) == (5, (fob(3, last_used=NOW),))


def keys_in(path: Path) -> set[bytes]:
    return {key for key in (KEY, OTHER_KEY) if base32(key).encode() in path.read_bytes()}


OTHER_KEY = b"another 20-byte key."


def with_codes(salt: str, record: UserRecord) -> tuple[UserRecord, None]:
    return record.with_recovery(salt, (salt * 2,)), None


def with_token(token: Token, record: UserRecord) -> tuple[UserRecord, None]:
    return record.with_token(token), None


def test_a_change_of_keys_leaves_no_removed_key_in_the_file(folder: Path, store: FileStore) -> None:
    path = enrol(folder, tokens=(fob(), fob(name="old", secret=OTHER_KEY)))
    assert log_in(folder, code(0)) == "code"
    assert keys_in(path) == {KEY, OTHER_KEY}
    store.update("alice", lambda record: (record.without_token("old"), None))
    assert keys_in(path) == {KEY}
    assert counter_of(path) == 1
    for salt in ("00" * 16, "11" * 16):
        store.update("alice", partial(with_codes, salt))
        assert path.read_bytes().count(salt.encode() * 2) == 2
    assert b"0" * 64 not in path.read_bytes()


def test_a_record_that_needs_more_space_gets_a_larger_file(folder: Path, store: FileStore) -> None:
    path = enrol(folder)
    assert log_in(folder, code(0)) == "code"
    tokens = [fob(name=f"t{n}", secret=bytes([n]) * 20, serial="s" * 200) for n in range(7)]
    for token in tokens:
        store.update("alice", partial(with_token, token))
    assert store.read("alice").tokens[1:] == tuple(tokens)
    assert path.stat().st_size == 4 * 4096
    before = path.stat()
    assert log_in(folder, code(1)) == "code"
    store.update("alice", lambda record: (record.without_token("t1"), None))
    assert path.stat().st_ino == before.st_ino, "the file does not shrink"
    assert files(folder) == ["alice.record"]


def test_a_file_that_another_program_made_too_small_grows_at_a_login(folder: Path) -> None:
    path = enrol(folder, tokens=(fob(serial="s" * 19),), recovery=tuple(f"{n:064x}" for n in range(50)), salt="00" * 16)
    path.write_bytes(new_file(decode(path.read_bytes()).document, 4096))
    sizes = []
    for counter in range(12):
        assert log_in(folder, code(counter)) == "code"
        sizes.append(path.stat().st_size)
    assert (sizes[0], sizes[-1]) == (2 * 4096, 4 * 4096)


def test_a_damaged_slot_is_logged_and_the_other_slot_is_used(folder: Path) -> None:
    path = enrol(folder)
    assert log_in(folder, code(0)) == "code"
    data = bytearray(path.read_bytes())
    data[4096 + 200] ^= 1
    path.write_bytes(data)
    warnings: list[str] = []
    assert log_in(folder, code(0), store=FileStore(str(folder), warn=warnings.append)) == "code", (
        "the older record is used"
    )
    assert warnings == [f"{folder}/alice.record: a slot is damaged (the other slot is used)"]
    assert log_in(folder, code(0), store=FileStore(str(folder), warn=warnings.append)) == "replayed"
    assert len(warnings) == 1, "the next write repaired the slot"


def test_warnings_go_to_the_system_log_at_most_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[tuple[object, ...]] = []
    monkeypatch.setattr(syslog, "openlog", lambda *given: lines.append(given))
    monkeypatch.setattr(syslog, "syslog", lambda *given: lines.append(given))
    warn = Warnings()
    warn("a decoy is missing")
    warn("a decoy is missing")
    assert len(lines) == 2, "at most one line a minute"
    assert lines[0] == ("pam_totp", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
    assert lines[1] == (syslog.LOG_AUTHPRIV | syslog.LOG_WARNING, "pam_totp(store): a decoy is missing")


def test_a_reader_that_finds_no_valid_slot_waits_for_the_writer(folder: Path, store: FileStore) -> None:
    path = enrol(folder)
    whole = path.read_bytes()
    lock = holding(folder, "alice.record")
    path.write_bytes(whole[:4096] * 2)
    data = bytearray(whole)
    data[100] ^= 1
    path.write_bytes(data)
    read: list[UserRecord] = []
    reader = threading.Thread(target=lambda: read.append(store.read("alice")))
    reader.start()
    until(lambda: _open_in(folder) >= 2, "the reader waits for the lock")
    path.write_bytes(whole)
    os.close(lock)
    reader.join(PATIENCE)
    assert [record.tokens for record in read] == [(fob(),)]


def _open_in(folder: Path) -> int:
    """Return the number of open files of this process that are in `folder`."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum(path.startswith(str(folder)) for path in found)


def test_a_record_with_two_names_is_refused(folder: Path, store: FileStore) -> None:
    """A write to alice.record would also change bob.record, because both are names of one file."""
    path = enrol(folder)
    os.link(path, folder / "bob.record")
    for attempt in (lambda: store.read("alice"), lambda: log_in(folder, code(0))):
        with pytest.raises(StoreError, match=r"alice\.record: must not have hard links"):
            attempt()


def test_a_record_whose_creation_was_killed_in_its_last_step_is_read(folder: Path, store: FileStore) -> None:
    path = enrol(folder)
    os.link(path, folder / ".alice.record")
    assert store.read("alice").tokens == (fob(),)
    assert files(folder) == ["alice.record"]


def test_creation_never_replaces_a_file(folder: Path, store: FileStore) -> None:
    """An administrator might restore a copy of the file during the update, without the lock."""

    def restored(record: UserRecord) -> tuple[UserRecord, None]:
        enrol(folder)
        return record.with_token(fob(9)), None

    with pytest.raises(StoreError, match="File exists"):
        store.update("alice", restored, create=True)
    assert store.read("alice").tokens == (fob(),)
    assert files(folder) == ["alice.record"]


# ---- version 1

CONVERTED = {"alice.json": 0, "alice.record": 8192}  # file name -> size in bytes


def sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in files(folder)}


def test_a_file_of_version_1_is_read_and_converted_by_the_first_update(folder: Path, store: FileStore) -> None:
    enrol_1(folder)
    assert store.read("alice").tokens == (fob(),)
    assert files(folder) == ["alice.json"]
    assert list(store.users()) == ["alice"]
    assert log_in(folder, code(0)) == "code"
    assert sizes(folder) == CONVERTED
    assert log_in(folder, code(0)) == "replayed"
    assert list(store.users()) == ["alice"]


def test_an_update_without_a_change_converts_too(folder: Path, store: FileStore) -> None:
    enrol_1(folder)
    store.update("alice", lambda record: (record, None))
    assert sizes(folder) == CONVERTED
    assert store.read("alice").tokens == (fob(),)


def test_if_files_of_both_versions_exist_version_2_is_used(folder: Path, store: FileStore) -> None:
    """A process was killed between the creation of the new file and the truncation of the old file."""
    enrol_1(folder, tokens=(fob(), fob(name="old", secret=OTHER_KEY)))
    enrol(folder, tokens=(fob(5),))
    assert store.read("alice").tokens == (fob(5),)
    assert list(store.users()) == ["alice"]
    assert log_in(folder, code(0)) == "replayed"
    assert sizes(folder) == CONVERTED


def test_an_emptied_file_of_version_1_is_damaged_for_every_version(folder: Path, store: FileStore) -> None:
    """A running service of version 1 and this version must both deny logins if the new record is missing."""
    enrol_1(folder)
    store.update("alice", lambda record: (record, None))
    with pytest.raises(RecordError):
        parse((folder / "alice.json").read_bytes())
    (folder / "alice.record").unlink()
    with pytest.raises(
        DamagedFile, match=r"alice\.json: must not be empty \(restore the user's record, or delete this file\)"
    ):
        store.read("alice")


def test_removing_a_user_removes_the_file_of_version_1_too(folder: Path, store: FileStore) -> None:
    enrol_1(folder)
    enrol(folder)
    store.update("alice", lambda record: (None, None))
    assert files(folder) == []


def test_a_conversion_removes_the_other_files_of_version_1(folder: Path) -> None:
    enrol_1(folder)
    (folder / "alice.lock").touch(0o600)
    (folder / ".alice.json.tmp").touch(0o600)
    assert log_in(folder, code(0)) == "code"
    assert sizes(folder) == CONVERTED


def test_a_file_of_version_1_that_cannot_be_converted_is_unavailable(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = enrol_1(folder)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(StoreError, match="No space left"):
        log_in(folder, code(0))
    assert files(folder) == ["alice.json", "alice.lock"]
    assert path.read_bytes() == before
    assert store.read("alice").enrolled


@pytest.fixture
def locked_by_version_1(folder: Path) -> Iterator[None]:
    lock = os.open(folder / "alice.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield
    os.close(lock)


@pytest.mark.usefixtures("locked_by_version_1")
def test_a_conversion_waits_for_a_process_of_version_1(folder: Path) -> None:
    """Both versions could accept the same code if the conversion did not wait."""
    impatient = FileStore(str(folder), lock_wait=0.01)
    path = enrol_1(folder)
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"the lock was not acquired within 0\.01 s"):
        log_in(folder, code(0), store=impatient)
    assert path.read_bytes() == before


@pytest.mark.usefixtures("locked_by_version_1")
def test_a_converted_user_does_not_wait_for_the_lock_of_version_1(folder: Path) -> None:
    impatient = FileStore(str(folder), lock_wait=0.01)
    enrol(folder)
    (folder / "alice.json").touch(0o600)
    assert log_in(folder, code(0), store=impatient) == "code"
    impatient.update_decoy("zoe", int)


def test_a_file_of_version_1_with_a_copy_is_converted_and_the_copy_kept(folder: Path, store: FileStore) -> None:
    """A killed import of version 1 leaves hard links."""
    path = enrol_1(folder)
    content = path.read_bytes()
    os.link(path, folder / ".copy")
    assert log_in(folder, code(0)) == "code"
    assert (folder / ".copy").read_bytes() == content
    assert path.read_bytes() == b""
    assert store.read("alice").tokens == (fob(1, last_used=NOW),)


def test_a_file_with_more_grace_than_logins_keep_does_not_grow(folder: Path) -> None:
    grace = tuple(Grace(service="sshd", rhost=f"192.0.2.{i}", granted=NOW) for i in range(40))
    enrol_1(folder, grace=grace, failures=9, failures_at=NOW)
    assert log_in(folder, b"000000") == "wrong"
    path = folder / "alice.record"
    before = path.stat()
    for _ in range(3):
        log_in(folder, b"000000")
    assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)


def _with_recent(login: RecentLogin, record: UserRecord) -> tuple[UserRecord, None]:
    return record.with_recent(login.entry()), None


def test_a_slot_without_space_keeps_fewer_recent_logins(folder: Path, store: FileStore) -> None:
    grace = tuple(Grace(service="s" * 32, rhost=f"{i:039}", granted=NOW) for i in range(16))
    fields: dict[str, Any] = {"grace": grace, "salt": "00" * 16, "failures": 9, "failures_at": NOW}
    codes: tuple[str, ...] = ()
    while len(serialize(UserRecord(user="alice", tokens=(fob(),), recovery=codes, **fields))) < BLOCK - 400:
        codes = (*codes, f"{len(codes):064x}")
    path = enrol(folder, recovery=codes, **fields)
    assert path.stat().st_size == 2 * BLOCK
    before = path.stat()
    login = RecentLogin(at=NOW, accepted=False, outcome="wrong", service="s" * 64, rhost="r" * 64)
    for accepted in (True, False, False):
        kept = login._replace(accepted=accepted)
        store.update("alice", partial(_with_recent, kept))
        assert (path.stat().st_ino, path.stat().st_size) == (before.st_ino, before.st_size)
    left = store.read("alice").recent_logins
    assert 0 < len(left) < 3
    assert not left[-1].accepted, "the oldest entries are dropped"
    assert log_in(folder, code(0, 2)) == "row"


def test_a_reader_never_misses_a_file_that_is_converted_meanwhile(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader finds no new file. Another process converts the old file before the reader opens the old file."""
    enrol_1(folder)
    opened = os.open

    def converts(name: str, *arguments: Any, **named: Any) -> int:
        if name == "alice.json":
            monkeypatch.undo()
            assert log_in(folder, code(0)) == "code"
        return opened(name, *arguments, **named)

    monkeypatch.setattr(os, "open", converts)
    assert store.read("alice").tokens == (fob(1, last_used=NOW),)


# ---- temporary files of a killed writer


@pytest.mark.parametrize("kind", ["half", "whole", "empty", "unreadable", "link", "pipe"])
def test_a_leftover_of_a_killed_writer_does_not_block_and_is_removed(folder: Path, tmp_path: Path, kind: str) -> None:
    path = enrol(folder)
    temporary = folder / ".alice.record"
    target = tmp_path / "target"
    target.write_text("unrelated")
    if kind == "link":
        temporary.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(temporary)
    else:
        content = path.read_bytes().replace(b'"counter": 0', b'"counter": 9')
        temporary.write_bytes({"half": content[:50], "empty": b""}.get(kind, content))
        temporary.chmod(0 if kind == "unreadable" else 0o600)
    assert log_in(folder, code(0)) == "code"
    assert files(folder) == ["alice.record"]
    assert counter_of(path) == 1
    assert target.read_text() == "unrelated"


CHANGES: dict[str, Callable[[UserRecord], tuple[UserRecord | None, None]]] = {
    "a token added": lambda record: (record.with_token(phone()), None),
    "a token renamed": lambda record: (record.with_changed(record.tokens[0], record.tokens[0].renamed("new")), None),
    "growth": lambda record: (record.with_recovery("00" * 16, tuple(f"{n:064x}" for n in range(100))), None),
    "removal": lambda record: (None, None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_but_a_login_removes_leftovers_of_killed_writers(
    folder: Path, store: FileStore, change: str
) -> None:
    enrol(folder)
    assert log_in(folder, code(0)) == "code"
    (folder / ".alice.record").write_bytes(b"a secret")
    store.update("alice", CHANGES[change])
    assert files(folder) == ([] if change == "removal" else ["alice.record"])


def test_a_login_removes_no_leftover_of_another_user(folder: Path) -> None:
    enrol(folder)
    (folder / ".bob.record").write_bytes(b"being written")
    log_in(folder, code(0))
    assert (folder / ".bob.record").exists()


# ---- invalid files


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to(path.with_name("real"))


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o600)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


def _other_user(path: Path) -> None:
    enrol(path.parent, "mallory", file=path.name)


def _mode(mode: int) -> Callable[[Path], None]:
    return lambda path: path.chmod(mode)


INVALID_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_truncate, "must be two slots"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "one byte": (lambda path: path.write_bytes(b"{"), "must be JSON"),
    "NULs": (lambda path: path.write_bytes(bytes(8192)), "one slot must have a valid document"),
    "just too large": (lambda path: path.write_bytes(b"{" + b" " * MAX_FILE), "must be at most"),
    "much too large": (lambda path: os.truncate(path, 1 << 40), "must be two slots"),
    "another user's": (_other_user, "the field 'user' must match the file name"),
    "a link": (_link, "Too many levels of symbolic links"),
    "a dangling link": (_dangling, "Too many levels of symbolic links"),
    "a link to itself": (_loop, "Too many levels of symbolic links"),
    "a link to a device": (_device, "Too many levels of symbolic links"),
    "a pipe": (_pipe, "must be a regular file"),
    "a folder": (_directory, "must be a regular file"),
    **{
        f"mode {mode:04o}": (_mode(mode), "its mode must be 0600")
        for mode in (
            0o601,
            0o604,
            0o606,
            0o610,
            0o620,
            0o640,
            0o660,
            0o644,
            0o666,
            0o700,
            0o777,
            0o1600,
            0o2600,
            0o4600,
        )
    },
}


@pytest.mark.parametrize("how", INVALID_FILES)
def test_an_invalid_file_is_unavailable_and_unchanged(folder: Path, store: FileStore, how: str) -> None:
    damage, message = INVALID_FILES[how]
    path = enrol(folder)
    damage(path)
    before = _metadata(folder)
    for attempt in (
        lambda: store.read("alice"),
        lambda: log_in(folder, code(0)),
        lambda: store.update("alice", lambda record: (record, None), create=True),
    ):
        with pytest.raises(StoreError, match=message) as caught:
            attempt()
        assert "alice.record" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert _metadata(folder) == before
    assert log_in_bob(folder) == "code", "another user can log in"


def _metadata(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    found = {name: (folder / name).lstat() for name in files(folder)}
    return {name: (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns) for name, s in found.items()}


def log_in_bob(folder: Path) -> str:
    enrol(folder, "bob")
    return log_in(folder, code(0), "bob")


@pytest.mark.parametrize("mode", [0, 0o200, 0o400])
def test_a_mode_without_the_owners_rights_is_refused_too(folder: Path, store: FileStore, mode: int) -> None:
    enrol(folder).chmod(mode)
    with pytest.raises(StoreError, match=r"mode must be 0600|Permission denied"):
        store.read("alice")


@pytest.mark.parametrize("damage", [_link, _dangling, _pipe, _directory], ids=lambda f: f.__name__)
def test_a_lock_file_of_another_type_makes_the_user_unavailable(folder: Path, damage: Callable[[Path], None]) -> None:
    path = enrol(folder)
    assert log_in(folder, code(0)) == "code"
    damage(folder / ".lock")
    with pytest.raises(StoreError):
        log_in(folder, code(1))
    assert counter_of(path) == 1
    assert not (folder / "nowhere").exists()


@pytest.mark.parametrize("mode", [0o400, 0o666, 0o644])
def test_a_lock_file_of_another_mode_is_corrected(folder: Path, mode: int) -> None:
    """The store sets the mode of the lock file to 0600, so that only the owner of the file can open it."""
    enrol(folder)
    assert log_in(folder, code(0)) == "code"
    (folder / ".lock").chmod(mode)
    if os.access(folder / ".lock", os.W_OK):
        assert log_in(folder, code(1)) == "code"
        assert stat.S_IMODE((folder / ".lock").stat().st_mode) == 0o600


@as_root
def test_a_file_of_another_account_is_unavailable(folder: Path) -> None:
    path = enrol(folder)
    os.chown(path, 65534, 65534)
    with pytest.raises(StoreError, match="must be owned"):
        log_in(folder, code(0))
    os.chown(path, 0, 65534)
    assert log_in(folder, code(0)) == "code", "the file can belong to any group"
    os.chown(folder / ".lock", 65534, 0)
    with pytest.raises(StoreError, match="must be owned"):
        log_in(folder, code(1))


# ---- invalid folders


@as_root
def test_a_folder_of_another_account_is_unavailable(folder: Path) -> None:
    enrol(folder)
    os.chown(folder, 65534, 65534)
    with pytest.raises(StoreError, match="must be owned by uid"):
        log_in(folder, code(0))


@pytest.mark.parametrize(
    "mode", [0o701, 0o702, 0o704, 0o710, 0o720, 0o740, 0o750, 0o755, 0o777, 0o1777, 0o500, 0o600, 0o300]
)
def test_a_folder_without_mode_0700_is_unavailable(folder: Path, store: FileStore, mode: int) -> None:
    enrol(folder)
    folder.chmod(mode)
    for attempt in (
        lambda: store.read("alice"),
        lambda: log_in(folder, code(0)),
        lambda: store.update_decoy("zoe", int),
        lambda: list(store.users()),
    ):
        with pytest.raises(StoreError, match=r"its mode must be 0700|Permission denied"):
            attempt()
    folder.chmod(0o700)
    assert files(folder) == ["alice.record"]


@pytest.mark.parametrize("kind", ["nothing", "a file", "a dangling link", "a pipe", "no folder above"])
def test_a_path_that_is_not_a_folder_is_unavailable_not_an_unknown_user(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "missing"
    if kind == "a file":
        folder.write_bytes(b"")
    elif kind == "a dangling link":
        folder.symlink_to("nowhere")
    elif kind == "a pipe":
        os.mkfifo(folder)
    elif kind == "no folder above":
        folder = folder / "deeper"
    store = FileStore(str(folder))
    for attempt in (
        lambda: store.read("alice"),
        lambda: log_in(folder, code(0)),
        lambda: store.update("alice", lambda record: (record, None), create=True),
        lambda: store.update_decoy("zoe", int),
        lambda: list(store.users()),
    ):
        with pytest.raises(StoreError, match=str(folder)):
            attempt()


# ---- names

NAMES = {
    "alice": "alice",
    "Alice": "Alice",
    "a.b_c-d@example.org": "a.b_c-d@example.org",
    "..": "%2E.",
    ".": "%2E",
    ".hidden": "%2Ehidden",
    "a.": "a.",
    "../../etc/shadow": "%2E.%2F..%2Fetc%2Fshadow",
    "/etc/shadow": "%2Fetc%2Fshadow",
    "a/b": "a%2Fb",
    "a\0b": "a%00b",
    "a b": "a%20b",
    "a\nb": "a%0Ab",
    "DOMAIN\\alice": "DOMAIN%5Calice",
    "%2E": "%252E",
    "é": "%C3%A9",
    "e\u0301": "e%CC%81",
    "\udcff": "%FF",
    "~": "%7E",
    "a+b$": "a%2Bb%24",
}


@pytest.mark.parametrize("user", NAMES, ids=ascii)
def test_a_users_name_is_one_file_name(user: str) -> None:
    assert file_name(user) == NAMES[user]


@pytest.mark.parametrize("user", [u for u in NAMES if u.isprintable()], ids=ascii)
def test_a_user_of_any_name_is_stored_in_the_folder(tmp_path: Path, folder: Path, store: FileStore, user: str) -> None:
    before = files(tmp_path)
    store.update(user, lambda record: (record.with_token(fob()), None), create=True)
    assert log_in(folder, code(0), user) == "code"
    assert files(folder) == [f"{NAMES[user]}.record"]
    assert list(store.users()) == [user]
    assert files(tmp_path) == before


@pytest.mark.parametrize("user", [u for u in NAMES if not u.isprintable()], ids=ascii)
def test_an_impossible_user_name_is_not_enrolled_and_leaves_no_trace(folder: Path, store: FileStore, user: str) -> None:
    with pytest.raises(NotThere):
        log_in(folder, code(0), user)
    assert files(folder) == []
    with pytest.raises((RecordError, StoreError)):
        store.update(user, lambda record: (record, None), create=True)
    assert [name for name in files(folder) if name.endswith(".record")] == []


@pytest.mark.parametrize(
    "user", ["", "x" * 246, "x" * 300, "é" * 41 + "x", "/" * 82, "\ud800", "\udcc3\udca9"], ids=ascii
)
def test_a_user_name_that_cannot_be_a_file_name_is_unavailable(folder: Path, store: FileStore, user: str) -> None:
    for attempt in (
        lambda: store.read(user),
        lambda: log_in(folder, code(0), user),
        lambda: store.update(user, lambda record: (record, None), create=True),
    ):
        with pytest.raises(StoreError, match="the user name"):
            attempt()
    assert files(folder) == []


@pytest.mark.parametrize("user", ["x" * 245, "é" * 40 + "x" * 5])
def test_the_longest_name_works(folder: Path, store: FileStore, user: str) -> None:
    store.update(user, lambda record: (record.with_token(fob()), None), create=True)
    assert log_in(folder, code(0), user) == "code"
    assert list(store.users()) == [user]


names = st.text(max_size=30) | st.text("ab./%\0 \udcc3\udca9é", max_size=8)


def _file_name(user: str) -> str | None:
    try:
        return file_name(user)
    except StoreError:
        return None


@given(names)
def test_no_user_name_leaves_the_folder_or_collides_with_other_files(user: str) -> None:
    name = _file_name(user)
    if name is not None:
        assert "/" not in name
        assert "\0" not in name
        assert not name.startswith(".")
        assert name.isascii()
        assert len(f".{name}.record") <= 255


@given(names, names)
def test_no_two_names_share_a_file(first: str, second: str) -> None:
    if first != second and _file_name(first) is not None:
        assert _file_name(first) != _file_name(second)


def test_users_lists_the_users_with_a_record(folder: Path, store: FileStore) -> None:
    for user in ("alice", "bob"):
        enrol(folder, user)
        log_in(folder, code(0), user)
    enrol(folder, "a/b", file="a%2Fb.record")
    (folder / ".carol.record").write_bytes(b"left behind")
    (folder / "notes.txt").write_bytes(b"")
    (folder / ".hidden.json").write_bytes(b"no name begins with a dot")
    store.update_decoy("zoe", int)
    assert sorted(store.users()) == ["a/b", "alice", "bob"]
