"""The files of the stock in a file store: the folder `.stock` has a file for each serial number.

Rules:
1. The name of a file is the name of the serial number's claim (`claims.file_of`).
2. A writer holds the lock of the claim. The writer replaces a file by rename(2), so a reader finds a complete file.
3. A file has mode 0600, and belongs to the account of this process, like a secret file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from pam_totp.store import NotThere
from pam_totp.store.seal_key import require_current
from pam_totp.store.secret_file import create, exists, unlink
from pam_totp.store.secret_file import read as read_file
from pam_totp.store.stock import StockEntry, document_of, parse_entry

if TYPE_CHECKING:
    from pam_totp.store.file import FileStore

FOLDER = ".stock"
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def path_of(claim: str) -> str:
    """Return the path of the entry of `claim` in the store's folder."""
    return f"{FOLDER}/{claim}"


def is_path(name: str) -> bool:
    """Return True if a claim with the target `name` belongs to the stock."""
    return name.startswith(f"{FOLDER}/")


def read(store: FileStore, folder: int, claim: str) -> StockEntry | None:
    """Return the entry of `claim`, or None. Raise StoreError if the file of the entry is damaged."""
    try:
        return parse_entry(document(folder, claim), path_of(claim), store.codec)
    except NotThere:
        return None


def document(folder: int, claim: str) -> bytes:
    """Return the document of the entry of `claim`. Raise NotThere, or StoreError if the file is damaged."""
    return read_file(folder, path_of(claim)).document


def has_token(store: FileStore, folder: int, claim: str) -> bool:
    """Return True if the entry of `claim` contains a token. Raise StoreError if the file of the entry is damaged."""
    if not exists(folder, path_of(claim)):  # most serial numbers have no entry
        return False
    entry = read(store, folder, claim)
    return entry is not None and entry.token is not None


def write(store: FileStore, folder: int, claim: str, entry: StockEntry) -> None:
    """Write an entry durably. The caller holds the claim's lock."""
    require_current(store.folder)
    make_folder(folder)
    create(folder, path_of(claim), document_of(entry, store.codec), _temporary(claim), over=True)
    flush(folder)


def withhold(store: FileStore, folder: int, claim: str) -> None:
    """Remove the key from an entry durably, because a user has the token. The caller holds the claim's lock."""
    unlink(folder, _temporary(claim))  # left by a killed process
    if has_token(store, folder, claim):
        entry = read(store, folder, claim)
        assert entry is not None
        write(store, folder, claim, entry.without_token())


def delete(folder: int, claim: str) -> None:
    """Delete an entry durably, if it exists. The caller holds the claim's lock."""
    if sum(unlink(folder, name) for name in (_temporary(claim), path_of(claim))):
        flush(folder)


def _temporary(claim: str) -> str:
    return f"{FOLDER}/.{claim}"


def names(folder: int, name: str = FOLDER) -> Iterator[str]:
    """Yield the names of all files in the folder `name`, in order, including temporary files."""
    with suppress(FileNotFoundError):
        opened = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
        try:
            yield from sorted(os.listdir(opened))
        finally:
            os.close(opened)


def make_folder(folder: int) -> None:
    """Create the folder of the entries durably, unless it exists."""
    if not exists(folder, FOLDER):
        with suppress(FileExistsError):
            os.mkdir(FOLDER, 0o700, dir_fd=folder)
            os.fsync(folder)


def flush(folder: int, name: str = FOLDER) -> None:
    """Flush the entries of a folder to the disk."""
    file = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
    try:
        os.fsync(file)
    finally:
        os.close(file)
