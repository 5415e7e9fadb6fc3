"""The accounts and groups of this host, for the rules of the desk. Each call asks the name service again."""

from __future__ import annotations

import grp
import os
import pwd
from contextlib import suppress
from pathlib import Path

from pam_totp.core.settings import SettingsError, Site

_PASSWD = "/etc/passwd"


class HostAccounts:
    """The accounts (`operations.desk.Accounts`) that the name service of this host finds."""

    def account(self, name: str) -> tuple[str, int] | None:
        """Return the name and the uid in the passwd entry of `name`, or None."""
        try:
            entry = pwd.getpwnam(name)
        except (KeyError, ValueError):  # ValueError: a name with NUL
            return None
        return entry.pw_name, entry.pw_uid

    def names_of(self, uid: int) -> set[str]:
        """Return the name that the name service finds by the uid, and all names of the uid in /etc/passwd.

        Do not search a directory for further names of the uid, because a directory can have thousands of accounts.
        """
        names = _local_names(uid)
        with suppress(KeyError):
            names.add(pwd.getpwuid(uid).pw_name)
        return names

    def groups_of(self, name: str) -> set[int]:
        """Return the gids of an account's groups, with the primary group."""
        try:
            return set(os.getgrouplist(name, pwd.getpwnam(name).pw_gid))
        except (KeyError, ValueError):
            return set()

    def group(self, name: str) -> tuple[int, set[str]] | None:
        """Return the gid of a group, and its members by name, or None."""
        try:
            entry = grp.getgrnam(name)
        except (KeyError, ValueError):
            return None
        return entry.gr_gid, set(entry.gr_mem)


def _local_names(uid: int) -> set[str]:
    """Return the names of a uid in /etc/passwd. Raise OSError, except for a missing file."""
    try:
        text = Path(_PASSWD).read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return set()
    entries = (line.split(":") for line in text.split("\n"))
    return {entry[0] for entry in entries if len(entry) > 2 and entry[2].isdecimal() and int(entry[2]) == uid}


def defect(site: Site) -> str | None:
    """Return the reason why the site's desk cannot help users. Return None if the desk works, or if `[desk]` is
    missing.
    """
    if site.desk is None:
        return None
    from pam_totp.operations.desk import PROTECTED, desk_settings  # imported here: few sites have a desk

    try:
        found = desk_settings(site)
    except SettingsError as e:
        return str(e)
    if found is None:
        return None
    required = (found.group, *(group for group in found.protect if group not in PROTECTED))
    return next((f"group {group} not found" for group in required if HostAccounts().group(group) is None), None)
