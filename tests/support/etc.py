"""Files of /etc that the suite writes, so that the tests do not depend on the host's files.

Rules:
- The suite writes accounts, groups, passwords, name services, PAM stacks and sudo rules.
- Users and groups have the static ids of Debian and Ubuntu (base-passwd), so the owners of packaged files are correct.
  The group `shadow` has the gid of the host's unix_chkpwd.
- The mode of a file does not depend on the umask.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

PASSWORD = "correct horse"
PASSWORD_HASH = "$5$pamtotp$Y/3Gl/6rXKXrTP93D0fLc0cxoZ663rx1ZIUMiscKbQ9"  # openssl passwd -5 -salt pamtotp ...

_CHECKER = Path("/usr/sbin/unix_chkpwd")  # setgid shadow, so that an account can check its own password
SHADOW = (_CHECKER.exists() and _CHECKER.stat().st_gid) or 42  # gid
# uid and gid by name. The uids of sshd and freerad are arbitrary, because they own no files that tests use.
_USERS = {
    **{"root": (0, 0), "daemon": (1, 1), "bin": (2, 2), "sys": (3, 3), "games": (5, 60), "man": (6, 12), "lp": (7, 7)},
    **{"mail": (8, 8), "www-data": (33, 33), "sshd": (101, 65534), "nobody": (65534, 65534)},
    "freerad": (102, 102),
}
_GROUPS = {
    **{"root": 0, "daemon": 1, "bin": 2, "sys": 3, "adm": 4, "tty": 5, "disk": 6, "lp": 7, "mail": 8, "man": 12},
    **{"sudo": 27, "www-data": 33, "shadow": SHADOW, "utmp": 43, "staff": 50, "games": 60, "users": 100},
    **{"nogroup": 65534, "freerad": 102},
}
# Services of Debian's packages, shortened.
_REST = "@include common-account\n@include common-session\n"
STACKS = {
    "common-auth": "auth\t[success=1 default=ignore]\tpam_unix.so nullok\n"
    "auth\trequisite\t\t\tpam_deny.so\n"
    "auth\trequired\t\t\tpam_permit.so\n",
    "common-account": "account required pam_unix.so\n",
    "common-session": "session required pam_permit.so\n",
    "sudo": f"#%PAM-1.0\n\n# limits\nsession    required   pam_limits.so\n\n@include common-auth\n{_REST}",
    "sudo-i": f"#%PAM-1.0\n\n@include common-auth\n{_REST}",
    "su": f"auth       sufficient pam_rootok.so\n@include common-auth\n{_REST}",
    "su-l": "#%PAM-1.0\nauth include su\naccount include su\nsession include su\n",
    "sshd": f"@include common-auth\naccount    required     pam_nologin.so\n{_REST}",
    "other": "auth required pam_deny.so\naccount required pam_deny.so\n",
}
_SYSTEM = {
    "environment": "",
    "hosts": f"127.0.0.1 localhost {os.uname().nodename}\n::1 localhost\n",
    "login.defs": "UID_MIN 1000\nUID_MAX 60000\nGID_MIN 1000\nGID_MAX 60000\nUMASK 022\nUSERGROUPS_ENAB yes\n",
    "shells": "/bin/sh\n/bin/bash\n",
    **{f"security/{name}.conf": "" for name in ("access", "group", "limits", "namespace", "pam_env", "time")},
}


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace `path` by a file with `text` and `mode`. Create the parent folder if necessary."""
    path.parent.mkdir(exist_ok=True)
    path.parent.chmod(0o755)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


def write_accounts(etc: Path, accounts: Mapping[str, int] | None = None) -> None:
    """Write the files of accounts, groups and passwords, and an nsswitch.conf that reads these files only.

    `accounts` maps names of ordinary users to uids. These users and root have PASSWORD. Each of these users has a
    separate group, and a home in /home.
    """
    accounts = accounts or {}
    users = {name: ids for name, ids in _USERS.items() if name != "root"}
    passwords = dict.fromkeys(_USERS, "*") | dict.fromkeys(("root", *accounts), PASSWORD_HASH)
    groups = _GROUPS | dict(accounts)
    _write_lines(
        etc / "passwd",
        "root:x:0:0:root:/root:/bin/bash",
        *(f"{name}:x:{uid}:{gid}::/nonexistent:/usr/sbin/nologin" for name, (uid, gid) in users.items()),
        *(f"{name}:x:{uid}:{uid}::/home/{name}:/bin/sh" for name, uid in accounts.items()),
    )
    _write_lines(etc / "group", *(f"{name}:x:{gid}:" for name, gid in groups.items()))
    _write_lines(etc / "shadow", *(f"{name}:{hashed}:19000:0:99999:7:::" for name, hashed in passwords.items()))
    _write_lines(etc / "gshadow", *(f"{name}:*::" for name in groups))
    for secret in (etc / "shadow", etc / "gshadow"):
        secret.chmod(0o640)
        os.chown(secret, 0, SHADOW)
    databases = ("passwd", "group", "shadow", "gshadow")
    _write_lines(etc / "nsswitch.conf", *(f"{name}: files" for name in databases), "hosts: files dns")


def write_stacks(etc: Path) -> None:
    """Write the PAM services in STACKS."""
    for service, text in STACKS.items():
        write(etc / "pam.d" / service, text)


def write_system(etc: Path) -> None:
    """Write the other files that programs need in an empty /etc. Only root may use sudo."""
    for name, text in _SYSTEM.items():
        write(etc / name, text)
    write(etc / "sudoers", "root ALL=(ALL:ALL) ALL\n", 0o440)


def _write_lines(path: Path, *lines: str) -> None:
    write(path, "".join(f"{line}\n" for line in lines))
