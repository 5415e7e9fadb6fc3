"""The defects of a file store and their repairs, for `pam-totp doctor` and `pam-totp doctor --repair`.

Rules:
1. Logins continue during a repair. A repair acquires a record's lock and reads the record again before it writes the
   record.
2. Only an administrator can restore a record that has no valid slot.
3. Every block of a secret file must be allocated, written and unshared, because a login on a full disk overwrites
   blocks. The file system must overwrite blocks in place. The same applies to decoys, so that an attacker cannot
   distinguish unknown users.
4. A repair that deletes files of version 1 also holds the lock of version 1, because a process of version 1 might still
   be running.
5. pam_totp writes to a secret file after its creation. Content older than the file shows that another program has
   restored the file (tar, rsync, cp), or that the clock was set back.
6. The other repairs continue after a failed repair.
7. Records can have serial numbers without a claim if another program restored them, or if they are older than the
   claims. Only an administrator can decide if two users have the same token.
8. A kill during a change of the stock can leave a copy of a key or an old claim. `claims` names the owner, and the
   repair completes the change.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

from pam_totp.core.record import RecordError
from pam_totp.core.secretfile import parse
from pam_totp.core.slots import Slots, new_file, slot_size
from pam_totp.store import NotThere, StoreError, claims, decoys, journal, stock_entries, stock_files
from pam_totp.store.byte_lock import acquire_as_version_1
from pam_totp.store.file import JOURNAL, LOCK, LOCK_WAIT, FileStore, user_of_file
from pam_totp.store.secret_file import create, empty_file, exists, has_content, read, unlink, write

_FIEMAP = 0xC020660B  # ioctl(2) FS_IOC_FIEMAP returns the extents of a file
_FIEMAP_HEAD, _FIEMAP_EXTENT = struct.Struct("QQIIII"), struct.Struct("QQQQQIIII")
_FIEMAP_SYNC, _LAST, _UNWRITTEN, _SHARED = 0x1, 0x0001, 0x0800, 0x2000
_MAX_EXTENTS = 64  # extents of a file; most secret files have one extent
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602  # ioctl(2) FS_IOC_GETFLAGS and FS_IOC_SETFLAGS
_NOCOW = 0x0080_0000  # the flag of `chattr +C`; a new file inherits the flag from its folder
_STATX_MTIME, _STATX_BTIME, _EMPTY_PATH = 0x40, 0x800, 0x1000  # statx(2)
_STATX = struct.Struct("=I76xqI4x16xqI4x128x")  # the mask, the time of creation, the time of modification
_MAX_ERRORS = 20  # errors in a message; more errors usually have one cause
_COPY_ON_WRITE = {"btrfs", "zfs", "bcachefs", "nilfs2", "f2fs"}


class Defect(NamedTuple):
    """A defect, and the function that repairs it, or None if only an administrator can repair it."""

    text: str
    repair: Callable[[], object] | None = None


def examine(store: FileStore) -> Iterator[Defect]:
    """Yield all defects. Raise StoreError if the folder cannot be read."""
    with store.opened() as folder:
        yield from _defects(store, folder)


def repair(store: FileStore) -> Iterator[str]:
    """Repair the defects, and yield the text of each repaired defect. At the end, raise StoreError with all errors."""
    errors = []
    with store.opened() as folder:
        for defect in list(_defects(store, folder)):
            if defect.repair is not None:
                try:
                    defect.repair()
                except (StoreError, RecordError, OSError) as e:
                    errors.append(f"{defect.text} ({getattr(e, 'strerror', None) or e})")
                else:
                    yield defect.text
    if errors:
        more = [f"and {len(errors) - _MAX_ERRORS} more"] if len(errors) > _MAX_ERRORS else []
        raise StoreError("; ".join(errors[:_MAX_ERRORS] + more))


def delete_leftovers(store: FileStore) -> None:
    """Delete the files with records that killed processes have left. Raise StoreError."""
    with store.opened() as folder:
        for name in os.listdir(folder):
            if (record := _record_of(folder, name)) is not None:
                _sweep(store, folder, record, name)


def put_back(store: FileStore) -> Iterator[str]:
    """Yield the file names of the records that another program put into the store, and that no login has changed since.

    Raise StoreError if the folder cannot be read.
    """
    with store.opened() as folder:
        for name in sorted(os.listdir(folder)):
            if name.endswith(".record") and not name.startswith("."):
                with suppress(OSError):
                    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
                    try:
                        if _is_older_than_file(file):
                            yield name
                    finally:
                        os.close(file)


def rewrite(store: FileStore, user: str) -> None:
    """Write the record of a user again, unchanged, so that `put_back` omits the user. Raise StoreError."""
    name = store.file_of(user)
    with store.opened() as folder:
        _rewrite(store, folder, name)


def created_at(path: str) -> int | None:
    """Return the time at which a folder was created (Unix seconds), or None if the time is unknown.

    Restores and repairs of the files in the folder cannot change this time. Raise OSError.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        times = _times(folder)
    finally:
        os.close(folder)
    return None if times is None else times[0][0]


def _is_older_than_file(file: int) -> bool:
    """Return True if a file was modified before it was created. Return False if the time of creation is unknown."""
    times = _times(file)
    return times is not None and times[1] < times[0]


def _times(file: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the times of creation and of modification (seconds, nanoseconds), or None if the time of creation is
    unknown."""
    import ctypes  # imported here because the import is slow, and the store is also a part of logins

    buffer = ctypes.create_string_buffer(_STATX.size)
    if ctypes.CDLL(None).statx(file, b"", _EMPTY_PATH, _STATX_MTIME | _STATX_BTIME, buffer) != 0:
        return None
    mask, created, created_ns, modified, modified_ns = _STATX.unpack(buffer)
    return ((created, created_ns), (modified, modified_ns)) if mask & _STATX_BTIME else None


def _defects(store: FileStore, folder: int) -> Iterator[Defect]:
    system = _file_system(store.folder)
    cow, nocow = system in _COPY_ON_WRITE, _has_flag(folder, _NOCOW)
    if cow and not nocow:
        yield Defect(f"a full disk locks users out: {system} does not overwrite blocks")
    if journal.is_left(folder):
        yield Defect(f"{JOURNAL}: left by an interrupted import", partial(journal.recover, store))
    missing = decoys.missing(folder)
    if missing:
        text = f"an attacker can distinguish unknown users: {missing} of {decoys.COUNT} decoys are missing or damaged"
        yield Defect(text, store.prepare)
    for text, count in Counter(_of_decoys(folder, cow=cow and nocow).values()).items():
        what = f"{decoys.FOLDER}: {text}, in {count} of {decoys.COUNT} files"
        yield Defect(what, partial(_replace_decoys, store, folder, cow=cow and nocow))
    if not exists(folder, LOCK):
        yield Defect(f"{LOCK}: not found", store.prepare)
    in_use, records = _ClaimsInUse(store, folder), 0
    for name in sorted(os.listdir(folder)):
        if (record := _record_of(folder, name)) is not None:
            text = f"ignored, because {record} exists" if name.endswith(".json") else "left by a killed process"
            yield Defect(f"{name}: {text}", partial(_sweep, store, folder, record, name))
        elif name.endswith(".record"):
            records += 1
            yield from _of_record(store, folder, name, in_use, cow=cow and nocow)
        elif name.endswith(".json") and not name.startswith("."):
            records += has_content(folder, name)
            yield from _of_version_1(store, folder, name, in_use)
    for text, mend in stock_files.examine(store, folder):
        yield Defect(text, mend)
    in_use.of_stock()
    yield from in_use.rest(records)


class _ClaimsInUse:
    """The check of the claims. Memory has only the number of claims with a token."""

    def __init__(self, store: FileStore, folder: int) -> None:
        self._store, self._folder = store, folder
        self._exist = exists(folder, claims.FOLDER)
        self._are_needed = False
        self._count = 0
        self._records = 0

    def of(self, name: str, document: bytes) -> Iterator[Defect]:
        """Yield the defects of the claims of a record."""
        with suppress(ValueError):  # `pam-totp list` reports the damaged record
            found = claims.serials(document)
            self._records += 1
            for claim, serial in found.items():
                self._are_needed = True
                if not self._exist or claims.is_held_by(self._folder, claim, name):
                    self._count += 1
                    continue
                other = claims.holder(self._store, self._folder, claim)
                if other == name:  # another process has changed the claim meanwhile
                    self._count += 1
                elif other is not None and stock_entries.is_path(other):
                    text = f"{name}: the token with the serial number {serial} is in stock too"
                    yield Defect(text, partial(claims.bring_in, self._store, user_of_file(name)))
                elif other is None:
                    text = f"{name}: another user can get this token too: the serial number {serial} has no claim"
                    yield Defect(text, partial(claims.bring_in, self._store, user_of_file(name)))
                else:
                    user = user_of_file(other)
                    text = f"{name}: {user} has a token with the serial number {serial} too"
                    yield Defect(f"{text} (remove the token from one user)")

    def of_stock(self) -> None:
        """Count the claims of the tokens in stock. `stock_files.examine` yields the defects of these claims."""
        for claim in stock_entries.names(self._folder):
            path = stock_entries.path_of(claim)
            with suppress(StoreError):
                if stock_entries.has_token(self._store, self._folder, claim):
                    self._are_needed = True
                    self._count += claims.is_held_by(self._folder, claim, path)

    def rest(self, records: int) -> Iterator[Defect]:
        """Yield the defects of all claims together, after the last record. `records` is the number of all records."""
        if not self._exist:
            if self._are_needed:
                text = f"two users can get the same token: {claims.FOLDER} not found"
                yield Defect(text, partial(claims.make, self._store, self._folder))
        elif self._records == records and not exists(self._folder, JOURNAL):  # an import writes records after claims
            dead = len(claims.names(self._folder)) - self._count
            if dead > 0:
                text = f"{claims.FOLDER}: {dead} {'claim' if dead == 1 else 'claims'} without a token"
                yield Defect(text, partial(claims.sweep, self._store, self._folder))


def _record_of(folder: int, name: str) -> str | None:
    """Return the file name of the record to which the leftover `name` belongs, or None for any other file."""
    stem, _, suffix = name.rpartition(".")
    if name.startswith("."):
        if suffix == "record":
            return name[1:]
        if name.endswith(".json.tmp"):
            return name[1 : -len(".json.tmp")] + ".record"
        return stem[1:] + ".record" if suffix == "nobody" else None
    record = stem + ".record"
    if suffix == "json":  # the conversion was interrupted before it emptied the file
        return record if exists(folder, record) and has_content(folder, name) else None
    return record if suffix == "lock" and (exists(folder, record) or not exists(folder, stem + ".json")) else None


def _of_record(store: FileStore, folder: int, name: str, in_use: _ClaimsInUse, *, cow: bool) -> Iterator[Defect]:
    with suppress(NotThere, OSError):
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                return  # `pam-totp list` reports this file
            if stat.S_IMODE(status.st_mode) != 0o600:
                yield Defect(f"{name}: its mode must be 0600", partial(os.chmod, name, 0o600, dir_fd=folder))
                return
            text = "must not have hard links" if status.st_nlink > 1 else _of_blocks(file, status, cow=cow)
        finally:
            os.close(file)
        with suppress(StoreError, RecordError):  # `pam-totp list` reports this file
            slots = read(folder, name, may_have_links=True)
            if text:
                _moved(slots)
                yield Defect(f"{name}: {text}", partial(_replace_file, store, folder, name))
            elif slots.other is None:
                yield Defect(f"{name}: a slot is damaged", partial(_rewrite, store, folder, name))
            yield from in_use.of(name, slots.document)


def _of_version_1(store: FileStore, folder: int, name: str, in_use: _ClaimsInUse) -> Iterator[Defect]:
    with suppress(NotThere, StoreError, RecordError):  # `pam-totp list` reports this file
        document = read(folder, name).document
        user, record = parse(document).user, name.removesuffix(".json") + ".record"
        if store.file_of(user) == record:
            text = f"{name}: the user's next login needs free disk space: the file has version 1"
            yield Defect(text, partial(_convert, store, user))
            yield from in_use.of(record, document)


def _of_decoys(folder: int, *, cow: bool) -> dict[str, str]:
    """Return the block defects of the decoys, as a dict from file name to defect."""
    found = {}
    for name in decoys.names():
        with suppress(OSError):
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            try:
                found[name] = _of_blocks(file, os.fstat(file), cow=cow)
            finally:
                os.close(file)
    return {name: text for name, text in found.items() if text}


def _of_blocks(file: int, status: os.stat_result, *, cow: bool) -> str:
    """Return the defect of a file on disk, or an empty string. With `cow`, a file needs the flag of `chattr +C`."""
    text = _blocks(file, status)
    return "was created before chattr +C was set" if not text and cow and not _has_flag(file, _NOCOW) else text


def _blocks(file: int, status: os.stat_result) -> str:
    """Return the defect of the blocks of a file, or an empty string."""
    extents = bytearray(_FIEMAP_HEAD.size + _MAX_EXTENTS * _FIEMAP_EXTENT.size)
    _FIEMAP_HEAD.pack_into(extents, 0, 0, status.st_size, _FIEMAP_SYNC, 0, _MAX_EXTENTS, 0)
    try:
        fcntl.ioctl(file, _FIEMAP, extents)
    except OSError:  # raised on tmpfs, for example
        return _allocation(status)
    count = _FIEMAP_HEAD.unpack_from(extents)[3]
    found = [_FIEMAP_EXTENT.unpack_from(extents, _FIEMAP_HEAD.size + i * _FIEMAP_EXTENT.size) for i in range(count)]
    if any(extent[5] & _SHARED for extent in found):
        return "shares blocks with a copy (reflink)"
    if count == _MAX_EXTENTS and not found[-1][5] & _LAST:
        return _allocation(status)
    written = sum(extent[2] for extent in found if not extent[5] & _UNWRITTEN)
    return "" if written >= status.st_size else "has holes"


def _allocation(status: os.stat_result) -> str:
    return "" if status.st_blocks * 512 >= status.st_size else "has holes"


def _has_flag(file: int, flag: int) -> bool:
    try:
        return bool(_flags(file) & flag)
    except OSError:
        return False


def _flags(file: int) -> int:
    (flags,) = struct.unpack("i", fcntl.ioctl(file, _GET_FLAGS, bytes(4)))
    return int(flags)


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
    with store.locked(folder, record), _locked_as_version_1(folder, record):
        if _record_of(folder, name) is None:
            return
        if name.endswith(".json"):
            empty_file(folder, name)
            unlink(folder, name.removesuffix(".json") + ".lock")
        else:
            unlink(folder, name)
            os.fsync(folder)


@contextmanager
def _locked_as_version_1(folder: int, record: str) -> Iterator[None]:
    """Hold the lock of version 1, then delete the lock file.

    `FileStore.locked` holds this lock while NAME.json has content.
    """
    stem = record.removesuffix(".record")
    if has_content(folder, f"{stem}.json"):
        yield
        return
    lock = acquire_as_version_1(folder, f"{stem}.lock", record, LOCK_WAIT)
    try:
        yield
    finally:
        unlink(folder, f"{stem}.lock")
        os.close(lock)


def _replace_decoys(store: FileStore, folder: int, *, cow: bool) -> None:
    """Replace each decoy that has a defect, under the lock that `FileStore.prepare` acquires."""
    with store.locked(folder, decoys.FOLDER):
        if cow:
            _set_flag(folder, decoys.FOLDER, _NOCOW)
        decoys.make(folder, again=_of_decoys(folder, cow=cow))


def _set_flag(folder: int, name: str, flag: int) -> None:
    file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if not (flags := _flags(file)) & flag:
            fcntl.ioctl(file, _SET_FLAGS, struct.pack("i", flags | flag))
    finally:
        os.close(file)


def _replace_file(store: FileStore, folder: int, name: str) -> None:
    """Copy a record to a new file, which has its own blocks."""
    with store.locked(folder, name), suppress(NotThere):
        slots = read(folder, name, may_have_links=True)
        create(folder, name, _moved(slots), store.temporary(name), over=True)


def _convert(store: FileStore, user: str) -> None:
    """Convert the file of version 1 of a user, by an update without a change."""
    with suppress(NotThere):
        store.update(user, lambda record: (record, None))


def _rewrite(store: FileStore, folder: int, name: str) -> None:
    """Write the current record to the other slot, which might be damaged."""
    with store.locked(folder, name):
        if (slots := store.load(folder, name)) is not None and slots.size:
            write(folder, name, slots, slots.document)


def _moved(slots: Slots) -> bytes:
    """Return the content of a new file with two slots. Raise RecordError for an invalid document of version 1."""
    return new_file(slots.document, slots.size or slot_size(parse(slots.document)), slots.sequence + 1)
