"""Find and repair defects of a file store, for `pam-totp doctor` and `pam-totp doctor --repair`.

Rules:
1. Logins continue during a repair. A repair holds the lock of the record, and checks the defect again.
2. A record without a valid slot is left unchanged, because only an administrator can decide about it.
3. On a full disk, a login needs blocks that it can overwrite. So every block of a secret file must be allocated and
   written, and must not be shared with a copy. The file system must overwrite blocks in place.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from pam_totp.core.slots import Slots, new_file
from pam_totp.store import NotThere, StoreError, decoys
from pam_totp.store.file import LOCK, FileStore
from pam_totp.store.secret_file import create, empty_file, exists, read, unlink, write

_FIEMAP = 0xC020660B  # ioctl(2) FS_IOC_FIEMAP returns the extents of a file
_FIEMAP_HEAD, _FIEMAP_EXTENT = struct.Struct("QQIIII"), struct.Struct("QQQQQIIII")
_FIEMAP_SYNC, _UNWRITTEN, _SHARED = 0x1, 0x0800, 0x2000
_MAX_EXTENTS = 64  # of a file; most secret files have one
_GET_FLAGS, _NOCOW = 0x80086601, 0x0080_0000  # ioctl(2) FS_IOC_GETFLAGS; the flag of `chattr +C`
_COPY_ON_WRITE = {"btrfs", "zfs", "bcachefs", "nilfs2", "f2fs"}


class Defect(NamedTuple):
    """A defect, and the function that repairs it, or None if only an administrator can."""

    text: str
    repair: Callable[[], None] | None = None


def examine(store: FileStore) -> Iterator[Defect]:
    """Yield all defects. Raise StoreError if the folder cannot be read."""
    with store.opened() as folder:
        yield from _defects(store, folder)


def repair(store: FileStore) -> Iterator[str]:
    """Repair the defects, and yield the text of each repaired defect. Raise StoreError."""
    with store.opened() as folder:
        for defect in list(_defects(store, folder)):
            if defect.repair is not None:
                defect.repair()
                yield defect.text


def _defects(store: FileStore, folder: int) -> Iterator[Defect]:
    system = _file_system(store.folder)
    cow, nocow = system in _COPY_ON_WRITE, _has_flag(folder, _NOCOW)
    if cow and not nocow:
        yield Defect(f"{system} does not overwrite blocks, so a full disk locks users out")
    missing = decoys.missing(folder)
    if missing:
        text = f"{missing} of {decoys.COUNT} decoys are missing, so unknown users can be distinguished"
        yield Defect(text, store.prepare)
    if not exists(folder, LOCK):
        yield Defect(f"{LOCK}: not found", store.prepare)
    for name in sorted(os.listdir(folder)):
        if (record := _record_of(folder, name)) is not None:
            yield Defect(f"{name}: left by a killed process", partial(_sweep, store, folder, record, name))
        elif name.endswith(".record"):
            yield from _of_record(store, folder, name, cow=cow and nocow)


def _record_of(folder: int, name: str) -> str | None:
    """Return the file name of the record of a leftover, or None if `name` is no leftover."""
    stem, _, suffix = name.rpartition(".")
    if name.startswith("."):
        if suffix == "record":
            return name[1:]
        if name.endswith(".json.tmp"):
            return name[1 : -len(".json.tmp")] + ".record"
        return stem[1:] + ".record" if suffix == "nobody" else None
    record = stem + ".record"
    if suffix == "json":  # the conversion was interrupted before it emptied the file
        return record if exists(folder, record) and os.stat(name, dir_fd=folder).st_size > 0 else None
    return record if suffix == "lock" and (exists(folder, record) or not exists(folder, stem + ".json")) else None


def _of_record(store: FileStore, folder: int, name: str, *, cow: bool) -> Iterator[Defect]:
    with suppress(NotThere, OSError):
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                return  # `pam-totp list` reports it
            if stat.S_IMODE(status.st_mode) != 0o600:
                yield Defect(f"{name}: its mode must be 0600", partial(os.chmod, name, 0o600, dir_fd=folder))
                return
            text = _blocks(file, status)
            if not text and cow and not _has_flag(file, _NOCOW):
                text = "was created before chattr +C was set"
        finally:
            os.close(file)
        with suppress(StoreError):
            slots = read(folder, name)
            if text:
                yield Defect(f"{name}: {text}", partial(_replace_file, store, folder, name))
            elif slots.other is None:
                yield Defect(f"{name}: a slot is damaged", partial(_fill_other_slot, store, folder, name))


def _blocks(file: int, status: os.stat_result) -> str:
    """Return the defect of the blocks of a file, or an empty string."""
    extents = bytearray(_FIEMAP_HEAD.size + _MAX_EXTENTS * _FIEMAP_EXTENT.size)
    _FIEMAP_HEAD.pack_into(extents, 0, 0, status.st_size, _FIEMAP_SYNC, 0, _MAX_EXTENTS, 0)
    try:
        fcntl.ioctl(file, _FIEMAP, extents)
    except OSError:  # not on tmpfs, for example
        return "" if status.st_blocks * 512 >= status.st_size else "has holes"
    count = _FIEMAP_HEAD.unpack_from(extents)[3]
    found = [_FIEMAP_EXTENT.unpack_from(extents, _FIEMAP_HEAD.size + i * _FIEMAP_EXTENT.size) for i in range(count)]
    if any(extent[5] & _SHARED for extent in found):
        return "shares blocks with a copy (reflink)"
    written = sum(extent[2] for extent in found if not extent[5] & _UNWRITTEN)
    return "" if written >= status.st_size else "has holes"


def _has_flag(file: int, flag: int) -> bool:
    try:
        (flags,) = struct.unpack("i", fcntl.ioctl(file, _GET_FLAGS, bytes(4)))
    except OSError:
        return False
    return bool(flags & flag)


def _file_system(folder: str) -> str:
    """Return the type of the file system of `folder`, from mountinfo (proc(5))."""
    best, found = "", "unknown"
    path = os.path.realpath(folder)
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            point = before.split()[4].replace("\\040", " ")
            if len(point) >= len(best) and os.path.commonpath([path, point]) == point:
                best, found = point, after.split()[0]
    return found


def _sweep(store: FileStore, folder: int, record: str, name: str) -> None:
    with store.locked(folder, record):
        if _record_of(folder, name) is None:
            return
        if name.endswith(".json"):
            empty_file(folder, name)
        else:
            unlink(folder, name)
            os.fsync(folder)


def _replace_file(store: FileStore, folder: int, name: str) -> None:
    """Write a record to a new file, which has its own blocks."""
    with store.locked(folder, name):
        if (slots := store.load(folder, name)) is not None:
            create(folder, name, _moved(slots), store.temporary(name), over=True)


def _fill_other_slot(store: FileStore, folder: int, name: str) -> None:
    """Write the same record to the other slot."""
    with store.locked(folder, name):
        if (slots := store.load(folder, name)) is not None and slots.size:
            write(folder, name, slots, slots.document)


def _moved(slots: Slots) -> bytes:
    return new_file(slots.document, slots.size, slots.sequence + 1)
