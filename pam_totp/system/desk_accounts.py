"""The accounts and groups of this host, for the rules of the desk. Nothing is remembered between two calls."""

from __future__ import annotations

import grp
import os
import pwd

from pam_totp.core.settings import SettingsError, Site
from pam_totp.operations.desk import PROTECTED, desk_settings


class HostAccounts:
    """`operations.desk.Accounts` by the name service of this host."""

    def account(self, name: str) -> tuple[str, int] | None:
        """Return the name and the uid in the passwd entry of `name`, or None."""
        try:
            entry = pwd.getpwnam(name)
        except (KeyError, ValueError):  # ValueError: a name with NUL
            return None
        return entry.pw_name, entry.pw_uid

    def names_of(self, uid: int) -> set[str]:
        """Return the name that the name service finds by the uid."""
        try:
            return {pwd.getpwuid(uid).pw_name}
        except KeyError:
            return set()

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


def defect(site: Site) -> str | None:
    """Return the reason why the site's desk can change nothing, or None. A site without a desk has no defect."""
    try:
        found = desk_settings(site)
    except SettingsError as e:
        return str(e)
    if found is None:
        return None
    required = (found.group, *(group for group in found.protect if group not in PROTECTED))
    return next((f"there is no group {group}" for group in required if HostAccounts().group(group) is None), None)
