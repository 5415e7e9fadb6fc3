"""The kinds of stores, each with the functions that the tests of the contract of `Store` need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pam_totp.core.record import HotpToken, UserRecord
from pam_totp.core.slots import decode
from pam_totp.store import Store
from pam_totp.store.decoys import FOLDER as DECOYS
from pam_totp.store.file import FileStore, file_name
from pam_totp.store.postgres import PostgresStore
from tests.core.stores import LOCK_TIMEOUT, NOW, change
from tests.support.cluster import Server
from tests.support.site import fob


class Backend:
    """A kind of store. `kind` is its name in the tests."""

    kind: str

    def store(self, lock_wait: float = LOCK_TIMEOUT) -> Store:
        """Open the store again, like each login, and return the store."""
        raise NotImplementedError

    def writes(self, user: str = "alice") -> int:
        """Return a number that increases with each write of the user's record."""
        raise NotImplementedError

    def decoy_writes(self) -> list[int]:
        """Return a number for each decoy, which increases with each write of that decoy."""
        raise NotImplementedError

    def put(self, user: str = "alice", **fields: Any) -> UserRecord:
        """Write the record of `user`, by default with one HOTP token, and return the record."""
        record = UserRecord(user=user, **{"tokens": (fob(),)} | fields)
        self.store().update(user, lambda _: (record, None), create=True)
        return record

    def log_in(self, answer: bytes, user: str = "alice", now: int = NOW) -> str:
        """Log `user` in with `answer` at `now` (Unix seconds). Return the name of the outcome."""
        word: str = self.store().update(user, change(answer, now), decoy=True).value
        return word

    def counter(self, user: str = "alice") -> int:
        token = self.store().read(user).tokens[0]
        assert isinstance(token, HotpToken)
        return token.counter


class Folder(Backend):
    kind = "file"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        FileStore(str(folder)).prepare()

    def store(self, lock_wait: float = LOCK_TIMEOUT) -> Store:
        return FileStore(str(self.folder), lock_wait)

    def writes(self, user: str = "alice") -> int:
        return decode((self.folder / f"{file_name(user)}.record").read_bytes()).sequence

    def decoy_writes(self) -> list[int]:
        return [decode(path.read_bytes()).sequence for path in sorted((self.folder / DECOYS).iterdir())]


class Database(Backend):
    kind = "postgresql"

    def __init__(self, server: Server, url: str) -> None:
        self.server, self.url = server, url

    def store(self, lock_wait: float = LOCK_TIMEOUT) -> Store:
        return PostgresStore(self.url, lock_wait, wait=LOCK_TIMEOUT)

    def writes(self, user: str = "alice") -> int:
        return int(self.server.sql(f"SELECT version FROM pam_totp.record WHERE name = '{file_name(user)}'"))

    def decoy_writes(self) -> list[int]:
        return [int(line) for line in self.server.sql("SELECT version FROM pam_totp.decoy ORDER BY slot").splitlines()]


Race = Callable[[int, Callable[[int], str]], list[str]]
