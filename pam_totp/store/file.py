"""The file store: `<user>.json` in one folder.

The law:
- in this order: lock, read, decide, write temporary, verify what was written, fsync, rename, fsync the folder, answer;
- whatever becomes of an answer takes the same room while it is written: no limit and no full disk lets a right one be
  recorded where a wrong one could not be counted;
- whatever kills a writer, the file is the old record or the new one, and the next writer cleans up and goes on;
- only a regular file of mode 0600, owned by the folder's owner, in a folder of mode 0700 that is ours, is ever read;
- a user's name is one file name, whatever is in it;
- the lock is `<user>.lock`, never renamed or deleted; only one process holds it, and never while a person is asked.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pam_totp.core.record import UNKNOWN_USER, RecordError, UserRecord
from pam_totp.core.secretfile import MAX_FILE, parse, serialize
from pam_totp.store import NotThere, R, StoreError

LOCK_WAIT = 5.0  # seconds
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.02  # seconds between two tries for the lock
_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@-"
_MAX_NAME = 255 - len("..json.tmp")  # bytes: NAME_MAX, less what we add around a name
_SUFFIX = ".json"
JOURNAL = ".import"  # where `batch` keeps what it takes to undo a change of many records
_BLOCK = 4096  # bytes: what file systems give away at a time
_GROWTH = 1024  # bytes: more than any answer adds to a record
_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def file_name(user: str) -> str:
    """The user's name as part of a file name: percent-encoded outside [A-Za-z0-9._@-], and a leading dot too.

    Raises StoreError for a name that is empty, too long for a file, or not what any bytes are decoded to: two such
    could share a file.
    """
    try:
        raw = user.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = b""
    if raw.decode("utf-8", "surrogateescape") != user:
        raise StoreError("a user name that is no text")
    if raw.translate(None, _PLAIN) or raw[:1] == b".":
        name = "".join(chr(b) if b in _PLAIN and not (i == 0 and b == 0x2E) else f"%{b:02X}" for i, b in enumerate(raw))
    else:
        name = user
    if not name or len(name) > _MAX_NAME:
        raise StoreError("a user name that is empty or too long for a file name")
    return name


class FileStore:
    """The store in `folder`, an absolute path. Opening, checking and closing it is part of every call."""

    def __init__(self, folder: str, lock_wait: float = LOCK_WAIT) -> None:
        self.folder = folder
        self._lock_wait = lock_wait

    def read(self, user: str) -> UserRecord:
        name = self.file_of(user)
        with self.opened() as folder:
            return parse_record(read_file(folder, name), user, name)

    def update(
        self, user: str, change: Callable[[UserRecord], tuple[UserRecord | None, R]], *, create: bool = False
    ) -> R:
        name = self.file_of(user)
        with self.opened() as folder:
            if not create:
                _require(folder, name)  # a stranger's name makes no lock file
            with self.locked(folder, name):
                try:
                    old = read_file(folder, name)
                except NotThere:
                    if not create:
                        raise
                    old = b""
                record, result = change(parse_record(old, user, name) if old else UserRecord(user=user))
                if record is None:
                    _unlink_durably(folder, name)
                elif (new := serialize(record)) != old:
                    replace_file(folder, name, new, room=_room(old))
                return result

    def update_decoy(self, user: str) -> None:
        """See `Store`. The names of several strangers do not wait for each other, as those of users do not; one name
        asked for again and again does, as one user's does."""
        record = serialize(UNKNOWN_USER)
        name = f".{file_name(user)}.nobody"  # no user's name begins with a dot once it is encoded
        with self.opened() as folder, self._decoy(folder, name) as file:
            os.close(os.dup(folder))  # an `update` has three descriptors open, and their number may be limited
            _write(file, name, record, _room(record))
            os.fsync(file)
            os.utime(folder)  # something to wait for, as a rename would be
            os.fsync(folder)

    def users(self) -> Iterator[str]:
        from urllib.parse import unquote_to_bytes  # no login needs it

        with self.opened() as folder, os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX) and not entry.name.startswith("."):
                    raw = unquote_to_bytes(entry.name.removesuffix(_SUFFIX))
                    yield raw.decode("utf-8", "surrogateescape")

    def file_of(self, user: str) -> str:
        """The name of the user's file in the folder."""
        return file_name(user) + _SUFFIX

    def _check_folder(self, status: os.stat_result) -> None:
        if status.st_uid != os.geteuid():
            raise StoreError(f"{self.folder}: belongs to uid {status.st_uid}, not to {os.geteuid()} who asks")
        if stat.S_IMODE(status.st_mode) & 0o777 != 0o700:
            raise StoreError(f"{self.folder}: its mode is not 0700")

    @contextmanager
    def opened(self) -> Iterator[int]:
        """The folder, open and checked; every OSError below becomes a StoreError."""
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._check_folder(os.fstat(folder))
                yield folder
            finally:
                os.close(folder)
        except OSError as e:
            raise StoreError(f"{self.folder}: {e.strerror}") from e

    @contextmanager
    def locked(self, folder: int, name: str) -> Iterator[None]:
        lock_name = f"{name.removesuffix(_SUFFIX)}.lock"
        lock = os.open(lock_name, _LOCK, 0o600, dir_fd=folder)
        try:
            status = os.fstat(lock)
            _check_ours(status, lock_name)
            if stat.S_IMODE(status.st_mode) != 0o600:  # the umask of who made it
                os.fchmod(lock, 0o600)
            _lock(lock, self._pauses(lock_name))
            with suppress(FileNotFoundError):  # of a writer that was killed: whoever holds the lock is the only one
                os.unlink(_temporary_name(name), dir_fd=folder)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def _decoy(self, folder: int, name: str) -> Iterator[int]:
        """A file that is its own lock, and is gone when it is given back: who waited for it then begins anew."""
        file = self._locked_decoy(folder, name)
        try:
            yield file
        finally:
            _unlink(folder, name)
            os.close(file)

    def _locked_decoy(self, folder: int, name: str) -> int:
        pauses = self._pauses(name)
        while True:
            file = os.open(name, _LOCK, 0o600, dir_fd=folder)
            try:
                _check_ours(os.fstat(file), name)
                _lock(file, pauses)
                if os.fstat(file).st_nlink > 0:
                    return file
            except BaseException as e:
                if isinstance(e, OSError):
                    _unlink(folder, name)  # where there are no locks, each name would leave a file
                os.close(file)
                raise
            os.close(file)

    def _pauses(self, name: str) -> Iterator[None]:
        """A pause before each new try for a lock, until it is enough."""
        give_up, pause = time.monotonic() + self._lock_wait, _FIRST_PAUSE
        while time.monotonic() <= give_up:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            yield
        raise StoreError(f"{name}: not had within {self._lock_wait:g} s")


def _lock(lock: int, pauses: Iterator[None]) -> None:
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            next(pauses)


def _temporary_name(name: str) -> str:
    return f".{name}.tmp"


def _require(folder: int, name: str) -> None:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        raise NotThere from None


def _check_file(file: int, name: str) -> None:
    status = os.fstat(file)
    _check_ours(status, name)
    if stat.S_IMODE(status.st_mode) != 0o600:
        raise StoreError(f"{name}: its mode is not 0600")


def _check_ours(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{name}: not a regular file")
    if status.st_uid != os.geteuid():
        raise StoreError(f"{name}: not owned by uid {os.geteuid()}, who asks")


def read_file(folder: int, name: str) -> bytes:
    try:
        file = os.open(name, _READ, dir_fd=folder)
    except FileNotFoundError:
        raise NotThere from None
    except OSError as e:
        raise StoreError(f"{name}: {e.strerror}") from e
    try:
        _check_file(file, name)
        data = b""
        while len(data) <= MAX_FILE and (part := os.read(file, MAX_FILE + 1 - len(data))):
            data += part
    finally:
        os.close(file)
    if not data:
        raise StoreError(f"{name}: empty")
    return data


def parse_record(data: bytes, user: str, name: str) -> UserRecord:
    try:
        record = parse(data)
    except RecordError as e:
        raise StoreError(f"{name}: {e}") from None
    if record.user != user:
        raise StoreError(f"{name}: user: not the one that the file is named after")
    return record


def _room(old: bytes) -> int:
    """How much the writing of what comes after `old` takes, in bytes: whole blocks, and the same for every answer."""
    return -(-(len(old) + _GROWTH) // _BLOCK) * _BLOCK


def replace_file(folder: int, name: str, data: bytes, room: int = 0) -> None:
    temporary = _temporary_name(name)
    write_new_file(folder, temporary, data, room)
    try:
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        _unlink(folder, temporary)
        raise
    os.fsync(folder)


def write_new_file(folder: int, name: str, data: bytes, room: int = 0, *, durably: bool = True) -> None:
    """Write a file that must not be there yet, and look whether it was written; nothing of it is left where not.

    It takes `room` bytes meanwhile, where the data takes less.
    """
    if len(data) > MAX_FILE:
        raise StoreError(f"{name}: would be larger than {MAX_FILE} bytes")
    file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        try:
            _write(file, name, data, room)
            if durably:
                os.fsync(file)
        finally:
            os.close(file)
    except BaseException:
        _unlink(folder, name)
        raise


def _write(file: int, name: str, data: bytes, room: int) -> None:
    os.fchmod(file, 0o600)  # whatever the umask
    padded = data.ljust(room)
    written = 0
    while written < len(padded):
        count = os.write(file, padded[written:])
        if count == 0:
            raise StoreError(f"{name}: nothing more could be written")
        written += count
    os.ftruncate(file, len(data))
    # A write that claims more than it did must not be renamed over the truth.
    if os.pread(file, len(data) + 1, 0) != data:
        raise StoreError(f"{name}: what was written does not read back")


def _unlink(folder: int, file: str) -> None:
    with suppress(OSError):
        os.unlink(file, dir_fd=folder)


def _unlink_durably(folder: int, file: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(file, dir_fd=folder)
    os.fsync(folder)
