"""Changing many records as one: all of them, or none, whatever ends the process.

The law:
- first everything is decided and written aside, and made durable at once; only then is the first record touched;
- each record is changed under its user's lock, and only if it is still the one that was decided upon, else anew;
- from the first record touched to the last, the folder `.import` holds what it takes to undo them all. If this process
  cannot finish, it undoes them; if it is killed, `recover` does, in the next command;
- undoing brings no used code back to life: of a record that was changed since, what was used stays;
- logins go on meanwhile, and see each record either as it was or as it will be.

In `.import`, NAME.new is what a record becomes until it is moved into its place, NAME.old a link to what it was, and
`manifest` says in lines of JSON what each record becomes. `committing` is there while records are being touched.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import BinaryIO, Protocol, TypeVar

from pam_totp.record import RecordError, UserRecord
from pam_totp.secretfile import parse, serialize
from pam_totp.store import NotThere, R, StoreError
from pam_totp.store import file as one
from pam_totp.store.file import JOURNAL

Change = Callable[[UserRecord], tuple[UserRecord, R]]
Progress = Callable[[int, int], None]  # done, total

_COMMITTING, _MANIFEST = "committing", "manifest"
_NEW, _OLD = ".new", ".old"
_REPORT_EVERY = 500  # records between two reports of progress
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


R_co = TypeVar("R_co", covariant=True)


class Changes(Protocol[R_co]):
    """Users and what to do to their records; one after the other, where a user is named more than once.

    It is gone through once, and once more where a record was changed meanwhile.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[str, Change[R_co]]]: ...


def update_many(store: one.FileStore, changes: Changes[R], progress: Progress = lambda done, total: None) -> list[R]:
    """Do to each user's record what `FileStore.update` with `create` would do, all or none of it, and durably.

    Returns the results in the order of `changes`. A change may be asked twice, where its record was changed meanwhile;
    the result is that of the last time. Raises StoreError, and whatever a change raises, with the store as it was.
    """
    recover(store)
    total = 2 * len(changes)
    with store._opened() as folder, _journal(folder) as journal:
        try:
            with _new_manifest(journal) as manifest:
                batch = _Batch(store, folder, journal, manifest)
                results: list[R] = []
                for user, change in changes:
                    if len(results) % _REPORT_EVERY == 0:
                        progress(len(results), total)
                    results.append(batch.stage(user, change))
                batch.make_durable()
                _mark(journal)
                progress(len(changes), total)
                anew = set()
                for done, (name, _) in enumerate(_manifested(journal), len(changes)):
                    if not batch.commit(name):
                        anew.add(name)
                    if done % _REPORT_EVERY == 0:
                        progress(done, total)
                if anew:
                    batch.decide_anew(anew, changes, results)
            os.fsync(folder)
            _unmark(journal)
            progress(total, total)
        except BaseException:
            _undo(store, folder, journal)
            raise
        finally:
            _empty(folder, journal)
    return results


def recover(store: one.FileStore) -> int:
    """Undo what a killed `update_many` left half done; how many records that were. Nothing where one is at work."""
    with store._opened() as folder:
        try:
            journal = os.open(JOURNAL, _FOLDER, dir_fd=folder)
        except FileNotFoundError:
            return 0
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            undone = _undo(store, folder, journal)
            _empty(folder, journal)
            return undone
        except BlockingIOError:
            return 0
        finally:
            os.close(journal)


class _Batch:
    """The two halves of the work, a record at a time. What is staged is known from the journal, and not held."""

    def __init__(self, store: one.FileStore, folder: int, journal: int, manifest: BinaryIO) -> None:
        self._store, self._folder, self._journal, self._manifest = store, folder, journal, manifest

    def stage(self, user: str, change: Change[R]) -> R:
        """Decide on a record, and write it aside; on top of what was staged for it before."""
        name = self._store._file(user)
        staged = _inode(self._journal, name + _NEW) is not None
        if staged or self._keep(name):
            record = one._parsed(one._read(self._journal, name + (_NEW if staged else _OLD)), user, name)
        else:
            record = UserRecord(user=user)
        changed, result = change(record)
        if changed != record:
            new = serialize(changed)
            if staged:
                _forget(self._journal, name + _NEW)
            one._write_new(self._journal, name + _NEW, new, durably=False)
            self._manifest.write(json.dumps([name, new.decode("ascii")]).encode("ascii") + b"\n")
        return result

    def _keep(self, name: str) -> bool:
        """Keep what a record is now; False where there is none.

        The link keeps that inode from being anybody else's, so that its number says for good which file it was.
        """
        try:
            os.link(name, name + _OLD, src_dir_fd=self._folder, dst_dir_fd=self._journal, follow_symlinks=False)
        except FileExistsError:  # it is kept
            pass
        except FileNotFoundError:
            return False
        return True

    def make_durable(self) -> None:
        """All that was staged."""
        self._manifest.flush()
        _make_durable(self._folder)

    def commit(self, name: str) -> bool:
        """Put a record in its place, under its lock; False where somebody has changed it since it was decided upon."""
        with self._store._locked(self._folder, name):
            if _inode(self._folder, name) != _inode(self._journal, name + _OLD):
                return _inode(self._journal, name + _NEW) is None  # it is in its place already
            with suppress(FileNotFoundError):  # as here, and removed since
                self._put(name)
        return True

    def decide_anew(self, names: set[str], changes: Changes[R], results: list[R]) -> None:
        """Do all changes of some records under their locks, in one go."""
        wanted: dict[str, list[tuple[int, str, Change[R]]]] = {}
        for number, (user, change) in enumerate(changes):
            if (name := self._store._file(user)) in names:
                wanted.setdefault(name, []).append((number, user, change))
        for name, again in wanted.items():
            with self._store._locked(self._folder, name):
                _forget(self._journal, name + _OLD)
                self._keep(name)
                _forget(self._journal, name + _NEW)  # last: as long as it is there, there is nothing to undo
                for number, user, change in again:
                    results[number] = self.stage(user, change)
                self.make_durable()
                if _inode(self._journal, name + _NEW) is not None:
                    self._put(name)

    def _put(self, name: str) -> None:
        os.rename(name + _NEW, name, src_dir_fd=self._journal, dst_dir_fd=self._folder)


@contextmanager
def _journal(folder: int) -> Iterator[int]:
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


def _new_manifest(journal: int) -> BinaryIO:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    return open(os.open(_MANIFEST, flags, 0o600, dir_fd=journal), "wb")


def _undo(store: one.FileStore, folder: int, journal: int) -> int:
    """Take every record back to what it was, and say so; how many were taken back."""
    if _inode(journal, _COMMITTING) is None:
        return 0
    undone = 0
    last = {name: number for number, (name, _) in enumerate(_manifested(journal))}  # the last word counts
    for number, (name, new) in enumerate(_manifested(journal)):
        if last[name] != number or _inode(journal, name + _NEW) is not None:
            continue  # never put in its place: and on a full disk there may not even be a lock to be had
        with store._locked(folder, name):
            undone += _undo_one(folder, journal, name, new)
    os.fsync(folder)
    _unmark(journal)
    return undone


def _manifested(journal: int) -> Iterator[tuple[str, bytes]]:
    """What each record was to become, with its name. A last line without its end was not yet said."""
    try:
        with open(os.open(_MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=journal), "rb") as manifest:
            for line in manifest:
                if line.endswith(b"\n"):
                    name, new = json.loads(line)
                    yield name, new.encode("ascii")
    except FileNotFoundError:
        pass


def _undo_one(folder: int, journal: int, name: str, new: bytes) -> bool:
    """Take one record back; whether there was anything to do. Its lock is held."""
    try:
        current = one._read(folder, name)
    except NotThere:
        return False  # removed since
    try:
        old = one._read(journal, name + _OLD)
    except NotThere:
        old = None
    if current == old:
        return False
    data = old if current == new else _without_what_came(current, old, new)
    if data is None:
        os.unlink(name, dir_fd=folder)
    elif data != current:
        one._replace(folder, name, data)
    return data != current


def _without_what_came(current: bytes, old: bytes | None, new: bytes) -> bytes | None:
    """A record that was changed since, by a login for one, without the tokens that came new and are unused.

    A token whose codes were used must stay: were it gone, it could come back with the same file, at its old counter.
    """
    try:
        record, meant = parse(current), parse(new)
        before = None if old is None else parse(old)
    except RecordError:
        return current  # spoiled by something else
    for token in meant.tokens:
        if (before is None or before.token(token.name) is None) and record.token(token.name) == token:
            record = record.without_token(token.name)
    return serialize(record) if record.tokens or before is not None else None


def _inode(folder: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


def _mark(journal: int) -> None:
    os.close(os.open(_COMMITTING, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=journal))
    os.fsync(journal)


def _unmark(journal: int) -> None:
    _forget(journal, _COMMITTING)
    os.fsync(journal)


def _forget(journal: int, *names: str) -> None:
    for name in names:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=journal)


def _empty(folder: int, journal: int) -> None:
    """Take the journal away; not while it says that there is something to undo."""
    if _inode(journal, _COMMITTING) is not None:
        return
    with suppress(OSError):  # whatever is left of it is taken away by the next command
        while some := _some_of(journal):
            _forget(journal, *some)
        os.rmdir(JOURNAL, dir_fd=folder)
        os.fsync(folder)


def _some_of(journal: int) -> list[str]:
    """The names of up to ten thousand files: there may be many more."""
    with os.scandir(journal) as entries:
        return [entry.name for entry in islice(entries, 10_000)]


def _make_durable(folder: int) -> None:
    """All that was written to this file system (syncfs(2)): one wait for the disk instead of one for each file.

    Reports what could not be written since the folder was opened (Linux 5.8).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(folder) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
