"""File changes that can be rolled back.

Rules:
- At every moment the file has its complete old content or its complete new content.
- A hard link in the same folder preserves the old file. The roll-back of an unedited file is one rename or unlink, and
  needs no free space.
- `apply` and `undo` never overwrite an edit by a user or another program.
"""

from __future__ import annotations

import difflib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from pam_totp.system.pamd import peers
from pam_totp.system.pamd.edit import remove
from pam_totp.system.pamd.stack import StackError


class ChangeError(Exception):
    """The error for a file that cannot be changed or rolled back. The message names the file and the reason."""


# The restored module does not know the codes that pam_totp accepted after `enable`.
_PEER = "the restored module may accept used codes again: replace its tokens by those of 'pam-totp export --all'"


@dataclass(frozen=True, slots=True)
class Change:
    """The change of one file: its text before (None: the file did not exist) and after.

    The change adds `added_lines`, and turns `commented_lines` into comments.
    """

    path: str
    before: str | None
    after: str
    added_lines: str
    commented_lines: str = ""

    def diff(self) -> str:
        """Return the change in the format of `diff -u`."""
        old, name = (self.before or "").splitlines(keepends=True), self.path
        lines = difflib.unified_diff(
            old, self.after.splitlines(keepends=True), name if self.before is not None else "/dev/null", name
        )
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)

    @property
    def backup(self) -> str:
        """Return the path of the old file until the roll-back."""
        return _beside(self.path, "before-pam_totp")

    @property
    def temporary(self) -> str:
        """Return the path of the temporary file."""
        return _beside(self.path, "new-pam_totp")


def require_changeable(change: Change) -> None:
    """Raise ChangeError if `apply` would refuse the change now: a link, an edited file, or no permission to write."""
    _require_unedited(change)
    _require_writable(change.path)


def apply(change: Change) -> None:
    """Write the new text, or leave the file unchanged and raise ChangeError."""
    try:
        _require_unedited(change)
        _unlink(change.temporary)
        if change.before is None:
            _write(change.temporary, change.after, None)
            try:
                os.link(change.temporary, change.path)  # link: a rename could overwrite another process's file
            finally:
                _unlink(change.temporary)
        else:
            _unlink(change.backup)
            os.link(change.path, change.backup)
            try:
                _write(change.temporary, change.after, change.path)
                _require_unedited(change)
                os.rename(change.temporary, change.path)
            except BaseException:
                _unlink(change.temporary)
                _unlink(change.backup)
                raise
        _sync_folder(change.path)
    except OSError as e:
        raise ChangeError(f"{change.path}: {e.strerror}; nothing was changed") from e


def undo(change: Change, *, dry_run: bool = False) -> str:
    """Restore the old file, or remove only the added lines if the file was edited after the change. Return a report.

    With `dry_run`, only return the report. Raise ChangeError if the change cannot be rolled back.
    """
    try:
        now = read(change.path)
        if dry_run:
            report, wanted = _plan_undo(change, now)
            if wanted != now:
                _require_writable(change.path)
            return report
        report = _undo(change, now)
        _unlink(change.backup)
        _unlink(change.temporary)
        _sync_folder(change.path)
    except OSError as e:
        raise ChangeError(f"{change.path}: {e.strerror}; nothing was changed") from e
    return report


def read(path: str) -> str | None:
    """Return a file's text, or None if it does not exist. Bytes that are not UTF-8 become surrogates."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _plan_undo(change: Change, now: str | None) -> tuple[str, str | None]:
    """Return a report of the roll-back, and the text that the file will have (None: no file)."""
    path = change.path
    hint = f" ({_PEER})" if change.commented_lines else ""
    if now == change.before:
        return f"{path}: already has the old content", now
    if now == change.after:
        return f"{path}: {'deleted' if change.before is None else 'restored'}{hint}", change.before
    if now is None:
        raise ChangeError(f"cannot remove the added lines from {path}: file not found (restore it, then try again)")
    if change.before is None:
        raise ChangeError(f"{path}: edited since 'enable' (delete the file by hand, or the lines that 'enable' added)")
    try:
        restored = peers.restore(remove(now, change.added_lines), change.commented_lines)
        return f"{path}: edited since 'enable'; removed the added lines, kept the edits{hint}", restored
    except StackError as e:
        raise ChangeError(f"{path}: {e} (remove these lines by hand)") from None


def _undo(change: Change, now: str | None) -> str:
    report, wanted = _plan_undo(change, now)
    if wanted == now:
        return report
    if wanted is None:
        os.unlink(change.path)
    elif wanted == change.before and read(change.backup) == change.before:
        os.rename(change.backup, change.path)
    else:
        _unlink(change.temporary)
        _write(change.temporary, wanted, change.path)
        if read(change.path) != now:
            raise ChangeError(f"{change.path}: another process is editing the file (try again)")
        os.rename(change.temporary, change.path)
    return report


def _require_writable(path: str) -> None:
    """Raise ChangeError if the file or its folder is immutable or on a read-only file system."""
    for name in (os.path.dirname(path), path):
        if os.path.lexists(name) and not os.access(name, os.W_OK):
            raise ChangeError(f"{name}: cannot be written (clear its immutable flag, or remount read-write)")


def _require_unedited(change: Change) -> None:
    """Raise ChangeError unless the file is a regular file with the old text, or is missing as before the change."""
    with suppress(FileNotFoundError):
        status = os.lstat(change.path)
        if not stat.S_ISREG(status.st_mode):
            raise ChangeError(f"{change.path}: must be a regular file, not a link (replace it by a copy of its target)")
    if read(change.path) != change.before:
        raise ChangeError(f"{change.path}: edited by another process (try again)")


def _write(path: str, text: str, like: str | None) -> None:
    """Create and fsync the file `path`, with the owner, mode and attributes of the file `like` if it is not None."""
    data = text.encode("utf-8", "surrogateescape")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        for part in _parts(data):
            os.write(file, part)
        if os.pread(file, len(data) + 1, 0) != data:
            raise ChangeError(f"{path}: the data just written cannot be read back (check the free space on the disk)")
        if like is None:
            os.fchmod(file, 0o644)
        else:
            status = os.stat(like)
            os.fchown(file, status.st_uid, status.st_gid)
            shutil.copystat(like, path)
            os.utime(path)
        os.fsync(file)
    except BaseException:
        _unlink(path)
        raise
    finally:
        os.close(file)


def _parts(data: bytes) -> Iterator[bytes]:
    return (data[i : i + 4096] for i in range(0, len(data), 4096))


def _beside(path: str, ending: str) -> str:
    """Return the path of a hidden file in the folder of `path`. libpam and sshd do not read hidden files."""
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.{ending}")


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _sync_folder(path: str) -> None:
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
