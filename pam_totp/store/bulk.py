"""A bulk change: an atomic change of many records, which is complete or rolled back, even after a kill of the process.

Rules:
1. First the process computes all new records, writes them to the journal beside the old records, and flushes the
   journal. Then the process changes the first record.
2. The process changes each record under the user's lock. The process computes the new record again if another process
   changed the old record meanwhile.
3. `journal` can roll back all records from the first change to the last. This process rolls back after an error,
   and the next command on the store after a kill.
4. Used codes remain used up after a roll-back.
5. The process claims the serial numbers of new tokens while it computes the records, and flushes the claims before the
   first change. A roll-back releases the claims.
6. Logins continue during the change. Each login reads the old record or the new record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any, Protocol, TypeVar

from pam_totp.core.record import UserRecord
from pam_totp.core.slots import BLOCK, Slots, slot_size
from pam_totp.store import SerialTaken, claims, journal
from pam_totp.store.file import FileStore, document_of, parse_record, user_of_file
from pam_totp.store.secret_file import exists, flush_all

R = TypeVar("R")
Change = Callable[[UserRecord], tuple[UserRecord, R]]
Progress = Callable[[int, int], None]  # done, total

_REPORT_EVERY = 500  # records between two reports of progress

R_co = TypeVar("R_co", covariant=True)


class Changes(Protocol[R_co]):
    """Pairs of a user name and a change, which is a function of the user's record.

    `update_many` applies the changes of one user in their order. `update_many` iterates over the pairs once, and a
    second time if another process changed a record meanwhile.
    """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[str, Change[R_co]]]: ...


def update_many(
    store: FileStore,
    changes: Changes[R],
    progress: Progress = lambda done, total: None,
    on_taken: Callable[[Change[R], SerialTaken], R] | None = None,
) -> list[R]:
    """Apply all changes to the users' records durably and atomically. Change an empty record for a user without a
    record.

    Return the results in the order of `changes`. Call the changes of a record again if another process changed the
    record meanwhile, and return the results of the last calls. Omit a change that adds a serial number of another user,
    and return the result of `on_taken` for this change. Roll back all records after an error, then raise StoreError or
    the exception of a change. Without `on_taken`, SerialTaken is also an error.
    """
    journal.recover(store)
    total = 2 * len(changes)
    with store.opened() as folder, journal.opened(folder) as opened:
        marked = False
        try:
            with (
                closing(journal.Manifest(opened)) as manifest,
                closing(_BulkChange(store, folder, manifest, on_taken)) as bulk,
            ):
                results: list[R] = []
                for user, change in changes:
                    if len(results) % _REPORT_EVERY == 0:
                        progress(len(results), total)
                    results.append(bulk.stage(user, change))
                claims.flush(folder)
                bulk.flush()
                journal.mark(folder, opened)
                marked = True
                progress(len(changes), total)
                outdated = set()
                for done, entry in enumerate(bulk.entries(), len(changes)):
                    if not bulk.commit(entry):
                        outdated.add(entry.name)
                    if done % _REPORT_EVERY == 0:
                        progress(done, total)
                if outdated:
                    bulk.compute_again(outdated, changes, results)
            flush_all(folder)
            journal.unmark(opened)
        except BaseException as why:
            complete = marked and not journal.marked(opened)
            if not (complete and isinstance(why, KeyboardInterrupt)):
                journal.undo(store, folder, opened)
                journal.release_claims(store, folder, opened)
                journal.empty(folder, opened)
                raise
        with suppress(KeyboardInterrupt):  # ignore an interruption, because the change is complete
            progress(total, total)
            journal.empty(folder, opened)
    return results


class _BulkChange:
    """The two phases of `update_many`, stage and commit. Staged records are in the manifest instead of memory."""

    def __init__(
        self,
        store: FileStore,
        folder: int,
        manifest: journal.Manifest,
        on_taken: Callable[[Change[Any], SerialTaken], Any] | None,
    ) -> None:
        self._store, self._folder, self._manifest, self._on_taken = store, folder, manifest, on_taken
        self._staged: dict[str, int] = {}  # file name -> offset of its last line in the manifest
        self._large: set[str] = set()  # file names of the records that need larger slots than one block
        self._has_version_1 = store.has_version_1(folder)
        claims.make(store, folder)
        self._lock = store.kept_lock(folder)
        store.require_decoys(folder)

    def close(self) -> None:
        self._lock.close()

    def stage(self, user: str, change: Change[R]) -> R:
        """Apply `change` to the staged or old record, write the new record to the manifest, and return the result."""
        name = self._store.file_of(user)
        is_new = name in self._staged or not (self._has_version_1 or exists(self._folder, name))
        stored = None if is_new else self._store.peek(self._folder, name)
        return self._compute(name, user, change, _document(stored))

    def _compute(self, name: str, user: str, change: Change[R], old: bytes | None) -> R:
        document = old
        if name in self._staged:
            staged = self._manifest.read(self._staged[name])
            old, document = staged.old, staged.new
        record = UserRecord(user=user) if document is None else parse_record(document, user, name, self._store.codec)
        changed, result = change(record)
        if changed != record:
            try:
                self._claim(name, record, changed)
            except SerialTaken as e:
                if self._on_taken is None:
                    raise
                answer: R = self._on_taken(change, e)
                return answer
            new = document_of(changed, name, self._store.codec)
            self._staged[name] = self._manifest.write(journal.Entry(name, old, new))
            if slot_size(changed, new) > BLOCK:
                self._large.add(name)
        return result

    def _claim(self, name: str, old: UserRecord, new: UserRecord) -> None:
        if any(token.serial is not None for token in new.tokens):
            before = claims.of_record(old)
            added = {claim: serial for claim, serial in claims.of_record(new).items() if claim not in before}
            claims.take_for_import(self._store, self._folder, name, added, self._is_staged)

    def _is_staged(self, name: str, claim: str) -> bool:
        """Return True if the staged record `name` has the serial number of a claim."""
        return name in self._staged and claim in claims.serials(self._manifest.read(self._staged[name]).new)

    def entries(self) -> Iterator[journal.Entry]:
        """Yield the last entry of each record. Unlike `journal.entries`, use the names that are already in memory."""
        for offset, entry in self._manifest:
            if self._staged[entry.name] == offset:
                yield entry

    def flush(self) -> None:
        """Flush the manifest."""
        self._manifest.flush()

    def commit(self, entry: journal.Entry) -> bool:
        """Write the new record of `entry` under the lock of the record.

        Return False if another process changed the old record since staging.
        """
        if entry.old is None and not self._has_version_1:
            size = slot_size(self._record(entry, entry.new), entry.new) if entry.name in self._large else BLOCK
            with self._lock.locked(entry.name):
                return self._store.create(self._folder, entry.name, entry.new, size)
        with self._store.locked(self._folder, entry.name):
            stored = self._store.load(self._folder, entry.name)
            if _document(stored) != entry.old:
                return False
            self._put(stored, entry)
        return True

    def compute_again(self, names: set[str], changes: Changes[R], results: list[R]) -> None:
        """Compute and write the records of the files `names` again, each under its lock."""
        wanted: dict[str, list[tuple[int, str, Change[R]]]] = {}
        for number, (user, change) in enumerate(changes):
            if (name := self._store.file_of(user)) in names:
                wanted.setdefault(name, []).append((number, user, change))
        for name, again in wanted.items():
            with self._store.locked(self._folder, name):
                stored = self._store.load(self._folder, name)
                del self._staged[name]
                for number, user, change in again:
                    results[number] = self._compute(name, user, change, _document(stored))
                if name in self._staged:
                    self.flush()
                    self._put(stored, self._manifest.read(self._staged[name]))

    def _put(self, stored: Slots | None, entry: journal.Entry) -> None:
        new, codec = self._record(entry, entry.new), self._store.codec
        old = UserRecord(user=new.user) if entry.old is None else self._record(entry, entry.old)
        # an empty old record makes `put` write both slots, so that no document without the current seal remains
        old = old if entry.old is None or codec is None or codec.is_current(entry.old) else UserRecord(user=new.user)
        self._store.put(self._folder, entry.name, stored, old, new, document=entry.new, durably=False)

    def _record(self, entry: journal.Entry, document: bytes) -> UserRecord:
        return parse_record(document, user_of_file(entry.name), entry.name, self._store.codec)


def _document(stored: Slots | None) -> bytes | None:
    return None if stored is None else stored.document
