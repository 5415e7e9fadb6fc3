"""The claims of a file store: the owner of the token with each serial number.

Rules:
1. A claim is a symbolic link in the folder `.serial`. `file_of` makes the claim's name from the serial number, and the
   claim's target is the record of the owner. symlink(2) creates the link with its target, or fails if the claim exists.
   No process follows the link.
2. A record gets a serial number only after its user has the claim, and after the claim is durable.
3. A process that changes a claim holds the claim's lock: a byte of `.lock`, like the lock of a record. An update holds
   this lock until the record is durable. A process that holds the lock of a claim acquires no lock of a record.
4. A claim without a token is stale: the record to which the claim points lacks the serial number. A killed process can
   leave a stale claim. The next process that needs the serial number replaces this claim.
5. No claim is stale while the folder `.import` exists: an import claims all serial numbers before it writes the first
   record. The import creates a claim without its lock, but keeps an existing claim only under its lock. Otherwise, a
   process that checked for `.import` before could still delete the claim.
6. The folder `.serial` has the claims of all records. `make` fills the folder under another name, and then renames it.
7. The target of a claim can also be an entry of the stock (`stock_entries`). The owner is the user whose record has the
   token and to whom the claim points. Otherwise the owner is the stock, if its entry contains a token. This rule has
   one result after a kill at any moment of a change, and `settle` completes such a change.
8. The stock's entry of a token loses its key before a user's record loses the token. Otherwise a killed return could
   restore an old counter.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from pam_totp.core.lean import json_loads, sha256
from pam_totp.core.record import UserRecord
from pam_totp.core.serials import serial_key
from pam_totp.store import NotThere, SerialTaken, StoreError, stock_entries
from pam_totp.store.file import JOURNAL, FileStore, user_of_file
from pam_totp.store.secret_file import exists, unlink

FOLDER = ".serial"
_NEW = ".serial.new"
_BEFORE = "../"  # the path from the folder of the claims to the record
_MAX_PLAIN = 128  # characters
_MAKE_WAIT = 60.0  # seconds: another process might be reading all records
_LINE = b'\n   "serial": "'  # the start of the line with a serial number; a JSON string has no line end

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# (a record's file name, the name of a claim) -> True if an import will write the serial number
IsStaged = Callable[[str, str], bool]


def file_of(serial: str) -> str:
    """Return the name of the claim of a serial number. Serial numbers with the same `serial_key` share the claim."""
    key = serial_key(serial)
    if key.isascii() and key.isalnum() and len(key) <= _MAX_PLAIN:
        return key
    return f"sha256-{sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"


def serials(document: bytes | None) -> dict[str, str]:
    """Return the serial numbers in a document by the names of their claims. Raise ValueError for a damaged document."""
    if document is None:
        return {}
    lines = [part.partition(b"\n")[0].decode("ascii") for part in document.split(_LINE)[1:]]
    return {file_of(serial): serial for serial in (str(json_loads('"' + line.rstrip(","))) for line in lines)}


def of_record(record: UserRecord) -> dict[str, str]:
    """Return the serial numbers of a record by the names of their claims."""
    return {file_of(token.serial): token.serial for token in record.tokens if token.serial is not None}


def owner(store: FileStore, folder: int, serial: str) -> str | None:
    """Return the owner of the token with the serial number `serial`, or None."""
    make(store, folder)
    return _user_of(holder(store, folder, file_of(serial)))


@contextmanager
def moved(store: FileStore, folder: int, name: str, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[None]:
    """Claim the serial numbers that only `new` has. The caller writes the record in the block. Then release the stale
    claims.

    `old` and `new` are results of `serials`. The caller holds the lock of the record. Raise SerialTaken.
    """
    make(store, folder)
    changed, added = sorted(old.keys() ^ new.keys()), sorted(new.keys() - old.keys())
    with ExitStack() as stack:
        for claim in changed:
            stack.enter_context(_locked(store, folder, claim))
        for claim in old.keys() - new.keys():
            stock_entries.withhold(store, folder, claim)
        try:
            for claim in added:
                _take(store, folder, claim, name, serial=new[claim])
            if added:
                _flush(folder, FOLDER)
            yield
        finally:
            for claim in changed:
                _release(store, folder, claim, name)


def take_for_import(store: FileStore, folder: int, name: str, new: Mapping[str, str], is_staged: IsStaged) -> None:
    """Claim the serial numbers `new` for a record that an import will write. The caller has the journal.

    The caller has called `make`, and flushes the claims afterwards. Raise SerialTaken.
    """
    for claim, serial in new.items():
        try:
            if exists(folder, stock_entries.path_of(claim)):
                raise FileExistsError
            _link(folder, claim, name)
        except FileExistsError:
            with _locked(store, folder, claim):  # rule 5, also for a claim of this record
                _take(store, folder, claim, name, serial=serial, is_staged=is_staged)


def flush(folder: int) -> None:
    """Make the claims durable, before the first record of an import is written."""
    _flush(folder, FOLDER)


def release(store: FileStore, folder: int, name: str, claims: Collection[str], *, own_import: bool = False) -> None:
    """Delete the stale claims of a record. `own_import` is True if the caller has the journal."""
    for claim in claims:
        with _locked(store, folder, claim):
            _release(store, folder, claim, name, own_import=own_import)


def bring_in(store: FileStore, user: str) -> None:
    """Claim the serial numbers of a record that another program put into the store. Raise SerialTaken.

    The user keeps a token that is in stock too: the backup was made during the assignment or the return.
    """
    name = store.file_of(user)
    with store.opened() as folder, store.locked(folder, name):
        make(store, folder)
        stored = store.load(folder, name)
        found = {} if stored is None else _serials(name, stored.document)
        for claim in found:
            with _locked(store, folder, claim):
                if stock_entries.has_token(store, folder, claim) and owner_of(store, folder, claim) is None:
                    point(folder, claim, name)
                    settle(store, folder, claim)
        with moved(store, folder, name, {}, found):
            pass


def make(store: FileStore, folder: int) -> None:
    """Create the folder with the claims of all records, unless it exists. Claim a token of two users for the first
    user."""
    if exists(folder, FOLDER):
        return
    lock = store.lock_of(folder, FOLDER, _MAKE_WAIT)
    try:
        if not exists(folder, FOLDER):
            _remove(folder, _NEW)
            os.mkdir(_NEW, 0o700, dir_fd=folder)
            for user in sorted(store.users()):
                _copy_claims(store, folder, store.file_of(user))
            for claim in stock_entries.names(folder):
                _copy_claim_of_stock(store, folder, claim)
            _flush(folder, _NEW)
            os.rename(_NEW, FOLDER, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
    finally:
        os.close(lock)


# ---- for `pam-totp doctor`


def names(folder: int) -> list[str]:
    """Return the names of all claims."""
    return _content(folder, FOLDER)


def holder(store: FileStore, folder: int, claim: str) -> str | None:
    """Return the file name of the record that has the claim, or None if the claim is missing or stale."""
    name = _read(folder, claim)
    return None if name is None or _is_stale(store, folder, claim, name) else name


def is_held_by(folder: int, claim: str, name: str) -> bool:
    """Return True if the claim belongs to the record `name`. This record must have the serial number."""
    return _read(folder, claim) == name


def sweep(store: FileStore, folder: int) -> None:
    """Delete all stale claims, and all other entries of the folder `.serial`."""
    for claim in names(folder):
        with _locked(store, folder, claim):
            name = _read(folder, claim)
            if name is None or _is_stale(store, folder, claim, name):
                _free(store, folder, claim)


# ---- for the stock


@contextmanager
def locked(store: FileStore, folder: int, claims: Collection[str]) -> Iterator[None]:
    """Hold the locks of all `claims`."""
    with ExitStack() as stack:
        for claim in sorted(claims):
            stack.enter_context(_locked(store, folder, claim))
        yield


def owner_of(store: FileStore, folder: int, claim: str) -> str | None:
    """Return the user whose record has the token, or None. Unlike `holder`, the result does not depend on an import.

    Raise StoreError if this record is damaged, because it might have the token.
    """
    name = _read(folder, claim)
    if name is None or stock_entries.is_path(name) or not _has(store, folder, claim, name):
        return None
    return user_of_file(name)


def point(folder: int, claim: str, name: str) -> None:
    """Make a claim point to `name`, durably, in place of its old target. The caller holds the claim's lock."""
    if _read(folder, claim) == name:
        return
    temporary = f".{claim}"
    unlink(folder, f"{FOLDER}/{temporary}")
    _link(folder, temporary, name)
    os.rename(f"{FOLDER}/{temporary}", f"{FOLDER}/{claim}", src_dir_fd=folder, dst_dir_fd=folder)
    _flush(folder, FOLDER)


def take(store: FileStore, folder: int, claim: str, name: str, serial: str) -> None:
    """Claim one serial number that is not in stock, durably. The caller holds the claim's lock. Raise SerialTaken."""
    _take(store, folder, claim, name, serial=serial)
    _flush(folder, FOLDER)


def take_for_stock(store: FileStore, folder: int, claim: str) -> None:
    """Claim one serial number for the stock. The caller holds the claim's lock, and flushes the claims afterwards.

    Raise SerialTaken, also if the token is in stock already.
    """
    _take(store, folder, claim, stock_entries.path_of(claim), serial=claim)


def target(folder: int, claim: str) -> str | None:
    """Return the path to which a claim points, or None if the claim is missing."""
    return _read(folder, claim)


def settle(store: FileStore, folder: int, claim: str) -> None:
    """Complete a change of the stock that a kill has interrupted (rule 7). The caller holds the claim's lock."""
    name = _read(folder, claim)
    with suppress(StoreError):  # a damaged record or entry: an administrator must restore it
        if name is not None and not stock_entries.is_path(name) and _has(store, folder, claim, name):
            stock_entries.withhold(store, folder, claim)
        elif stock_entries.has_token(store, folder, claim):
            point(folder, claim, stock_entries.path_of(claim))
        elif name is None or _is_stale(store, folder, claim, name):
            _free(store, folder, claim)


def _has(store: FileStore, folder: int, claim: str, name: str) -> bool:
    """Return True if the record `name` has the serial number of a claim. Raise StoreError for a damaged record."""
    stored = store.find(folder, name, may_have_links=True)
    return stored is not None and claim in _serials(name, stored.document)


class Owners:
    """The owners of serial numbers, for a dry run: a lookup only reads the store."""

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._found: dict[str, str] | None = None  # claim -> user, if the store has no folder of claims

    def of(self, serial: str) -> str | None:
        """Return the owner of the token with the serial number `serial`, or None."""
        claim = file_of(serial)
        with self._store.opened() as folder:
            if exists(folder, FOLDER):
                return _user_of(holder(self._store, folder, claim))
            if self._found is None:
                self._found = self._of_records(folder)
            return self._found.get(claim)

    def _of_records(self, folder: int) -> dict[str, str]:
        """Return the owners that `make` would find, by claim."""
        found: dict[str, str] = {}
        for user in sorted(self._store.users()):
            for claim in _claims_of(self._store, folder, self._store.file_of(user)):
                found.setdefault(claim, user)
        return found


# ---- one claim


@contextmanager
def _locked(store: FileStore, folder: int, claim: str) -> Iterator[None]:
    lock = store.lock_of(folder, f"{FOLDER}/{claim}")
    try:
        yield
    finally:
        os.close(lock)


def _link(folder: int, claim: str, name: str) -> None:
    os.symlink(_BEFORE + name, f"{FOLDER}/{claim}", dir_fd=folder)


def _read(folder: int, claim: str) -> str | None:
    """Return the file name of the record to which a claim points, or None if the claim is missing."""
    try:
        return os.readlink(f"{FOLDER}/{claim}", dir_fd=folder).removeprefix(_BEFORE)
    except OSError:  # EINVAL: another program has created a file here
        return None


def _take(
    store: FileStore, folder: int, claim: str, name: str, *, serial: str, is_staged: IsStaged | None = None
) -> None:
    """Claim one serial number for a record. The caller holds the claim's lock. Raise SerialTaken."""
    if stock_entries.has_token(store, folder, claim):
        user = owner_of(store, folder, claim)
        if user is None or user != _user_of(name):
            raise SerialTaken(serial, user)
    while True:
        with suppress(FileExistsError):
            _link(folder, claim, name)
            return
        other = _read(folder, claim)
        if other == name:
            return
        if other is not None and not _is_stale(store, folder, claim, other, is_staged):
            raise SerialTaken(serial, _user_of(other))
        _delete(folder, claim)  # an import might create the claim again before the next attempt


def _release(store: FileStore, folder: int, claim: str, name: str, *, own_import: bool = False) -> None:
    """Delete a claim of a record if it is stale. The caller holds the claim's lock."""
    if _read(folder, claim) == name and _is_stale(store, folder, claim, name, _never if own_import else None):
        _free(store, folder, claim)


def _free(store: FileStore, folder: int, claim: str) -> None:
    """Delete a stale claim and its entry of the stock. Move the claim to the stock if the entry contains a token."""
    if stock_entries.has_token(store, folder, claim):
        point(folder, claim, stock_entries.path_of(claim))
        return
    _delete(folder, claim)
    stock_entries.delete(folder, claim)


def _user_of(name: str | None) -> str | None:
    """Return the user with the record `name`, or None for an entry of the stock and for None."""
    return None if name is None or stock_entries.is_path(name) else user_of_file(name)


def _delete(folder: int, claim: str) -> None:
    """Delete a claim, or a folder in its place, which another program created. The caller holds the claim's lock."""
    try:
        unlink(folder, f"{FOLDER}/{claim}")
    except IsADirectoryError:
        shutil.rmtree(f"{FOLDER}/{claim}", dir_fd=folder)


def _is_stale(store: FileStore, folder: int, claim: str, name: str, is_staged: IsStaged | None = None) -> bool:
    """Return True if the record `name` lacks a token for its claim, and no process is about to write this token.

    `is_staged` is for the process that has the journal. A reader without the lock might find a claim before its record
    is written.
    """
    if exists(folder, JOURNAL) if is_staged is None else is_staged(name, claim):
        return False
    try:  # after the check for an import: a completed import has written the record
        stored = store.find(folder, name, may_have_links=True)
        return stored is None or claim not in serials(stored.document)
    except (StoreError, ValueError):  # a damaged record keeps its serial numbers
        return False


def _never(name: str, claim: str) -> bool:
    return False


def _serials(name: str, document: bytes) -> dict[str, str]:
    try:
        return serials(document)
    except ValueError:
        raise StoreError(f"{name}: the serial numbers cannot be read") from None


def _copy_claims(store: FileStore, folder: int, name: str) -> None:
    for claim in _claims_of(store, folder, name):
        with suppress(FileExistsError):
            os.symlink(_BEFORE + name, f"{_NEW}/{claim}", dir_fd=folder)


def _copy_claim_of_stock(store: FileStore, folder: int, claim: str) -> None:
    with suppress(FileExistsError, StoreError):  # a user has the token, or the entry is damaged
        if stock_entries.has_token(store, folder, claim):
            os.symlink(_BEFORE + stock_entries.path_of(claim), f"{_NEW}/{claim}", dir_fd=folder)


def _claims_of(store: FileStore, folder: int, name: str) -> Collection[str]:
    """Return the claims of a record; empty for a damaged record, which `pam-totp list` reports."""
    with suppress(NotThere, StoreError, ValueError):
        stored = store.find(folder, name, may_have_links=True)
        return serials(None if stored is None else stored.document)
    return ()


def _remove(folder: int, name: str) -> None:
    """Delete the folder `name` of a killed `make`, with its files."""
    for claim in _content(folder, name):
        unlink(folder, f"{name}/{claim}")
    with suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=folder)


def _content(folder: int, name: str) -> list[str]:
    try:
        opened = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
    except FileNotFoundError:
        return []
    try:
        return os.listdir(opened)
    finally:
        os.close(opened)


def _flush(folder: int, name: str) -> None:
    file = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
    try:
        os.fsync(file)
    finally:
        os.close(file)
