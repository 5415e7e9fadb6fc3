"""Changing many records as one: all of them, or none, whatever ends the process.

The law:
- first everything is decided and written aside, and made durable at once; only then is the first record touched;
- each record is changed under its user's lock, and only if it is still the one that was decided upon, else anew;
- from the first record touched to the last, the folder `.import` holds what it takes to undo them all. If this process
  cannot finish, it undoes them; if it is killed, `recover` does, in the next command;
- undoing brings no used code back to life: a record that was changed since keeps what was used of it;
- logins go on meanwhile, and see each record either as it was or as it will be.

In `.import`, NAME.new is what a record becomes and NAME.old what it was, both as links: a record in the store that is
still one of them was not changed by anybody else, as every change makes a new file. `committing` is there while
records are being touched.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from pam_totp.record import RecordError, UserRecord
from pam_totp.secretfile import parse, serialize
from pam_totp.store import NotThere, R, StoreError
from pam_totp.store import file as one
from pam_totp.store.file import JOURNAL

_COMMITTING = "committing"
_NEW, _OLD = ".new", ".old"
_REPORT_EVERY = 500  # records between two reports of progress

Change = Callable[[UserRecord], tuple[UserRecord, R]]
Progress = Callable[[int, int], None]  # done, total


def update_many(
    store: one.FileStore, changes: Mapping[str, Change[R]], progress: Progress = lambda done, total: None
) -> dict[str, R]:
    """Do to each user's record what `FileStore.update` with `create` would do, all or none of it, and durably.

    A change may be asked twice, where its record was changed meanwhile; the result is that of the last time. Raises
    StoreError, and whatever a change raises, with the store as it was.
    """
    recover(store)
    with store._opened() as folder, _journal(folder) as journal:
        try:
            results = _stage(store, folder, journal, changes, lambda done: progress(done, 2 * len(changes)))
            _make_durable(folder)
            _mark(journal)
            names = sorted(n.removesuffix(_NEW) for n in os.listdir(journal) if n.endswith(_NEW))
            by_name = {store._file(user): user for user in changes}
            for done, name in enumerate(names):
                with store._locked(folder, name):
                    if not _still(folder, journal, name, _OLD):
                        user = by_name[name]
                        results[user] = _restage(folder, journal, name, user, changes[user])
                    _replace(folder, journal, name, _NEW)
                if done % _REPORT_EVERY == 0:
                    progress(2 * len(changes) - len(names) + done, 2 * len(changes))
            os.fsync(folder)
            _unmark(journal)
            progress(2 * len(changes), 2 * len(changes))
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
            journal = os.open(JOURNAL, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
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


@contextmanager
def _journal(folder: int) -> Iterator[int]:
    """The folder `.import`, made and held by us alone."""
    try:
        os.mkdir(JOURNAL, 0o700, dir_fd=folder)
    except FileExistsError:
        raise StoreError("another import is at work; try again when it is done") from None
    journal = os.open(JOURNAL, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield journal
    finally:
        os.close(journal)


def _stage(
    store: one.FileStore, folder: int, journal: int, changes: Mapping[str, Change[R]], progress: Callable[[int], None]
) -> dict[str, R]:
    """Decide on every record, and write it aside; what stays as it is leaves nothing there."""
    results = {}
    for done, (user, change) in enumerate(changes.items()):
        results[user] = _decide(folder, journal, store._file(user), user, change)
        if done % _REPORT_EVERY == 0:
            progress(done)
    return results


def _decide(folder: int, journal: int, name: str, user: str, change: Change[R]) -> R:
    try:
        # The link says for good upon which file was decided.
        os.link(name, name + _OLD, src_dir_fd=folder, dst_dir_fd=journal, follow_symlinks=False)
        old = one._read(journal, name + _OLD)
        record = one._parsed(old, user, name)
    except FileNotFoundError:
        old, record = b"", UserRecord(user=user)
    changed, result = change(record)
    new = serialize(changed)
    if new == old:
        os.unlink(name + _OLD, dir_fd=journal)
    else:
        one._write_new(journal, name + _NEW, new, durably=False)
    return result


def _restage(folder: int, journal: int, name: str, user: str, change: Change[R]) -> R:
    """Decide anew on a record that somebody changed; its lock is held."""
    for suffix in (_NEW, _OLD):
        with suppress(FileNotFoundError):
            os.unlink(name + suffix, dir_fd=journal)
    result = _decide(folder, journal, name, user, change)
    _make_durable(folder)
    return result


def _still(folder: int, journal: int, name: str, suffix: str) -> bool:
    """Whether the store's file is the one of that suffix; also where neither is there."""
    return _inode(folder, name) == _inode(journal, name + suffix)


def _inode(folder: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_ino
    except FileNotFoundError:
        return None


def _replace(folder: int, journal: int, name: str, suffix: str) -> None:
    """Put the file of that suffix into the store, and leave its link here; nothing where it is not there."""
    try:
        os.link(name + suffix, one._aside(name), src_dir_fd=journal, dst_dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    os.rename(one._aside(name), name, src_dir_fd=folder, dst_dir_fd=folder)


def _undo(store: one.FileStore, folder: int, journal: int) -> int:
    """Take every record back to what it was; the journal is in order again after it. How many were taken back."""
    if _inode(journal, _COMMITTING) is None:
        return 0
    undone = 0
    for name in sorted(n.removesuffix(_NEW) for n in os.listdir(journal) if n.endswith(_NEW)):
        if _still(folder, journal, name, _OLD):
            continue  # never touched: and on a full disk there may not even be a lock to be had
        with store._locked(folder, name):
            if not _still(folder, journal, name, _NEW):
                undone += _undo_used(folder, journal, name)
                continue
            if _inode(journal, name + _OLD) is None:
                os.unlink(name, dir_fd=folder)
            else:
                _replace(folder, journal, name, _OLD)
            undone += 1
    os.fsync(folder)
    _unmark(journal)
    return undone


def _undo_used(folder: int, journal: int, name: str) -> bool:
    """Take back from a record that was changed since, by a login for one, the tokens that came new and are unused;
    whether there were any.

    A token whose codes were used must stay: were it gone, it could come back with the same file, at its old counter.
    """
    try:
        current = one._read(folder, name)
        new, record = parse(one._read(journal, name + _NEW)), parse(current)
        before = _before(journal, name)
    except (NotThere, RecordError):
        return False  # removed since, or spoiled by something else
    for token in new.tokens:
        if (before is None or before.token(token.name) is None) and record.token(token.name) == token:
            record = record.without_token(token.name)
    if not record.tokens and before is None:
        os.unlink(name, dir_fd=folder)
        return True
    if (data := serialize(record)) == current:
        return False
    one._replace(folder, name, data)
    return True


def _before(journal: int, name: str) -> UserRecord | None:
    try:
        return parse(one._read(journal, name + _OLD))
    except NotThere:
        return None


def _mark(journal: int) -> None:
    os.close(os.open(_COMMITTING, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=journal))
    os.fsync(journal)


def _unmark(journal: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(_COMMITTING, dir_fd=journal)
    os.fsync(journal)


def _empty(folder: int, journal: int) -> None:
    """Take the journal away; not while it says that there is something to undo."""
    if _inode(journal, _COMMITTING) is not None:
        return
    with suppress(OSError):  # whatever is left of it is taken away by the next command
        for name in os.listdir(journal):
            os.unlink(name, dir_fd=journal)
        os.rmdir(JOURNAL, dir_fd=folder)
        os.fsync(folder)


def _make_durable(folder: int) -> None:
    """All that was written to this file system (syncfs(2)): one wait for the disk instead of one for each file.

    Reports what could not be written since the folder was opened (Linux 5.8).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(folder) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
