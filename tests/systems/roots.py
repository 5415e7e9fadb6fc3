"""Bare roots of Debian 12, Debian 13 and Ubuntu 24.04, and a way into them. Needs root, debootstrap and the archives.

The rules:
- A base root in `build/systems/NAME` is made once, under a lock, beside its place, and renamed when it is complete.
  It holds the smallest system (minbase) with git, make and python3, upgraded, without package lists.
- A base root never changes: a `Root` is an overlay on top of it, in a scratch folder that is removed at its end.
- The way in is pivot_root in new mount, pid, ipc and uts namespaces, with /proc, /sys, /dev, /run and /tmp of its own.
  After a chroot, `nsenter --mount` would enter the host's root.
- Process 1 of a root ends with this process, however it ends, and the kernel then ends all others in it. Mounts exist
  in the namespace alone, so none stays.
- The mirror comes from apt's settings on this machine, or from SYSTEMS_DEBIAN_MIRROR and the like; none is named here.

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
FRESH = ("git", "make", "python3")  # what the README asks of a system
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TREE_IN_ROOT = "/srv/pam_totp.git"
Word = str | Path


class System(NamedTuple):
    """A system that the README names."""

    name: str  # of its suite in the archive, and of its folder
    title: str
    origin: str  # as the archive's Release file says
    components: str
    keyring: str  # of the archive, in the root and in the system that makes it
    made_in: str | None = None  # the system whose debootstrap makes it; the host's, where None
    needs: tuple[str, ...] = ()  # packages that the making system needs


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
            # Debian 12 has no keyring of Ubuntu's, and its debootstrap does not know the suite
            made_in="trixie",
            needs=("debootstrap", "ubuntu-keyring"),
        ),
    )
}


class Network(enum.Enum):
    """What a root can reach."""

    ALL = "all"  # what the host can reach
    ARCHIVE = "archive"  # the same, without the package indexes of other languages
    NONE = "none"  # its own loopback


class Unusable(Exception):
    """This machine cannot make or enter a root; the message says why, and what to do."""


# Base roots


def base(system: System, say: Callable[[str], None] = print) -> Path:
    """Return the folder of the system's base root; make it first, if it is missing or was made by another recipe."""
    require_namespaces()
    with _held(system, say) as folder:
        return folder


@contextlib.contextmanager
def _held(system: System, say: Callable[[str], None]) -> Iterator[Path]:
    """The base root, under a lock that keeps other processes from removing it."""
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
    """Make a base root beside its place, and rename it when it is complete."""
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


def forget(system: System) -> None:
    """Remove the base root."""
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
    host.take_away(folder)


def _run_alone(*words: str) -> tuple[int, str]:
    """Run a command in namespaces that take its mounts and its processes with them; its status and its output."""
    spaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    process = subprocess.Popen(
        [*_DIES_WITH_US, *spaces, *words],
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
        # Process 1 of the namespace: when unshare has waited for it, all others are gone, and write nothing any more.
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        process.wait()
        raise
    return process.returncode, said


# Roots

_DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_QUIET = {"DEBIAN_FRONTEND": "noninteractive"}
# $1 an empty folder on the host, $2 the base root, $3 "overlay" or "writable", then pairs of a folder of the host and
# where in the root it is to be seen. Relative names, for overlay's options have no quotes.
_ENTER = r"""
set -eu
scratch=$1 base=$2 way=$3
shift 3
cd "$scratch"
mkdir -p root
if [ "$way" = writable ]; then
    mount --bind "$base" root
else
    # An overlay cannot hold the changes of another one: in a container, they are held in memory.
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
    """One system to change at will. A context manager: at its end, processes, mounts and changes are gone."""

    def __init__(
        self,
        system: System,
        *,
        network: Network = Network.ALL,
        binds: Mapping[Path, str] | None = None,
        writable: Path | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """`binds` maps folders of the host to paths in the root. `writable` is a root to change itself, with no
        overlay."""
        require_namespaces()
        self.system = system
        self.network = network
        self._ends = contextlib.ExitStack()
        try:
            lower = writable or self._ends.enter_context(_held(system, say))
            self.scratch = self._ends.enter_context(_scratch())
            self._holder = self._enter(lower, "writable" if writable else "overlay", binds or {})
            self._ends.callback(self._stop)
            host.bring(self.path("/"), indexes=network is Network.ALL)
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
            [*_DIES_WITH_US, "unshare", *namespaces, "sh", "-c", _ENTER, "sh", self.scratch, lower, way, *pairs],
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
            raise Unusable(f"{self.system.title}: the root cannot be entered: {why}")
        return holder

    def _stop(self) -> None:
        """Close what process 1 reads: it exits, and the kernel ends all others in the namespace before."""
        assert self._holder.stdin is not None
        self._holder.stdin.close()
        self._holder.wait()

    def path(self, path: str) -> Path:
        """Return a path of the root as this process sees it."""
        return Path(f"/proc/{self._holder.pid}/root") / path.lstrip("/")

    def command(
        self,
        *words: Word,
        user: str = "root",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Return the command line that runs `words` in the root as `user`, in `cwd` (the user's home by default)."""
        home = self.home(user)
        environment = {
            "PATH": PATH if user == "root" else "/usr/local/bin:/usr/bin:/bin",
            "HOME": home,
            "USER": user,
            "LOGNAME": user,
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            **(host.proxies() if self.network is Network.ALL else {}),  # apt has its own: host.bring
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
        """Run `words` to their end. What it says on both outputs is `.stdout`, or goes to `log`.

        `check` raises `Unusable` for an exit status other than 0. After a timeout the process still runs in the root.
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
            raise Unusable(f"{self.system.title}: {' '.join(map(str, words))}: {done.returncode}\n{said[-3000:]}")
        return done

    def start(
        self,
        *words: Word,
        user: str = "root",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start `words`, with pipes to talk to it. It ends with the root at the latest."""
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
        """Make an ordinary user with a home folder, as the system's own tools make one."""
        self.run("useradd", "--create-home", "--shell", "/bin/bash", name, check=True)

    def home(self, user: str) -> str:
        for line in self.path("/etc/passwd").read_text().splitlines():
            fields = line.split(":")
            if fields[0] == user:
                return fields[5]
        raise Unusable(f"{self.system.title}: no account {user}")

    def install(self, *packages: str) -> None:
        """Install packages of the distribution."""
        self.run("apt-get", "update", check=True)
        self.run("apt-get", "--yes", "--no-install-recommends", "install", *packages, env=_QUIET, check=True)

    def installed(self) -> set[str]:
        """Return the names of the packages that are installed."""
        said = self.run("dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\n", check=True).stdout
        return {line.split()[1] for line in said.splitlines() if line.startswith("installed ")}

    def clone(self, repository: Path, user: str = "root", name: str = "pam_totp") -> str:
        """Clone `repository` (see `bare_clone`) into the user's home, as the user; return the path in the root."""
        copy = self.path(TREE_IN_ROOT)
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(repository, copy, symlinks=True)
        self.run("chown", "-R", f"{user}:", TREE_IN_ROOT, check=True)  # git refuses to read another account's
        where = f"{self.home(user)}/{name}"
        self.run("git", "clone", "--quiet", f"file://{TREE_IN_ROOT}", where, user=user, check=True)
        return where


_NAMESPACES = {"mount": "mnt", "pid": "pid_for_children", "ipc": "ipc", "uts": "uts", "net": "net"}


def bare_clone(folder: Path, tree: Path = TREE) -> Path:
    """Clone the committed HEAD of `tree` into a bare repository in `folder`, for `Root.clone`."""
    made = folder / "pam_totp.git"
    # The tree may belong to another user than root.
    serve = "git -c safe.directory='*' upload-pack"
    command = ["git", "clone", "--quiet", "--bare", "--upload-pack", serve, f"file://{tree}", str(made)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Unusable(f"{tree} cannot be cloned: {done.stderr.strip()}")
    return made


def require_namespaces() -> None:
    """Raise `Unusable` where this machine cannot make the namespaces that a root needs."""
    if os.geteuid() != 0:
        raise Unusable("bare roots need root: debootstrap makes them, and namespaces hold them")
    for command in ("debootstrap", "git"):
        if shutil.which(command) is None:
            raise Unusable(f"{command} is missing: apt-get install debootstrap git")
    trial = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--propagation", "private"]
    done = subprocess.run(
        [*trial, "mount", "-t", "tmpfs", "private", "/mnt"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Unusable(
            f"this machine lets no process make namespaces and mounts of its own ({done.stderr.strip()}): "
            "run it on a machine of its own, or in a container that has CAP_SYS_ADMIN"
        )


# Folders and locks


@contextlib.contextmanager
def _locked(file: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    with file.open("w") as held:
        fcntl.flock(held, how)
        yield


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder of our own beside the base roots. Those of processes that were killed are removed first."""
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
