"""The change of a process from root to another account.

Rules:
1. The process cannot become root again after a permanent change, which sets the real, effective and saved ids.
2. A process that is not root keeps its ids.
"""

from __future__ import annotations

import os
import pwd

from pam_totp.core.lean import TYPE_CHECKING, contextmanager

if TYPE_CHECKING:
    from collections.abc import Iterator

OVERFLOW_ID = 65534  # uid and gid: the kernel's overflow ids, which own no file


def become_owner_of(folder: str | int, also: tuple[int, ...] = ()) -> None:
    """As root, become the owner of `folder`, with the folder's group and the groups `also`. Otherwise, do nothing.

    `folder` is a path or a descriptor. Raise OSError if the owner of `folder` cannot be read.
    """
    if os.geteuid() != 0:
        return
    owner = os.stat(folder)
    _become(owner.st_uid, owner.st_gid, also)


def become_account(name: str, also: tuple[int, ...] = ()) -> None:
    """As root, become the account `name`, with its primary group and the groups `also`.

    The process keeps its ids if it is not root, or if the account is unknown.
    """
    entry = _entry(name)
    if os.geteuid() == 0 and entry is not None:
        _become(entry.pw_uid, entry.pw_gid, also)


def act_as_account(name: str) -> None:
    """Do the same as `become_account`, with the effective ids only. `acting_as_root` restores root's ids."""
    entry = _entry(name)
    if os.geteuid() == 0 and entry is not None:
        _act_as(entry.pw_uid, entry.pw_gid)


def act_as_owner_of(folder: str | int) -> None:
    """As root, set the effective ids to the owner and group of `folder`. `acting_as_root` restores root's ids.

    The real and saved ids remain root's, so that no other account can signal or trace this process.
    Raise OSError if the owner cannot be read.
    """
    if os.geteuid() != 0:
        return
    owner = os.stat(folder)
    _act_as(owner.st_uid, owner.st_gid)


def act_as_root() -> None:
    """Restore root's effective ids, so that the process can change to another account.

    A process whose saved uid is not root's keeps its ids.
    """
    if os.getresuid()[2] == 0:
        os.seteuid(0)
        os.setegid(0)


@contextmanager
def acting_as_root() -> Iterator[None]:
    """Run the block as root if `act_as_owner_of` has changed the ids; otherwise keep the ids."""
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
    """As root, become the user `name`, with only the user's primary group. Otherwise, do nothing.

    Use the kernel's overflow ids, which own no file, for an unknown user.
    """
    if os.geteuid() != 0:
        return
    entry = _entry(name)
    if entry is None:
        _become(OVERFLOW_ID, OVERFLOW_ID)
    else:
        _become(entry.pw_uid, entry.pw_gid)


def become_nobody() -> None:
    """As root, change to the kernel's overflow ids, which own no file. Otherwise, do nothing."""
    if os.geteuid() == 0:
        _become(OVERFLOW_ID, OVERFLOW_ID)


def _entry(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except (KeyError, ValueError):
        return None


def _act_as(uid: int, gid: int) -> None:
    os.setgroups(())
    os.setegid(gid)
    os.seteuid(uid)


def _become(uid: int, gid: int, also: tuple[int, ...] = ()) -> None:
    os.setgroups(also)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3:
        raise PermissionError(1, "cannot drop privileges")
