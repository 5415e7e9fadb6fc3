"""Decoys: records with random keys, of which one is written in place of the record of an unknown user.

Rules:
1. The decoy is chosen at random. It does not depend on the user name, and a held lock shows nothing about a name.
2. Several processes may write one decoy at the same time. They write the same bytes, or the slots stay in order.
3. A decoy has both slots filled, so that its writes cost the same as those of a record in use.
"""

from __future__ import annotations

import os
from contextlib import suppress

from pam_totp.core.record import NEW_SECRET, UNKNOWN_USER, HotpToken, RecordError, UserRecord
from pam_totp.core.secretfile import parse, serialize
from pam_totp.core.slots import Slots, encode, slot_size
from pam_totp.store import DamagedFile, NotThere, StoreError
from pam_totp.store.secret_file import create, exists, flush_all, read, write

FOLDER = ".decoy"
COUNT = 64


def use_one(folder: int) -> str | None:
    """Do a login's work on one decoy. Return its name if it is missing or damaged, and so was not used."""
    name = f"{FOLDER}/{os.urandom(1)[0] % COUNT:02}"
    found = _read(folder, name)
    if found is None:
        return name
    stored, record = found
    write(folder, name, stored, serialize(record.refused_uncounted()))
    return None


def missing(folder: int) -> int:
    """Return the number of decoys that are missing or damaged."""
    return sum(not _is_valid(folder, f"{FOLDER}/{number:02}") for number in range(COUNT))


def are_made(folder: int) -> bool:
    """Return True if `make` has run to its end."""
    return exists(folder, f"{FOLDER}/{COUNT - 1:02}")


def make(folder: int) -> None:
    """Make the decoys that are missing or damaged. The caller holds the lock of FOLDER."""
    with suppress(FileExistsError):
        os.mkdir(FOLDER, 0o700, dir_fd=folder)
        os.chmod(FOLDER, 0o700, dir_fd=folder)  # under any umask
    for number in range(COUNT):
        name = f"{FOLDER}/{number:02}"
        if not _is_valid(folder, name):
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
    record = UNKNOWN_USER.with_token(HotpToken(name="token", secret=os.urandom(NEW_SECRET), created=0))
    size, document = slot_size(record), serialize(record)
    return encode(1, document, size) + encode(2, document, size)
