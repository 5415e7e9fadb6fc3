"""The stock of a file store: entries in the folder `.stock`, and claims in the folder `.serial`.

Rules:
1. `exchange` holds the lock of the user's record, then the locks of the claims. `exchange` first writes the entries of
   tokens that are added to the stock. Then `exchange` writes the claims of tokens that are removed from the stock, the
   record, and the rest (`claims.settle`). Each write is durable before the next. Rule 7 of `claims` names the owner
   after a kill.
2. `add` writes all entries to a folder beside `.stock`, and flushes them. The rename of that folder to `.stock.ready`
   is the moment of the import. Then `add` moves each entry into `.stock`, under the lock of the claim. The next use of
   the stock completes a killed `add`.
3. Only one process at a time adds entries, under the lock of the name `.stock`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from pam_totp.core.record import UserRecord
from pam_totp.store import NotThere, SerialTaken, StoreError, claims, stock_entries
from pam_totp.store.file import FileStore, parse_record
from pam_totp.store.seal_key import require_current
from pam_totp.store.secret_file import exists, flush_all, unlink
from pam_totp.store.stock import Held, NotInStock, Progress, StockEntry, document_of

if TYPE_CHECKING:
    from pam_totp.core.slots import Slots
    from pam_totp.store import R
    from pam_totp.store.stock import Exchange

NEW, READY = ".stock.new", ".stock.ready"
_ADD_WAIT = 60.0  # seconds: another process might be adding many tokens
_REPORT_EVERY = 500  # entries between two reports of progress
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class _Move(NamedTuple):
    """A change of a record. `claims` has the claims of the serial numbers in `entries`."""

    old: UserRecord
    new: UserRecord
    claims: Mapping[str, str]
    entries: Mapping[str, StockEntry | None]
    incoming: Sequence[StockEntry]


class FileStock:
    """The stock of a file store. The class implements `Stock`."""

    def __init__(self, store: FileStore) -> None:
        self._store = store

    def find(self, serial: str) -> Held | None:
        with self._store.opened() as folder:
            return self._find(folder, claims.file_of(serial))

    def entries(self) -> Iterator[Held | StoreError]:
        with self._store.opened() as folder:
            self.complete(folder)
            for claim in stock_entries.names(folder):
                try:
                    held = None if claim.startswith(".") else self._find(folder, claim)
                except StoreError as e:
                    yield e
                else:
                    if held is not None:
                        yield held

    def add(
        self, entries: Sequence[StockEntry], progress: Progress = lambda done, total: None
    ) -> list[tuple[str | None] | None]:
        results: list[tuple[str | None] | None] = [None] * len(entries)
        with self._store.opened() as folder, self._adding(folder):
            for number, entry in enumerate(entries):  # before the write: a second import of a file is common
                held = self._find(folder, claims.file_of(entry.serial))
                if held is not None:
                    results[number] = (held.owner,)
            try:
                numbers = _write_new(self._store, folder, entries, results, progress)
                flush_all(folder)
                os.rename(NEW, READY, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:  # for example a full disk: the files would keep the disk full, and contain keys
                _remove_new(folder)
                raise
            os.fsync(folder)
            for done, (claim, taken) in enumerate(self._move_in(folder), len(entries)):
                if done % _REPORT_EVERY == 0:
                    progress(done, 2 * len(entries))
                if taken is not None:
                    results[numbers[claim]] = (taken.owner,)
        progress(2 * len(entries), 2 * len(entries))
        return results

    def update(self, serial: str, change: Callable[[StockEntry], StockEntry | None]) -> StockEntry:
        claim = claims.file_of(serial)
        with self._store.opened() as folder:
            self.complete(folder)
            claims.make(self._store, folder)
            with claims.locked(self._store, folder, [claim]):
                claims.settle(self._store, folder, claim)
                held = self._find(folder, claim)
                if held is None or held.entry.token is None:
                    raise NotInStock(serial, None if held is None else held.owner)
                new = change(held.entry)
                if new is None:
                    stock_entries.delete(folder, claim)
                    claims.settle(self._store, folder, claim)
                elif new != held.entry:
                    stock_entries.write(self._store, folder, claim, new)
                return held.entry

    def exchange(self, user: str, change: Exchange[R], serials: Sequence[str], *, create: bool = False) -> R:
        store, name = self._store, self._store.file_of(user)
        wanted = {serial: claims.file_of(serial) for serial in serials}
        with store.opened() as folder:
            self.complete(folder)
            claims.make(store, folder)
            with store.locked(folder, name):
                stored = store.load(folder, name)
                if stored is None and not create:
                    raise NotThere
                old = UserRecord(user=user) if stored is None else self._record(stored, user, name)
                while True:
                    found = {serial: _entry(self._find(folder, claim)) for serial, claim in wanted.items()}
                    new, incoming, result = change(old, found)
                    move = _Move(old, UserRecord(user=user) if new is None else new, wanted, found, incoming)
                    with self._moved(folder, name, move) as is_current:
                        if not is_current:
                            continue
                        if new is None:
                            store.remove(folder, name)
                            os.fsync(folder)
                        elif stored is None or new != old:
                            store.put(folder, name, stored, old, new)
                        return result

    @contextmanager
    def _moved(self, folder: int, name: str, move: _Move) -> Iterator[bool]:
        """Move the claims and the entries for a change of the record `name`, which the block writes.

        Yield False, without a change, if another process has changed one of `move.entries`.
        """
        store, wanted, found = self._store, move.claims, move.entries
        old, new = claims.of_record(move.old), claims.of_record(move.new)
        back = {claims.file_of(entry.serial): entry for entry in move.incoming}
        assert back.keys() <= old.keys() - new.keys(), "only a token of the user's record can be added to the stock"
        changed = old.keys() ^ new.keys()
        with claims.locked(store, folder, changed | set(wanted.values())):
            if any(_entry(self._find(folder, claim)) != found[serial] for serial, claim in wanted.items()):
                yield False
                return
            in_stock = {wanted[serial] for serial, entry in found.items() if entry is not None and entry.token}
            try:
                for claim in sorted(old.keys() - new.keys()):
                    if claim in back:
                        stock_entries.write(store, folder, claim, back[claim])
                    else:
                        stock_entries.withhold(store, folder, claim)
                for claim in sorted(new.keys() - old.keys()):
                    if claim in in_stock:
                        claims.point(folder, claim, name)
                    else:
                        claims.take(store, folder, claim, name, new[claim])
                yield True
            finally:
                for claim in sorted(changed):
                    claims.settle(store, folder, claim)

    def _find(self, folder: int, claim: str) -> Held | None:
        """Return the entry of a claim, and the owner. Omit the entry's token if a user's record has this token."""
        entry = stock_entries.read(self._store, folder, claim)
        if entry is None:
            return None
        owner = claims.owner_of(self._store, folder, claim)
        return Held(entry, None) if owner is None else Held(entry.without_token(), owner)

    def _record(self, stored: Slots, user: str, name: str) -> UserRecord:
        return parse_record(stored.document, user, name, self._store.codec)

    def documents(self) -> Iterator[bytes]:
        with self._store.opened() as folder:
            for claim in stock_entries.names(folder):
                with suppress(NotThere):
                    yield stock_entries.document(folder, claim)

    def seal_again(self) -> int:
        codec, changed = self._store.codec, 0
        assert codec is not None
        with self._store.opened() as folder:
            self.finish(folder)
            for claim in [name for name in stock_entries.names(folder) if not name.startswith(".")]:
                with claims.locked(self._store, folder, [claim]), suppress(NotThere):
                    if not codec.is_current(stock_entries.document(folder, claim)):
                        entry = stock_entries.read(self._store, folder, claim)
                        assert entry is not None
                        stock_entries.write(self._store, folder, claim, entry)
                        changed += 1
        return changed

    # ---- adding many entries

    @contextmanager
    def _adding(self, folder: int) -> Iterator[None]:
        """Hold the lock of the imports. Complete a killed import first."""
        lock = self._store.lock_of(folder, stock_entries.FOLDER, _ADD_WAIT)
        try:
            claims.make(self._store, folder)
            stock_entries.make_folder(folder)
            for _ in self._move_in(folder):
                pass
            _remove_new(folder)
            yield
        finally:
            os.close(lock)

    def complete(self, folder: int) -> None:
        """Complete a killed import that was ready, and wait for an import that is running.

        Only this package calls this method.
        """
        if exists(folder, READY):
            self.finish(folder)

    def finish(self, folder: int) -> None:
        """Do the same as `complete`, and delete the files of an import that was not ready.

        Only this package calls this method.
        """
        with self._adding(folder):
            pass

    def _move_in(self, folder: int) -> Iterator[tuple[str, SerialTaken | None]]:
        """Move the entries of `.stock.ready` into the stock. Yield each claim, with the error if it was in use."""
        if not exists(folder, READY):
            return
        lock = self._store.kept_lock(folder)
        try:
            for claim in stock_entries.names(folder, READY):
                with lock.locked(f"{claims.FOLDER}/{claim}"):
                    yield claim, self._move_in_one(folder, claim)
        finally:
            lock.close()
        for name in (stock_entries.FOLDER, claims.FOLDER, READY):
            stock_entries.flush(folder, name)
        os.rmdir(READY, dir_fd=folder)
        os.fsync(folder)

    def _move_in_one(self, folder: int, claim: str) -> SerialTaken | None:
        """Move one entry into the stock. Return the error if the serial number was in use. The caller holds the claim's
        lock.
        """
        try:
            claims.take_for_stock(self._store, folder, claim)
        except SerialTaken as e:
            unlink(folder, f"{READY}/{claim}")
            return e
        path = stock_entries.path_of(claim)
        os.rename(f"{READY}/{claim}", path, src_dir_fd=folder, dst_dir_fd=folder)
        return None


def examine(store: FileStore, folder: int) -> Iterator[tuple[str, Callable[[], object] | None]]:
    """Yield the text of each defect of the stock, and the function that repairs the defect, or None."""
    stock = FileStock(store)
    for name in (READY, NEW):
        if exists(folder, name):
            yield f"{name}: left by an interrupted import into the stock", lambda: stock.finish(folder)
    for claim in stock_entries.names(folder):
        path = stock_entries.path_of(claim)
        if claim.startswith("."):
            yield f"{path}: left by a killed process", lambda path=path: unlink(folder, path)  # type: ignore[misc]
            continue
        try:
            text = _defect(store, folder, claim)
        except StoreError as e:
            yield f"{e}", None
            continue
        if text is not None:
            yield f"{path}: {text}", lambda claim=claim: _settle(store, folder, claim)  # type: ignore[misc]


def _defect(store: FileStore, folder: int, claim: str) -> str | None:
    entry, name = stock_entries.read(store, folder, claim), claims.target(folder, claim)
    if entry is None:
        return None
    owner = claims.owner_of(store, folder, claim)
    if owner is not None:
        return None if entry.token is None else f"{owner} has this token: a change of the stock was interrupted"
    if entry.token is None:
        return "no user has this token"
    if name != stock_entries.path_of(claim) and exists(folder, claims.FOLDER):
        return "a user can get this token too: the serial number has no claim of the stock"
    return None


def _settle(store: FileStore, folder: int, claim: str) -> None:
    claims.make(store, folder)
    with claims.locked(store, folder, [claim]):
        claims.settle(store, folder, claim)


def _remove_new(folder: int) -> None:
    """Delete the files of an import that was not ready, if there are any."""
    with suppress(FileNotFoundError):
        shutil.rmtree(NEW, dir_fd=folder)


def _write_new(
    store: FileStore,
    folder: int,
    entries: Sequence[StockEntry],
    results: list[tuple[str | None] | None],
    progress: Progress,
) -> dict[str, int]:
    """Write the entries to a new folder, without a flush. Return the number of each entry by the name of its claim.

    The second entry of a serial number gets a result instead.
    """
    require_current(store.folder)
    numbers: dict[str, int] = {}
    os.mkdir(NEW, 0o700, dir_fd=folder)
    opened = os.open(NEW, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        for number, entry in enumerate(entries):
            if number % _REPORT_EVERY == 0:
                progress(number, 2 * len(entries))
            claim = claims.file_of(entry.serial)
            if results[number] is not None:
                continue
            if numbers.setdefault(claim, number) != number:
                results[number] = (None,)
                continue
            with open(os.open(claim, _FLAGS, 0o600, dir_fd=opened), "wb") as file:
                os.fchmod(file.fileno(), 0o600)  # under any umask
                file.write(document_of(entry, store.codec))
    finally:
        os.close(opened)
    return numbers


def _entry(held: Held | None) -> StockEntry | None:
    return None if held is None else held.entry
