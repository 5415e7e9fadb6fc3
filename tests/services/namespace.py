"""A test machine for the real services: it runs the host's programs with a private root folder and network.

Rules:
- The host is unchanged: /usr is an overlay, and /etc, /var, /run, /home, /tmp and /dev are new. These mounts end with
  the namespace. The only network interface is a new loopback, on which every port is free.
- The host's settings are hidden: tests/support/etc.py writes /etc, /usr/local is empty, and an installed pam_totp is
  removed.
- The real sshd, sudo, su, libpam, relay and helper run. They log to a socket that the test reads.
- Every process of the machine ends with the test run, even if the test run is killed.

    machine = Machine(folder)
    machine.stack("sudo", machine.module_line())
    machine.enrol("alice")
    talk = machine.talk("sudo", "id", user="alice"); talk.asks("One-time code: "); talk.says(codes(0))
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pexpect

from pam_totp.core.record import HotpToken, Token, UserRecord
from pam_totp.core.secretfile import parse, serialize
from pam_totp.core.slots import decode, new_file, slot_size
from pam_totp.store.decoys import FOLDER as DECOYS
from pam_totp.store.file import LOCK
from tests.services.terminal import Syslog, Talk
from tests.support import etc
from tests.support.site import PATIENCE, TREE, fob, make_decoys, until

ACCOUNTS = {"pam_totp": 54000, "alice": 54001, "bob": 54002, "carol": 54003}
STORE = "/var/lib/pam_totp"
# Paths of the machine that every account can read: the package with the relay, and the libraries of .venv.
COPY, LIBRARIES = "/run/tree", "/run/libraries"
RELAY = f"{COPY}/pam_totp.so"
HELPER = f"{COPY}/pam_totp/pam/helper.py"
SOCKET = "/run/pam_totp/socket"
BRISK = "KexAlgorithms=curve25519-sha256"  # ssh's default takes 60 ms of processor time for each connection

# The shell script that creates the root folder. Arguments: an empty folder, this tree, the folder of the libraries.
_MAKE = r"""
set -eu
mount -t tmpfs -o mode=0755 private "$1"
mkdir "$1/root" "$1/usr" "$1/usr-work"
mount -t tmpfs -o mode=0755 private "$1/root"
cd "$1/root"
mkdir -p dev/pts dev/shm etc home media mnt opt proc root run/sshd srv sys tmp usr var/lib/nginx var/log var/tmp
chmod 0700 root
chmod 1777 tmp var/tmp dev/shm
ln -s ../run var/run

mount -t overlay -o "lowerdir=/usr,upperdir=$1/usr,workdir=$1/usr-work" private usr
mount -t tmpfs -o mode=0755 private usr/local
rm -rf usr/lib/pam_totp* usr/lib/systemd/system/pam_totp* usr/lib/*/security/pam_totp.so usr/bin/pam-totp
for place in /bin /sbin /lib*; do
    if [ -L "$place" ]; then
        cp -P "$place" .
    elif [ -d "$place" ]; then
        mkdir ".$place"
        mount --bind "$place" ".$place"
        mount -o remount,bind,ro ".$place"
    fi
done
# Copy the files of /etc that programs in /usr need. These files contain paths, and no settings of the host.
for file in alternatives ld.so.cache ld.so.conf ld.so.conf.d nginx/mime.types ssl/openssl.cnf; do
    [ ! -e "/etc/$file" ] || (cd /etc && cp -a --parents "$file" "$1/root/etc")
done
mkdir var/lib/dpkg
[ ! -d /var/lib/dpkg ] || { mount --bind /var/lib/dpkg var/lib/dpkg; mount -o remount,bind,ro var/lib/dpkg; }

mount --rbind /proc proc
mount --rbind /sys sys
for node in null zero full random urandom tty; do
    touch "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mount --bind /dev/pts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd

mkdir -p ".$2" run/tree run/libraries
mount --bind "$2" ".$2"
mount --bind "$3" run/libraries
cp -a "$2/pam_totp" "$2/build/pam_totp.so" run/tree/
chown -R 0:0 run/tree
chmod -R u=rwX,go=rX run/tree
/usr/bin/python3 - <<'END'
import fcntl, socket, struct
SIOCSIFFLAGS, SIOCSIFADDR, IFF_UP = 0x8914, 0x8916, 1
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
for number in (7, 8):  # 192.0.2.7 and 192.0.2.8, as addresses of clients that are not loopback
    address = struct.pack("16sHH4B8x", b"lo:%d" % number, socket.AF_INET, 0, 192, 0, 2, number)
    fcntl.ioctl(socket.socket(), SIOCSIFADDR, address)
END
exec chroot . sh -c 'echo ready; exec cat'
"""


class Machine:
    """A machine in a separate namespace. `folder` must be empty. Call `stop` at the end.

    The test run is already isolated (tests/support/isolation.py): its mounts are not visible on the host.
    """

    def __init__(self, folder: Path) -> None:
        unshare = ["unshare", "--mount", "--net", "--propagation", "unchanged"]
        self._holder = subprocess.Popen(
            [*unshare, "sh", "-c", _MAKE, "sh", folder, TREE, sysconfig.get_path("purelib")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n", "the namespace has been created"
        self.root = Path(f"/proc/{self._holder.pid}/root")
        self._started: list[subprocess.Popen[bytes]] = []
        self._service: subprocess.Popen[bytes] | None = None
        self._talks: list[Talk] = []
        self.log = Syslog(self.path("/dev/log"))
        self._furnish()
        self.path(STORE).mkdir(mode=0o700)
        self.make_decoys()
        self.path("/run/pam_totp").mkdir()
        self.own("/run/pam_totp", "pam_totp")

    def stop(self) -> None:
        for process in self._started:
            process.terminate()
        for process in self._started:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(PATIENCE)
        self.log.close()
        for pid in set(self.processes()) - {self._holder.pid}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # SIGTERM would not end a helper that its caller has stopped
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.wait(PATIENCE)

    # Files

    def path(self, path: str) -> Path:
        """Return the path by which this process reaches `path` on the machine."""
        return self.root / path.lstrip("/")

    def write(self, path: str, text: str | bytes, mode: int = 0o644) -> None:
        file = self.path(path)
        file.unlink(missing_ok=True)
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        file.chmod(mode)

    def own(self, path: str, account: str) -> None:
        uid = ACCOUNTS.get(account, 0)
        os.chown(self.path(path), uid, uid, follow_symlinks=False)

    def _furnish(self) -> None:
        folder = self.path("/etc")
        etc.write_accounts(folder, ACCOUNTS)
        etc.write_stacks(folder)
        etc.write_system(folder)
        self.write("/etc/sudoers", "Defaults lecture=never, timestamp_timeout=0\nalice ALL=(ALL:ALL) ALL\n", 0o440)
        for name in ACCOUNTS:
            self.path(f"/home/{name}").mkdir(mode=0o755)
            self.own(f"/home/{name}", name)

    # PAM services, records

    def module_line(self, arguments: str = "", control: str = "required", way: str = "spawn") -> str:
        """Return the stack line that calls this relay. `way` is `spawn` for a helper, or `socket` for the service."""
        where = SOCKET if way == "socket" else "none"
        return f"auth {control} {RELAY} socket={where} helper={HELPER} nodelay {arguments}".rstrip()

    def stack(self, service: str, *auth: str) -> None:
        """Write the file of `service`: the lines `auth`, and the account and session lines that a login needs."""
        rest = ("account required pam_permit.so", "session required pam_permit.so")
        self.write(f"/etc/pam.d/{service}", "".join(f"{line}\n" for line in (*auth, *rest)))

    def enrol(self, user: str, *tokens: Token, **fields: Any) -> None:
        """Write the record of `user`, by default with one HOTP token that has the key of RFC 4226."""
        self.put(f"{STORE}/{user}.record", "pam_totp", UserRecord(user=user, tokens=tokens or (fob(),), **fields))

    def put(self, path: str, owner: str, record: UserRecord) -> None:
        self.write(path, new_file(serialize(record), slot_size(record)), 0o600)
        self.own(path, owner)

    def record(self, user: str, path: str | None = None) -> UserRecord:
        return parse(decode(self.path(path or f"{STORE}/{user}.record").read_bytes()).document)

    def counter(self, user: str, path: str | None = None) -> int:
        token = self.record(user, path).tokens[0]
        assert isinstance(token, HotpToken)
        return token.counter

    def make_decoys(self) -> None:
        """Create the lock file and the decoys of the store, and set the owner of the store."""
        make_decoys(self.path(STORE))
        for path in (self.path(STORE), *self.path(STORE).rglob("*")):
            os.chown(path, ACCOUNTS["pam_totp"], ACCOUNTS["pam_totp"])

    def reset(self) -> None:
        """Delete all records, all log lines and the site file."""
        for file in self.path(STORE).iterdir():
            if file.is_dir() and file.name != DECOYS:
                shutil.rmtree(file)
            elif file.name not in (LOCK, DECOYS):
                file.unlink()
        self.path("/etc/pam_totp.toml").unlink(missing_ok=True)
        self.log.clear()

    # Processes

    def command(self, *words: str, user: str = "root") -> list[str]:
        """Return the command that runs `words` on the machine as `user`."""
        spaces = [f"--{kind}={self.root.parent}/ns/{name}" for kind, name in (("mount", "mnt"), ("net", "net"))]
        enter = ["nsenter", *spaces, f"--root={self.root}", f"--wd={self.root}", "--"]
        if user == "root":
            return [*enter, *words]
        uid = str(ACCOUNTS[user])
        return [*enter, "setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", *words]

    @staticmethod
    def environment(user: str = "root") -> dict[str, str]:
        home = "/root" if user == "root" else f"/home/{user}"
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "TERM": "dumb", "HOME": home}

    def run(self, *words: str, user: str = "root", stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run the command `words` without a terminal, and wait for its end. Return the completed process."""
        return subprocess.run(
            self.command(*words, user=user),
            env=self.environment(user),
            cwd="/",
            input=stdin,
            text=True,
            errors="surrogateescape",
            capture_output=True,
            check=False,
            timeout=3 * PATIENCE,
            start_new_session=True,
        )

    def pam_totp(self, *words: str, user: str = "root", stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run pam-totp with the arguments `words`, and wait for its end. Return the completed process."""
        python = ["env", f"PYTHONPATH={COPY}", "PYTHONDONTWRITEBYTECODE=1", "/usr/bin/python3", "-m", "pam_totp.cli"]
        return self.run(*python, *words, user=user, stdin=stdin)

    def start(self, *words: str, user: str = "root") -> subprocess.Popen[bytes]:
        """Start the command `words`, and return the process. `stop`, or the end of this process, ends the command."""
        process = subprocess.Popen(
            self.command("setpriv", "--pdeathsig", "KILL", *words, user=user), env=self.environment(user), cwd="/"
        )
        self._started.append(process)
        return process

    def serve(self) -> int:
        """Start the service under its own account, unless the service is running. Return the pid of the service."""
        if self._service is None:
            python = ["env", f"PYTHONPATH={COPY}", "/usr/bin/python3", "-m", "pam_totp.cli"]
            self._service = self.start(*python, "serve", "--socket", SOCKET, user="pam_totp")
            until(self.path(SOCKET).exists, "the service creates its socket")
        return self._service.pid

    def stop_serving(self) -> None:
        """Stop the service with SIGTERM, as systemd does."""
        if self._service is not None:
            self._service.terminate()
            self._service.wait(PATIENCE)
            self._service = None

    def talk(self, *words: str, user: str = "root", echo: bool = False) -> Talk:
        """Run `words` on a terminal, and return the dialogue. The terminal initially echoes input if `echo` is true."""
        program, *arguments = self.command(*words, user=user)
        talk = Talk(
            pexpect.spawn(
                program,
                arguments,
                env=self.environment(user),
                cwd="/",
                timeout=PATIENCE,
                echo=echo,
                dimensions=(24, 1000),  # lines and columns: long input does not wrap
            )
        )
        self._talks.append(talk)
        return talk

    def processes(self, *ending: str) -> list[int]:
        """Return the pids of this machine's processes whose command lines end with `ending`."""
        here = os.readlink(self.root.parent / "ns/mnt")
        return [int(p.name) for p in Path("/proc").glob("[0-9]*") if _runs(p, here, ending)]

    def hang_up(self) -> None:
        """Close the terminals of all dialogues. The hang-up ends programs that still wait for input."""
        for talk in self._talks:
            talk.hangs_up()
        self._talks.clear()


def _runs(process: Path, namespace: str, ending: tuple[str, ...]) -> bool:
    try:
        words = (process / "cmdline").read_text().split("\0")[:-1]
        return os.readlink(process / "ns/mnt") == namespace and (not ending or tuple(words[-len(ending) :]) == ending)
    except OSError:  # the process has ended
        return False


class Sshd:
    """An sshd with a port for each login method."""

    KEYBOARD, KEY_THEN_KEYBOARD, PASSWORD = 2201, 2202, 2203  # ports
    _CONFIG = f"""
Port {KEYBOARD}
Port {KEY_THEN_KEYBOARD}
Port {PASSWORD}
ListenAddress 127.0.0.1
HostKey /run/sshd/host_key
PidFile none
UsePAM yes
KbdInteractiveAuthentication yes
PasswordAuthentication no
PubkeyAuthentication no
PermitRootLogin no
AuthorizedKeysFile /run/sshd/alice_key.pub
StrictModes no
PrintMotd no
PrintLastLog no
MaxStartups 100
Match LocalPort {KEY_THEN_KEYBOARD}
    PubkeyAuthentication yes
    AuthenticationMethods publickey,keyboard-interactive
Match LocalPort {PASSWORD}
    PasswordAuthentication yes
    KbdInteractiveAuthentication no
"""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        for key in ("host_key", "alice_key"):
            made = machine.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"/run/sshd/{key}")
            assert made.returncode == 0, made.stderr
        machine.write("/run/sshd/config", self._CONFIG)
        # OpenSSH 9.8 and later would block this client after some failures. Earlier versions reject the keyword.
        no_penalties = ("-o", "PerSourcePenalties=no")
        is_valid = machine.run("/usr/sbin/sshd", "-t", "-f", "/run/sshd/config", *no_penalties).returncode == 0
        machine.start("/usr/sbin/sshd", "-D", "-f", "/run/sshd/config", *(no_penalties if is_valid else ()))
        machine.log.wait_for("Server listening", str(self.PASSWORD))

    def ssh(
        self,
        user: str = "alice",
        *options: str,
        port: int = KEYBOARD,
        source: str = "127.0.0.1",
        echo: bool = False,
        is_interactive: bool = False,
        environment: Sequence[str] = (),
    ) -> Talk:
        """Run the real ssh from the address `source`, and return the dialogue. `options` are those of ssh_config(5).

        The remote command prints `in as USER` after the login. A shell starts instead if `is_interactive` is true.
        `environment` has variables of ssh, as NAME=VALUE.
        """
        given: Sequence[str] = (
            *options,  # ssh takes the first value of an option
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            BRISK,
            "LogLevel=INFO",  # at a lower level, ssh hides the messages that sshd sends with a prompt
            f"BindAddress={source}",
            "IdentityFile=/run/sshd/alice_key",
            "IdentitiesOnly=yes",
        )
        words = [word for option in given for word in ("-o", option)]
        remote = () if is_interactive else ("echo in as $(id -un)",)
        program = ("env", *environment, "ssh") if environment else ("ssh",)
        command = (*program, "-F", "none", *words, "-p", str(port), f"{user}@127.0.0.1", *remote)
        return self._machine.talk(*command, echo=echo)
