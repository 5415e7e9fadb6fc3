"""What is out of order in a file store, and how to mend it: `pam-totp doctor` and its `--repair`.

Rules:
1. Logins continue meanwhile: every change of a record's file holds its lock, and looks again under it.
2. Only a person can decide about a record without a valid slot: it is left unchanged.
3. A full disk locks no user out only if a login writes into blocks of its own. So every block of a record must be
   written, none may be shared with a copy, and the file system must not write into new blocks.
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
from pam_totp.store.secret_file import create, exists, read, unlink, write

_FIEMAP = 0xC020660B  # ioctl(2) FS_IOC_FIEMAP: where the blocks of a file are
_FIEMAP_HEAD, _FIEMAP_EXTENT = struct.Struct("QQIIII"), struct.Struct("QQQQQIIII")
_FIEMAP_SYNC, _UNWRITTEN, _SHARED = 0x1, 0x0800, 0x2000
_MOST_EXTENTS = 64  # of one file: two slots are rarely in more than two
_GET_FLAGS, _NOCOW = 0x80086601, 0x0080_0000  # ioctl(2) FS_IOC_GETFLAGS; what `chattr +C` sets
_COPY_ON_WRITE = {"btrfs", "zfs", "bcachefs", "nilfs2", "f2fs"}


class Trouble(NamedTuple):
    """Something out of order, and the function that mends it; None if a person has to."""

    what: str
    mend: Callable[[], None] | None = None


def examine(store: FileStore) -> Iterator[Trouble]:
    """Yield all that is out of order. Raise StoreError if the folder cannot be read."""
    with store.opened() as folder:
        yield from _troubles(store, folder)


def repair(store: FileStore) -> Iterator[str]:
    """Mend what can be mended, and yield what it was. Raise StoreError."""
    with store.opened() as folder:
        for trouble in list(_troubles(store, folder)):
            if trouble.mend is not None:
                trouble.mend()
                yield trouble.what


def _troubles(store: FileStore, folder: int) -> Iterator[Trouble]:
    system = _file_system(store.folder)
    cow, nocow = system in _COPY_ON_WRITE, _has_flag(folder, _NOCOW)
    if cow and not nocow:
        yield Trouble(f"{system} writes into new blocks: a full disk locks users out (set chattr +C on the folder)")
    missing = decoys.missing(folder)
    if missing:
        yield Trouble(f"{missing} of {decoys.COUNT} decoys missing: unknown users stand out", store.prepare)
    if not exists(folder, LOCK):
        yield Trouble(f"{LOCK}: missing", store.prepare)
    for name in sorted(os.listdir(folder)):
        if (record := _record_of(folder, name)) is not None:
            yield Trouble(f"{name}: left by a killed process", partial(_remove, store, folder, record, name))
        elif name.endswith(".record"):
            yield from _of_record(store, folder, name, cow=cow and nocow)


def _record_of(folder: int, name: str) -> str | None:
    """Return the name of the record that a leftover belongs to; None for other files."""
    stem, _, suffix = name.rpartition(".")
    if name.startswith("."):
        if suffix == "record":
            return name[1:]
        if name.endswith(".json.tmp"):
            return name[1 : -len(".json.tmp")] + ".record"
        return stem[1:] + ".record" if suffix == "nobody" else None
    converted = exists(folder, stem + ".record") or not exists(folder, stem + ".json")
    return stem + ".record" if suffix in ("json", "lock") and converted else None


def _of_record(store: FileStore, folder: int, name: str, *, cow: bool) -> Iterator[Trouble]:
    with suppress(NotThere, OSError):
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                return  # `pam-totp list` says why
            if stat.S_IMODE(status.st_mode) != 0o600:
                yield Trouble(f"{name}: its mode must be 0600", partial(os.chmod, name, 0o600, dir_fd=folder))
                return
            what = _blocks(file, status)
            if not what and cow and not _has_flag(file, _NOCOW):
                what = "was written before chattr +C was set"
        finally:
            os.close(file)
        with suppress(StoreError):
            slots = read(folder, name)
            if what:
                yield Trouble(f"{name}: {what}", partial(_write_anew, store, folder, name))
            elif slots.other is None:
                yield Trouble(f"{name}: one of its slots is damaged", partial(_write_again, store, folder, name))


def _blocks(file: int, status: os.stat_result) -> str:
    """Return what is wrong with the blocks of a file, or an empty string."""
    extents = bytearray(_FIEMAP_HEAD.size + _MOST_EXTENTS * _FIEMAP_EXTENT.size)
    _FIEMAP_HEAD.pack_into(extents, 0, 0, status.st_size, _FIEMAP_SYNC, 0, _MOST_EXTENTS, 0)
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
    """Return the type of the file system that holds `folder`, from mountinfo: see proc(5)."""
    best, found = "", "unknown"
    path = os.path.realpath(folder)
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            point = before.split()[4].replace("\\040", " ")
            if len(point) >= len(best) and os.path.commonpath([path, point]) == point:
                best, found = point, after.split()[0]
    return found


def _remove(store: FileStore, folder: int, record: str, name: str) -> None:
    with store.locked(folder, record):
        if _record_of(folder, name) is not None:
            unlink(folder, name)
            os.fsync(folder)


def _write_anew(store: FileStore, folder: int, name: str) -> None:
    """Write a record into a new file, with blocks of its own."""
    with store.locked(folder, name):
        if (slots := store.load(folder, name)) is not None:
            create(folder, name, _moved(slots), store.aside(name), over=True)


def _write_again(store: FileStore, folder: int, name: str) -> None:
    """Write the same record into the other slot."""
    with store.locked(folder, name):
        if (slots := store.load(folder, name)) is not None and slots.size:
            write(folder, name, slots, slots.document)


def _moved(slots: Slots) -> bytes:
    return new_file(slots.document, slots.size, slots.sequence + 1)
