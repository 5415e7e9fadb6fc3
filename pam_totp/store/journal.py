"""The journal of `update_many`, which is the folder `.import`, and the roll-back of an incomplete `update_many`.

Rules:
1. While the file `committing` exists, records may have been changed, and `undo` rolls back each changed record.
2. NAME.new is the new record until it is renamed to NAME. While NAME.new exists, the record NAME has not been changed.
3. NAME.old is a hard link to the old record. A roll-back renames NAME.old to NAME.
4. `manifest` has a line of JSON for each new record: its name, its content, and True if an old record exists. If a name
   has several lines, the last one is valid.
5. A roll-back needs disk space only for records that another process changed meanwhile.
6. If another process, such as a login, changed a record meanwhile, a roll-back keeps its used counters, steps and
   recovery codes, and its failures.
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
_AT_ONCE = 10_000  # names of files that are listed, then unlinked, at a time


def recover(store: FileStore) -> int:
    """Roll back an `update_many` that was killed. Return the number of restored records, or 0 if it still runs."""
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
    """Create and lock the folder `.import`, and yield its descriptor. Raise StoreError if it already exists."""
    try:
        os.mkdir(JOURNAL, 0o700, dir_fd=folder)
    except FileExistsError:
        raise StoreError("another import is running (try again when it has finished)") from None
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
    """Roll back every changed record, then delete the file `committing`. Return the number of restored records."""
    if not marked(journal):
        return 0
    undone = 0
    last = {name: number for number, (name, *_) in enumerate(manifested(journal))}  # rule 4: the last line is valid
    for number, (name, new, was_there) in enumerate(manifested(journal)):
        if last[name] != number or inode(journal, name + NEW) is not None:
            continue  # unchanged: take no lock, because a full disk may have no space for its file
        with store.locked(folder, name):
            undone += _undo_one(folder, journal, name, new, was_there)
    os.fsync(folder)
    unmark(journal)
    return undone


def manifest_line(name: str, new: bytes, was_there: bool) -> bytes:
    return json.dumps([name, new.decode("ascii"), was_there]).encode("ascii") + b"\n"


def manifested(journal: int) -> Iterator[tuple[str, bytes, bool]]:
    """Yield the entries of the manifest: the name and content of a new record, and True if an old record exists.

    Skip an incomplete last line, which a killed writer leaves. Raise StoreError for any other invalid line.
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
    remedy = "restore the affected records from the .old files in .import, then delete .import"
    raise StoreError(f"{JOURNAL}/{_MANIFEST}: line {number} is invalid ({remedy})")


def _undo_one(folder: int, journal: int, name: str, new: bytes, was_there: bool) -> bool:
    """Roll back the record `name`, whose lock the caller holds. Return True if the record was changed."""
    try:
        current = read_file(folder, name)
    except NotThere:
        return False  # removed after the change
    try:
        old = read_file(journal, name + OLD)
    except NotThere:
        if was_there:
            return False  # rolled back already
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
    """Return the record `current`, which another process changed after the import, without its unused new tokens.

    Keep used tokens: otherwise a new import of the same file would restore them with their old counters. Keep recovery
    codes and failures too. The record is never deleted.
    """
    try:
        record, meant = parse(current), parse(new)
        before = None if old is None else parse(old)
    except RecordError:
        return current  # another program has damaged a record
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
    """Delete the journal, unless the file `committing` exists."""
    if marked(journal):
        return
    with suppress(OSError):  # the next command deletes the rest
        while some := _some_of(journal):
            forget(journal, *some)
        os.rmdir(JOURNAL, dir_fd=folder)
        os.fsync(folder)


def _some_of(journal: int) -> list[str]:
    """Return the names of at most `_AT_ONCE` files of the journal."""
    with os.scandir(journal) as entries:
        return [entry.name for entry in islice(entries, _AT_ONCE)]


def make_durable(folder: int) -> None:
    """Flush the file system of `folder` by one call of syncfs(2), which is faster than an fsync of each file.

    Raise OSError if a write failed after the folder was opened (since Linux 5.8).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(folder) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
