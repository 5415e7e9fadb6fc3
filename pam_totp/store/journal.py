"""The journal of a bulk change: the folder `.import`, and the roll-back of such a change.

Rules:
1. The file `committing` exists while a bulk change writes records. In this state, `undo` rolls back each changed
   record.
2. `manifest` has a line of JSON for each record: its file name, the old document (null for a new record), and the new
   document. Only the last line of each name is used.
3. A roll-back succeeds on a full disk, because it only overwrites or deletes files.
4. A record that a login has changed since the import keeps its used counters, steps and recovery codes, and its
   failures.
5. `undo` deletes a new record that a power cut has emptied. `undo` keeps a record with any other damage, so that logins
   are denied. Without the record, the user would be unenrolled.
6. In version 1, a line has a name, the new document, and true or false: whether an old record existed. NAME.json.old is
   a hard link of the old record. The record is unchanged while NAME.json.new exists. A roll-back converts a changed
   record to version 2.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice
from typing import NamedTuple

from pam_totp.core.record import UserRecord
from pam_totp.core.slots import MAX_SLOT
from pam_totp.store import DamagedFile, NotThere, StoreError
from pam_totp.store.file import JOURNAL, FileStore, parse_record, user_of_file
from pam_totp.store.secret_file import exists, read, unlink

_COMMITTING, _MANIFEST = "committing", "manifest"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_ONCE = 10_000  # names
_BUFFER = 64 * 1024  # bytes of the manifest in one write


class Entry(NamedTuple):
    """The change of one record: the file name, the old document (None for a new record), and the new document.

    `had_record` is a bool in an entry of version 1, in which `name` is the file name of version 1, and `old` is None.
    """

    name: str
    old: bytes | None
    new: bytes
    had_record: bool | None = None  # True if an old record existed

    def line(self) -> bytes:
        old = None if self.old is None else self.old.decode("ascii")
        return json.dumps([self.name, old, self.new.decode("ascii")]).encode("ascii") + b"\n"


def recover(store: FileStore) -> int:
    """Roll back a killed `update_many`. Return the number of changed records, or 0 if an `update_many` is running."""
    with store.opened() as folder:
        try:
            journal = os.open(JOURNAL, _FOLDER, dir_fd=folder)
        except FileNotFoundError:
            return 0
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            undone = undo(store, folder, journal)
            release_claims(store, folder, journal)
            empty(folder, journal)
            return undone
        except BlockingIOError:
            return 0
        finally:
            os.close(journal)


def is_left(folder: int) -> bool:
    """Return True if a killed `update_many` left a journal."""
    try:
        journal = os.open(JOURNAL, _FOLDER, dir_fd=folder)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(journal, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(journal)


@contextmanager
def opened(folder: int) -> Iterator[int]:
    """Create and lock the folder `.import`, and yield the descriptor. Raise StoreError if the folder exists."""
    try:
        os.mkdir(JOURNAL, 0o700, dir_fd=folder)
    except FileExistsError:
        raise StoreError("another import is running (try again when it has finished)") from None
    journal = os.open(JOURNAL, _FOLDER, dir_fd=folder)
    try:
        fcntl.flock(journal, fcntl.LOCK_EX)  # waits for `is_left` of another process
        yield journal
    finally:
        os.close(journal)


class Manifest:
    """The manifest of a new journal. The caller closes the manifest."""

    def __init__(self, journal: int) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        with ExitStack() as files:
            opened = os.open(_MANIFEST, flags, 0o600, dir_fd=journal)
            self._file = files.enter_context(open(opened, "wb", _BUFFER))
            opened = os.open(_MANIFEST, os.O_RDONLY | os.O_CLOEXEC, dir_fd=journal)
            self._lines = files.enter_context(open(opened, "rb"))
            self._files = files.pop_all()
        self._end = 0

    def close(self) -> None:
        self._files.close()

    def write(self, entry: Entry) -> int:
        """Append an entry, and return its offset in bytes."""
        offset = self._end
        self._end += self._file.write(entry.line())
        return offset

    def read(self, offset: int) -> Entry:
        """Return the entry at `offset` (bytes)."""
        self._file.flush()
        self._lines.seek(offset)
        return parse_entry(self._lines.readline(), 0)

    def __iter__(self) -> Iterator[tuple[int, Entry]]:
        """Yield the offset and the entry of each line. The caller reads no other entry meanwhile."""
        self._file.flush()
        self._lines.seek(0)
        offset = 0
        for line in self._lines:
            yield offset, parse_entry(line, 0)
            offset += len(line)

    def flush(self) -> None:
        """Flush all entries to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())


def undo(store: FileStore, folder: int, journal: int) -> int:
    """Roll back every record, and unmark the journal. Return the number of records that were changed.

    Raise DamagedFile if a record with an old document is damaged, after the roll-back of the other records. The journal
    then remains marked, because it contains the old document.
    """
    if not marked(journal):
        return 0
    undone, damage = 0, None
    for entry in entries(journal):
        if _is_unchanged(store, folder, entry):
            continue  # do not wait for the lock, which a login might hold
        with store.locked(folder, entry.name):
            try:
                undone += _undo_one(store, folder, entry)
            except DamagedFile as e:
                store.warn(f"{store.folder}/{e} (the roll-back of an import left this file unchanged)")
                if entry.old is not None:
                    damage = damage or e
    os.fsync(folder)
    if damage is not None:
        raise damage
    unmark(journal)
    return undone


def release_claims(store: FileStore, folder: int, journal: int) -> None:
    """Release the claims of the serial numbers that the bulk change was about to add.

    Keep the claim of a serial number that the record has.
    """
    from pam_totp.store import claims  # imported here because `claims` needs `FileStore`, and the roll-back is rare

    with suppress(StoreError, ValueError, OSError):  # after the end of the import, other processes replace stale claims
        for entry in _all_entries(journal):
            if entry.had_record is None:
                added = claims.serials(entry.new).keys() - claims.serials(entry.old).keys()
                claims.release(store, folder, entry.name, added, own_import=True)


def entries(journal: int) -> Iterator[Entry]:
    """Yield the last entry of each record. Skip unchanged records of version 1.

    Skip an incomplete last line, which a killed process wrote. Raise StoreError for any other invalid line.
    """
    last = {entry.name: number for number, entry in enumerate(_all_entries(journal))}
    for number, entry in enumerate(_all_entries(journal)):
        if last.get(entry.name) == number:
            yield from (
                [entry] if entry.had_record is None else _of_version_1(journal, entry, was_there=entry.had_record)
            )


def _of_version_1(journal: int, entry: Entry, *, was_there: bool) -> Iterator[Entry]:
    """Yield the entry in the format of version 2, unless the record is unchanged or version 1 has rolled it back."""
    if exists(journal, f"{entry.name}.new"):
        return
    with suppress(NotThere, DamagedFile):
        old = read(journal, f"{entry.name}.old").document if was_there else None
        yield Entry(entry.name.removesuffix(".json") + ".record", old, entry.new)


def _all_entries(journal: int) -> Iterator[Entry]:
    try:
        with open(os.open(_MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=journal), "rb") as manifest:
            for number, line in enumerate(manifest, 1):
                if line.endswith(b"\n"):
                    yield parse_entry(line, number)
    except FileNotFoundError:
        pass


def parse_entry(line: bytes, number: int) -> Entry:
    """Return the entry in `line`, the line `number` of the manifest. Raise StoreError if the line is invalid."""
    with suppress(ValueError, RecursionError):
        match json.loads(line.decode("ascii")):
            case [str(name), None, str(new)]:
                return Entry(name, None, new.encode("ascii"))
            case [str(name), str(old), str(new)]:
                return Entry(name, old.encode("ascii"), new.encode("ascii"))
            case [str(name), str(new), bool(was_there)] if name.endswith(".json"):
                return Entry(name, None, new.encode("ascii"), was_there)
    remedy = "restore the affected records from the old documents in that file, then delete .import"
    raise StoreError(f"{JOURNAL}/{_MANIFEST}: line {number} must be a file name and two documents ({remedy})")


def _is_unchanged(store: FileStore, folder: int, entry: Entry) -> bool:
    try:
        stored = store.peek(folder, entry.name)
    except DamagedFile:
        return False
    document = None if stored is None else stored.document
    return document == entry.old and not exists(folder, store.temporary(entry.name))


def _undo_one(store: FileStore, folder: int, entry: Entry) -> bool:
    """Roll back one record. The caller holds its lock. Return True if the record was changed."""
    unlink(folder, store.temporary(entry.name))  # the temporary file of a killed process
    try:
        stored = store.load(folder, entry.name)
    except DamagedFile:
        if entry.old is not None or not _lost_its_content(folder, entry.name):
            raise
        store.remove(folder, entry.name)
        return True
    if stored is None or stored.document == entry.old:
        return False
    if stored.document == entry.new and entry.old is None:
        store.remove(folder, entry.name)
        return True
    try:
        current, new = _parsed(store, entry.name, stored.document), _parsed(store, entry.name, entry.new)
        old = None if entry.old is None else _parsed(store, entry.name, entry.old)
    except StoreError:
        return False  # another program has damaged the document
    back = old if current == new and old is not None else _without_unused_tokens(current, old, new)
    if back != current:
        store.put(folder, entry.name, stored, current, back)
    return back != current


def _parsed(store: FileStore, name: str, document: bytes) -> UserRecord:
    return parse_record(document, user_of_file(name), name, store.codec)


def _lost_its_content(folder: int, name: str) -> bool:
    """Return True if the file of a new record has one hard link, and is empty or only NUL bytes, as after a power cut.

    Check the file of version 1 too, because a killed roll-back can leave this file empty.
    """
    for candidate in (name, name.removesuffix(".record") + ".json"):
        with suppress(FileNotFoundError):
            file = os.open(candidate, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            with open(file, "rb") as content:
                return os.fstat(file).st_nlink == 1 and not content.read(2 * MAX_SLOT).strip(b"\0")
    return False


def _without_unused_tokens(current: UserRecord, old: UserRecord | None, new: UserRecord) -> UserRecord:
    """Return `current` without its unused new tokens. A login, for example, has changed `current` since the import.

    Used tokens remain: otherwise a second import of the same file would restore their old counters. Used recovery codes
    and counted failures remain too. A roll-back never deletes a changed record.
    """
    for token in new.tokens:
        if (old is None or old.token(token.name) is None) and current.token(token.name) == token:
            current = current.without_token(token.name)
    return current


def mark(folder: int, journal: int) -> None:
    os.close(os.open(_COMMITTING, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=journal))
    os.fsync(journal)
    os.fsync(folder)


def marked(journal: int) -> bool:
    """Return True if an incomplete import might have changed records."""
    return exists(journal, _COMMITTING)


def unmark(journal: int) -> None:
    unlink(journal, _COMMITTING)
    os.fsync(journal)


def empty(folder: int, journal: int) -> None:
    """Remove the journal, unless it is marked."""
    if marked(journal):
        return
    with suppress(OSError):  # the next command on the store removes the rest
        while some := _some_of(journal):
            for name in some:
                unlink(journal, name)
        os.rmdir(JOURNAL, dir_fd=folder)
        os.fsync(folder)


def _some_of(journal: int) -> list[str]:
    """Return the names of at most _AT_ONCE files. Version 1 left two files for each record."""
    with os.scandir(journal) as files:
        return [file.name for file in islice(files, _AT_ONCE)]
