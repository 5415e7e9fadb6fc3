"""A virtual machine with Debian and systemd, and a root shell on each of two serial lines. The machine has no network.

Rules:
- debootstrap creates each system in `build/booted` once, and no later step changes the system. Each machine gets a
  disk with a copy of its system, and with this tree in /src.
- A test waits for a prompt, or for the end of the machine. The wait exceeds LIMIT only if the machine hangs.
"""

from __future__ import annotations

import mmap
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pexpect.fdpexpect
import pytest

from tests.support import site
from tests.support.site import TREE

only_booted = [
    pytest.mark.skipif("PAM_TOTP_BOOTED" not in os.environ, reason="only 'make booted' boots virtual machines"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the virtual machine needs an x86_64 host"),
    pytest.mark.skipif(os.geteuid() != 0, reason="requires root for debootstrap"),
    pytest.mark.timeout(3600),  # the first test creates the bare system, and boots a machine
]
SUITE = "bookworm"
FOLDER = TREE / "build" / "booted"
_PACKAGES = (
    "dbus gcc initramfs-tools kmod libc6-dev libpam0g-dev libtss2-esys-3.0.2-0 libtss2-rc0 libtss2-tcti-device0 "
    "linux-image-cloud-amd64 make openssh-client openssh-server pamtester procps python3 python3-cffi-backend "
    "python3-cryptography python3-flask python3-flask-babel python3-flaskext.wtf python3-pampy python3-six "
    "python3-waitress sudo systemd-sysv udev"
)
DISK = "3G"
MEMORY = "1G"
PASSWORD = "correct horse"  # the password of alice; the machine has no network
LIMIT = 900.0  # seconds: a machine without KVM is many times slower, and the host can be busy
SHORT = 60.0  # seconds: the limit of a step on this host
_PROMPT = "@{}> "
_LOGIN = """[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200 %I dumb
"""
# This script runs in an overlay of the bare system, and makes the system bootable.
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


@dataclass(frozen=True, slots=True)
class System:
    """A bare system with the common packages, and with `packages` (names with spaces between them)."""

    name: str
    packages: str = ""

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    def make(self) -> None:
        """Create the system if it is missing. The creation takes minutes, and requires access to Debian's archive."""
        names = f"{_PACKAGES} {self.packages}".split()
        made = self.folder / "made"
        if made.exists() and made.read_text().split() == names:
            return
        subprocess.run(["rm", "-rf", self.folder], check=True)
        archives = FOLDER / "archives"
        for folder in (self.folder, archives):
            folder.mkdir(parents=True, exist_ok=True)
        options = ["--variant=minbase", f"--cache-dir={archives}", f"--include={','.join(names)}"]
        subprocess.run(["debootstrap", *options, SUITE, self.folder], check=True)
        made.write_text(" ".join(names))


BARE = System(SUITE)


def make_disk(disk: Path, packages: Path | None = None, system: System = BARE) -> None:
    """Create a bootable disk with a system and a copy of this tree. First create the system if it is missing.

    `packages` is a folder of Debian packages and programs to copy to /src/packages.
    """
    system.make()
    with tempfile.TemporaryDirectory(prefix="pam_totp-booted-") as folder:
        tree = shlex.quote(str(TREE))
        besides = f"cp -a {shlex.quote(str(packages))} root/src/packages" if packages is not None else ""
        script = f"""
            set -eu
            cd {shlex.quote(folder)}
            mount -t tmpfs private . && cd {shlex.quote(folder)}
            mkdir upper work root
            mount -t overlay -o lowerdir={shlex.quote(str(system.folder))},upperdir=upper,workdir=work private root
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
    """A running virtual machine. `stop` cuts the power. `tpm` is the folder of a TPM2's state."""

    def __init__(self, disk: Path, tpm: Path | None = None, system: System = BARE) -> None:
        kernel, initrd = (str(next(system.folder.glob(f"boot/{name}-*"))) for name in ("vmlinuz", "initrd.img"))
        words = "-accel tcg,thread=multi -cpu max -smp 2 -display none -nic none -no-reboot -serial stdio -serial pty"
        files = ["-m", MEMORY, "-kernel", kernel, "-initrd", initrd, "-drive", f"file={disk},format=raw,if=virtio"]
        line = ["-append", "console=ttyS0 root=/dev/vda rw quiet systemd.show_status=false"]
        self._tpm = None if tpm is None else _Tpm(tpm)
        device = () if self._tpm is None else self._tpm.options
        first = pexpect.spawn(
            "qemu-system-x86_64", [*words.split(), *files, *line, *device], encoding="utf-8", timeout=LIMIT
        )
        first.expect(r"redirected to (/dev/pts/\d+)")
        assert first.match is not None
        second = pexpect.fdpexpect.fdspawn(
            os.open(first.match[1], os.O_RDWR | os.O_NOCTTY), encoding="utf-8", timeout=LIMIT
        )
        self._machine = first
        self.first, self.second = Shell(first, "1"), Shell(second, "2")

    def shuts_down(self) -> None:
        """Let systemd stop all units, unmount the disk, and turn the machine off."""
        self.first.types("systemctl poweroff")
        self._machine.expect(pexpect.EOF)
        self.stop()

    def stop(self) -> None:
        """Kill the machine's process, to simulate a power cut."""
        self._machine.close(force=True)
        self.second.terminal.close()
        if self._tpm is not None:
            self._tpm.stop()


class _Tpm:
    """A TPM2 in a process of swtpm, which exits with the machine. `options` are qemu's options for the TPM2."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        channel = folder / "channel"
        channel.unlink(missing_ok=True)
        words = ["swtpm", "socket", "--tpm2", "--terminate", "--tpmstate", f"dir={folder}"]
        self._process = subprocess.Popen([*words, "--ctrl", f"type=unixio,path={channel}"])
        site.until(channel.exists, "swtpm creates its socket", SHORT)
        device = "-tpmdev emulator,id=tpm0,chardev=tpm -device tpm-tis,tpmdev=tpm0"
        self.options = ["-chardev", f"socket,id=tpm,path={channel}", *device.split()]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(SHORT)


class Shell:
    """A root shell on a serial line of the virtual machine."""

    def __init__(self, terminal: pexpect.spawn[str] | pexpect.fdpexpect.fdspawn[str], name: str) -> None:
        self.terminal = terminal
        self.prompt = _PROMPT.format(name)
        if name != "1":
            terminal.sendline("")  # get a new prompt: the system printed the first prompt before this terminal was open
        self.asks("root@booted:~# ")
        # bash would write its history, which can contain keys, to the disk.
        terminal.sendline(f"unset HISTFILE; stty -echo cols 500; cd /src; PS1='@''{name}> '; PS2=")
        self.asks(self.prompt)

    def asks(self, prompt: str) -> str:
        """Wait for `prompt`. Return the output before the prompt."""
        came = self.terminal.expect_exact([prompt, pexpect.TIMEOUT, pexpect.EOF]) == 0
        before = str(self.terminal.before or "").replace("\r", "")
        assert came, f"expected {prompt!r}, got {before!r}"
        return before

    def types(self, line: str) -> Shell:
        self.terminal.sendline(line)
        return self

    def tries(self, command: str) -> tuple[int, str]:
        """Run `command`. Return its exit status and its output."""
        said = self.types(f"{command}; echo =$?=").asks(self.prompt)
        text, _, status = said.rstrip().removesuffix("=").rpartition("=")
        assert re.fullmatch(r"\d+", status), said
        return int(status), text

    def does(self, command: str) -> str:
        """Run `command`, which must succeed. Return its output."""
        status, said = self.tries(command)
        assert status == 0, f"{command}: {said}"
        return said


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition`, which runs commands on the machine, is true."""
    site.until(condition, what, LIMIT)


def contains(disk: Path, content: bytes) -> bool:
    """Return True if any part of the disk contains `content`."""
    with disk.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return mapped.find(content) >= 0
