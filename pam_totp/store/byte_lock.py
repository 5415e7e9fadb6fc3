"""The lock of a file name: one byte of an empty file. Version 1 locked a whole file for each name.

Rules:
1. The offset of the byte is the first 62 bits of the SHA-256 of the name. A lock therefore needs no file for each name.
2. The lock belongs to the open file (F_OFD_SETLK). The lock excludes other threads too, and the kernel releases the
   lock at exit.
3. A process that has acquired the lock checks that the lock file still has its name: otherwise other processes would
   lock a newer file.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time

from pam_totp.core.lean import TYPE_CHECKING, Struct, contextmanager, sha256, suppress
from pam_totp.store import LockBusy
from pam_totp.store.secret_file import check_type_and_owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_FLOCK = Struct("hhqqi4x")  # type, whence, start, length, pid: fcntl(2)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.02  # seconds between two attempts
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def acquire(folder: int, lock_file: str, name: str, wait: float) -> int:
    """Lock `name` within `wait` seconds; with 0, try once. Return a descriptor, whose closing releases the lock.

    Raise LockBusy, or another StoreError unless the lock file is a regular file of this account.
    """
    return _acquire(folder, lock_file, name, wait, lambda lock: _set(lock, name, fcntl.F_WRLCK))


class KeptLock:
    """The lock file of one thread that locks many names, one after the other. The file remains open."""

    def __init__(self, folder: int, lock_file: str, wait: float) -> None:
        self._folder, self._lock_file, self._wait = folder, lock_file, wait
        self._lock = acquire(folder, lock_file, lock_file, wait)
        _set(self._lock, lock_file, fcntl.F_UNLCK)

    def close(self) -> None:
        os.close(self._lock)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the lock of `name`. Raise the same errors as `acquire`."""
        lock = self._lock
        if not _is_locked(self._folder, lock, self._lock_file, lambda lock: _set(lock, name, fcntl.F_WRLCK)):
            lock = acquire(self._folder, self._lock_file, name, self._wait)
        try:
            yield
        finally:
            _set(lock, name, fcntl.F_UNLCK)
            if lock != self._lock:
                os.close(lock)


def _set(lock: int, name: str, kind: int) -> None:
    start = int.from_bytes(sha256(name.encode()).digest()[:8], "big") >> 2
    fcntl.fcntl(lock, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, 1, 0))


def acquire_all(folder: int, lock_file: str, wait: float) -> int:
    """Lock all names at once. Return a descriptor, whose closing releases the lock. Raise StoreError."""
    every = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)  # length 0: all offsets
    return _acquire(folder, lock_file, "all records", wait, lambda lock: fcntl.fcntl(lock, fcntl.F_OFD_SETLK, every))


def acquire_as_version_1(folder: int, lock_file: str, name: str, wait: float) -> int:
    """Do the same as `acquire` with the lock of flock(2), because processes of version 1 use only this lock."""
    return _acquire(folder, lock_file, name, wait, lambda lock: fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB))


def _acquire(folder: int, lock_file: str, name: str, wait: float, take: Callable[[int], object]) -> int:
    give_up, pause = time.monotonic() + wait, _FIRST_PAUSE
    while True:
        lock = os.open(lock_file, _FLAGS, 0o600, dir_fd=folder)
        try:
            if _is_locked(folder, lock, lock_file, take):
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)
        if time.monotonic() > give_up:
            raise LockBusy(f"{name}: the lock was not acquired within {wait:g} s")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _is_locked(folder: int, lock: int, lock_file: str, take: Callable[[int], object]) -> bool:
    status = os.fstat(lock)
    check_type_and_owner(status, lock_file)
    if stat.S_IMODE(status.st_mode) != 0o600:  # the umask of the creator cleared a bit
        os.fchmod(lock, 0o600)
    with suppress(BlockingIOError, FileNotFoundError):  # another process holds the lock, or deleted the file
        take(lock)
        return os.path.samestat(status, os.stat(lock_file, dir_fd=folder, follow_symlinks=False))
    return False
