"""The journal of a change of many records: the folder `.import`, and how such a change is rolled back.

Rules:
1. While the file `committing` exists, records may have been changed, and `undo` rolls back each changed record.
2. NAME.new is the new record until it is renamed into its place. While it exists, that record has not been changed.
3. NAME.old is a link to the old record, until it is renamed back.
4. `manifest` has a line of JSON for each new record: its name, its content, and whether an old record exists. The last
   line of a name counts.
5. Rolling back needs no disk space, except for records that were changed since. A full disk does not stop it.
6. A record that was changed since keeps its used counters, steps and recovery codes, and its failures.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import BinaryIO

from pam_totp.core.record import RecordError
from pam_totp.core.secretfile import parse, serialize
from pam_totp.store import NotThere, StoreError
from pam_totp.store.file import JOURNAL, FileStore, read_file, replace_file

NEW, OLD = ".new", ".old"
_COMMITTING, _MANIFEST = "committing", "manifest"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_ONCE = 10_000  # names


def recover(store: FileStore) -> int:
    """Roll back a killed `update_many`. Return the number of records; 0 if an `update_many` is running."""
    with store.opened() as folder:
        try:
            journal = os.open(JOURNAL, _FOLDER, dir_fd=folder)
        except FileNotFoundError:
            return 0
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            undone = undo(store, folder, journal)
            empty(folder, journal)
            return undone
        except BlockingIOError:
            return 0
        finally:
            os.close(journal)


@contextmanager
def opened(folder: int) -> Iterator[int]:
    """Create and lock the folder `.import`, and yield its descriptor. Raise StoreError if it exists."""
    try:
        os.mkdir(JOURNAL, 0o700, dir_fd=folder)
    except FileExistsError:
        raise StoreError("another import is running: try again when it has finished") from None
    journal = os.open(JOURNAL, _FOLDER, dir_fd=folder)
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield journal
    finally:
        os.close(journal)


def new_manifest(journal: int) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    return open(os.open(_MANIFEST, flags, 0o600, dir_fd=journal), "wb")


def undo(store: FileStore, folder: int, journal: int) -> int:
    """Roll back every record, and unmark the journal. Return the number of records that were changed."""
    if not marked(journal):
        return 0
    undone = 0
    last = {name: number for number, (name, *_) in enumerate(manifested(journal))}  # the last line of a name counts
    for number, (name, new, was_there) in enumerate(manifested(journal)):
        if last[name] != number or inode(journal, name + NEW) is not None:
            continue  # not changed; on a full disk, no lock file could be created
        with store.locked(folder, name):
            undone += _undo_one(folder, journal, name, new, was_there)
    os.fsync(folder)
    unmark(journal)
    return undone


def manifest_line(name: str, new: bytes, was_there: bool) -> bytes:
    return json.dumps([name, new.decode("ascii"), was_there]).encode("ascii") + b"\n"


def manifested(journal: int) -> Iterator[tuple[str, bytes, bool]]:
    """Yield for each new record its name, its content, and whether an old record exists.

    An incomplete last line is left out, because its writer was killed. Raise StoreError for any other invalid line.
    """
    try:
        with open(os.open(_MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=journal), "rb") as manifest:
            for number, line in enumerate(manifest, 1):
                if line.endswith(b"\n"):
                    yield _manifest_entry(line, number)
    except FileNotFoundError:
        pass


def _manifest_entry(line: bytes, number: int) -> tuple[str, bytes, bool]:
    with suppress(ValueError, RecursionError):
        match json.loads(line):
            case [str(name), str(new), bool(was_there)]:
                return name, new.encode("ascii"), was_there
    remedy = "restore the affected records from the .old files there, then delete .import"
    raise StoreError(f"{JOURNAL}/{_MANIFEST}: line {number}: invalid: {remedy}")


def _undo_one(folder: int, journal: int, name: str, new: bytes, was_there: bool) -> bool:
    """Roll back one record, whose lock is held. Return True if that changed it."""
    try:
        current = read_file(folder, name)
    except NotThere:
        return False  # removed since
    try:
        old = read_file(journal, name + OLD)
    except NotThere:
        if was_there:
            return False  # moved back already
        old = None
    if current == old:
        return False
    if current != new:
        data = _without_unused_tokens(current, old, new)
        if data != current:
            replace_file(folder, name, data)
        return data != current
    if old is None:
        os.unlink(name, dir_fd=folder)
    else:
        os.rename(name + OLD, name, src_dir_fd=journal, dst_dir_fd=folder)
    return True


def _without_unused_tokens(current: bytes, old: bytes | None, new: bytes) -> bytes:
    """Return a record that was changed since, for example by a login, without its unused new tokens.

    Used tokens stay: otherwise the same file, imported again, would bring them back with old counters. Used recovery
    codes and counted failures stay too. So such a record is never removed as a whole.
    """
    try:
        record, meant = parse(current), parse(new)
        before = None if old is None else parse(old)
    except RecordError:
        return current  # damaged by another program
    for token in meant.tokens:
        if (before is None or before.token(token.name) is None) and record.token(token.name) == token:
            record = record.without_token(token.name)
    return serialize(record)


def inode(folder: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


def mark(journal: int) -> None:
    os.close(os.open(_COMMITTING, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=journal))
    os.fsync(journal)


def marked(journal: int) -> bool:
    """Return True if records may have been changed and the change is not complete."""
    return inode(journal, _COMMITTING) is not None


def unmark(journal: int) -> None:
    forget(journal, _COMMITTING)
    os.fsync(journal)


def forget(journal: int, *names: str) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=journal)


def empty(folder: int, journal: int) -> None:
    """Remove the journal, unless it is marked."""
    if marked(journal):
        return
    with suppress(OSError):  # the next command removes the rest
        while some := _some_of(journal):
            forget(journal, *some)
        os.rmdir(JOURNAL, dir_fd=folder)
        os.fsync(folder)


def _some_of(journal: int) -> list[str]:
    """Return the names of up to ten thousand files. There may be many more."""
    with os.scandir(journal) as entries:
        return [entry.name for entry in islice(entries, _AT_ONCE)]


def make_durable(folder: int) -> None:
    """Flush the file system of `folder` (syncfs(2)): one wait for the disk instead of one for each file.

    Raise OSError for every write that failed since the folder was opened (Linux 5.8).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(folder) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
