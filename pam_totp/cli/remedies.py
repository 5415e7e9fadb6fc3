"""The remedies for errors of the operating system, for the last part of a message.

Rules:
- A remedy is a step that the caller can take. A message for root never says to run the command as root.
- A command that root starts acts as the owner of the store, with the permissions of that account.
"""

from __future__ import annotations

import errno
import os
import pwd

REMEDIES = {
    errno.ENOSPC: "delete files on that disk, then run the command again",
    errno.EDQUOT: "delete files of the account that is over its disk quota, then run the command again",
    errno.EROFS: "remount that disk with 'mount -o remount,rw', then run the command again",
    errno.EACCES: "run the command as root, or as the owner of that folder",
    errno.ENOENT: "check the name",
    errno.EISDIR: "name a file in that folder",
    errno.EADDRINUSE: "stop the process that uses this address, or choose another port with --listen",
}


def remedy(cause: BaseException | None, *, by_root: bool, store: str) -> str:
    """Return the remedy for an error of the operating system, in parentheses, or "".

    `by_root` is True if root started the command, also if the process has dropped its privileges since. `store` is the
    location of the command's store.
    """
    if not isinstance(cause, OSError):
        return ""
    is_denied = by_root and cause.errno == errno.EACCES
    text = _denied(cause.filename, store) if is_denied else REMEDIES.get(cause.errno or 0)
    return f" ({text})" if text else ""


def _denied(path: object, store: str) -> str:
    """Return the reason and the remedy for a process that root started, and that has no permission for `path`."""
    if os.geteuid() == 0:
        return "root has no permission on some network file systems: use a folder on a local disk"
    name = _name_of(os.geteuid())
    owner = f"{name or f'uid {os.geteuid()}'}, the owner of the store,"
    if isinstance(path, str) and os.path.isabs(path):
        closed = _closed_folder(path)
        if closed is not None:
            return f"{owner} cannot enter {closed}: move the store, or run 'chmod a+x {closed}'"
    account = f"{name}:" if name else f"{os.geteuid()}:{os.getegid()}"
    return f"{owner} must own all files of the store: run 'chown -R -h {account} {store}'"


def _closed_folder(path: str) -> str | None:
    """Return the first folder above an absolute path that this process cannot enter, or None."""
    parts = path.split("/")
    folders = ("/".join(parts[:end]) or "/" for end in range(1, len(parts)))
    return next((folder for folder in folders if not os.access(folder, os.X_OK, effective_ids=True)), None)


def _name_of(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None
