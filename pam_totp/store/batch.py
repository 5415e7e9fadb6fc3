"""Changing many records as one: all of them, or none, whatever ends the process.

The law:
- first everything is decided and written aside, and made durable at once; only then is the first record touched;
- each record is changed under its user's lock, and only if it is still the one that was decided upon, else anew;
- from the first record touched to the last, the folder `.import` holds what it takes to undo them all. If this process
  cannot finish, it undoes them; if it is killed, `journal.recover` does, in the next command;
- undoing brings no used code back to life: of a record that was changed since, what was used stays;
- logins go on meanwhile, and see each record either as it was or as it will be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO, Protocol, TypeVar

from pam_totp.core.record import UserRecord
from pam_totp.core.secretfile import serialize
from pam_totp.store import R, journal
from pam_totp.store.file import FileStore, parse_record, read_file, write_new_file

Change = Callable[[UserRecord], tuple[UserRecord, R]]
Progress = Callable[[int, int], None]  # done, total

_REPORT_EVERY = 500  # records between two reports of progress

R_co = TypeVar("R_co", covariant=True)


class Changes(Protocol[R_co]):
    """Users and what to do to their records; one after the other, where a user is named more than once.

    It is gone through once, and once more where a record was changed meanwhile.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[str, Change[R_co]]]: ...


def update_many(store: FileStore, changes: Changes[R], progress: Progress = lambda done, total: None) -> list[R]:
    """Do to each user's record what `FileStore.update` with `create` would do, all or none of it, and durably.

    Returns the results in the order of `changes`. A change may be asked twice, where its record was changed meanwhile;
    the result is that of the last time. Raises StoreError, and whatever a change raises, with the store as it was.
    """
    journal.recover(store)
    total = 2 * len(changes)
    with store.opened() as folder, journal.opened(folder) as opened:
        marked = False
        try:
            with journal.new_manifest(opened) as manifest:
                batch = _Batch(store, folder, opened, manifest)
                results: list[R] = []
                for user, change in changes:
                    if len(results) % _REPORT_EVERY == 0:
                        progress(len(results), total)
                    results.append(batch.stage(user, change))
                batch.make_durable()
                journal.mark(opened)
                marked = True
                progress(len(changes), total)
                anew = set()
                for done, (name, *_) in enumerate(journal.manifested(opened), len(changes)):
                    if not batch.commit(name):
                        anew.add(name)
                    if done % _REPORT_EVERY == 0:
                        progress(done, total)
                if anew:
                    batch.decide_anew(anew, changes, results)
            os.fsync(folder)
            journal.unmark(opened)
        except BaseException as why:
            all_in = marked and not journal.marked(opened)
            if not (all_in and isinstance(why, KeyboardInterrupt)):
                journal.undo(store, folder, opened)
                journal.empty(folder, opened)
                raise
        with suppress(KeyboardInterrupt):  # all is in: nobody is to be told that it was interrupted
            progress(total, total)
            journal.empty(folder, opened)
    return results


class _Batch:
    """The two halves of the work, a record at a time. What is staged is known from the journal, and not held."""

    def __init__(self, store: FileStore, folder: int, opened: int, manifest: BinaryIO) -> None:
        self._store, self._folder, self._journal, self._manifest = store, folder, opened, manifest

    def stage(self, user: str, change: Change[R]) -> R:
        """Decide on a record, and write it aside; on top of what was staged for it before."""
        name = self._store.file_of(user)
        staged = journal.inode(self._journal, name + journal.NEW) is not None
        there = journal.inode(self._journal, name + journal.OLD) is not None if staged else self._keep(name)
        if staged or there:
            record = parse_record(read_file(self._journal, name + (journal.NEW if staged else journal.OLD)), user, name)
        else:
            record = UserRecord(user=user)
        changed, result = change(record)
        if changed != record:
            new = serialize(changed)
            if staged:
                journal.forget(self._journal, name + journal.NEW)
            write_new_file(self._journal, name + journal.NEW, new, durably=False)
            self._manifest.write(journal.manifest_line(name, new, there))
        return result

    def _keep(self, name: str) -> bool:
        """Keep what a record is now; False where there is none.

        The link keeps that inode from being anybody else's, so that its number says for good which file it was.
        """
        try:
            os.link(name, name + journal.OLD, src_dir_fd=self._folder, dst_dir_fd=self._journal, follow_symlinks=False)
        except FileExistsError:  # it is kept
            pass
        except FileNotFoundError:
            return False
        return True

    def make_durable(self) -> None:
        """All that was staged."""
        self._manifest.flush()
        journal.make_durable(self._folder)

    def commit(self, name: str) -> bool:
        """Put a record in its place, under its lock; False where somebody has changed it since it was decided upon."""
        with self._store.locked(self._folder, name):
            if journal.inode(self._folder, name) != journal.inode(self._journal, name + journal.OLD):
                return journal.inode(self._journal, name + journal.NEW) is None  # it is in its place already
            with suppress(FileNotFoundError):  # as here, and removed since
                self._put(name)
        return True

    def decide_anew(self, names: set[str], changes: Changes[R], results: list[R]) -> None:
        """Do all changes of some records under their locks, in one go."""
        wanted: dict[str, list[tuple[int, str, Change[R]]]] = {}
        for number, (user, change) in enumerate(changes):
            if (name := self._store.file_of(user)) in names:
                wanted.setdefault(name, []).append((number, user, change))
        for name, again in wanted.items():
            with self._store.locked(self._folder, name):
                journal.forget(self._journal, name + journal.OLD)
                self._keep(name)
                # Last: as long as it is there, there is nothing to undo.
                journal.forget(self._journal, name + journal.NEW)
                for number, user, change in again:
                    results[number] = self.stage(user, change)
                self.make_durable()
                if journal.inode(self._journal, name + journal.NEW) is not None:
                    self._put(name)

    def _put(self, name: str) -> None:
        os.rename(name + journal.NEW, name, src_dir_fd=self._journal, dst_dir_fd=self._folder)
