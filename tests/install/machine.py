"""A machine to install on: the one of the real services, with /usr/local and the folder of PAM modules for us to write.

The law: `make install` and `make uninstall` are the real ones, run in the namespace; nothing of the host changes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.services.namespace import Machine, Talk
from tests.site import TREE

ENABLED = "/var/lib/pam_totp_enabled"
KEEP_WITHIN = 2  # seconds, where a test waits for the end of a trial
# Debian's own stacks, so that no test depends on what this host has made of its own
_COMMON_AUTH = """\
auth	[success=1 default=ignore]	pam_unix.so nullok
auth	requisite			pam_deny.so
auth	required			pam_permit.so
"""
_STACKS = {
    "common-auth": _COMMON_AUTH,
    "common-account": "account required pam_unix.so\n",
    "common-session": "session required pam_permit.so\n",
    "sudo": "#%PAM-1.0\n\n# limits\nsession    required   pam_limits.so\n\n@include common-auth\n@include common-account\n"
    "@include common-session\n",
    "sudo-i": "#%PAM-1.0\n\n@include common-auth\n@include common-account\n@include common-session\n",
    "su": "auth       sufficient pam_rootok.so\n@include common-auth\n@include common-account\n@include common-session\n",
    "su-l": "#%PAM-1.0\nauth		include		su\naccount		include		su\nsession		include		su\n",
    "sshd": "@include common-auth\naccount    required     pam_nologin.so\n@include common-account\n"
    "@include common-session\n",
    "other": "auth required pam_deny.so\naccount required pam_deny.so\n",
}
_SSHD_CONFIG = """\
Include /etc/ssh/sshd_config.d/*.conf
Port 2222
ListenAddress 127.0.0.1
HostKey /run/sshd/host_key
PidFile /run/sshd.pid
KbdInteractiveAuthentication no
PasswordAuthentication yes
UsePAM yes
StrictModes no
PrintMotd no
PrintLastLog no
"""


class Fresh(Machine):
    """A machine on which nothing of ours is installed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.modules = self._shell("dirname $(ls /usr/lib/*/security/pam_permit.so /usr/lib64/security/pam_permit.so)")
        for name, place in (("local", "/usr/local"), ("security", self.modules)):
            upper = f"{folder}/{name}"
            self._shell(f"mkdir {upper} {upper}-work")
            self._shell(f"mount -t overlay -o lowerdir={place},upperdir={upper},workdir={upper}-work private {place}")
        # Not userdel, which looks at the host's processes.
        self._shell(
            "sed -i /^pam_totp:/d /etc/passwd /etc/group /etc/shadow; rmdir /var/lib/pam_totp /run/pam_totp; rm -rf /run/tree"
        )
        # A ptmx that is bound by itself finds no pts beside it, and sshd could give nobody a terminal.
        self._shell(
            f"if ! [ -L /dev/ptmx ]; then umount /dev/ptmx {folder}/dev/ptmx; rm /dev/ptmx; ln -s pts/ptmx /dev/ptmx; fi"
        )
        for service, text in _STACKS.items():
            self.write(f"/etc/pam.d/{service}", text)
        self._shell("rm -rf /etc/ssh/sshd_config.d; mkdir -p /etc/ssh/sshd_config.d")
        self._shell("ssh-keygen -q -t ed25519 -N '' -f /run/sshd/host_key")
        self.write("/etc/ssh/sshd_config", _SSHD_CONFIG)
        self.write("/etc/sudoers", "Defaults lecture=never\nalice ALL=(ALL:ALL) ALL\n", 0o440)

    def make(self, target: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """`make install` or `make uninstall`, as root."""
        given = [f"{name}={value}" for name, value in settings.items()]
        return self.run("make", "--no-print-directory", "-C", str(TREE), target, *given)

    def ours_says(self, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """The installed command, as root."""
        return self.run("/usr/local/bin/pam-totp", *words, stdin=stdin)

    def sudo(self, *words: str, user: str = "alice") -> Talk:
        """sudo on a terminal of its own, without the ticket of an earlier one."""
        return self.talk("sudo", "-k", *words, user=user)

    def state(self, service: str) -> str | None:
        """What has become of `enable`: trial, json, back, or None."""
        folder = self.path(ENABLED)
        found = [p.suffix[1:] for p in folder.glob(f"{service}.*") if p.suffix in (".trial", ".json", ".back")]
        return found[0] if found else None

    def pam_d(self) -> dict[str, str]:
        """All files in /etc/pam.d, hidden ones too."""
        return {p.name: p.read_text() for p in self.path("/etc/pam.d").iterdir() if p.is_file()}

    def _shell(self, text: str) -> str:
        done = self.run("sh", "-c", text)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()
