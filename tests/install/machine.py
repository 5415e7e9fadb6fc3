"""A test machine for installations: the machine of tests/services without the account and the folders of pam_totp.

Rule: the real `make install` and `make uninstall` run in the namespace of the machine, so the host is unchanged.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.services.namespace import ACCOUNTS, BRISK, STORE, Machine
from tests.services.terminal import Talk
from tests.support import etc
from tests.support.etc import PASSWORD
from tests.support.site import TREE, codes, until

COMMAND = "/usr/local/bin/pam-totp"
HELPER = "/usr/local/lib/pam_totp/pam_totp/pam/helper.py"
ENABLED = "/var/lib/pam_totp_enabled"
SOON = "--keep-within=1"  # seconds of a trial, for a test that waits for the end of the trial
LATE = "--keep-within=60"  # seconds of a trial, for a test that ends first
SSHD_CONFIG = """\
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
    """A machine on which pam_totp is not installed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.modules = self.shell("dirname $(ls /usr/lib/*/security/pam_permit.so /usr/lib64/security/pam_permit.so)")
        people = {name: uid for name, uid in ACCOUNTS.items() if name != "pam_totp"}
        etc.write_accounts(self.path("/etc"), people)
        self.shell("rm -rf /run/tree /run/pam_totp /var/lib/pam_totp /home/pam_totp")
        self.shell("ssh-keygen -q -t ed25519 -N '' -f /run/sshd/host_key")
        self.write("/etc/sudoers", "Defaults lecture=never\nroot ALL=(ALL:ALL) ALL\nalice ALL=(ALL:ALL) ALL\n", 0o440)
        self._sshd: subprocess.Popen[bytes] | None = None

    def reset(self) -> None:
        """Restore the state after `make install`, with one token for alice."""
        self.shell(f"rm -rf {ENABLED} {STORE}/* {STORE}/.stock /etc/pam_totp.toml /run/pam_totp /run/sudo")
        self._stacks()
        self.log.clear()
        self.enrol("alice")
        self.shell(f"chown pam_totp: {STORE} {STORE}/*")

    def _stacks(self) -> None:
        self.shell("rm -rf /etc/pam.d/.*pam_totp /etc/ssh/sshd_config.d; mkdir -p /etc/ssh/sshd_config.d")
        etc.write_stacks(self.path("/etc"))
        self.write("/etc/ssh/sshd_config", SSHD_CONFIG)

    def make(self, target: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run `make TARGET` in the source tree as root, with the variables `settings`. Return the completed process."""
        given = [f"{name}={value}" for name, value in settings.items()]
        return self.run("make", "--no-print-directory", "-C", str(TREE), target, *given)

    def installed(self, *words: str, user: str = "root", stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the installed pam-totp with the arguments `words`. Return the completed process."""
        return self.run(COMMAND, *words, user=user, stdin=stdin)

    def sudo(self, *words: str, user: str = "alice") -> Talk:
        """Run sudo on a new terminal, without the cached login of an earlier sudo. Return the dialogue."""
        return self.talk("sudo", "-k", *words, user=user)

    def enable(self, service: str, *options: str, user: str = "alice", code: str | None = None) -> Talk:
        """Run `pam-totp enable` on a terminal, and wait until the change is on trial. Return the dialogue."""
        talk = self.talk(COMMAND, "enable", service, "--for-user", user, *options)
        talk.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(code or codes(0))
        talk.asks("Keep this terminal open.")
        return talk

    def sshd(self) -> None:
        """Start the real sshd with the machine's configuration, on port 2222, unless sshd is running."""
        if self._sshd is None:
            self._sshd = self.start("/usr/sbin/sshd", "-D")
            until(self.path("/run/sshd.pid").exists, "sshd writes its pid file")

    @contextmanager
    def sshd_starts_anew(self) -> Iterator[None]:
        """Wait for sshd's restart after the block, because an earlier connection would get the old configuration."""
        path = self.path("/run/sshd.pid")
        before = path.stat().st_mtime_ns
        yield

        def is_new() -> bool:
            try:
                return path.stat().st_mtime_ns != before
            except FileNotFoundError:  # sshd removes the file before it writes the new file
                return False

        until(is_new, "sshd writes its pid file again")

    def ssh(self, remote: str, user: str = "alice", *options: str) -> Talk:
        """Run the real ssh with a remote terminal, and return the dialogue. ssh retries while sshd restarts."""
        given = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectionAttempts=20")
        words = [word for option in (BRISK, *given, *options) for word in ("-o", option)]
        return self.talk("ssh", "-F", "none", "-tt", *words, "-p", "2222", f"{user}@127.0.0.1", remote)

    def state(self, service: str) -> str | None:
        """Return the state of the trial file of `service`: "trial", "json" (enabled), "back" (roll-back), or None."""
        found = [p.suffix[1:] for p in self.path(ENABLED).glob(f"{service}.*")]
        return next((s for s in found if s in ("trial", "json", "back")), None)

    def pam_d(self) -> dict[str, str]:
        """Return the contents of the files in /etc/pam.d by name, including hidden files."""
        return {p.name: p.read_text() for p in self.path("/etc/pam.d").iterdir() if p.is_file()}

    def pid(self, *ending: str) -> int:
        """Return the pid of the only process of this machine whose command line ends with `ending`."""
        found = self.processes(*ending)
        assert len(found) == 1, found
        return found[0]

    def shell(self, text: str) -> str:
        done = self.run("sh", "-c", text)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()
