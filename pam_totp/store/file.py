"""The file store: one file `<user>.json` for each user, in one folder.

Rules:
1. The steps of an update are: lock, read, decide, write a temporary file, verify its content, fsync, rename, fsync the
   folder, return.
2. Every outcome of a login writes the same number of blocks, so that on a full disk right and wrong codes fail alike.
3. After a writer was killed, `<user>.json` is the old record or the new one. The next writer unlinks the temporary
   file.
4. The store reads only regular files of mode 0600, in a folder of mode 0700. This process's account must own them.
5. Every user name is encoded as one file name. Two user names never have the same file name.
6. The lock file `<user>.lock` is never renamed or deleted. One process at a time holds the lock. A process does not
   hold it while it waits for the user's answer.
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
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.02  # seconds between two attempts to acquire the lock
_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@-"
_MAX_NAME = 255 - len("..json.tmp")  # bytes: NAME_MAX, minus the rest of a temporary file's name
_SUFFIX = ".json"
JOURNAL = ".import"  # the folder that `pam_totp.store.journal` uses
_BLOCK = 4096  # bytes: the allocation unit of most file systems
_GROWTH = 1024  # bytes: a login adds at most this to a record
_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def file_name(user: str) -> str:
    """Encode a user name as a file name: replace a leading dot and all bytes except A-Z a-z 0-9 . _ @ - by %XX.

    Raise StoreError if the name is empty or too long. Also raise it for surrogates that no bytes decode to, because two
    such names could have the same file name.
    """
    try:
        raw = user.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = b""
    if raw.decode("utf-8", "surrogateescape") != user:
        raise StoreError("the user name has invalid characters (unpaired surrogates)")
    if raw.translate(None, _PLAIN) or raw[:1] == b".":
        name = "".join(chr(b) if b in _PLAIN and not (i == 0 and b == 0x2E) else f"%{b:02X}" for i, b in enumerate(raw))
    else:
        name = user
    if not name or len(name) > _MAX_NAME:
        raise StoreError("the user name is empty, or too long for a file name")
    return name


class FileStore:
    """A store of files in `folder`, an absolute path. Every call opens, checks and closes the folder.

    `lock_wait` is the longest wait for a lock, in seconds. `batch` and `journal` also call `opened`, `locked` and
    `file_of`.
    """

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
                _require(folder, name)  # create no lock file for an unknown user
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
        """See `Store`. Calls for different names run in parallel; calls for one name are serialised, like updates."""
        record = serialize(UNKNOWN_USER)
        name = f".{file_name(user)}.nobody"  # no encoded user name begins with a dot
        with self.opened() as folder, self._decoy(folder, name) as file:
            os.close(os.dup(folder))  # open a third descriptor like `update`, to fail at the same limit
            _write(file, name, record, _room(record))
            os.fsync(file)
            os.utime(folder)  # change the folder, so that fsync writes it as after a rename
            os.fsync(folder)

    def users(self) -> Iterator[str]:
        from urllib.parse import unquote_to_bytes  # imported here because logins do not need it

        with self.opened() as folder, os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX) and not entry.name.startswith("."):
                    raw = unquote_to_bytes(entry.name.removesuffix(_SUFFIX))
                    yield raw.decode("utf-8", "surrogateescape")

    def file_of(self, user: str) -> str:
        """Return the name of the user's file in the folder. Raise StoreError for an invalid user name."""
        return file_name(user) + _SUFFIX

    def _check_folder(self, status: os.stat_result) -> None:
        if status.st_uid != os.geteuid():
            raise StoreError(f"{self.folder}: belongs to uid {status.st_uid}, not to uid {os.geteuid()}")
        if stat.S_IMODE(status.st_mode) & 0o777 != 0o700:
            raise StoreError(f"{self.folder}: its mode must be 0700")

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Open and check the folder, and yield its descriptor. Convert an OSError in the block to a StoreError."""
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
        """Hold the lock of the file `name`. Raise StoreError if it is not acquired within `lock_wait`."""
        lock_name = f"{name.removesuffix(_SUFFIX)}.lock"
        lock = os.open(lock_name, _LOCK, 0o600, dir_fd=folder)
        try:
            status = os.fstat(lock)
            _check_ours(status, lock_name)
            if stat.S_IMODE(status.st_mode) != 0o600:  # the umask of its creator removed permissions
                os.fchmod(lock, 0o600)
            _lock(lock, self._pauses(lock_name))
            with suppress(FileNotFoundError):  # a killed writer leaves this file
                os.unlink(_temporary_name(name), dir_fd=folder)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def _decoy(self, folder: int, name: str) -> Iterator[int]:
        """Yield the descriptor of a locked decoy file, and unlink the file afterwards.

        A process that waited for this lock then creates its own decoy file.
        """
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
                    _unlink(folder, name)  # leave no file on a file system without locks
                os.close(file)
                raise
            os.close(file)

    def _pauses(self, name: str) -> Iterator[None]:
        """Sleep before each new attempt to acquire the lock `name`. Raise StoreError after `lock_wait` seconds."""
        give_up, pause = time.monotonic() + self._lock_wait, _FIRST_PAUSE
        while time.monotonic() <= give_up:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            yield
        raise StoreError(f"{name}: the lock was not acquired within {self._lock_wait:g} s")


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
        raise StoreError(f"{name}: its mode must be 0600")


def _check_ours(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{name}: must be a regular file")
    if status.st_uid != os.geteuid():
        raise StoreError(f"{name}: must be owned by uid {os.geteuid()}")


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
        raise StoreError(f"{name}: the file is empty")
    return data


def parse_record(data: bytes, user: str, name: str) -> UserRecord:
    try:
        record = parse(data)
    except RecordError as e:
        raise StoreError(f"{name}: {e}") from None
    if record.user != user:
        raise StoreError(f"{name}: the field 'user' must match the file name")
    return record


def _room(old: bytes) -> int:
    """Return the size in bytes to which the successor of record `old` is padded while it is written (rule 2)."""
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
    """Create the file `name` with the content `data`, and verify it. Unlink the file after an error.

    Pad the file to `room` bytes while it is written. Raise FileExistsError if it already exists, and StoreError or
    OSError for other errors.
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
    os.fchmod(file, 0o600)  # under any umask
    padded = data.ljust(room)
    written = 0
    while written < len(padded):
        count = os.write(file, padded[written:])
        if count == 0:
            raise StoreError(f"{name}: the file system accepts no more data")
        written += count
    os.ftruncate(file, len(data))
    # Verify the data: a file system can report a write that it did not do.
    if os.pread(file, len(data) + 1, 0) != data:
        raise StoreError(f"{name}: the data just written cannot be read back")


def _unlink(folder: int, file: str) -> None:
    with suppress(OSError):
        os.unlink(file, dir_fd=folder)


def _unlink_durably(folder: int, file: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(file, dir_fd=folder)
    os.fsync(folder)
