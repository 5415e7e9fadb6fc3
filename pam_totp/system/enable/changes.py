"""Changing a file so that it can be changed back.

The law: a file is the old one or the new one at every moment; the old one stays beside it under another name, so that
going back is one rename and needs no free space; what somebody else has written since is never overwritten.
"""

from __future__ import annotations

import difflib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from pam_totp.system.pamd.edit import removed
from pam_totp.system.pamd.stack import StackError


class ChangeError(Exception):
    """A file cannot be changed, or changed back; the text says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Change:
    """One file's text before (None: there was none) and after; `ours` are the lines that make the difference."""

    path: str
    before: str | None
    after: str
    ours: str

    def diff(self) -> str:
        """As `diff -u` shows it."""
        old, name = (self.before or "").splitlines(keepends=True), self.path
        lines = difflib.unified_diff(
            old, self.after.splitlines(keepends=True), name if self.before is not None else "/dev/null", name
        )
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)

    @property
    def backup(self) -> str:
        """Where the file from before is kept, until it is put back."""
        return _beside(self.path, "before-pam_totp")

    @property
    def aside(self) -> str:
        return _beside(self.path, "new-pam_totp")


def apply(change: Change) -> None:
    """Put the new text in place. Raises ChangeError, and then nothing has changed."""
    try:
        _demand(change)
        _forget(change.aside)
        if change.before is None:
            _write(change.aside, change.after, None)
            try:
                os.link(change.aside, change.path)  # unlike a rename, never over another's
            finally:
                _forget(change.aside)
        else:
            _forget(change.backup)
            os.link(change.path, change.backup)
            try:
                _write(change.aside, change.after, change.path)
                _demand(change)
                os.rename(change.aside, change.path)
            except BaseException:
                _forget(change.aside)
                _forget(change.backup)
                raise
        _sync_folder(change.path)
    except OSError as e:
        raise ChangeError(f"{change.path}: {e.strerror}; it is as it was") from e


def undo(change: Change, *, really: bool = True) -> str:
    """Put the old text back, or take out our lines alone where others have edited the file; returns what was done.

    Not `really`: only say what would be done. Raises ChangeError where it cannot be; then the file is as it is.
    """
    try:
        now = read(change.path)
        said = _undo(change, now) if really else _undoing(change, now)[0]
        if really:
            _forget(change.backup)
            _forget(change.aside)
            _sync_folder(change.path)
    except OSError as e:
        raise ChangeError(f"{change.path}: {e.strerror}; it is as it was") from e
    return said


def read(path: str) -> str | None:
    """A file's text, bytes that are not UTF-8 as surrogates; None where there is no file."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _undoing(change: Change, now: str | None) -> tuple[str, str | None]:
    """What is to be done, and the text that the file will have (None: no file)."""
    path = change.path
    if now == change.before:
        return f"{path}: as it was before", now
    if now == change.after:
        return f"{path}: {'gone again' if change.before is None else 'as it was before'}", change.before
    if now is None:
        raise ChangeError(f"{path}: somebody has deleted it; nothing to take out (is that meant?)")
    if change.before is None:
        raise ChangeError(f"{path}: somebody has edited it; delete it by hand, or what is ours in it")
    try:
        return f"{path}: edited since; our lines are taken out, the rest stays", removed(now, change.ours)
    except StackError as e:
        raise ChangeError(f"{path}: somebody has edited it, and {e}; take them out by hand") from None


def _undo(change: Change, now: str | None) -> str:
    said, wanted = _undoing(change, now)
    if wanted == now:
        return said
    if wanted is None:
        os.unlink(change.path)
    elif wanted == change.before and read(change.backup) == change.before:
        os.rename(change.backup, change.path)
    else:
        _forget(change.aside)
        _write(change.aside, wanted, change.path)
        if read(change.path) != now:
            raise ChangeError(f"{change.path}: is being edited by somebody; try again")
        os.rename(change.aside, change.path)
    return said


def _demand(change: Change) -> None:
    """The file must be what the change was made for."""
    with suppress(FileNotFoundError):
        status = os.lstat(change.path)
        if not stat.S_ISREG(status.st_mode):
            raise ChangeError(f"{change.path}: not a regular file; edit what it leads to by hand")
    if read(change.path) != change.before:
        raise ChangeError(f"{change.path}: somebody has edited it in the meantime; try again")


def _write(path: str, text: str, like: str | None) -> None:
    """Make the text durable under a name that nobody reads, with the owner, mode and attributes of `like`."""
    data = text.encode("utf-8", "surrogateescape")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        for part in _parts(data):
            os.write(file, part)
        if os.pread(file, len(data) + 1, 0) != data:
            raise ChangeError(f"{path}: what was written does not read back; is the disk full?")
        if like is None:
            os.fchmod(file, 0o644)
        else:
            status = os.stat(like)
            os.fchown(file, status.st_uid, status.st_gid)
            shutil.copystat(like, path)
            os.utime(path)
        os.fsync(file)
    except BaseException:
        _forget(path)
        raise
    finally:
        os.close(file)


def _parts(data: bytes) -> Iterator[bytes]:
    return (data[i : i + 4096] for i in range(0, len(data), 4096))


def _beside(path: str, ending: str) -> str:
    """A hidden name in the same folder: neither a service nor one of sshd's *.conf."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{ending}")


def _forget(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _sync_folder(path: str) -> None:
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
