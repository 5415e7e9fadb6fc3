"""Functions that enrol and verify users of a file store, and a store in memory."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pam_totp.core.answer import Answer
from pam_totp.core.oath import hotp
from pam_totp.core.policy import Policy
from pam_totp.core.record import HotpToken, UserRecord
from pam_totp.core.secretfile import parse, serialize
from pam_totp.core.slots import decode, new_file, slot_size
from pam_totp.core.verify import Outcome, verify
from pam_totp.store import NotThere, StoreError
from pam_totp.store.decoys import FOLDER as DECOYS
from pam_totp.store.file import LOCK, FileStore
from tests.support.site import KEY, fob

if TYPE_CHECKING:
    from pam_totp.store import R

NOW = 1_700_000_010
LOCK_TIMEOUT = 60.0  # seconds: on a slow disk, fifty updates take longer than the default time limit


def enrol(folder: Path, user: str = "alice", *, file: str | None = None, **fields: Any) -> Path:
    """Write the record of `user`, by default with one HOTP token, and return the file."""
    record = UserRecord(user=user, **{"tokens": (fob(),)} | fields)
    path = folder / (file or f"{user}.record")
    path.write_bytes(new_file(serialize(record), slot_size(record)))
    path.chmod(0o600)
    return path


def enrol_1(folder: Path, user: str = "alice", **fields: Any) -> Path:
    """Write the record of `user` as a file of version 1, and return the file."""
    path = folder / f"{user}.json"
    path.write_bytes(serialize(UserRecord(user=user, **{"tokens": (fob(),)} | fields)))
    path.chmod(0o600)
    return path


def emptied(folder: Path) -> None:
    """Delete everything in a store, except its lock file and its decoys."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != DECOYS:
            shutil.rmtree(path)
        elif path.name not in (LOCK, DECOYS):
            path.unlink()


def holding(folder: Path, name: str) -> int:
    """Acquire the lock of the file `name`, like another process. Return a descriptor; `os.close` releases the lock."""
    lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    start = int.from_bytes(sha256(name.encode()).digest()[:8], "big") >> 2
    try:
        fcntl.fcntl(lock, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0))
    except BlockingIOError:
        os.close(lock)
        raise
    return lock


def code(counter: int, count: int = 1) -> bytes:
    return "".join(hotp(KEY, counter + i) for i in range(count)).encode()


def change(answer: bytes, now: int = NOW, policy: Policy | None = None) -> Callable[[UserRecord], Any]:
    """Return the function that a login with `answer` passes to `update`."""

    def decide(record: UserRecord) -> tuple[UserRecord, Outcome]:
        decision = verify(record, Answer.parse(answer), now, policy or Policy())
        return decision.record, decision.outcome

    return decide


def log_in(folder: Path, answer: bytes, user: str = "alice", *, store: FileStore | None = None, now: int = NOW) -> str:
    """Log `user` in with `answer`. Return the name of the outcome. By default, wait `LOCK_TIMEOUT` for the lock."""
    outcome: Outcome = (store or FileStore(str(folder), LOCK_TIMEOUT)).update(user, change(answer, now))
    return outcome.value


def record_of(path: Path) -> UserRecord:
    return parse(decode(path.read_bytes()).document)


def counter_of(path: Path) -> int:
    token = record_of(path).tokens[0]
    assert isinstance(token, HotpToken)
    return token.counter


class Memory:
    """A store in memory. `updates` lists its completed updates. Every write fails if `full` is True."""

    def __init__(self, *records: UserRecord, full: bool = False) -> None:
        self.records = {record.user: record for record in records}
        self.full = full
        self.updates: list[str] = []

    @property
    def writes(self) -> int:
        return len(self.updates) - self.updates.count("same")

    def _write(self, what: str) -> None:
        if self.full:
            raise StoreError("no space left")
        self.updates.append(what)

    def read(self, user: str) -> UserRecord:
        if user not in self.records:
            raise NotThere
        return self.records[user]

    def update(
        self,
        user: str,
        change: Callable[[UserRecord], tuple[UserRecord | None, R]],
        *,
        create: bool = False,
        decoy: bool = False,
    ) -> R:
        record, result = change(self.read(user))
        assert record is not None
        if record == self.records[user]:
            if decoy:
                self._write("decoy")
            else:
                self.updates.append("same")
        else:
            self._write("changed")
            self.records[user] = record
        return result

    def update_decoy(self, user: str, search: Callable[[], object]) -> None:
        search()
        self._write("decoy")

    def users(self) -> Iterator[str]:
        return iter(self.records)

    def owner_of_serial(self, serial: str) -> str | None:
        owned = [user for user, record in self.records.items() if serial in [token.serial for token in record.tokens]]
        return next(iter(owned), None)
