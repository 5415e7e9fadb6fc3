"""Giving privileges up, for good; and before that, what only root can set right."""

from __future__ import annotations

import os
import pwd
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

NOBODY = 65534  # uid and gid: the kernel's overflow ids, which own nothing

_LIMITS = ("AS", "CPU", "DATA", "FSIZE", "NPROC", "RSS", "STACK")  # what a caller could starve a helper with


def lift_limits() -> None:
    """As root, undo the resource limits that the caller of a setuid program handed down (su resets none of them), so
    that nobody chooses how far a login comes. Root without CAP_SYS_RESOURCE can lift the soft limits only."""
    if os.geteuid() != 0:
        return
    for name in _LIMITS:
        limit = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(limit)
        for least in (resource.RLIM_INFINITY, hard):
            with suppress(OSError, ValueError):
                resource.setrlimit(limit, (least, least))
                break


def become_owner_of(folder: str | int, also: tuple[int, ...] = ()) -> None:
    """As root, become the owner of `folder` with its group and no others but those of `also`; nobody else can, and
    nobody else needs to.

    `folder` is a path or a descriptor.
    The real and saved ids go too, so that a caller whose process started us can neither signal us nor be returned to.
    Raises OSError where the folder cannot be looked at.
    """
    if os.geteuid() != 0:
        return
    owner = os.stat(folder)
    _become(owner.st_uid, owner.st_gid, also)


def act_as_owner_of(folder: str | int) -> None:
    """As root, take the rights of the owner of `folder` and of its group. `acting_as_root` returns to root.

    The real and saved ids stay root's, so that no other account can signal or trace this process.
    Raises OSError if the folder cannot be looked at.
    """
    if os.geteuid() != 0:
        return
    owner = os.stat(folder)
    os.setgroups(())
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)


@contextmanager
def acting_as_root() -> Iterator[None]:
    """Return to root for the block, in a process that `act_as_owner_of` took the rights from; else do nothing."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 or os.getresuid()[2] != 0:
        yield
        return
    os.seteuid(0)
    os.setegid(0)
    try:
        yield
    finally:
        os.setegid(gid)
        os.seteuid(uid)


def become_user(name: str) -> None:
    """As root, become the user of that name with their own group and no others; who has no account gets nobody's.
    Whoever is not root stays who they are."""
    if os.geteuid() != 0:
        return
    try:
        entry = pwd.getpwnam(name)
    except (KeyError, ValueError):
        _become(NOBODY, NOBODY)
    else:
        _become(entry.pw_uid, entry.pw_gid)


def _become(uid: int, gid: int, also: tuple[int, ...] = ()) -> None:
    os.setgroups(also)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3:
        raise PermissionError(1, "privileges could not be given up")
