"""The access of an account to its store: an attempt to reach the folder, and to open its files for writing.

Rules:
- The attempts run in a process of the store's owner, and change no file.
- Root reads owners and modes only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from pam_totp.store import Store
from pam_totp.store.decoys import FOLDER as DECOYS
from pam_totp.store.file import LOCK
from pam_totp.store.stock_entries import FOLDER as STOCK
from pam_totp.system.store_owner import Report, as_owner

_CLOSED, _IMMUTABLE = "closed", "immutable"  # the kinds of reports


@dataclass(frozen=True, slots=True)
class Obstacles:
    """The first folder above the store that the store's owner cannot enter, and the immutable files of the store."""

    closed: str | None
    immutable: tuple[str, ...]


def find_obstacles(folder: str) -> Obstacles:
    """Try to use the store at `folder` as its owner, and return the obstacles."""

    def attempt(store: Store) -> Iterator[Report]:
        for ancestor in _ancestors(os.path.realpath(folder)):
            try:
                os.stat(os.path.join(ancestor, "."))
            except OSError:
                yield _CLOSED, ancestor
                return
        names = [LOCK, *(n for n in os.listdir(folder) if n.endswith(".record") and not n.startswith("."))]
        for name in sorted(names):
            try:
                os.close(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
            except OSError as e:
                if e.errno == errno.EPERM:
                    yield _IMMUTABLE, name

    reports = list(as_owner(folder, attempt))
    closed = next((text for kind, text in reports if kind == _CLOSED), None)
    return Obstacles(closed, tuple(text for kind, text in reports if kind == _IMMUTABLE))


def entries(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the name and the status of the lock file, decoys, records and stock in `folder`. Follow no link."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    special, inner = (LOCK, DECOYS, STOCK), []
    for name in (DECOYS, STOCK):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            inner += [f"{name}/{n}" for n in sorted(os.listdir(path))]
    wanted = [n for n in names if n in special or (n.endswith((".record", ".json")) and not n.startswith("."))]
    for name in (*wanted, *inner):
        try:
            yield name, os.lstat(os.path.join(folder, name))
        except FileNotFoundError:  # another process has removed the file
            continue


def mount_point(path: str) -> str:
    """Return the mount point of the file system that contains `path`, from mountinfo (proc(5))."""
    path, best = os.path.realpath(path), "/"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            point = line.split()[4].replace("\\040", " ")
            if len(point) >= len(best) and os.path.commonpath([path, point]) == point:
                best = point
    return best


def _ancestors(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/" + "/".join(parts[:end]) for end in range(len(parts))]
