"""The file operations on a secret file: read, write, create, delete and flush.

Rules:
1. A writer holds the lock of the file name. A reader without the lock might find a damaged file.
2. A login overwrites the other slot by one system call, which returns after the flush. A signal therefore cannot
   separate the write from the flush. The write succeeds on a full disk.
3. The process empties the other slot after an error, so that the current record remains valid.
4. The process flushes a new file and its folder before the first write to the file's empty slot.
5. The process writes and flushes a new file under a temporary name. Then link(2) gives the file its name, or fails if
   the name exists. rename(2) replaces a smaller file by a larger file.
6. A secret file is a regular file of mode 0600 with one hard link. The account of this process owns the file.
"""

from __future__ import annotations

import errno
import os
import stat

from pam_totp.core.lean import suppress
from pam_totp.core.record import RecordError, UserRecord
from pam_totp.core.slots import MAX_SLOT, Slots, decode, empty
from pam_totp.store import DamagedFile, NotThere, StoreError

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_UNKNOWN_FLAG = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class LastRead:
    """The results of the last read: a file's content, its slots, and the record if it was parsed. A login reads the
    file again under the lock. The login uses these slots and this record if the content is the same.
    """

    content: bytes | None = None
    slots: Slots | None = None
    record: UserRecord | None = None


def read(folder: int, name: str, *, may_have_links: bool = False, last: LastRead | None = None) -> Slots:
    """Return the slots of a file. Raise NotThere, DamagedFile, or another StoreError."""
    try:
        file = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=folder)
    except FileNotFoundError:
        raise NotThere from None
    except OSError as e:
        raise StoreError(f"{name}: {e.strerror}") from e
    try:
        status = os.fstat(file)
        check_type_and_owner(status, name)
        if stat.S_IMODE(status.st_mode) != 0o600:
            raise DamagedFile(f"{name}: its mode must be 0600")
        data = os.pread(file, min(status.st_size, 2 * MAX_SLOT + 1), 0)
    finally:
        os.close(file)
    if not data:
        raise DamagedFile(f"{name}: must not be empty (restore the user's record, or delete this file)")
    last = last or LastRead()
    if last.slots is None or last.content != data:
        try:
            last.slots = decode(data)
        except RecordError as e:
            raise DamagedFile(f"{name}: {e}") from None
        last.content, last.record = data, None
    slots = last.slots
    if status.st_nlink > 1 and slots.size and not may_have_links:  # an import of version 1 creates hard links
        raise DamagedFile(f"{name}: must not have hard links")
    return slots


def write(folder: int, name: str, slots: Slots, document: bytes) -> None:
    """Write `document` durably to the other slot. Raise OSError or StoreError."""
    try:
        offset, slot = slots.next(document)
    except RecordError as e:
        raise StoreError(f"{name}: {e}") from None
    file = os.open(name, os.O_WRONLY | _FLAGS, dir_fd=folder)
    try:
        if slots.other == b"":
            os.fsync(file)
            os.fsync(folder)
        try:
            if _write_durably(file, slot, offset) != len(slot):
                raise StoreError(f"{name}: the file system wrote only a part of a slot")
        except BaseException:
            with suppress(OSError):
                _write_durably(file, empty(slots.size), offset)
            raise
    finally:
        os.close(file)


def create(folder: int, name: str, content: bytes, temporary: str, *, over: bool = False, durably: bool = True) -> None:
    """Create the file `name`, first under the name `temporary`. Replace the existing file if `over` is True.

    Raise OSError, for example FileExistsError if `over` is False.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FLAGS
    try:
        file = os.open(temporary, flags, 0o600, dir_fd=folder)
    except FileExistsError:  # a killed process has left the file
        unlink(folder, temporary)
        file = os.open(temporary, flags, 0o600, dir_fd=folder)
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
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        unlink(folder, temporary)
    if durably:
        os.fsync(folder)


def exists(folder: int, name: str) -> bool:
    """Return True if `folder` has an entry `name` of any type."""
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def has_content(folder: int, name: str) -> bool:
    """Return True if `folder` has an entry `name`, and the size of this entry is not 0."""
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_size > 0
    except FileNotFoundError:
        return False


def unlink(folder: int, name: str) -> bool:
    """Delete a file. Return True if the file existed."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def empty_file(folder: int, name: str) -> None:
    """Truncate a file durably, if it exists and has content. First flush earlier changes of the folder.

    Replace a file that has hard links by an empty file, so that the links keep the content.
    """
    with suppress(FileNotFoundError):
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if status.st_size > 0:
            os.fsync(folder)
            if status.st_nlink > 1:
                os.unlink(name, dir_fd=folder)
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _FLAGS, 0o600, dir_fd=folder)
            try:
                os.fsync(file)
            finally:
                os.close(file)


def flush_all(folder: int) -> None:
    """Flush the file system of `folder` by one call of syncfs(2), which is faster than an fsync of each file.

    Raise OSError if a write has failed since the folder was opened (Linux 5.8).
    """
    import ctypes  # imported here because the import is slow, and logins do not need it

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(folder) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def check_type_and_owner(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise StoreError(f"{name}: must be a regular file")
    if status.st_uid != os.geteuid():
        raise StoreError(f"{name}: must be owned by uid {os.geteuid()}")


def _write_durably(file: int, data: bytes, offset: int) -> int:
    """Write and flush `data`. Return the number of bytes written."""
    try:
        return os.pwritev(file, [data], offset, os.RWF_DSYNC)
    except OSError as e:
        if e.errno not in _UNKNOWN_FLAG:
            raise
    # A killed process might have written the current slot without a flush. Flush the file before the next write.
    os.fdatasync(file)
    written = os.pwrite(file, data, offset)
    os.fdatasync(file)
    return written
