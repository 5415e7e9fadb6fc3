"""Names of accounts, and whether their lookup may block."""

from __future__ import annotations

import pwd
import re

_READ_LOCAL_FILES = {"files", "compat", "systemd"}  # name services; see nsswitch.conf(5)


def passwd_name(user: str) -> str:
    """Return the name in the user's passwd entry, or `user` if there is no entry."""
    try:
        return pwd.getpwnam(user).pw_name
    except (KeyError, ValueError):  # ValueError: a name with NUL
        return user


def has_passwd_entry(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def lookups_are_local(path: str = "/etc/nsswitch.conf") -> bool:
    """Return True if a lookup of an account only reads local files, and asks no server.

    Without a file, or without a line `passwd`, glibc uses `files`.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.partition("#")[0].partition(":") for line in file]
    except FileNotFoundError:
        return True
    except OSError:
        return False
    services = [re.sub(r"\[.*?\]", " ", value).split() for name, _, value in lines if name.strip() == "passwd"]
    return {service for line in services for service in line} <= _READ_LOCAL_FILES
