"""Tests of `examine` and `repair`: they find and repair the defects of a file store, and change no other file."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from pam_totp.core.record import HotpToken
from pam_totp.core.slots import decode
from pam_totp.store import StoreError, upkeep
from pam_totp.store.bulk import update_many
from pam_totp.store.decoys import FOLDER as DECOYS
from pam_totp.store.file import FileStore
from tests.conftest import as_root
from tests.core.stores import code, enrol, enrol_1, holding, log_in
from tests.support.site import fob


@pytest.fixture
def store(folder: Path) -> FileStore:
    made = FileStore(str(folder))
    made.prepare()
    enrol(folder)
    return made


def found(store: FileStore) -> list[tuple[str, bool]]:
    return [(defect.text, defect.repair is not None) for defect in upkeep.examine(store)]


def is_flawless(store: FileStore) -> bool:
    return found(store) == [] and list(upkeep.repair(store)) == []


def test_a_store_without_defects_is_unchanged(folder: Path, store: FileStore) -> None:
    assert log_in(folder, code(0)) == "code"
    before = (folder / "alice.record").read_bytes()
    assert is_flawless(store)
    assert (folder / "alice.record").read_bytes() == before


def test_missing_decoys_and_a_missing_lock_file_are_created(folder: Path, store: FileStore) -> None:
    (folder / DECOYS / "07").unlink()
    (folder / DECOYS / "08").write_bytes(b"{}")
    (folder / DECOYS / "09").chmod(0o644)
    (folder / ".lock").unlink()
    expected = [
        "an attacker can distinguish unknown users: 3 of 64 decoys are missing or damaged",
        ".lock: not found",
    ]
    assert found(store) == [(text, True) for text in expected]
    assert list(upkeep.repair(store)) == expected
    assert is_flawless(store)


def test_leftovers_of_killed_processes_and_of_version_1_are_repaired(folder: Path, store: FileStore) -> None:
    leftovers = [".alice.record", ".bob.json.tmp", ".zoe.nobody", "alice.lock"]
    for name in leftovers:
        (folder / name).touch(0o600)
    enrol_1(folder)
    for name in (".import", "notes.txt"):
        (folder / name).touch(0o600)
    texts = [f"{name}: left by a killed process" for name in leftovers]
    texts = sorted([*texts, "alice.json: ignored, because alice.record exists"])
    assert found(store) == [(text, True) for text in texts]
    assert list(upkeep.repair(store)) == texts
    kept = [".import", "notes.txt", "alice.json", "alice.record", ".lock", DECOYS]
    assert sorted(os.listdir(folder)) == sorted(kept)
    assert (folder / "alice.json").read_bytes() == b""
    assert is_flawless(store)


def test_a_file_of_version_1_is_converted_by_a_repair(folder: Path, store: FileStore) -> None:
    enrol_1(folder, "carl", tokens=(fob(7),))
    (folder / "carl.lock").touch(0o600)
    text = "carl.json: the user's next login needs free disk space: the file has version 1"
    assert found(store) == [(text, True)]
    assert list(upkeep.repair(store)) == [text]
    assert {path.name: path.stat().st_size for path in folder.glob("carl*")} == {"carl.record": 8192, "carl.json": 0}
    assert store.read("carl").tokens == (fob(7),)
    assert is_flawless(store)


def test_an_invalid_file_of_version_1_is_left_unchanged(folder: Path, store: FileStore) -> None:
    path = enrol_1(folder, "carl")
    path.write_bytes(b"{}")
    assert is_flawless(store)
    assert path.read_bytes() == b"{}"


def test_a_file_of_version_1_of_another_user_is_left_unchanged(folder: Path, store: FileStore) -> None:
    path = enrol_1(folder, "carl").rename(folder / "dora.json")
    before = path.read_bytes()
    assert is_flawless(store)
    assert path.read_bytes() == before


def test_a_user_who_is_removed_before_the_conversion_stays_removed(folder: Path, store: FileStore) -> None:
    path = enrol_1(folder, "carl")
    (defect,) = list(upkeep.examine(store))
    path.unlink()
    assert defect.repair is not None
    defect.repair()
    assert list(folder.glob("carl*")) == []


def test_a_file_with_hard_links_is_replaced_by_a_copy(folder: Path, store: FileStore) -> None:
    """`cp -al` creates a backup of hard links. A login would change the backup, so the login is denied."""
    os.link(folder / "alice.record", folder / "backup")
    with pytest.raises(StoreError, match="must not have hard links"):
        store.read("alice")
    assert list(upkeep.repair(store)) == ["alice.record: must not have hard links"]
    assert store.read("alice").tokens == (fob(),)
    assert (folder / "alice.record").stat().st_nlink == (folder / "backup").stat().st_nlink == 1
    assert is_flawless(store)


def test_a_file_of_version_1_that_is_in_force_again_is_kept(folder: Path, store: FileStore) -> None:
    """Another process deletes the record before the repair acquires the lock, so the old file is used again."""
    enrol_1(folder, tokens=(fob(5),))
    with store.opened() as opened:
        (defect,) = list(upkeep._defects(store, opened))
        (folder / "alice.record").unlink()
        assert defect.repair is not None
        defect.repair()
    assert store.read("alice").tokens == (fob(5),)


def test_a_mode_that_permits_too_much_is_corrected(folder: Path, store: FileStore) -> None:
    (folder / "alice.record").chmod(0o644)
    assert list(upkeep.repair(store)) == ["alice.record: its mode must be 0600"]
    assert (folder / "alice.record").stat().st_mode & 0o777 == 0o600
    assert is_flawless(store)


def test_a_damaged_slot_is_written_again(folder: Path, store: FileStore) -> None:
    path = folder / "alice.record"
    path.write_bytes(path.read_bytes()[:4096] + b"x" * 4096)
    assert list(upkeep.repair(store)) == ["alice.record: a slot is damaged"]
    assert decode(path.read_bytes()).other is not None
    assert store.read("alice").tokens == (fob(),)
    assert is_flawless(store)


def test_a_temporary_file_of_a_running_process_of_version_1_is_kept(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process holds the user's lock, and would fail if a repair deleted the file before the process renames it."""
    monkeypatch.setattr(upkeep, "LOCK_WAIT", 0.01)
    temporary = folder / ".bob.json.tmp"
    temporary.touch(0o600)
    waiting = FileStore(str(folder), lock_wait=0.01)
    with open(folder / "bob.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"\.bob\.json\.tmp: left by .* \(bob\.record: the lock was not acquired"):
            list(upkeep.repair(waiting))
        assert temporary.exists()
        assert (folder / "bob.lock").exists()
    assert list(upkeep.repair(waiting)) == [
        f"{name}: left by a killed process" for name in (temporary.name, "bob.lock")
    ]
    assert is_flawless(store)
    enrol_1(folder, "bob")
    temporary.touch(0o600)
    repaired = list(upkeep.repair(waiting))
    assert repaired[0] == f"{temporary.name}: left by a killed process"
    assert repaired[1].startswith("bob.json: the user's next login needs free disk space")
    assert store.read("bob").enrolled


def test_after_a_repair_that_fails_the_next_defects_are_repaired(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repair can set a mode even if it cannot create decoys, for example on a full disk."""
    (folder / DECOYS / "07").unlink()
    make_hole(folder / "alice.record")
    enrol(folder, "bob").chmod(0o644)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    repaired = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(StoreError) as raised:
            for text in upkeep.repair(store):
                repaired.append(text)
    assert repaired == ["bob.record: its mode must be 0600"]
    assert str(raised.value) == (
        "an attacker can distinguish unknown users: 1 of 64 decoys are missing or damaged "
        f"({folder}: No space left on device); "
        "alice.record: has holes (No space left on device)"
    )
    assert len(list(upkeep.repair(store))) == 2
    assert is_flawless(store)


def test_an_interrupted_import_is_rolled_back_by_a_repair(folder: Path, store: FileStore) -> None:
    """The journal of an interrupted import contains keys."""

    def killed(done: int, total: int) -> None:
        if done == 1:
            os._exit(0)
        if done == 0:
            assert found(store) == [], "a running import is not a defect"

    other = HotpToken(name="other", secret=b"abcdefghijklmnopqrst", created=0)
    pid = os.fork()
    if pid == 0:
        try:
            update_many(store, [("alice", lambda record: (record.with_token(other), None))], killed)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert (folder / ".import" / "manifest").exists()
    assert found(store) == [(".import: left by an interrupted import", True)]
    assert list(upkeep.repair(store)) == [".import: left by an interrupted import"]
    assert not (folder / ".import").exists()
    assert store.read("alice").tokens == (fob(),)
    assert is_flawless(store)


def make_hole(path: Path) -> None:
    """Replace the second slot of the file `path` with a hole."""
    data = path.read_bytes()
    with open(path, "wb") as file:
        file.write(data[:4096])
        file.truncate(len(data))


@pytest.mark.parametrize("mapped", [True, False], ids=["FIEMAP", "without"])
def test_a_sparse_file_is_replaced(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch, mapped: bool
) -> None:
    def unknown(*_: object) -> None:
        raise OSError("unknown ioctl")

    if not mapped:
        monkeypatch.setattr(fcntl, "ioctl", unknown)
    path = folder / "alice.record"
    make_hole(path)
    assert path.stat().st_blocks * 512 < path.stat().st_size
    assert list(upkeep.repair(store)) == ["alice.record: has holes"]
    assert path.stat().st_blocks * 512 >= path.stat().st_size
    assert decode(path.read_bytes()).sequence == 2
    assert store.read("alice").tokens == (fob(),)
    assert is_flawless(store)


def test_a_sparse_file_with_a_document_of_version_1_gets_two_slots(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = enrol_1(folder, "bob").rename(folder / "bob.record")
    damaged = folder / "damaged.record"
    damaged.write_bytes(b"{")
    damaged.chmod(0o600)
    small = (path.stat().st_size, damaged.stat().st_size)
    monkeypatch.setattr(upkeep, "_blocks", lambda file, status: "has holes" if status.st_size in small else "")
    assert list(upkeep.repair(store)) == ["bob.record: has holes"]
    assert (decode(path.read_bytes()).size, decode(path.read_bytes()).sequence) == (4096, 1)
    assert store.read("bob").tokens == (fob(),)
    assert is_flawless(store)


def test_a_sparse_decoy_is_replaced(folder: Path, store: FileStore) -> None:
    sparse, other = folder / DECOYS / "07", folder / DECOYS / "08"
    make_hole(sparse)
    before = other.stat()
    assert found(store) == [(".decoy: has holes, in 1 of 64 files", True)]
    assert list(upkeep.repair(store)) == [".decoy: has holes, in 1 of 64 files"]
    assert sparse.stat().st_blocks * 512 >= sparse.stat().st_size
    assert (other.stat().st_ino, other.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert is_flawless(store)


def test_decoys_are_replaced_under_their_lock(folder: Path, store: FileStore) -> None:
    make_hole(folder / DECOYS / "07")
    held = holding(folder, DECOYS)
    with pytest.raises(StoreError, match=r"\.decoy: has holes.* \(\.decoy: the lock was not acquired"):
        list(upkeep.repair(FileStore(str(folder), lock_wait=0.01)))
    os.close(held)


def mapping(flags: int) -> object:
    """Return a replacement for `fcntl.ioctl` that reports a file as a single extent with `flags`."""

    def ioctl(file: int, request: int, argument: bytearray | bytes) -> bytes:
        if not isinstance(argument, bytearray):
            return bytes(4)  # no attributes
        struct.pack_into("QQIIII", argument, 0, 0, 8192, 1, 1, 64, 0)
        struct.pack_into("QQQQQIIII", argument, 32, 0, 0, os.fstat(file).st_size, 0, 0, flags, 0, 0, 0)
        return b""

    return ioctl


@pytest.mark.parametrize(
    ("flags", "text"), [(0x2000, "shares blocks with a copy (reflink)"), (0x800, "has holes"), (1, "")]
)
def test_shared_and_unwritten_blocks_are_found(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, flags: int, text: str
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", mapping(flags))
    expected = [f".decoy: {text}, in 64 of 64 files", f"alice.record: {text}"]
    assert found(store) == ([(line, True) for line in expected] if text else [])


@pytest.mark.parametrize(("last", "text"), [(0, ""), (1, "has holes")])
def test_the_blocks_of_a_file_with_too_many_extents_are_unknown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, last: int, text: str
) -> None:
    def ioctl(file: int, request: int, argument: bytearray) -> bytes:
        struct.pack_into("QQIIII", argument, 0, 0, 8192, 1, 64, 64, 0)
        for number in range(64):
            flags = last if number == 63 else 0
            struct.pack_into("QQQQQIIII", argument, 32 + 56 * number, 0, 0, 64, 0, 0, flags, 0, 0, 0)
        return b""

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    with open(enrol(folder), "rb") as file:
        assert upkeep._blocks(file.fileno(), os.fstat(file.fileno())) == text


@pytest.mark.parametrize("nocow", [False, True])
def test_a_file_system_that_does_not_overwrite_blocks_is_reported(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch, nocow: bool
) -> None:
    monkeypatch.setattr(upkeep, "_file_system", lambda folder: "btrfs")
    monkeypatch.setattr(upkeep, "_has_flag", lambda file, flag: nocow)
    warning = "a full disk locks users out: btrfs does not overwrite blocks"
    assert found(store) == ([] if nocow else [(warning, False)])


def test_a_file_created_before_the_attribute_was_set_is_replaced(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoy = folder / DECOYS
    paths = [folder / "alice.record", decoy, *decoy.iterdir()]
    old = {path.stat().st_ino for path in paths}
    held = [os.open(path, os.O_RDONLY) for path in paths]  # so that new files have other inode numbers
    changed: list[tuple[int, int]] = []

    def flags(file: int) -> int:
        """Return the flags of a file: a new file inherits +C from its folder."""
        inode = os.fstat(file).st_ino
        return 0x0080_0000 if inode not in old or (inode, 0x0080_0010) in changed else 0x10

    def ioctl(file: int, request: int, argument: bytearray | bytes) -> bytes:
        if request == 0x40086602:
            changed.append((os.fstat(file).st_ino, *struct.unpack("i", argument)))
        elif isinstance(argument, bytearray):
            raise OSError(errno.EOPNOTSUPP, "no FIEMAP")
        return struct.pack("i", flags(file))

    monkeypatch.setattr(upkeep, "_file_system", lambda folder: "btrfs")
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    expected = [
        ".decoy: was created before chattr +C was set, in 64 of 64 files",
        "alice.record: was created before chattr +C was set",
    ]
    assert list(upkeep.repair(store)) == expected
    assert changed == [(decoy.stat().st_ino, 0x0080_0010)]
    assert not old & {path.stat().st_ino for path in (folder / "alice.record", *decoy.iterdir())}
    assert found(store) == []
    for file in held:
        os.close(file)


def test_the_attributes_of_a_file_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = os.open(folder, os.O_RDONLY)
    try:
        assert upkeep._has_flag(file, 0x0080_0000) is False
        monkeypatch.setattr(fcntl, "ioctl", lambda file, request, data: struct.pack("i", 0x0080_0000 | 1))
        assert upkeep._has_flag(file, 0x0080_0000) is True
        assert upkeep._has_flag(file, 0x0000_0010) is False
    finally:
        os.close(file)
    with open("/dev/null") as null:
        monkeypatch.undo()
        assert upkeep._has_flag(null.fileno(), 1) is False


@pytest.mark.parametrize(("path", "system"), [("/proc", "proc"), ("/proc/self/fd", "proc"), ("/sys", "sysfs")])
def test_the_file_system_of_a_folder_is_found(path: str, system: str) -> None:
    assert upkeep._file_system(path) == system


def test_files_that_need_an_administrator_are_unchanged(folder: Path, store: FileStore) -> None:
    (folder / "link.record").symlink_to("alice.record")
    (folder / "folder.record").mkdir()
    (folder / "damaged.record").write_bytes(b"x" * 8192)
    (folder / "damaged.record").chmod(0o600)
    enrol_1(folder, "bob").rename(folder / "bob.record")
    assert is_flawless(store)


@as_root
def test_a_file_of_another_account_is_unchanged(folder: Path, store: FileStore) -> None:
    os.chown(folder / "alice.record", 65534, 65534)
    (folder / "alice.record").chmod(0o644)
    assert is_flawless(store)


def test_a_folder_that_cannot_be_read_is_an_error(folder: Path, store: FileStore) -> None:
    folder.chmod(0o755)
    with pytest.raises(StoreError, match="mode must be 0700"):
        found(store)
    with pytest.raises(StoreError, match="mode must be 0700"):
        list(upkeep.repair(store))


def test_a_record_that_is_removed_before_its_repair_stays_removed(folder: Path, store: FileStore) -> None:
    path = folder / "alice.record"
    for damage in (make_hole, lambda path: path.write_bytes(path.read_bytes()[:4096] + b"x" * 4096)):
        enrol(folder)
        damage(path)
        with store.opened() as opened:
            (defect,) = list(upkeep._defects(store, opened))
            path.unlink()
            assert defect.repair is not None
            defect.repair()
        assert not path.exists()


# ---- records that another program wrote


@pytest.fixture
def with_birth_times(folder: Path) -> None:
    """Skip the test on a file system that does not store the time of creation."""
    shown = subprocess.run(["stat", "--format=%W", folder / "alice.record"], capture_output=True, text=True, check=True)
    if shown.stdout.strip() in ("0", "-"):
        pytest.skip("the file system does not store the time of creation")


@pytest.mark.usefixtures("store", "with_birth_times")
def test_a_restored_record_is_noticed_until_a_login_changes_it(folder: Path, store: FileStore) -> None:
    path = folder / "alice.record"
    assert log_in(folder, code(0)) == "code"
    path.chmod(0o600)
    assert list(upkeep.put_back(store)) == [], "a changed mode is not a sign of a restored backup"
    copy = folder.parent / "copy"
    shutil.copy2(path, copy)  # like tar and rsync -a, copy2 keeps the time of modification
    path.unlink()
    shutil.copy2(copy, path)
    assert list(upkeep.put_back(store)) == ["alice.record"]
    assert log_in(folder, code(0)) == "replayed"
    assert list(upkeep.put_back(store)) == []


def test_files_other_than_records_are_not_examined_for_their_times(folder: Path, store: FileStore) -> None:
    for name in ("x.json", ".alice.record", "notes"):
        (folder / name).write_text("x")
        os.utime(folder / name, (0, 0))
    (folder / "b.record").symlink_to("notes")
    assert list(upkeep.put_back(store)) == []


@pytest.mark.usefixtures("store", "with_birth_times")
def test_a_file_system_without_times_of_creation_has_no_such_finding(
    store: FileStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(folder / "alice.record", (0, 0))
    assert list(upkeep.put_back(store)) == ["alice.record"]
    monkeypatch.setattr(upkeep, "_STATX_BTIME", 0)
    assert list(upkeep.put_back(store)) == []
