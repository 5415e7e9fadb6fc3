"""The network access of the service: the unit denies it, and a drop-in permits it for authorities and databases.

Rules:
1. The drop-in is a file of this package. It sorts before override.conf, so that 'systemctl edit' can change its lines.
2. A running service is restarted, so that the drop-in is in force. A stopped service is not started.
3. systemd reports the settings in force: an administrator may permit the network in a drop-in of another name.
"""

from __future__ import annotations

import os
import subprocess

from pam_totp.system.sshd import SYSTEMD

UNIT = "pam_totp.service"
DROP_IN = f"/etc/systemd/system/{UNIT}.d/10-pam_totp-network.conf"
CONTENT = """\
# Written by pam-totp, because this service asks other hosts: authorities ([member]) or a database ([store]).
[Service]
PrivateNetwork=no
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
IPAddressDeny=
"""
REMEDY = (
    f"run 'systemctl edit {UNIT}', add [Service] with the lines PrivateNetwork=no, "
    f"RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 and IPAddressDeny=, then run 'systemctl restart {UNIT}'"
)
_TIMEOUT = 30.0  # seconds
_ASKED = (
    "LoadState",
    "NeedDaemonReload",
    "PrivateNetwork",
    "RestrictAddressFamilies",
    "IPAddressDeny",
    "IPAddressAllow",
)
_EVERY_ADDRESS = {"0.0.0.0/0", "::/0", "any"}


def permit() -> bool:
    """Write the drop-in. Return False if the file already has this content. Raise OSError."""
    try:
        with open(DROP_IN, encoding="utf-8") as file:
            if file.read() == CONTENT:
                return False
    except FileNotFoundError:
        pass
    os.makedirs(os.path.dirname(DROP_IN), 0o755, exist_ok=True)
    temporary = f"{DROP_IN}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o644)
        file.write(CONTENT)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, DROP_IN)
    return True


def restart() -> bool:
    """Let systemd read its units again, and restart the service if it runs. Return False if that is impossible."""
    if not os.path.isdir(SYSTEMD):
        return False
    for arguments in (["daemon-reload"], ["try-restart", UNIT]):
        try:
            subprocess.run(["/usr/bin/systemctl", *arguments], capture_output=True, timeout=_TIMEOUT, check=True)
        except (OSError, subprocess.SubprocessError):
            return False
    return True


def obstacle() -> str | None:
    """Return the setting that blocks the network of the unit. Return None if the unit can use the network, or is not
    loaded.
    """
    if not os.path.isdir(SYSTEMD):
        return None
    command = ["/usr/bin/systemctl", "show", UNIT, *(f"--property={name}" for name in _ASKED)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    if found.get("LoadState") != "loaded":
        return None
    families = found.get("RestrictAddressFamilies", "")
    if found.get("PrivateNetwork") == "yes":
        return "PrivateNetwork=yes"
    if families and families.startswith("~") == ("AF_INET" in families.lstrip("~").split()):
        return f"RestrictAddressFamilies={families}"
    if _EVERY_ADDRESS & set(found.get("IPAddressDeny", "").split()) and not found.get("IPAddressAllow"):
        return f"IPAddressDeny={found['IPAddressDeny']}"
    return "systemd has not read its files again" if found.get("NeedDaemonReload") == "yes" else None
