"""Files that a command makes: QR codes, exports.

The law: 0600 whatever the umask, never over another file nor through a link, and gone again if the command does not
come to its end, however it ends. The file is opened before the privileges go, and to take it away may need them: so
that is left to a small process that keeps them, and does nothing else. It removes a name of the folder in which the
file was made, wherever the path leads by then: the folder may be somebody's who would like another file gone.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from pam_totp.cli.command_line import CommandError

_KEEP = b"k"


@contextmanager
def new_file(path: str) -> Iterator[BinaryIO]:
    """A new file at `path`, durable where the block ends well and taken away where it does not.

    Raises CommandError where something is there already.
    """
    path = os.path.abspath(path)
    place, name = os.path.split(path)
    folder = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o600, dir_fd=folder)
    except FileExistsError:
        os.close(folder)
        raise CommandError(
            f"{path} already exists and is not overwritten (choose another name, or remove it)"
        ) from None
    except OSError as e:
        os.close(folder)
        raise OSError(e.errno, e.strerror, path) from None
    try:
        with open(file, "wb") as opened, _gone_unless_finished(folder, name, file):
            os.fchmod(file, 0o600)
            yield opened
            opened.flush()
            os.fsync(file)
    finally:
        os.close(folder)


@contextmanager
def _gone_unless_finished(folder: int, name: str, file: int) -> Iterator[None]:
    hear, tell = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        _wait_and_remove(folder, name, file, hear, tell)
    os.close(hear)
    try:
        yield
        os.write(tell, _KEEP)
    finally:
        os.close(tell)
        os.waitpid(keeper, 0)


def _wait_and_remove(folder: int, name: str, file: int, hear: int, tell: int) -> None:
    """The process that stays behind: it ends when the command says that all went well, or says no more."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        os.close(tell)
        if os.read(hear, 1) != _KEEP:
            with suppress(OSError):
                if os.path.samestat(os.fstat(file), os.lstat(name, dir_fd=folder)):
                    os.unlink(name, dir_fd=folder)
    finally:
        os._exit(0)
