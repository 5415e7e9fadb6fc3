"""The folder `.import`: what it takes to undo a change of many records, and the undoing.

The law:
- as long as `committing` is there, records may have been touched, and `undo` takes every one of them back;
- NAME.new is what a record becomes until it is moved into its place, and as long as it is there, there is nothing to
  undo; NAME.old is a link to what it was, until it is moved back; `manifest` says in lines of JSON what each becomes,
  and whether there was one, and its last word counts;
- undoing takes no room but for what was changed since: a full disk does not keep it from its end;
- of a record that was changed since, what was used stays.
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
    """Undo what a killed `update_many` left half done; how many records that were. Nothing where one is at work."""
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
    """The folder `.import`, made and held by us alone."""
    try:
        os.mkdir(JOURNAL, 0o700, dir_fd=folder)
    except FileExistsError:
        raise StoreError("another import is at work; try again when it is done") from None
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
    """Take every record back to what it was, and say so; how many were taken back."""
    if not marked(journal):
        return 0
    undone = 0
    last = {name: number for number, (name, *_) in enumerate(manifested(journal))}  # the last word counts
    for number, (name, new, was_there) in enumerate(manifested(journal)):
        if last[name] != number or inode(journal, name + NEW) is not None:
            continue  # never put in its place: and on a full disk there may not even be a lock to be had
        with store.locked(folder, name):
            undone += _undo_one(folder, journal, name, new, was_there)
    os.fsync(folder)
    unmark(journal)
    return undone


def manifest_line(name: str, new: bytes, was_there: bool) -> bytes:
    return json.dumps([name, new.decode("ascii"), was_there]).encode("ascii") + b"\n"


def manifested(journal: int) -> Iterator[tuple[str, bytes, bool]]:
    """Each record's name, what it was to become, and whether there was one. A last line without its end was not yet
    said."""
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
    what_to_do = "put back what has to be from the .old files there, then remove .import"
    raise StoreError(f"{JOURNAL}/{_MANIFEST}: line {number}: not as an import writes it; {what_to_do}")


def _undo_one(folder: int, journal: int, name: str, new: bytes, was_there: bool) -> bool:
    """Take one record back; whether there was anything to do. Its lock is held."""
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
        data = _without_what_came(current, old, new)
        if data != current:
            replace_file(folder, name, data)
        return data != current
    if old is None:
        os.unlink(name, dir_fd=folder)
    else:
        os.rename(name + OLD, name, src_dir_fd=journal, dst_dir_fd=folder)
    return True


def _without_what_came(current: bytes, old: bytes | None, new: bytes) -> bytes:
    """A record that was changed since, by a login for one, without the tokens that came new and are unused.

    What was used must stay: were it gone, a token could come back with the same file, at its old counter, and so could
    a recovery code that is used up, or guesses that were counted. So such a record is never taken away as a whole.
    """
    try:
        record, meant = parse(current), parse(new)
        before = None if old is None else parse(old)
    except RecordError:
        return current  # spoiled by something else
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
    """Whether records may have been touched that are not yet as they are to stay."""
    return inode(journal, _COMMITTING) is not None


def unmark(journal: int) -> None:
    forget(journal, _COMMITTING)
    os.fsync(journal)


def forget(journal: int, *names: str) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=journal)


def empty(folder: int, journal: int) -> None:
    """Take the journal away; not while it says that there is something to undo."""
    if marked(journal):
        return
    with suppress(OSError):  # whatever is left of it is taken away by the next command
        while some := _some_of(journal):
            forget(journal, *some)
        os.rmdir(JOURNAL, dir_fd=folder)
        os.fsync(folder)


def _some_of(journal: int) -> list[str]:
    """The names of up to ten thousand files: there may be many more."""
    with os.scandir(journal) as entries:
        return [entry.name for entry in islice(entries, _AT_ONCE)]


def make_durable(folder: int) -> None:
    """All that was written to this file system (syncfs(2)): one wait for the disk instead of one for each file.

    Reports what could not be written since the folder was opened (Linux 5.8).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(folder) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
