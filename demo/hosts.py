"""Hosts for the demo of a fleet: namespaces of this machine, each with its own files, processes, name and network.

Rules:
- The hosts do not change the machine. Each host has a new /etc, /var, /run, /home and /tmp on a tmpfs. The /usr of a
  host is an overlay of the machine's /usr, with an installed pam_totp.
- A router in a separate namespace connects all hosts. No host reaches another network. `cut` drops the packets
  between two hosts, in both directions.
- Process 1 of a host ends with this process, even if this process is killed. The kernel then kills all other processes
  of the host, and removes its mounts and networks.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
GATEWAY = "192.0.2.1"  # the router's address, on each of its links (RFC 5737: addresses for documentation)
# The namespaces of a host: the option of unshare(1) and nsenter(1), and the name in /proc/PID/ns.
_SPACES = {"--mount": "mnt", "--uts": "uts", "--ipc": "ipc", "--net": "net", "--pid": "pid"}
_DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")

LOG = "/var/log/auth.log"
# Process 1 of a host. It reaps processes, writes the messages of /dev/log to LOG, and exits at the end of its standard
# input.
_INIT = f"""
exec /usr/bin/python3 -I -S -c '
import os, select, signal, socket, sys

def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

signal.signal(signal.SIGCHLD, reap)
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("/dev/log")
os.chmod("/dev/log", 0o666)
with open("{LOG}", "ab", 0) as file:
    print("ready", flush=True)
    while sys.stdin not in (ready := select.select([sys.stdin, log], [], [])[0]):
        file.write(log.recv(65536).partition(b">")[2].rstrip(bytes(1)) + b"\\n")
'
"""
# The arguments: an empty folder, the folder with the installation, the name of the host, and the script of process 1.
_MAKE = r"""
set -eu
mount -t tmpfs -o mode=0755 private "$1"
mkdir "$1/root" "$1/usr" "$1/usr-work"
cd "$1/root"
mkdir -p dev/pts dev/shm etc home mnt proc root run srv sys tmp usr var/lib var/log var/tmp
chmod 0700 root
chmod 1777 tmp var/tmp dev/shm
ln -s ../run var/run
ln -s /proc/self/mounts etc/mtab
mount -t overlay -o "lowerdir=$2/usr:/usr,upperdir=$1/usr,workdir=$1/usr-work" private usr
for place in /bin /sbin /lib*; do
    if [ -L "$place" ]; then
        cp -P "$place" .
    elif [ -d "$place" ]; then
        mkdir ".$place"
        mount --bind "$place" ".$place"
    fi
done
# Files without settings of the machine, which programs in /usr need.
for file in alternatives ld.so.cache ld.so.conf ld.so.conf.d ssl/openssl.cnf; do
    [ ! -e "/etc/$file" ] || (cd /etc && cp -a --parents "$file" "$1/root/etc")
done
mount -t proc proc proc
for node in null zero full random urandom tty; do
    touch "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
hostname "$3"
exec chroot . sh -c "$4"
"""


class HostError(Exception):
    """The error if this machine cannot create a host. The message contains the reason."""


class _Namespace:
    """New namespaces. Process 1 runs the shell script `script`, which prints `ready` and then waits."""

    def __init__(self, script: str, *arguments: str | Path) -> None:
        spaces = ["unshare", *_SPACES, "--fork", "--kill-child"]
        self._holder = subprocess.Popen(
            [*_DIES_WITH_PARENT, *spaces, "sh", "-c", script, "sh", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = 0  # the pid of process 1 in this process's namespace

    def wait(self) -> None:
        """Wait until process 1 is ready. Raise HostError if process 1 exits."""
        assert self._holder.stdout is not None
        assert self._holder.stderr is not None
        if self._holder.stdout.readline() != "ready\n":
            self._holder.kill()
            reason = self._holder.communicate()[1].strip().splitlines() or ["no reason"]
            raise HostError(reason[-1])
        self.pid = _child_of(self._holder.pid)

    def end(self) -> None:
        """Kill all processes, to simulate a power cut."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
        else:
            self._holder.kill()
        self._holder.communicate()

    @property
    def has_ended(self) -> bool:
        return self._holder.poll() is not None


class Network:
    """The router between all hosts."""

    def __init__(self) -> None:
        self._router = _Namespace("echo 1 >/proc/sys/net/ipv4/ip_forward && echo ready && exec cat")
        self._router.wait()
        self._numbers = itertools.count(1)
        self._cut: list[tuple[str, str]] = []

    def connect(self, pid: int, address: str) -> None:
        """Add a link with this address to the network namespace of process `pid`."""
        link = f"link{next(self._numbers)}"
        self._ip(
            f"link add {link} type veth peer name eth0 netns {pid}",
            f"addr add {GATEWAY}/32 dev {link}",
            f"link set {link} up",
            f"route add {address}/32 dev {link}",
        )
        _ip(
            pid,
            "link set lo up",
            f"addr add {address}/32 dev eth0",
            "link set eth0 up",
            f"route add {GATEWAY} dev eth0",
            f"route add default via {GATEWAY}",
        )

    def cut(self, host: Host, *others: Host) -> None:
        """Drop all packets between `host` and each of `others`, without a reply."""
        pairs = [pair for other in others for pair in _both_ways(host.address, other.address)]
        self._ip(*(f"rule add from {source} to {target} blackhole" for source, target in pairs))
        self._cut += pairs

    def heal(self) -> None:
        """End all cuts."""
        self._ip(*(f"rule del from {source} to {target} blackhole" for source, target in self._cut))
        self._cut.clear()

    def end(self) -> None:
        self._router.end()

    def _ip(self, *lines: str) -> None:
        _ip(self._router.pid, *lines)


class Host:
    """A host with this name and address. `folder` is empty, and `installation` has a pam_totp below /usr."""

    def __init__(self, name: str, address: str, folder: Path, installation: Path) -> None:
        self.name, self.address = name, address
        self._namespace = _Namespace(_MAKE, folder, installation, name, _INIT)

    def wait(self, network: Network) -> None:
        """Wait until the host is ready, and connect it."""
        self._namespace.wait()
        network.connect(self._namespace.pid, self.address)

    def end(self) -> None:
        """Cut the power of this host. Its files are lost."""
        if not self._namespace.has_ended:
            self._namespace.end()

    def path(self, path: str) -> Path:
        """Return the path by which this process reaches a path of the host."""
        return Path(f"/proc/{self._namespace.pid}/root") / path.lstrip("/")

    def write(self, path: str, text: str, mode: int = 0o644, owner: int = 0) -> None:
        """Write a file whose uid and gid are `owner`."""
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        os.chown(file, owner, owner)

    def command(self, *words: str) -> list[str]:
        """Return the command that runs `words` on the host, as root."""
        pid = self._namespace.pid
        spaces = [f"{option}=/proc/{pid}/ns/{name}" for option, name in _SPACES.items()]
        return ["nsenter", *spaces, f"--root=/proc/{pid}/root", f"--wd=/proc/{pid}/root", "--", *words]

    def run(
        self, *words: str, stdin: str = "", environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host, and return its result."""
        return subprocess.run(
            self.command(*words),
            env={**ENVIRONMENT, "HOME": "/root", **(environment or {})},
            cwd="/",
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
            start_new_session=True,
        )

    def start(self, *words: str) -> Process:
        """Start a command, whose output goes to the log of the host. Return the process."""
        with self.path(LOG).open("ab") as log:
            started = subprocess.Popen(
                self.command(*words),
                env={**ENVIRONMENT, "HOME": "/root"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return Process(started)

    def log(self, *words: str) -> list[str]:
        """Return the lines of the log that contain all `words`."""
        return [line for line in self.path(LOG).read_text().splitlines() if all(word in line for word in words)]


class Process:
    """A command that runs on a host."""

    def __init__(self, entered: subprocess.Popen[bytes]) -> None:
        self._entered = entered  # nsenter, whose only child is the command

    def kill(self) -> None:
        """Kill the command with SIGKILL."""
        os.kill(_child_of(self._entered.pid), signal.SIGKILL)
        self._entered.wait()

    @property
    def has_ended(self) -> bool:
        return self._entered.poll() is not None


def start_all(makers: list[Callable[[], Host]], network: Network, hosts: list[Host]) -> None:
    """Make all hosts, then wait for them. Add each host to `hosts` before the wait, so that the caller can stop it."""
    new = []
    for make in makers:
        new.append(make())
        hosts.append(new[-1])
    for host in new:
        host.wait(network)


def _both_ways(a: str, b: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (a, b), (b, a)


def _child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def _ip(pid: int, *lines: str) -> None:
    """Run commands of ip(8) in the network namespace of process `pid`."""
    enter = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"]
    done = subprocess.run(enter, input="\n".join(lines), text=True, capture_output=True, check=False)
    if done.returncode != 0:
        raise HostError(f"ip: {done.stderr.strip().splitlines()[0]}")
