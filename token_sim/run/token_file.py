"""The token file: the memory, the hardware and the model of a token, as one JSON document.

Rules:
- A write is durable when it returns. The write syncs a temporary file, renames this file to the name of the old file,
  and syncs the folder.
- A reader always sees a complete token: the old token or the new token. The file and its `TokenFile` hold the old
  token after a failed write.
- The token's memory has its own checksums. A flipped bit in the memory makes the token's self-test fail.
- A process that uses a token holds an exclusive lock on `FILE.lock`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from dataclasses import fields

from token_sim.device.hardware import Hardware
from token_sim.device.models import PROFILES, Profile

FORMAT = "token_sim 1"
_FOLDER_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EROFS)
_HARDWARE = {field.name for field in fields(Hardware)}


class TokenFileError(Exception):
    """The error if a token cannot be used. The message contains the reason and the remedy."""


class TokenFile:
    """An open token file. It implements memory.Nvram, to which the device writes."""

    def __init__(self, path: str, profile: Profile, image: bytes, hardware: Hardware) -> None:
        self.path, self.profile, self.hardware = path, profile, hardware
        self._image = image
        self._lock: int | None = None

    def __repr__(self) -> str:
        return f"<TokenFile {self.path}>"

    @classmethod
    def open(cls, path: str) -> TokenFile:
        """Lock and read the token at `path`. Raise TokenFileError, or OSError if the file cannot be opened."""
        lock = _lock(path)
        try:
            with open(path, encoding="ascii") as file:
                text = file.read()
            token = cls.parse(path, text)
        except BaseException:
            _unlock(path, lock)
            raise
        token._lock = lock
        return token

    @classmethod
    def parse(cls, path: str, text: str) -> TokenFile:
        """Return the token in `text`, without a lock. Raise TokenFileError."""
        try:
            doc = json.loads(text)
            if doc.keys() != {"format", "profile", "nvram", "body"} or doc["format"] != FORMAT:
                raise ValueError("format")
            hardware = doc["body"]
            if hardware.keys() != _HARDWARE or not all(type(value) is int for value in hardware.values()):
                raise ValueError("body")
            return cls(path, PROFILES[doc["profile"]], bytes.fromhex(doc["nvram"]), Hardware(**hardware))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TokenFileError(f"{path} must be a token file (create a token file with 'token-sim new')") from error

    def read(self) -> bytes:
        return self._image

    def write(self, offset: int, data: bytes) -> None:
        old = self._image
        self._image = old[:offset] + data + old[offset + len(data) :]
        try:
            self.save()
        except BaseException:
            self._image = old
            raise

    def text(self) -> str:
        """Return the content of the token file."""
        hardware = self.hardware.to_doc()
        doc = {"format": FORMAT, "profile": self.profile.name, "nvram": self._image.hex(), "body": hardware}
        return json.dumps(doc, indent=1) + "\n"

    def save(self) -> None:
        """Write the token file durably. Raise FileNotFoundError if the file was removed, so that `rm` is final."""
        write_durably(self.path, self.text().encode(), is_new=False)

    def close(self) -> None:
        if self._lock is not None:
            _unlock(self.path, self._lock)
            self._lock = None


def write_durably(path: str, data: bytes, *, is_new: bool = True) -> None:
    """Replace the file at `path` by `data` (mode 0600), so that a crash leaves the old file or the new file.

    Raise FileNotFoundError if the old file is missing, unless `is_new` is true.
    """
    folder = os.path.dirname(path) or "."
    temporary = f"{path}.new"
    try:
        descriptor = _open_beside(path, temporary, os.O_WRONLY | os.O_TRUNC)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not is_new and not os.path.lexists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        try:
            os.rename(temporary, path)
        except FileNotFoundError as error:  # the folder was removed
            raise FileNotFoundError(error.errno, error.strerror, path) from error
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _open_beside(path: str, name: str, flags: int) -> int:
    """Open or create `name`, an auxiliary file in the same folder as `path`.

    An error about the folder names `path`, which the user gave, instead of `name`.
    """
    try:
        return os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno in _FOLDER_ERRORS:
            raise OSError(error.errno, error.strerror, path) from error
        raise


def _lock(path: str) -> int:
    """Create and lock `path`.lock. Try again if another process has unlinked the file before the lock."""
    name = f"{path}.lock"
    while True:
        lock = _open_beside(path, name, os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(name) and os.stat(name).st_ino == os.fstat(lock).st_ino:
                return lock
        except BlockingIOError as error:
            os.close(lock)
            raise TokenFileError(f"{path} is already in use (stop the other 'token-sim run' first)") from error
        except FileNotFoundError:
            pass
        os.close(lock)


def _unlock(path: str, lock: int) -> None:
    name = f"{path}.lock"
    try:
        with contextlib.suppress(FileNotFoundError):  # another process has unlinked the lock file
            if os.stat(name).st_ino == os.fstat(lock).st_ino:  # otherwise the lock file belongs to another process
                os.unlink(name)
    finally:
        os.close(lock)
