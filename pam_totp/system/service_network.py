"""The network of the service: its unit has none, and a drop-in permits it on hosts whose service needs it.

Rules:
1. The drop-in is a file of this package. It sorts before override.conf, so that 'systemctl edit' can change its lines.
2. A service that runs is started again, so that the drop-in is in force. A stopped service stays stopped.
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
_TIMEOUT = 30.0  # seconds


def permit() -> bool:
    """Write the drop-in. Return False if it is there already. Raise OSError."""
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
    """Let systemd read its units again, and restart the service if it runs. Return False if systemd does not run."""
    if not os.path.isdir(SYSTEMD):
        return False
    for arguments in (["daemon-reload"], ["try-restart", UNIT]):
        try:
            subprocess.run(["/usr/bin/systemctl", *arguments], capture_output=True, timeout=_TIMEOUT, check=True)
        except (OSError, subprocess.SubprocessError):
            return False
    return True
