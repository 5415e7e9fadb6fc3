"""Output files of a command: QR codes and exports, which contain keys.

Rules:
- A new file has mode 0600 under any umask, a new folder 0700. A path that already exists, also as a symbolic link, is
  an error.
- A file gets its name (linkat) when its content is complete and durable. The kernel deletes the file, which has no name
  at first (O_TMPFILE), if the process ends earlier.
- A command that fails, or is ended by Ctrl-C, SIGTERM or SIGHUP, removes only the files that it created.
- The process opens the folder before it drops its privileges. The process creates and removes the file in that folder,
  with the original privileges, even if the path meanwhile leads to another folder.

A file system without O_TMPFILE (NFS, FAT) gives the file its name from the start. SIGKILL can leave an incomplete file
there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from pam_totp.cli.command_line import CommandError
from pam_totp.cli.prompts import ending_signals_raise
from pam_totp.pam.privileges import acting_as_root

_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR)  # errors of a file system or kernel without O_TMPFILE
_MODE = 0o600


class NewFile:
    """A file to be created as `name` in the folder with the descriptor `folder`."""

    def __init__(self, path: str, folder: int, name: str) -> None:
        self._path, self._folder, self._name = path, folder, name
        self._file: int | None = None  # kept open, so that no other file gets its inode number

    def write(self, data: bytes) -> None:
        """Create the file with the content `data`. Raise CommandError if the file exists, or OSError."""
        with acting_as_root():
            try:
                self._create(data)
            except FileExistsError:
                raise _exists(self._path) from None
            except OSError as e:
                raise OSError(e.errno, e.strerror, self._path) from None

    def _create(self, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CLOEXEC
        has_name = False
        try:
            self._file = os.open(".", flags | os.O_TMPFILE, _MODE, dir_fd=self._folder)
        except OSError as e:
            if e.errno not in _NO_TMPFILE:
                raise
            flags |= os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            self._file = os.open(self._name, flags, _MODE, dir_fd=self._folder)
            has_name = True
        os.fchmod(self._file, _MODE)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        os.fsync(self._file)
        if not has_name:
            os.link(f"/proc/self/fd/{self._file}", self._name, dst_dir_fd=self._folder, follow_symlinks=True)

    def remove(self) -> None:
        """Remove the file if it was created and still has its name."""
        with acting_as_root(), suppress(OSError):
            named = os.lstat(self._name, dir_fd=self._folder)
            if self._file is not None and os.path.samestat(os.fstat(self._file), named):
                os.unlink(self._name, dir_fd=self._folder)

    def inode(self) -> tuple[int, int] | None:
        """Return the device and the inode number of the file, or None if it was not created."""
        return None if self._file is None else _inode(os.fstat(self._file))

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)


@contextmanager
def new_file(path: str) -> Iterator[NewFile]:
    """Yield a file to be created at `path`. Remove the file if the block raises an exception.

    Raise CommandError if the path exists, or OSError if its folder cannot be opened.
    """
    path = os.path.abspath(path)
    parent, name = os.path.split(path)
    folder = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    file = NewFile(path, folder, name)
    try:
        with suppress(FileNotFoundError):
            os.lstat(name, dir_fd=folder)
            raise _exists(path)
        with ending_signals_raise():
            try:
                yield file
            except BaseException:
                file.remove()
                raise
    finally:
        file.close()
        os.close(folder)


class NewFolder:
    """The new folder `name` in the folder with the descriptor `parent`, for files with keys."""

    def __init__(self, path: str, parent: int, name: str) -> None:
        self._path, self._parent, self._name = path, parent, name
        self._folder: int | None = None
        self._files: dict[str, tuple[int, int] | None] = {}  # name -> inode, of the files that were created

    def write(self, files: Iterable[tuple[str, bytes]]) -> None:
        """Create the folder with files, which are pairs of a name and the content. Raise CommandError or OSError."""
        with acting_as_root():
            try:
                os.mkdir(self._name, 0o700, dir_fd=self._parent)
            except FileExistsError:
                raise _exists(self._path) from None
            self._folder = self._opened()
            os.fchmod(self._folder, 0o700)
            for name, data in files:
                self._write(self._folder, name, data)
            os.fsync(self._folder)

    def _opened(self) -> int:
        """Open the new folder, and return its descriptor. Raise CommandError if another process replaced the folder.

        Only this process can create files in an empty folder of its own account with the mode of `mkdir`.
        """
        replaced = CommandError(f"{self._path}: another process replaced the new folder; nothing was written")
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            folder = os.open(self._name, flags, dir_fd=self._parent)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise replaced from e
        try:
            status = os.fstat(folder)
            if status.st_uid != os.geteuid() or status.st_mode & 0o077 or os.listdir(folder):
                raise replaced
        except BaseException:
            os.close(folder)
            raise
        return folder

    def _write(self, folder: int, name: str, data: bytes) -> None:
        file = NewFile(os.path.join(self._path, name), folder, name)
        try:
            file.write(data)
            self._files[name] = file.inode()
        except BaseException:
            file.remove()
            raise
        finally:
            file.close()

    def remove(self) -> None:
        """Remove the files that were created, and the folder if it is then empty."""
        if self._folder is None:
            return
        with acting_as_root(), suppress(OSError):
            for name, inode in self._files.items():
                with suppress(FileNotFoundError):
                    if _inode(os.lstat(name, dir_fd=self._folder)) == inode:
                        os.unlink(name, dir_fd=self._folder)
            if os.path.samestat(os.fstat(self._folder), os.lstat(self._name, dir_fd=self._parent)):
                os.rmdir(self._name, dir_fd=self._parent)

    def close(self) -> None:
        if self._folder is not None:
            os.close(self._folder)


@contextmanager
def new_folder(path: str) -> Iterator[NewFolder]:
    """Yield a new folder at `path`. Remove the folder if the block raises an exception. Raise CommandError."""
    path = os.path.abspath(path)
    parent, name = os.path.split(path)
    opened = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    folder = NewFolder(path, opened, name)
    try:
        with suppress(FileNotFoundError):
            os.lstat(name, dir_fd=opened)
            raise _exists(path)
        with ending_signals_raise():
            try:
                yield folder
            except BaseException:
                folder.remove()
                raise
    finally:
        folder.close()
        os.close(opened)


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _exists(path: str) -> CommandError:
    return CommandError(f"{path}: already exists (choose another name, or remove the file)")
