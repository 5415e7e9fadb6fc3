"""Who can log in to a service: the accounts of people, their passwords and keys, and what sudo lets them do.

The law: each file is read once, whatever the number of accounts; what costs a process (sudo) is asked of one name at a
time, and only of those for whom the answer matters.
"""

from __future__ import annotations

import os
import pwd
import subprocess
from collections.abc import Callable, Container

from pam_totp.system import sshd

SUDO = "/usr/bin/sudo"
SHADOW = "/etc/shadow"
_FIRST_ACCOUNT = 1000  # uid: people, not services (login.defs, UID_MIN)
_NO_SHELLS = ("nologin", "false", "sync", "halt", "shutdown")
_KEYS = (".ssh/authorized_keys", ".ssh/authorized_keys2")


class _Everybody:
    """Those who have a password, where that cannot be read."""

    def __contains__(self, name: object) -> bool:
        return True


def people() -> list[str]:
    """The accounts of people, and root: those with a shell."""
    return sorted({p.pw_name for p in pwd.getpwall() if _is_person(p)})


def login_to(service: str) -> Callable[[str], bool]:
    """Whether an account can log in to `service` now."""
    if service in ("sudo", "sudo-i"):
        return lambda name: name != "root" and _may_sudo(name)
    by_password = with_password()
    if service != "sshd":
        return lambda name: name in by_password
    homes = {p.pw_name: p.pw_dir for p in pwd.getpwall() if _is_person(p)}
    try:
        root = sshd.settings("root").get("permitrootlogin") != "no"
    except sshd.SshdError:
        root = True
    return lambda name: name in homes and (root or name != "root") and (name in by_password or _has_key(homes[name]))


def with_password() -> Container[str]:
    """The accounts that have a password; all, where that is not ours to read."""
    try:
        with open(SHADOW, encoding="utf-8", errors="surrogateescape") as file:
            fields = (line.split(":") for line in file)
            return frozenset(f[0] for f in fields if len(f) > 1 and f[1][:1] not in ("!", "*", ""))
    except OSError:
        return _Everybody()


def _is_person(entry: pwd.struct_passwd) -> bool:
    by_uid = entry.pw_uid == 0 or entry.pw_uid >= _FIRST_ACCOUNT
    return by_uid and os.path.basename(entry.pw_shell) not in _NO_SHELLS


def _may_sudo(user: str) -> bool:
    """Whether sudo would ask this user for something."""
    try:
        done = subprocess.run(
            [SUDO, "-l", "-U", user], capture_output=True, text=True, timeout=10, check=False, env={"LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    rules = [line for line in done.stdout.splitlines() if line.startswith("    (")]
    return any("NOPASSWD:" not in rule for rule in rules)


def _has_key(home: str) -> bool:
    return any(os.path.exists(os.path.join(home, name)) for name in _KEYS)
