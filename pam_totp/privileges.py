"""Giving privileges up, for good."""

from __future__ import annotations

import os


def become_owner_of(folder: str | int) -> None:
    """As root, become the owner of `folder` with its group and no others; nobody else can, and nobody else needs to.

    `folder` is a path or a descriptor.
    The real and saved ids go too, so that a caller whose process started us can neither signal us nor be returned to.
    Raises OSError where the folder cannot be looked at.
    """
    if os.geteuid() != 0:
        return
    owner = os.stat(folder)
    os.setgroups([])
    os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
    os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)
    if os.getresuid() != (owner.st_uid,) * 3 or os.getresgid() != (owner.st_gid,) * 3:
        raise PermissionError(1, "privileges could not be given up", folder)
