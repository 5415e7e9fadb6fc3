"""Whether a path can be trusted: the relay's own rule, for `doctor` to tell before a login does.

The law: every folder and link on the way belongs to root, and nobody else can write there, unless it is sticky.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Container

_LINKS = 40  # as in the kernel


def distrust(path: str, owners: Container[int] = (0,)) -> str | None:
    """Why the relay, as root, would not use an absolute path; None where it would."""
    return _distrust(path, owners, 0)


def distrust_around(helper: str, owners: Container[int] = (0,)) -> str | None:
    """Why the package that a helper is in is not to be trusted, by the first file or folder that is not; None where all
    of it is, and for a helper that is in no package of that name."""
    package = helper.removesuffix("/pam/helper.py")
    if os.path.basename(package) != "pam_totp":
        return None
    for folder, folders, files in os.walk(package):
        for name in (*folders, *files):
            if (why := distrust(os.path.join(folder, name), owners)) is not None:
                return why
    return None


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
            return f"{here} can be written by others than root (mode {stat.S_IMODE(mode):04o})"
        if stat.S_ISLNK(mode):
            if links >= _LINKS:
                return f"{here} leads through too many links"
            beyond = _distrust(os.path.join(os.path.dirname(here), os.readlink(here)), owners, links + 1)
            if beyond is not None:
                return beyond
    return None
