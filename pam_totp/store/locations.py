"""The location of a store: a folder on this host, or a database.

Rules:
1. This module imports the code for databases late: a login on a host with a folder imports only the standard library.
2. A database has a URL (RFC 3986) of the scheme `postgresql`. Every other text is the path of a folder.
"""

from __future__ import annotations

import os

from pam_totp.core.lean import TYPE_CHECKING, suppress
from pam_totp.core.settings import DatabaseSettings, is_database
from pam_totp.store import Store, StoreError
from pam_totp.store.file import LOCK_WAIT, FileStore
from pam_totp.store.seal_key import codec_of
from pam_totp.store.secret_file import LastRead

if TYPE_CHECKING:
    from types import ModuleType


NOTICE = "The records of this store were copied to "  # a database; see `postgres_copy`
_MAX_NOTICE = 4096  # characters


def opened(
    location: str,
    lock_wait: float = LOCK_WAIT,
    last: LastRead | None = None,
    database: DatabaseSettings | None = None,
) -> Store:
    """Return the store at `location`, the absolute path of a folder or the URL of a database.

    `lock_wait` is in seconds. The file stores of one login share `last`. `database` are the settings of the site file.
    The keyring of this host seals the store. Raise StoreError if psycopg or cryptography is missing.
    """
    if is_database(location):
        how = database or DatabaseSettings(url=location)
        store: Store = postgres().PostgresStore(
            location, lock_wait, pool=how.pool, wait=how.wait, epoch=how.epoch, codec=codec_of(location)
        )
        return store
    return FileStore(location, lock_wait, last=last, codec=codec_of(location))


def postgres() -> ModuleType:
    """Return the module of the store in PostgreSQL. Raise StoreError if psycopg or libpq is missing."""
    try:
        from pam_totp.store import postgres as module
    except ImportError as e:
        raise StoreError(f"a store in PostgreSQL needs psycopg: {str(e).splitlines()[0].lower()}") from None
    return module


def notice(path: str) -> str | None:
    """Return the text of the file that replaces a folder after the copy of its records, or None."""
    with suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
        text = file.readline(_MAX_NOTICE).strip()
        if text.startswith(NOTICE):
            return text
    return None


def absolute(location: str) -> str:
    """Return the location. Make the path of a folder absolute."""
    return location if is_database(location) else os.path.abspath(location)
