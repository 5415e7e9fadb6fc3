"""Checks of a store's access rights: owners, modes, folders that cannot be entered, immutable files.

Rules:
- The service runs as the account pam_totp. A helper runs as the owner of the store's folder.
- Each remedy is one command, which keeps every record.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from pam_totp.core.settings import DEFAULT_STORE
from pam_totp.system.doctor.context import ACCOUNT
from pam_totp.system.pamd.findings import ERROR, WARNING, Code, Finding
from pam_totp.system.store_probe import entries, find_obstacles

_MAX_NAMES = 3  # the largest number of file names in a message


@dataclass(slots=True)
class Use:
    """The findings about a store, and the names of the files in the findings.

    `is_usable` is False if other checks of the store would fail for the same reason.
    """

    findings: list[Finding] = field(default_factory=list)
    file_names: list[str] = field(default_factory=list)
    is_usable: bool = True

    def add(self, code: Code, what: str, remedy: str, *names: str) -> None:
        self.findings.append(Finding(ERROR, "store", code, what, remedy))
        self.file_names += names


def examine(folder: str, status: os.stat_result, *, has_service: bool) -> Use:
    """Examine a store. `has_service` is True if a service answers the logins that use the store."""
    use = Use()
    _owner(use, folder, status, has_service=has_service)
    if not use.is_usable or os.geteuid() not in (0, status.st_uid):
        return use
    _attempts(use, folder)
    if use.is_usable:
        _files(use, folder, status.st_uid)
    return use


def _owner(use: Use, folder: str, status: os.stat_result, *, has_service: bool) -> None:
    """Check the owner of the folder. Any account may own a store, except for a service's store and DEFAULT_STORE."""
    account = _uid_of(ACCOUNT)
    remedy = f"run 'chown -R -h {ACCOUNT}: {folder}'"
    if account is None or status.st_uid == account or not (has_service or folder == DEFAULT_STORE):
        return
    owner = _name(status.st_uid)
    if status.st_uid == 0 and not has_service:
        what = f"the helper stays root during a login, because {folder} belongs to root"
        use.findings.append(Finding(WARNING, "store", Code.STORE_OWNED_BY_ROOT, what, remedy))
        return
    effects = ["the service refuses every code"] if has_service else []
    effects += [f"{owner} can read all keys"] if status.st_uid != 0 else []
    what = f"{folder} must belong to {ACCOUNT}, not to {owner}: {', and '.join(effects)}"
    use.is_usable = False
    use.add(Code.STORE_OWNER, what, remedy)


def _attempts(use: Use, folder: str) -> None:
    """Report the folders and files to which the owner of the store lacks access."""
    obstacles = find_obstacles(folder)
    ancestor, fixed = obstacles.closed, obstacles.immutable
    if ancestor is not None:
        use.is_usable = False
        mode = stat.S_IMODE(os.stat(ancestor).st_mode)
        what = f"{folder}: every code is refused, because its owner cannot enter {ancestor} (mode {mode:04o})"
        use.add(Code.STORE_CLOSED, what, f"run 'chmod a+x {ancestor}'")
    if fixed:
        what = f"{folder}: logins fail, because the kernel forbids writing to {_listed(fixed)}"
        use.add(Code.STORE_FILE_IMMUTABLE, what, f"run 'chattr -R -i -a {folder}' as root", *fixed)


def _files(use: Use, folder: str, owner: int) -> None:
    """Check type, owner and mode of the files that a login uses."""
    foreign, unreadable, links = [], [], []
    for name, status in entries(folder):
        if stat.S_ISLNK(status.st_mode):
            links.append(name)
        elif status.st_uid != owner:
            foreign.append(name)
        elif status.st_mode & 0o600 != 0o600 or (stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o100):
            unreadable.append(name)
    if foreign:
        others = sorted({_name(os.lstat(os.path.join(folder, name)).st_uid) for name in foreign})
        what = f"{folder}: {_listed(foreign)} must belong to {_name(owner)} (now: {', '.join(others)}): a login fails"
        account = f"{_name(owner)}:" if _has_name(owner) else f"{owner}:{os.stat(folder).st_gid}"
        use.add(Code.STORE_FILE_OWNER, what, f"run 'chown -R -h {account} {folder}'", *foreign)
    if unreadable:
        what = f"{folder}: {_name(owner)} cannot read and write {_listed(unreadable)}: a login fails"
        use.add(Code.STORE_FILE_MODE, what, f"run 'chmod -R u=rwX,go= {folder}'", *unreadable)
    for name in links:
        path = os.path.join(folder, name)
        what = f"{path}: must be a regular file, not a symbolic link: a login fails"
        use.add(Code.STORE_FILE_LINK, what, f"run 'cp --remove-destination \"$(readlink -f {path})\" {path}'", name)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _uid_of(account: str) -> int | None:
    try:
        return pwd.getpwnam(account).pw_uid
    except KeyError:
        return None


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _name(uid: int) -> str:
    return pwd.getpwuid(uid).pw_name if _has_name(uid) else f"uid {uid}"
