"""Input files of a command: named files, and files in the users' home folders.

Rules:
- A command reads a named file before it drops its privileges. A file above its size limit is an error.
- A child process with the user ids of the folder's owner reads the file in a home folder, because root may lack
  permission (root_squash). The child follows no symbolic link, and reads only regular files of that owner.
- Access to a folder or a file may block, and the child process may survive SIGKILL. The command waits a limited time.
- A home folder has a result if the file exists there, or if the search for the file fails.
- Accounts are looked up by name and by uid, because a name service may not list them.
"""

from __future__ import annotations

import os
import pwd
import re
import select
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress

from pam_totp.cli.command_line import CommandError
from pam_totp.formats.parsing import MAX_INPUT, FormatError, as_utf8
from pam_totp.operations.import_tokens import UserFile
from pam_totp.pam.privileges import become_owner_of

HOME_TIMEOUT = 10.0  # seconds to wait for a home folder, which may be on a silent file server
KILL_TIMEOUT = 1.0  # seconds to wait for a child process after SIGKILL
_HOME = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # O_PATH needs no permission for the folder itself
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_CONTENT, _MISSING, _PROBLEM = b"c", b"m", b"p"  # the first byte from the child process
_PIPE_READ = 65536  # bytes


def read_named(path: str, limit: int = MAX_INPUT) -> bytes:
    """Return the content of a file; `-` is standard input. Raise CommandError or OSError."""
    if path == "-":
        data = sys.stdin.buffer.read(limit + 1)
    else:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    if len(data) > limit:
        raise CommandError(f"{path}: must be at most {limit} bytes")
    return data


def read_secret(path: str) -> str:
    """Return the first nonempty line of a file with a key or a password, or "". Raise CommandError or OSError."""
    try:
        lines = re.split(r"[\r\n]+", as_utf8(read_named(path, 4096)).decode("utf-8"))
    except (FormatError, UnicodeDecodeError):
        raise CommandError(f"{path}: must be UTF-8 text") from None
    return next(filter(None, lines), "")


def read_homes(homes: str, name: str, limit: int) -> Iterator[UserFile]:
    """Yield the file `name`, a relative path, of each home folder in `homes`, sorted by folder. Raise OSError."""
    homes = os.path.abspath(homes)
    for folder in sorted({*os.listdir(homes), *_not_mounted(homes)}):
        found = _of_home(os.path.join(homes, folder), name, limit)
        if found is not None:
            yield found


def _not_mounted(homes: str) -> Iterator[str]:
    """Yield the home folders in `homes` that the name service lists. An automounter mounts them on access."""
    for entry in pwd.getpwall():
        parent, folder = os.path.split(os.path.normpath(entry.pw_dir))
        if parent == homes and folder:
            yield folder


def _of_home(home: str, name: str, limit: int) -> UserFile | None:
    """Return the file of one home folder, or None if the file does not exist."""
    try:
        if stat.S_ISLNK(os.lstat(home).st_mode):
            return UserFile(path=home, user=None, problem="must be a folder, not a symbolic link")
        descriptor = os.open(home, _HOME)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        return UserFile(path=home, user=None, problem=e.strerror)
    try:
        answer, content = _read_as_owner(descriptor, name, limit)
        user = None if answer == _MISSING else _account(home, os.fstat(descriptor).st_uid)
    finally:
        os.close(descriptor)
    path = os.path.join(home, name)
    if answer == _MISSING:
        return None
    if answer != _CONTENT:
        return UserFile(path=path, user=user, problem=content.decode("utf-8", "replace") or "cannot be read")
    if user is None:
        return UserFile(path=path, user=None, problem="no account matches this home folder and its owner")
    return UserFile(path=path, user=user, data=content)


def _account(home: str, uid: int) -> str | None:
    """Return the name of the account that owns `home`. The folder must be the account's home, or have its name.

    The lookups by name and by uid also find accounts that a name service does not list.
    """
    folder, entries = os.path.basename(home), []
    with suppress(KeyError, ValueError):
        entries.append(pwd.getpwnam(folder))
    with suppress(KeyError):
        entries.append(pwd.getpwuid(uid))
    owned = [entry for entry in entries if entry.pw_uid == uid]
    at_home = [entry.pw_name for entry in owned if os.path.normpath(entry.pw_dir) == home]
    return next(iter(at_home + [entry.pw_name for entry in owned if entry.pw_name == folder]), None)


def _read_as_owner(home: int, name: str, limit: int) -> tuple[bytes, bytes]:
    """Read the file in a child process. Return the first byte from the child, and the content or the problem."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _send_file(home, name, limit, writing)
    os.close(writing)
    received = b""
    try:
        while len(received) <= limit + 1:
            if not select.select([reading], [], [], HOME_TIMEOUT)[0]:
                return _PROBLEM, f"the file could not be read within {HOME_TIMEOUT:.0f} s".encode()
            part = os.read(reading, _PIPE_READ)
            if not part:
                break
            received += part
    finally:
        os.close(reading)
        _end(child)
    return received[:1], received[1:]


def _end(child: int) -> None:
    """End a child process that has sent its answer, or did not answer in time.

    A process in an uninterruptible wait, such as the open of a file on a silent FUSE server, survives SIGKILL. Wait at
    most KILL_TIMEOUT for the end of the process: init reaps it later.
    """
    process = os.pidfd_open(child)  # readable when the process has ended
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        if select.select([process], [], [], KILL_TIMEOUT)[0]:
            os.waitpid(child, 0)
    finally:
        os.close(process)


def _send_file(home: int, name: str, limit: int, writing: int) -> None:
    """Run the child process: set the user ids of the owner of `home`, send the file through the pipe, and exit."""
    try:
        with open(writing, "wb") as out:
            try:
                become_owner_of(home)
                out.write(_CONTENT + _read_own_file(home, name, limit))
            except FileNotFoundError:
                out.write(_MISSING)
            except OSError as e:
                out.write(_PROBLEM + (e.strerror or "").encode())
    finally:
        os._exit(0)


def _read_own_file(home: int, name: str, limit: int) -> bytes:
    *folders, file_name = name.split("/")
    folder = home
    for part in folders:
        folder = os.open(part, _HOME, dir_fd=folder)
    descriptor = os.open(file_name, _FILE, dir_fd=folder)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "must be a regular file")
    if status.st_uid != os.fstat(home).st_uid:
        raise OSError(0, "must belong to the owner of the home folder")
    with open(descriptor, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(0, f"must be at most {limit} bytes")
    return data
