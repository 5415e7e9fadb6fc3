"""Decoys: secret files with random keys. The store overwrites a slot of a decoy after an answer of an unknown user.

Rules:
1. The store chooses the decoy at random: a choice by user name would reveal the names that share a decoy.
2. Processes write a decoy without a lock. Two writes of the same sequence number write the same bytes.
3. Both slots of a decoy contain a document, and a decoy has recent logins. Reading and writing a decoy therefore takes
   the same time as for a user's record.
"""

from __future__ import annotations

import os

from pam_totp.core.lean import TYPE_CHECKING, suppress
from pam_totp.core.record import KEPT_LOGINS, NEW_SECRET, UNKNOWN_USER, HotpToken, RecordError, UserRecord, recent_entry
from pam_totp.core.secretfile import parse, serialize
from pam_totp.core.slots import Slots, encode, slot_size
from pam_totp.store import DamagedFile, NotThere, StoreError
from pam_totp.store.secret_file import create, exists, flush_all, read, write

if TYPE_CHECKING:
    from collections.abc import Container

FOLDER = ".decoy"
COUNT = 64
_ATTEMPTS = 4  # more than 1, because a decoy appears damaged while another process writes it
_LOGIN = recent_entry(0, True, "code", "sshd", "192.0.2.100")
_REFUSAL = recent_entry(0, False, "wrong", "sshd", "192.0.2.100")


def use(folder: int) -> bool:
    """Write to a random decoy, as a login writes to a record. Return False if the decoys are missing or damaged."""
    for choice in os.urandom(_ATTEMPTS):
        name = f"{FOLDER}/{choice % COUNT:02}"
        found = _read(folder, name)
        if found is not None:
            stored, record = found
            write(folder, name, stored, serialize(refused(record)))
            return True
    return False


def new() -> UserRecord:
    """Return the record of a decoy, with a random key."""
    record = UNKNOWN_USER.with_token(HotpToken(name="token", secret=os.urandom(NEW_SECRET), created=0))
    for entry in KEPT_LOGINS * (_LOGIN, _REFUSAL):
        record = record.with_recent(entry)
    return record


def refused(record: UserRecord) -> UserRecord:
    """Return the record of a decoy after one more refusal. The result depends only on `record` (rule 2)."""
    return record.refused_uncounted().with_recent(_REFUSAL)


def missing(folder: int) -> int:
    """Return the number of decoys that are missing or damaged."""
    return sum(not _is_valid(folder, name) for name in names())


def names() -> list[str]:
    return [f"{FOLDER}/{number:02}" for number in range(COUNT)]


def are_made(folder: int) -> bool:
    """Return True if `make` has created the last decoy."""
    return exists(folder, f"{FOLDER}/{COUNT - 1:02}")


def make(folder: int, again: Container[str] = ()) -> None:
    """Create each decoy that is missing, damaged, or in `again`. The caller holds the lock of FOLDER."""
    with suppress(FileExistsError):
        os.mkdir(FOLDER, 0o700, dir_fd=folder)
        os.chmod(FOLDER, 0o700, dir_fd=folder)  # under any umask
    for name in names():
        if name in again or not _is_valid(folder, name):
            create(folder, name, _content(), f"{FOLDER}/.new", over=exists(folder, name), durably=False)
    flush_all(folder)


def _read(folder: int, name: str) -> tuple[Slots, UserRecord] | None:
    with suppress(NotThere, DamagedFile, RecordError):
        stored = read(folder, name)
        return (stored, parse(stored.document)) if stored.size else None
    return None


def _is_valid(folder: int, name: str) -> bool:
    with suppress(StoreError):
        return _read(folder, name) is not None
    return False


def _content() -> bytes:
    record = new()
    size, document = slot_size(record), serialize(record)
    return encode(1, document, size) + encode(2, document, size)
