"""What commands read: files that were named, and files in others' home folders.

The law: a named file is opened before the privileges go, and read to its bound at most. A file in a home folder is
read by a process that has become the home's owner for good, through no symbolic link, and only if it is its owner's.
"""

from __future__ import annotations

import os
import pwd
import select
import signal
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from pam_totp.cli.common import CommandError
from pam_totp.formats.imported_token import MAX_INPUT
from pam_totp.pam.privileges import become_owner_of

HOME_WAIT = 10.0  # seconds: a home on a file server that does not answer is passed over
_HOME = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_READ, _NOT_THERE, _PROBLEM = b"r", b"n", b"p"


def read_named(path: str, most: int = MAX_INPUT) -> bytes:
    """The content of a file, or of standard input where `path` is -. Raises CommandError, OSError."""
    if path == "-":
        data = sys.stdin.buffer.read(most + 1)
    else:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    if len(data) > most:
        raise CommandError(f"{path}: larger than {most} bytes")
    return data


def read_secret(path: str) -> str:
    """The first line of a file that holds a key or a password. Raises CommandError, OSError."""
    try:
        return read_named(path, 4096).decode("utf-8").partition("\n")[0].removesuffix("\r")
    except UnicodeDecodeError:
        raise CommandError(f"{path}: not UTF-8") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeFile:
    """A file in a home folder: its content, or why it was not read."""

    path: str
    user: str | None
    data: bytes = field(default=b"", repr=False)
    problem: str | None = None


def read_homes(homes: str, name: str, most: int) -> Iterator[HomeFile]:
    """The files called `name` in the folders within `homes`, of those who have one, by folder. Raises OSError."""
    accounts = {os.path.normpath(entry.pw_dir): entry for entry in pwd.getpwall()}
    for folder in sorted(os.listdir(homes)):
        home = os.path.join(os.path.abspath(homes), folder)
        try:
            opened = os.open(home, _HOME)
        except OSError:
            continue  # a file, a link, a home that is away: nobody's
        try:
            answer, said = _as_owner(opened, name, most)
            if answer == _NOT_THERE:
                continue
            user = _account(home, folder, os.fstat(opened).st_uid, accounts)
        finally:
            os.close(opened)
        path = os.path.join(home, name)
        if answer != _READ:
            yield HomeFile(path=path, user=user, problem=said.decode("utf-8", "replace") or "could not be read")
        elif user is None:
            yield HomeFile(path=path, user=None, problem="this home's owner has no account")
        else:
            yield HomeFile(path=path, user=user, data=said)


def _account(home: str, folder: str, uid: int, accounts: dict[str, pwd.struct_passwd]) -> str | None:
    """Whose home it is: the account that says so, or the one of the folder's name; its owner must be the same."""
    entry = accounts.get(home)
    if entry is None:
        try:
            entry = pwd.getpwnam(folder)
        except (KeyError, ValueError):
            return None
    return entry.pw_name if entry.pw_uid == uid else None


def _as_owner(home: int, name: str, most: int) -> tuple[bytes, bytes]:
    """What a process that has become the owner of `home` says of the file: a word, and the content or the problem."""
    hear, tell = os.pipe()
    reader = os.fork()
    if reader == 0:
        _tell_and_end(home, name, most, tell)
    os.close(tell)
    said = b""
    try:
        while len(said) <= most + 1:
            if not select.select([hear], [], [], HOME_WAIT)[0]:
                os.kill(reader, signal.SIGKILL)
                return _PROBLEM, b"it did not answer"
            part = os.read(hear, 65536)
            if not part:
                break
            said += part
    finally:
        os.close(hear)
        os.waitpid(reader, 0)
    return said[:1], said[1:]


def _tell_and_end(home: int, name: str, most: int, tell: int) -> None:
    try:
        with open(tell, "wb") as out:
            try:
                become_owner_of(home)
                out.write(_READ + _own_file(home, name, most))
            except FileNotFoundError:
                out.write(_NOT_THERE)
            except OSError as e:
                out.write(_PROBLEM + (e.strerror or "").encode())
    finally:
        os._exit(0)


def _own_file(home: int, name: str, most: int) -> bytes:
    file = os.open(name, _FILE, dir_fd=home)
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "not a regular file")
    if status.st_uid != os.fstat(home).st_uid:
        raise OSError(0, "not its owner's own file")
    with open(file, "rb") as opened:
        data = opened.read(most + 1)
    if len(data) > most:
        raise OSError(0, f"larger than {most} bytes")
    return data
