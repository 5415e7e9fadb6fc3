"""Change many records: all of them or none, even if the process is killed.

Rules:
1. First every new record is computed, written to the journal and flushed. Only then is the first record changed.
2. Each record is changed under its user's lock. If another process changed the record after its new content was
   computed, the new content is computed again.
3. Until the last record is changed, `journal` can roll back all changes. After an error, this process rolls back. If
   this process is killed, the next command rolls back.
4. A roll-back never makes a used code valid again.
5. Logins continue during the change. Each login reads the old record or the new record.
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
    """A sized iterable of pairs: a user, and a change of the user's record.

    Changes of one user are applied in this order. `update_many` iterates it once, and once more if another process
    changed a record meanwhile.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[str, Change[R_co]]]: ...


def update_many(store: FileStore, changes: Changes[R], progress: Progress = lambda done, total: None) -> list[R]:
    """Do `store.update(user, change, create=True)` for each pair in `changes`: for all pairs or for none, durably.

    Return the results in the order of `changes`. If another process changed a record meanwhile, its change is called
    again, and the last result is returned. After an error, roll back all records, then raise StoreError or the
    exception of the change.
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
                outdated = set()
                for done, (name, *_) in enumerate(journal.manifested(opened), len(changes)):
                    if not batch.commit(name):
                        outdated.add(name)
                    if done % _REPORT_EVERY == 0:
                        progress(done, total)
                if outdated:
                    batch.compute_again(outdated, changes, results)
            os.fsync(folder)
            journal.unmark(opened)
        except BaseException as why:
            complete = marked and not journal.marked(opened)
            if not (complete and isinstance(why, KeyboardInterrupt)):
                journal.undo(store, folder, opened)
                journal.empty(folder, opened)
                raise
        with suppress(KeyboardInterrupt):  # the change is complete: do not report it as interrupted
            progress(total, total)
            journal.empty(folder, opened)
    return results


class _Batch:
    """The two phases of `update_many` for one record, `stage` and `commit`. Staged records are not kept in memory."""

    def __init__(self, store: FileStore, folder: int, opened: int, manifest: BinaryIO) -> None:
        self._store, self._folder, self._journal, self._manifest = store, folder, opened, manifest

    def stage(self, user: str, change: Change[R]) -> R:
        """Compute the user's new record and write it to the journal. Return the result of `change`.

        `change` gets the staged record if there is one, otherwise the old record.
        """
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
        """Link the old record into the journal. Return False if there is none.

        While the link exists, no new file has the inode number of the old record.
        """
        try:
            os.link(name, name + journal.OLD, src_dir_fd=self._folder, dst_dir_fd=self._journal, follow_symlinks=False)
        except FileExistsError:  # the journal already has the link
            pass
        except FileNotFoundError:
            return False
        return True

    def make_durable(self) -> None:
        """Flush all staged records."""
        self._manifest.flush()
        journal.make_durable(self._folder)

    def commit(self, name: str) -> bool:
        """Rename a new record into place, under its lock. Return False if the record was changed after `stage`."""
        with self._store.locked(self._folder, name):
            if journal.inode(self._folder, name) != journal.inode(self._journal, name + journal.OLD):
                return journal.inode(self._journal, name + journal.NEW) is None  # True if it was renamed already
            with suppress(FileNotFoundError):  # the new record was renamed, then removed
                self._put(name)
        return True

    def compute_again(self, names: set[str], changes: Changes[R], results: list[R]) -> None:
        """Compute the records with the file names `names` again and write them, each under its lock."""
        wanted: dict[str, list[tuple[int, str, Change[R]]]] = {}
        for number, (user, change) in enumerate(changes):
            if (name := self._store.file_of(user)) in names:
                wanted.setdefault(name, []).append((number, user, change))
        for name, again in wanted.items():
            with self._store.locked(self._folder, name):
                journal.forget(self._journal, name + journal.OLD)
                self._keep(name)
                # Delete NAME.new last: while it exists, `journal` does not roll back this record.
                journal.forget(self._journal, name + journal.NEW)
                for number, user, change in again:
                    results[number] = self.stage(user, change)
                self.make_durable()
                if journal.inode(self._journal, name + journal.NEW) is not None:
                    self._put(name)

    def _put(self, name: str) -> None:
        os.rename(name + journal.NEW, name, src_dir_fd=self._journal, dst_dir_fd=self._folder)
