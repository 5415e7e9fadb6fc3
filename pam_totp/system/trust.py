"""The relay's rules for trusted paths, by which `doctor` reports an untrusted path before a login fails.

Rules:
- Every folder, link and file on the path belongs to root.
- Only root can write these files and folders. A sticky folder is an exception: other users can add files to it,
  but cannot replace root's files.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Container

_MAX_LINKS = 40  # the kernel's limit of symbolic links in one path
_RELEASE = re.compile(r'^__path__ = \["(/[^"]+)"\]$', re.MULTILINE)


def distrust(path: str, owners: Container[int] = (0,)) -> str | None:
    """Return the reason why a relay that root runs distrusts the absolute path `path`, or None.

    `owners` are the uids that may own a trusted file.
    """
    return _distrust(path, owners, 0)


def distrust_around(helper: str, owners: Container[int] = (0,)) -> str | None:
    """Return the reason why the package `pam_totp` that contains `helper` is not trusted: the first untrusted file or
    folder. Return None if the package is trusted, or if `helper` is outside of such a package.
    """
    package = helper.removesuffix("/pam/helper.py")
    if os.path.basename(package) != "pam_totp":
        return None
    for root in (package, *_release(package)):
        for folder, folders, files in os.walk(root):
            for name in (*folders, *files):
                if (reason := distrust(os.path.join(folder, name), owners)) is not None:
                    return reason
    return None


def _release(package: str) -> list[str]:
    """Return a list of the second folder of modules (RELEASE in data/install). It is empty without a Debian package."""
    try:
        with open(os.path.join(package, "__init__.py"), encoding="utf-8") as file:
            return _RELEASE.findall(file.read())
    except (OSError, ValueError):
        return []


def _distrust(path: str, owners: Container[int], links: int) -> str | None:
    parts = path.strip("/").split("/")
    for end in range(len(parts) + 1):
        here = "/" + "/".join(parts[:end])
        try:
            status = os.lstat(here)
        except OSError as e:
            return f"{here}: {(e.strerror or str(e)).lower()}"
        if status.st_uid not in owners:
            return f"{here} belongs to uid {status.st_uid}, not to root"
        mode = status.st_mode
        sticky = stat.S_ISDIR(mode) and mode & stat.S_ISVTX
        if mode & 0o022 and not (stat.S_ISLNK(mode) or stat.S_ISSOCK(mode) or sticky):
            return f"{here} can be written by users other than root (mode {stat.S_IMODE(mode):04o})"
        if stat.S_ISLNK(mode):
            if links >= _MAX_LINKS:
                return f"{here}: too many levels of symbolic links"
            reason = _distrust(os.path.join(os.path.dirname(here), os.readlink(here)), owners, links + 1)
            if reason is not None:
                return reason
    return None
