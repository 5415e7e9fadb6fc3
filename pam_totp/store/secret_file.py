"""One secret file on the disk: read it, write it in place, create it.

Rules:
1. A writer holds the lock of the file's name. A reader that holds no lock may find a file damaged, and reads it again.
2. A login overwrites the slot that is not the record, by one write that is durable when it returns. No kill can fall
   between the write and its flush, a torn write leaves the older record, and no free block is needed.
3. After an error, that slot is emptied: the older record is in force, whatever the disk has kept.
4. Before the second slot is filled for the first time, the file and its folder are flushed.
5. A new file is written aside and flushed. It gets its name by link(2), which replaces no file, or replaces the
   smaller file by rename(2).
6. A secret file is a regular file of mode 0600 with one name. It belongs to this process's account.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from pam_totp.core.record import RecordError
from pam_totp.core.slots import MAX_SLOT, Slots, decode, empty
from pam_totp.store import DamagedFile, NotThere, StoreError

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_UNKNOWN_FLAG = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def read(folder: int, name: str) -> Slots:
    """Raise NotThere, DamagedFile, or another StoreError."""
    try:
        file = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=folder)
    except FileNotFoundError:
        raise NotThere from None
    except OSError as e:
        raise StoreError(f"{name}: {e.strerror}") from e
    try:
        status = os.fstat(file)
        check_ours(status, name)
        if stat.S_IMODE(status.st_mode) != 0o600:
            raise StoreError(f"{name}: its mode must be 0600")
        if status.st_nlink > 1:
            raise DamagedFile(f"{name}: has more than one name (hard links)")
        data = os.pread(file, min(status.st_size, 2 * MAX_SLOT + 1), 0)
    finally:
        os.close(file)
    try:
        return decode(data)
    except RecordError as e:
        raise DamagedFile(f"{name}: {e}") from None


def write(folder: int, name: str, slots: Slots, document: bytes) -> Slots:
    """Put `document` into the other slot, durably. Return the slots after that."""
    offset, slot = slots.next(document)
    file = os.open(name, os.O_WRONLY | _FLAGS, dir_fd=folder)
    try:
        if slots.other == b"":
            os.fsync(file)
            os.fsync(folder)
        try:
            if _write_durably(file, slot, offset) != len(slot):
                raise StoreError(f"{name}: written in part")
        except BaseException:
            with suppress(OSError):
                _write_durably(file, empty(slots.size), offset)
            raise
    finally:
        os.close(file)
    return slots.after(document)


def create(folder: int, name: str, content: bytes, aside: str, *, over: bool = False, durably: bool = True) -> None:
    """Create the file with that content, by way of the file `aside`; with `over`, in place of the file of that name.

    Raise OSError, FileExistsError without `over`.
    """
    unlink(folder, aside)  # of a process that was killed
    file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=folder)
    try:
        try:
            os.fchmod(file, 0o600)  # under any umask
            if os.write(file, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durably:
                os.fsync(file)
        finally:
            os.close(file)
        if over:
            os.rename(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            os.link(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        unlink(folder, aside)
    if durably:
        os.fsync(folder)


def exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def unlink(folder: int, name: str) -> bool:
    """Return True if there was a file of that name."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def flush_all(folder: int) -> None:
    """Flush the file system of `folder` (syncfs(2)): one wait for the disk instead of one for each file.

    Raise OSError for every write that failed since the folder was opened (Linux 5.8).
    """
    import ctypes  # costly, and no login needs it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(folder) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def check_ours(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{name}: must be a regular file")
    if status.st_uid != os.geteuid():
        raise StoreError(f"{name}: must be owned by uid {os.geteuid()}")


def _write_durably(file: int, data: bytes, offset: int) -> int:
    """Return the number of bytes written."""
    try:
        return os.pwritev(file, [data], offset, os.RWF_DSYNC)
    except OSError as e:
        if e.errno not in _UNKNOWN_FLAG:
            raise
    # A process that was killed between its write and its flush may have left a slot that is not durable. It must be,
    # before the older one is overwritten.
    os.fdatasync(file)
    written = os.pwrite(file, data, offset)
    os.fdatasync(file)
    return written
