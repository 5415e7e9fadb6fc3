"""The accounts that can log in to a service: those with a shell, and a password, a key or a sudo rule.

Rules:
- `login_check` reads the passwd and shadow files once, for any number of names.
- `sudo -l` runs only for the names that a caller passes to `login_check`, because each run needs a process.
"""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Callable, Container

from pam_totp.system import sshd, sudo
from pam_totp.system.pamd.conditions import Account

SUDO_SERVICES = ("sudo", "sudo-i")
PASSWD, SHADOW = "/etc/passwd", "/etc/shadow"
_FIRST_ACCOUNT = 1000  # uid: smaller uids except 0 belong to services (UID_MIN in login.defs)
_NO_SHELLS = ("nologin", "false", "sync", "halt", "shutdown")
_KEYS = (".ssh/authorized_keys", ".ssh/authorized_keys2")


class _AnyName:
    """A container of every name: every account may have a password if the shadow file cannot be read."""

    def __contains__(self, name: object) -> bool:
        return True


def people() -> list[str]:
    """Return the names of accounts of people, including root. Skip accounts without a login shell."""
    return sorted({p.pw_name for p in pwd.getpwall() if _is_person(p)})


def account_of(name: str, local: Container[str]) -> Account | None:
    """Return the account `name` with its groups, or None if it is unknown. `local` is the result of `local_names`."""
    try:
        entry = pwd.getpwnam(name)
        gids = os.getgrouplist(entry.pw_name, entry.pw_gid)
    except (KeyError, OSError):
        return None
    return Account(
        entry.pw_name,
        entry.pw_uid,
        entry.pw_gid,
        frozenset(group for gid in gids if (group := _group(gid)) is not None),
        entry.pw_dir,
        entry.pw_shell,
        entry.pw_name in local,
    )


def login_check(service: str) -> Callable[[str], bool]:
    """Return a function that returns True for the name of an account that can log in to `service` now."""
    if service in SUDO_SERVICES:
        return lambda name: name != "root" and sudo.rules(name).may_use
    with_password = accounts_with_password()
    if service != "sshd":
        return lambda name: name in with_password
    homes = {p.pw_name: p.pw_dir for p in pwd.getpwall() if _is_person(p)}
    try:
        root = sshd.settings("root").get("permitrootlogin") != "no"
    except sshd.SshdError:
        root = True
    return lambda name: name in homes and (root or name != "root") and (name in with_password or _has_key(homes[name]))


def accounts_with_password() -> Container[str]:
    """Return the accounts that have a password, or every account if the shadow file cannot be read."""
    try:
        with open(SHADOW, encoding="utf-8", errors="surrogateescape") as file:
            fields = (line.split(":") for line in file)
            return frozenset(f[0] for f in fields if len(f) > 1 and f[1][:1] not in ("!", "*", ""))
    except OSError:
        return _AnyName()


def _is_person(entry: pwd.struct_passwd) -> bool:
    has_persons_uid = entry.pw_uid == 0 or entry.pw_uid >= _FIRST_ACCOUNT
    return has_persons_uid and os.path.basename(entry.pw_shell) not in _NO_SHELLS


def _group(gid: int) -> str | None:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None


def local_names() -> frozenset[str]:
    """Return the names of the accounts in /etc/passwd, as pam_localuser reads them."""
    with open(PASSWD, encoding="utf-8", errors="surrogateescape") as file:
        return frozenset(line.partition(":")[0] for line in file)


def has_ssh_key(name: str, settings: sshd.Settings) -> bool:
    """Return True if sshd may accept a key of the account `name`. `settings` are the settings for a login of `name`.

    Also return True if sshd uses a command or a certificate authority, because such keys are in no file.
    """
    if any(settings.get(other, "none") != "none" for other in ("authorizedkeyscommand", "trustedusercakeys")):
        return True
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return False
    signs = {"%h": entry.pw_dir, "%u": name, "%U": str(entry.pw_uid), "%%": "%"}
    for pattern in settings.get("authorizedkeysfile", " ".join(_KEYS)).split():
        path = re.sub("%[huU%]", lambda m: signs[m[0]], pattern)
        if pattern != "none" and _has_line(os.path.join(entry.pw_dir, path)):
            return True
    return False


def _has_line(path: str) -> bool:
    """Return True if the file `path` has a non-empty line other than a comment, or is unreadable."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return any(line.strip() and not line.lstrip().startswith("#") for line in file)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # root cannot read some homes on NFS
        return True


def _has_key(home: str) -> bool:
    return any(os.path.exists(os.path.join(home, name)) for name in _KEYS)
