"""Bare roots of Debian 12, Debian 13 and Ubuntu 24.04, and commands in them.

Bare roots require the account root, debootstrap, and access to the archives.

Rules:
- `base` and `Root` build a base root once, under a lock, in a temporary folder, and then rename the folder to
  `build/systems/NAME`. The root contains an upgraded minimal system (minbase) with git, make and python3, and no
  package lists.
- A complete base root does not change: a `Root` is an overlay on top of it, in a scratch folder. `Root` removes that
  folder at its end.
- Process 1 of a root enters the root by pivot_root in new namespaces: mount, pid, ipc and uts. The root has its own
  /proc, /sys, /dev, /run and /tmp. A chroot is not enough, because `nsenter --mount` would enter the host's root.
- Process 1 of a root ends when this process ends, even if this process is killed. The kernel then kills all other
  processes of the root, and removes the mounts with the namespace.
- The mirror comes from apt's settings on this machine, or from SYSTEMS_DEBIAN_MIRROR and similar variables.

    with Root(SYSTEMS["trixie"]) as root:
        root.add_account("alice")
        root.run("apt-get", "update", check=True)
        root.run("id", user="alice").stdout
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from tests.systems import host

TREE = Path(__file__).resolve().parent.parent.parent
FOLDER = TREE / "build" / "systems"
FRESH = ("git", "make", "python3")  # the packages that the README requires
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TREE_IN_ROOT = "/srv/pam_totp.git"
Word = str | Path


class System(NamedTuple):
    """A system that the README names."""

    name: str  # the name of the suite in the archive, and of the folder in build/systems
    title: str
    origin: str  # the field Origin of the archive's Release file
    components: str
    keyring: str  # path of the archive's keys, in the root and in the system that runs debootstrap
    made_in: str | None = None  # the system that runs debootstrap; None: this machine
    needs: tuple[str, ...] = ()  # packages that debootstrap needs in `made_in`


SYSTEMS = {
    system.name: system
    for system in (
        System("bookworm", "Debian 12", "Debian", "main", "/usr/share/keyrings/debian-archive-keyring.gpg"),
        System("trixie", "Debian 13", "Debian", "main", "/usr/share/keyrings/debian-archive-keyring.gpg"),
        System(
            "noble",
            "Ubuntu 24.04",
            "Ubuntu",
            "main,universe",
            "/usr/share/keyrings/ubuntu-archive-keyring.gpg",
            # Debian 12 lacks Ubuntu's keyring, and its debootstrap lacks the suite noble.
            made_in="trixie",
            needs=("debootstrap", "ubuntu-keyring"),
        ),
    )
}


class Network(enum.Enum):
    """The networks that a root can reach."""

    ALL = "all"  # the network of this machine
    ARCHIVE = "archive"  # only the distribution's archives
    NONE = "none"  # only the root's own loopback interface


class Unusable(Exception):
    """The error if this machine cannot create or enter a root. The message contains the reason and the remedy."""


# Base roots


def base(system: System, say: Callable[[str], None] = print) -> Path:
    """Return the folder of the system's base root. Build the root if it is missing, or if its recipe has changed."""
    require_namespaces()
    with _held(system, say) as folder:
        return folder


@contextlib.contextmanager
def _held(system: System, say: Callable[[str], None]) -> Iterator[Path]:
    """Yield the base root, under a lock that prevents its removal by other processes."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    place, lock, wanted = FOLDER / system.name, FOLDER / f".{system.name}.lock", _recipe(system)
    while True:
        with _locked(lock, fcntl.LOCK_SH):
            if _is_made_by(place, wanted):
                yield place / "root"
                return
        with _locked(lock):
            if not _is_made_by(place, wanted):
                _make_whole(system, place, say)


def _make_whole(system: System, place: Path, say: Callable[[str], None]) -> None:
    """Build a base root in a temporary folder, and rename the folder when the root is complete."""
    making = FOLDER / f".{system.name}.making"
    _remove(making)
    _remove(place)
    making.mkdir()
    try:
        _make(system, making / "root", say)
        (making / "recipe.json").write_text(json.dumps(_recipe(system), indent=1) + "\n")
        making.rename(place)
    finally:
        _remove(making)


def remove_base(system: System) -> None:
    """Remove the base root of `system`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with _locked(FOLDER / f".{system.name}.lock"):
        _remove(FOLDER / system.name)


def _recipe(system: System) -> dict[str, object]:
    return {"version": 2, **system._asdict(), "needs": list(system.needs), "packages": list(FRESH)}


def _is_made_by(place: Path, wanted: Mapping[str, object]) -> bool:
    try:
        return bool(json.loads((place / "recipe.json").read_text()) == wanted)
    except FileNotFoundError:
        return False


def _make(system: System, folder: Path, say: Callable[[str], None]) -> None:
    mirror, security = host.mirrors(system.name, system.origin)
    say(f"{system.title}: debootstrap from {mirror}")
    folder.mkdir()
    options = (
        f"--keyring={system.keyring}",
        "--force-check-gpg",
        "--variant=minbase",
        f"--include={','.join(FRESH)}",
        f"--components={system.components}",
    )
    if system.made_in is None:
        status, said = _run_alone("debootstrap", *options, system.name, str(folder), mirror)
    else:
        with Root(SYSTEMS[system.made_in], binds={folder: "/mnt"}, say=say) as maker:
            maker.install(*system.needs)
            done = maker.run("debootstrap", *options, system.name, "/mnt", mirror, env=host.proxies())
            status, said = done.returncode, done.stdout
    if status != 0:
        raise Unusable(f"{system.title}: debootstrap failed:\n{said[-3000:]}")
    lines = [
        f"deb [signed-by={system.keyring}] {where} {suite} {system.components.replace(',', ' ')}"
        for where, suite in (
            (mirror, system.name),
            (mirror, f"{system.name}-updates"),
            (security, f"{system.name}-security"),
        )
    ]
    (folder / "etc/apt/sources.list").write_text("".join(f"{line}\n" for line in lines))
    say(f"{system.title}: upgrade")
    with Root(system, writable=folder, say=say) as root:
        root.run("apt-get", "update", check=True)
        root.run("apt-get", "--yes", "dist-upgrade", env=_QUIET, check=True)
        root.run("sh", "-c", "apt-get clean; rm -rf /var/lib/apt/lists/* /var/log/*.log /var/log/apt/*", check=True)
    host.remove_settings(folder)


def _run_alone(*words: str) -> tuple[int, str]:
    """Run the command `words` in new namespaces, which end with the command. Return the exit status and the output."""
    spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    process = subprocess.Popen(
        [*_DIES_WITH_PARENT, *spaces, *words],
        env={**os.environ, **host.proxies()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate()
    except BaseException:
        # The child is process 1 of the namespace. The namespace has no processes after unshare has reaped that child.
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        process.wait()
        raise
    return process.returncode, said


# Roots

_DIES_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
_QUIET = {"DEBIAN_FRONTEND": "noninteractive"}
# The arguments are an empty folder of the host, the base root, and "overlay" or "writable". Pairs of a folder of the
# host and its mount point in the root follow. The overlay's folders have relative names, because mount options cannot
# quote a path.
_ENTER = r"""
set -eu
scratch=$1 base=$2 way=$3
shift 3
cd "$scratch"
mkdir -p root
if [ "$way" = writable ]; then
    mount --bind "$base" root
else
    # The upper folder of an overlay cannot be on another overlay, such as a container's root: use a tmpfs.
    [ "$(stat --file-system --format=%T .)" != overlayfs ] || { mount -t tmpfs private "$scratch"; cd "$scratch"; }
    mkdir -p lower upper work root
    mount --bind "$base" lower
    mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work private root
fi
cd root
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t tmpfs -o mode=0755,nosuid,noexec private dev
for node in null zero full random urandom tty; do
    : > "dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5,nosuid,noexec devpts dev/pts
mount -t tmpfs -o mode=1777,nosuid,nodev private dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
mount -t tmpfs -o mode=0755,nosuid,nodev private run
mkdir -m 1777 run/lock
mount -t tmpfs -o mode=1777,nosuid,nodev private tmp
while [ $# -ge 2 ]; do
    mkdir -p ".$2"
    mount --bind "$1" ".$2"
    shift 2
done
hostname bare
mkdir -p .old
pivot_root . .old
cd /
umount --lazy /.old
rmdir /.old
exec /usr/bin/python3 -I -S -c '
import fcntl, os, signal, socket, struct, sys

def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

signal.signal(signal.SIGCHLD, reap)
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh22x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
print("ready", flush=True)
sys.stdin.read()
'
"""


class Root:
    """A base root in which tests can change any file: a context manager that discards all changes at its end."""

    def __init__(
        self,
        system: System,
        *,
        network: Network = Network.ALL,
        binds: Mapping[Path, str] | None = None,
        writable: Path | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Enter the root.

        `binds` maps folders of the host to paths in the root. `writable` is a base root to change without an overlay.
        """
        require_namespaces()
        self.system = system
        self.network = network
        self._ends = contextlib.ExitStack()
        try:
            lower = writable or self._ends.enter_context(_held(system, say))
            self.scratch = self._ends.enter_context(_scratch())
            self._holder = self._enter(lower, "writable" if writable else "overlay", binds or {})
            self._ends.callback(self._stop)
            host.copy_settings(self.path("/"), indexes=network is Network.ALL)
        except BaseException:
            self._ends.close()
            raise

    def __enter__(self) -> Root:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._ends.close()

    def _enter(self, lower: Path, way: str, binds: Mapping[Path, str]) -> subprocess.Popen[str]:
        namespaces = ["--mount", "--pid", "--ipc", "--uts", "--propagation", "private", "--fork", "--kill-child"]
        if self.network is Network.NONE:
            namespaces.append("--net")
        pairs = [word for pair in binds.items() for word in map(str, pair)]
        holder = subprocess.Popen(
            [*_DIES_WITH_PARENT, "unshare", *namespaces, "sh", "-c", _ENTER, "sh", self.scratch, lower, way, *pairs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            umask=0o022,
            env={"PATH": PATH},
            start_new_session=True,
        )
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            holder.kill()
            why = holder.stderr.read().strip()
            holder.wait()
            raise Unusable(f"{self.system.title}: cannot enter the root: {why}")
        return holder

    def _stop(self) -> None:
        """Close the standard input of process 1, which then exits. The kernel kills the namespace's other processes."""
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.wait()

    def path(self, path: str) -> Path:
        """Return the path by which this process reaches a file of the root."""
        return Path(f"/proc/{self._holder.pid}/root") / path.lstrip("/")

    def command(
        self,
        *words: Word,
        user: str = "root",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Return the command line that runs `words` in the root as `user`, in `cwd` (default: the home folder)."""
        home = self.home(user)
        environment = {
            "PATH": PATH if user == "root" else "/usr/local/bin:/usr/bin:/bin",
            "HOME": home,
            "USER": user,
            "LOGNAME": user,
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            **(host.proxies() if self.network is Network.ALL else {}),  # apt reads its proxies from apt.conf
            **(host.NO_INDEX if self.network is not Network.ALL else {}),
            **(env or {}),
        }
        spaces = f"/proc/{self._holder.pid}/ns"
        enter = [f"--{name}={spaces}/{file}" for name, file in _NAMESPACES.items()]
        drop = [] if user == "root" else ["setpriv", "--reuid", user, "--regid", user, "--init-groups"]
        pairs = [f"{name}={value}" for name, value in environment.items()]
        changed = ["env", "-i", f"--chdir={cwd or home}", *pairs]
        return ["nsenter", *enter, "--", *drop, *changed, *map(str, words)]

    def run(
        self,
        *words: Word,
        user: str = "root",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        log: IO[str] | None = None,
        check: bool = False,
        timeout: float | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the command `words`, and return the result. Output and errors go to `.stdout`, or to the file `log`.

        With `check`, raise `Unusable` if the command fails. The process still runs in the root after a timeout.
        """
        done = subprocess.run(
            self.command(*words, user=user, cwd=cwd, env=env),
            input=stdin,
            stdout=subprocess.PIPE if log is None else log,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            umask=0o022,
            timeout=timeout,
            start_new_session=True,
        )
        if check and done.returncode != 0:
            said = done.stdout or ""
            raise Unusable(
                f"{self.system.title}: {' '.join(map(str, words))}: exit status {done.returncode}\n{said[-3000:]}"
            )
        return done

    def start(
        self,
        *words: Word,
        user: str = "root",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start the command `words` with pipes for input and output. The end of the root kills the process."""
        return subprocess.Popen(
            self.command(*words, user=user, cwd=cwd, env=env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            umask=0o022,
            start_new_session=True,
        )

    def add_account(self, name: str) -> None:
        """Run the system's own useradd to add an ordinary user with a home folder."""
        self.run("useradd", "--create-home", "--shell", "/bin/bash", name, check=True)

    def home(self, user: str) -> str:
        for line in self.path("/etc/passwd").read_text().splitlines():
            fields = line.split(":")
            if fields[0] == user:
                return fields[5]
        raise Unusable(f"{self.system.title}: unknown user {user}")

    def install(self, *packages: str) -> None:
        """Install packages of the distribution."""
        self.run("apt-get", "update", check=True)
        self.run("apt-get", "--yes", "--no-install-recommends", "install", *packages, env=_QUIET, check=True)

    def installed(self) -> set[str]:
        """Return the names of the installed packages."""
        said = self.run("dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n", check=True).stdout
        return {line.split()[1] for line in said.splitlines() if line.startswith("installed ")}

    def clone(self, repository: Path, user: str = "root", name: str = "pam_totp") -> str:
        """Clone `repository` (see `bare_clone`) into the user's home, as the user; return the path in the root."""
        copy = self.path(TREE_IN_ROOT)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(repository, copy, symlinks=True)
        self.run("chown", "-R", f"{user}:", TREE_IN_ROOT, check=True)  # git refuses a repository of another account
        where = f"{self.home(user)}/{name}"
        self.run("git", "clone", "--quiet", f"file://{TREE_IN_ROOT}", where, user=user, check=True)
        return where


_NAMESPACES = {"mount": "mnt", "pid": "pid_for_children", "ipc": "ipc", "uts": "uts", "net": "net"}


def bare_clone(folder: Path, tree: Path = TREE) -> Path:
    """Clone the committed HEAD of `tree` into a bare repository in `folder`, for `Root.clone`. Return its path."""
    made = folder / "pam_totp.git"
    # git requires safe.directory for a tree that belongs to a user other than root.
    serve = "git -c safe.directory='*' upload-pack"
    command = ["git", "clone", "--quiet", "--bare", "--upload-pack", serve, f"file://{tree}", str(made)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unusable(f"cannot clone {tree}: {done.stderr.strip()}")
    return made


def require_namespaces() -> None:
    """Raise `Unusable` if this machine cannot create the namespaces that a root requires."""
    if os.geteuid() != 0:
        raise Unusable("debootstrap and namespaces require root (run the command as root)")
    for command in ("debootstrap", "git"):
        if shutil.which(command) is None:
            raise Unusable(f"{command} not found (apt-get install debootstrap git)")
    trial = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--propagation", "private"]
    done = subprocess.run(
        [*trial, "mount", "-t", "tmpfs", "private", "/mnt"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Unusable(
            f"this machine cannot create namespaces with mounts: {done.stderr.strip()} "
            "(use a real or virtual machine, or a container with CAP_SYS_ADMIN)"
        )


# Folders and locks


@contextlib.contextmanager
def _locked(file: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    with file.open("w") as held:
        fcntl.flock(held, how)
        yield


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """Yield a new scratch folder beside the base roots. First remove the scratch folders of killed processes."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with _locked(FOLDER / ".scratch.lock"):
        for old in FOLDER.glob("scratch-*"):
            descriptor = os.open(old, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # in use
            else:
                _remove(old)
            finally:
                os.close(descriptor)
        folder = Path(tempfile.mkdtemp(prefix="scratch-", dir=FOLDER))
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(held)


def _remove(folder: Path) -> None:
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


if __name__ == "__main__":
    sys.exit("run: make systems")
