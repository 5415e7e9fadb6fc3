"""Tests of `examine` and `repair`: defects of a file store are found and repaired, and other files are unchanged."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest

from pam_totp.core.slots import decode
from pam_totp.store import StoreError, upkeep
from pam_totp.store.decoys import FOLDER as DECOYS
from pam_totp.store.file import FileStore
from tests.conftest import as_root
from tests.core.stores import code, enrol, enrol_1, log_in
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
    expected = ["3 of 64 decoys are missing, so unknown users can be distinguished", ".lock: not found"]
    assert found(store) == [(text, True) for text in expected]
    assert list(upkeep.repair(store)) == expected
    assert is_flawless(store)


def test_leftovers_of_killed_processes_and_of_version_1_are_repaired(folder: Path, store: FileStore) -> None:
    leftovers = [".alice.record", ".bob.json.tmp", ".zoe.nobody", "alice.lock"]
    for name in leftovers:
        (folder / name).touch(0o600)
    leftovers.append(enrol_1(folder).name)
    enrol_1(folder, "carl")
    kept = ["carl.json", "carl.lock", ".import", "notes.txt"]
    for name in kept[1:]:
        (folder / name).touch(0o600)
    assert found(store) == [(f"{name}: left by a killed process", True) for name in sorted(leftovers)]
    assert list(upkeep.repair(store)) == [f"{name}: left by a killed process" for name in sorted(leftovers)]
    assert sorted(os.listdir(folder)) == sorted([*kept, "alice.json", "alice.record", ".lock", DECOYS])
    assert (folder / "alice.json").read_bytes() == b""
    assert is_flawless(store)


def test_a_file_of_version_1_that_is_in_force_again_is_kept(folder: Path, store: FileStore) -> None:
    """The record is removed before the repair acquires the lock, so the file of version 1 is in force again."""
    enrol_1(folder, tokens=(fob(5),))
    with store.opened() as opened:
        (defect,) = list(upkeep._defects(store, opened))
        (folder / "alice.record").unlink()
        assert defect.repair is not None
        defect.repair()
    assert store.read("alice").tokens == (fob(5),)


def test_a_mode_that_is_too_open_is_corrected(folder: Path, store: FileStore) -> None:
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


def make_hole(path: Path) -> None:
    """Replace the second slot of the file by a hole."""
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
    assert found(store) == ([(f"alice.record: {text}", True)] if text else [])


@pytest.mark.parametrize("nocow", [False, True])
def test_a_file_system_that_does_not_overwrite_blocks_is_reported(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch, nocow: bool
) -> None:
    monkeypatch.setattr(upkeep, "_file_system", lambda folder: "btrfs")
    monkeypatch.setattr(upkeep, "_has_flag", lambda file, flag: nocow)
    warning = "btrfs does not overwrite blocks, so a full disk locks users out"
    assert found(store) == ([] if nocow else [(warning, False)])


def test_a_file_created_before_the_attribute_was_set_is_replaced(
    folder: Path, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = (folder / "alice.record").stat().st_ino

    def has_flag(file: int, flag: int) -> bool:
        return os.fstat(file).st_ino != old

    monkeypatch.setattr(upkeep, "_file_system", lambda folder: "btrfs")
    monkeypatch.setattr(upkeep, "_has_flag", has_flag)
    assert list(upkeep.repair(store)) == ["alice.record: was created before chattr +C was set"]
    assert (folder / "alice.record").stat().st_ino != old
    assert found(store) == []


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
