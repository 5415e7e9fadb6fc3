"""A virtual machine with Debian and systemd, and a root shell on each of two serial lines. The machine has no network.

Rule: debootstrap makes the system in `build/booted` once, and no later step changes it. Each machine gets a disk
with a copy of that system, and with this tree in /src.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

import pexpect
import pexpect.fdpexpect

from tests.support.site import TREE

SUITE = "bookworm"
SYSTEM = TREE / "build" / "booted" / SUITE
PACKAGES = (
    "dbus gcc initramfs-tools kmod libc6-dev libpam0g-dev linux-image-cloud-amd64 make openssh-client openssh-server "
    "pamtester procps python3 sudo systemd-sysv udev"
)
DISK = "3G"
MEMORY = "1G"
PASSWORD = "correct horse"  # the password of alice; the machine has no network
BOOT_WAIT = 400.0  # seconds: a machine without KVM is many times slower
WAIT = 120.0  # seconds
_PROMPT = "@{}> "
_LOGIN = """[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200 %I dumb
"""
# This script makes the bare system bootable. It runs in an overlay of the system.
_PREPARE = """
set -eu
useradd --create-home --shell /bin/bash --groups sudo alice
echo 'alice:{password}' | chpasswd
echo '/dev/vda / ext4 rw 0 1' > /etc/fstab
echo booted > /etc/hostname
echo '127.0.0.1 localhost booted' > /etc/hosts
echo 'auth required pam_totp.so nodelay' > /etc/pam.d/demo
systemctl --quiet enable serial-getty@ttyS0 serial-getty@ttyS1 ssh
"""


def make_system() -> None:
    """Make the bare system if it does not exist. This takes minutes, and requires access to Debian's archive."""
    made = SYSTEM / "made"
    if made.exists():
        return
    subprocess.run(["rm", "-rf", SYSTEM], check=True)
    SYSTEM.mkdir(parents=True)
    packages = ",".join(PACKAGES.split())
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={packages}", SUITE, SYSTEM], check=True)
    made.touch()


def make_disk(disk: Path, packages: Path | None = None) -> None:
    """Make a bootable disk that contains the bare system and a copy of this tree.

    `packages` is a folder of Debian packages to copy to /src/packages.
    """
    with tempfile.TemporaryDirectory(prefix="pam_totp-booted-") as folder:
        tree = shlex.quote(str(TREE))
        besides = f"cp -a {shlex.quote(str(packages))} root/src/packages" if packages is not None else ""
        script = f"""
            set -eu
            cd {shlex.quote(folder)}
            mount -t tmpfs private . && cd {shlex.quote(folder)}
            mkdir upper work root
            mount -t overlay -o lowerdir={shlex.quote(str(SYSTEM))},upperdir=upper,workdir=work private root
            mkdir root/src
            cp -a --no-preserve=ownership {tree}/Makefile {tree}/.ci {tree}/pam_totp {tree}/token_sim root/src
            {besides}
            for line in ttyS0 ttyS1; do
                mkdir -p root/etc/systemd/system/serial-getty@$line.service.d
                printf %s {shlex.quote(_LOGIN)} > root/etc/systemd/system/serial-getty@$line.service.d/login.conf
            done
            chroot root /bin/sh -c {shlex.quote(_PREPARE.format(password=PASSWORD))}
            truncate --size={DISK} {shlex.quote(str(disk))}
            mke2fs -q -t ext4 -d root {shlex.quote(str(disk))}
        """
        subprocess.run(["unshare", "--mount", "--propagation", "private", "sh", "-c", script], check=True)


class Booted:
    """A running virtual machine. `stop` cuts its power."""

    def __init__(self, disk: Path) -> None:
        kernel, initrd = (str(next(SYSTEM.glob(f"boot/{name}-*"))) for name in ("vmlinuz", "initrd.img"))
        words = "-accel tcg,thread=multi -cpu max -smp 2 -display none -nic none -no-reboot -serial stdio -serial pty"
        files = ["-m", MEMORY, "-kernel", kernel, "-initrd", initrd, "-drive", f"file={disk},format=raw,if=virtio"]
        line = ["-append", "console=ttyS0 root=/dev/vda rw quiet systemd.show_status=false"]
        first = pexpect.spawn("qemu-system-x86_64", [*words.split(), *files, *line], encoding="utf-8", timeout=WAIT)
        first.expect(r"redirected to (/dev/pts/\d+)")
        assert first.match is not None
        second = pexpect.fdpexpect.fdspawn(
            os.open(first.match[1], os.O_RDWR | os.O_NOCTTY), encoding="utf-8", timeout=WAIT
        )
        self._machine = first
        self.first, self.second = Shell(first, "1"), Shell(second, "2")

    def stop(self) -> None:
        """Kill the machine's process: a power cut for its system."""
        self._machine.close(force=True)
        self.second.terminal.close()


class Shell:
    """A root shell on a serial line of the virtual machine."""

    def __init__(self, terminal: pexpect.spawn[str] | pexpect.fdpexpect.fdspawn[str], name: str) -> None:
        self.terminal = terminal
        self.prompt = _PROMPT.format(name)
        if name != "1":
            terminal.sendline("")  # get a new prompt: the system printed the first prompt before this terminal was open
        terminal.expect_exact("root@booted:~# ", timeout=BOOT_WAIT)
        terminal.sendline(f"stty -echo cols 500; cd /src; PS1='@''{name}> '; PS2=")
        self.asks(self.prompt)

    def asks(self, prompt: str) -> str:
        """Wait for a prompt. Return the output before it."""
        came = self.terminal.expect_exact([prompt, pexpect.TIMEOUT, pexpect.EOF]) == 0
        before = str(self.terminal.before or "").replace("\r", "")
        assert came, f"expected {prompt!r}, got {before!r}"
        return before

    def types(self, line: str) -> Shell:
        self.terminal.sendline(line)
        return self

    def tries(self, command: str) -> tuple[int, str]:
        """Run a command. Return its exit status and its output."""
        said = self.types(f"{command}; echo =$?=").asks(self.prompt)
        text, _, status = said.rstrip().removesuffix("=").rpartition("=")
        assert re.fullmatch(r"\d+", status), said
        return int(status), text

    def does(self, command: str) -> str:
        """Run a command that must succeed. Return its output."""
        status, said = self.tries(command)
        assert status == 0, f"{command}: {said}"
        return said
