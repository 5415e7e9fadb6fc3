"""Isolation of the suite from the host: the suite and the host do not affect each other.

Rules:
- The suite sets umask, environment and home folder. Only a few variables of the shell have an effect
  (`_clean_environment`).
- As root with permission to mount, the suite runs in a private mount namespace, with the accounts and PAM stacks of
  tests/support/etc.py. The namespace hides the settings, records and socket of an installed pam_totp.
- Each worker of xdist has its own namespace and its own /etc, so two tests can write the same file at the same time.
- The suite hides cgroups from helpers. A test of cgroups mounts a cgroup file system in its own namespace.
- The isolation also works in a chroot. Mounts of the suite do not propagate to the host.
- As root, temporary files are on a tmpfs if the memory suffices, so tests do not wait for a disk. The kernel deletes
  the files at the end.
  `TMPDIR=/tmp make test` keeps the files, for the analysis of a failed test.
- Before the first test, the suite prints the kinds of tests that it skips, each with the reason.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import sys
import tempfile
from pathlib import Path

from tests.support import etc

_TREE = Path(__file__).resolve().parent.parent.parent
_SITE_FILE = Path("/etc/pam_totp.toml")
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "TERM": "dumb"}
# Prefixes of the variables that tests read. The suite removes other variables, except those in `_clean_environment`.
_KEPT = ("PYTEST_", "COV", "HYPOTHESIS_", "TORTURE_", "PAM_TOTP_EXAMPLES", "PAM_TOTP_DJANGO", "PYTHONDONTWRITEBYTECODE")
# Variables that enable tests of other systems. The host's apt settings select the packages of these systems.
OWN_SYSTEMS = {
    "PAM_TOTP_BOOTED": "a system that boots (make booted)",
    "PAM_TOTP_SYSTEMS": "bare roots of other systems (make systems)",
    "PAM_TOTP_PACKAGES": "Debian packages in bare roots (make deb-test)",
}
# Programs of Chromium. The first program opens no windows, and uses less than half of the second's processor time.
BROWSERS = ("chromium-headless-shell", "chromium")
_NEEDED = ("/proc/self/status", "/dev/null", "/dev/ptmx", "/dev/pts/ptmx", "/dev/shm")  # noqa: S108  paths that must exist

_MEMORY = "/media"  # a tmpfs in the namespace hides this folder; the path is short, because sockets are in it
_ENOUGH = 4 << 30  # bytes of memory: a run needs less than 1 GiB for its temporary files
_PHYSICAL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

# linux/sched.h, sys/mount.h, linux/capability.h
_CLONE_NEWNS = 0x0002_0000
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18
_CAP_SYS_CHROOT, _CAP_SYS_ADMIN = 18, 21


class IsolationError(Exception):
    """The error if the suite cannot run on this host. The message contains the reason and the remedy."""


def _may_mount() -> bool:
    status = Path("/proc/self/status")
    if os.geteuid() != 0 or not status.exists():
        return False
    effective = int(status.read_text().split("CapEff:")[1].split()[0], 16)
    return all(effective >> capability & 1 for capability in (_CAP_SYS_CHROOT, _CAP_SYS_ADMIN))


MAY_MOUNT = _may_mount()  # False for ordinary users, and in containers that forbid mounts


def isolate(home: Path, *, has_workers: bool = False) -> None:
    """Isolate this process and its child processes. `home` is an empty folder. Raise IsolationError on failure.

    Call this function once. With `has_workers`, this process runs no test, and each worker calls `isolate_worker`.
    """
    if sys.flags.optimize:
        raise IsolationError("python -O removes the assertions (unset PYTHONOPTIMIZE)")
    absent = [path for path in _NEEDED if not os.path.exists(path)]
    if absent:
        raise IsolationError(f"{', '.join(absent)}: not found (mount /proc, /dev, /dev/pts and /dev/shm)")
    if not MAY_MOUNT and _SITE_FILE.exists():
        raise IsolationError(f"{_SITE_FILE} applies to every login here (run the tests as root, to hide it)")
    if not MAY_MOUNT and not _has_account(os.geteuid()):
        raise IsolationError(f"uid {os.geteuid()} has no account (create an account, so that the tests can log in)")
    os.umask(0o022)
    _clean_environment(home)
    if MAY_MOUNT:
        try:
            _enter_namespace()
            if not has_workers:
                _hide_host()
            if "TMPDIR" not in os.environ and _may_use_memory():
                _mount("tmpfs", _MEMORY, "mode=1777")
                os.environ["TMPDIR"] = _MEMORY
        except OSError as error:
            raise IsolationError(f"cannot create a mount namespace: {error} (run as another user)") from error


def isolate_worker(home: Path) -> None:
    """Enter a namespace for this worker, and set the home folder to `home`. The parent process is already isolated."""
    os.environ["HOME"] = str(home)
    if MAY_MOUNT:
        _enter_namespace()
        _hide_host()


def _has_account(uid: int) -> bool:
    try:
        return pwd.getpwuid(uid).pw_uid == uid
    except KeyError:
        return False


def _clean_environment(home: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name.startswith(_KEPT)}
    # `make cover-all` sets PYTHONPATH, because it tests a copy of the tree.
    if os.environ.get("PYTHONPATH") == str(_TREE):
        kept["PYTHONPATH"] = str(_TREE)
    if _is_open_to_all(os.environ.get("TMPDIR")):  # keep the folder if other accounts can enter it
        kept["TMPDIR"] = os.environ["TMPDIR"]
    os.environ.clear()
    os.environ.update(_ENVIRONMENT | kept | {"HOME": str(home)})
    tempfile.tempdir = None  # tempfile computes the folder again, from this environment


def _is_open_to_all(folder: str | None) -> bool:
    if folder is None or not os.path.isdir(folder):
        return False
    path = Path(folder).resolve()
    return all(each.stat().st_mode & 0o001 for each in (path, *path.parents))


def _enter_namespace() -> None:
    """Enter a new mount namespace in which every mount is private. The root folder is unchanged.

    mount(2) can make all mounts private only at the root of the namespace, and a chroot is below that root. setns(2)
    therefore changes to the root of the namespace first. A descriptor of the chroot allows the return.
    """
    _call("unshare", _CLONE_NEWNS)
    # opened after unshare, so that both paths are in the new namespace
    root, here = os.open("/", os.O_PATH), os.open(".", os.O_PATH)
    namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    _call("setns", namespace, _CLONE_NEWNS)
    _call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    os.fchdir(root)
    os.chroot(".")
    os.fchdir(here)
    for descriptor in (root, here, namespace):
        os.close(descriptor)


def _hide_host() -> None:
    """Hide the host's accounts and PAM stacks, and the site file, records and socket of an installed pam_totp."""
    with tempfile.TemporaryDirectory(prefix="pam_totp-layers-") as layers:
        _mount("tmpfs", layers, "mode=0700")
        try:
            for number, place in enumerate(("/etc", "/var/lib")):
                upper, work = (f"{layers}/{number}-{name}" for name in ("upper", "work"))
                os.mkdir(upper, 0o755)
                os.mkdir(work)
                _mount("overlay", place, f"lowerdir={place},upperdir={upper},workdir={work}")
        finally:
            _call("umount2", layers.encode(), 0)  # the overlays still refer to the tmpfs
    for records in Path("/var/lib").glob("pam_totp*"):
        shutil.rmtree(records)
    _SITE_FILE.unlink(missing_ok=True)
    shutil.rmtree("/etc/pam.d")
    etc.write_accounts(Path("/etc"))
    etc.write_stacks(Path("/etc"))
    for sockets in ("/run/pam_totp", "/run/nscd"):  # nscd would answer with the host's accounts
        if os.path.isdir(sockets):
            _mount("tmpfs", sockets, "mode=0755")
    if os.path.isdir("/sys/fs/cgroup"):  # a helper would make a cgroup there
        _mount("tmpfs", "/sys/fs/cgroup", "mode=0755")


def _may_use_memory() -> bool:
    hidden = any(Path(path).is_relative_to(_MEMORY) for path in (_TREE, sys.prefix, sys.base_prefix))
    return os.path.isdir(_MEMORY) and not hidden and _PHYSICAL >= _ENOUGH


def _mount(kind: str, place: str, options: str) -> None:
    _call("mount", b"private", place.encode(), kind.encode(), 0, options.encode())


_libc = ctypes.CDLL(None, use_errno=True)


def _call(function: str, *arguments: int | bytes | None) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{function}: {os.strerror(error)}")


def installed_browser() -> str | None:
    """Return the path of the browser for the tests of the portal, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def has_fleet_packages() -> bool:
    """Return True if the packages of `make fleet-demo` are installed, apart from PostgreSQL and OpenSSH."""
    python = Path("/usr/lib/python3/dist-packages")
    return shutil.which("ip") is not None and all((python / name).is_dir() for name in ("aiohttp", "psycopg"))


def left_out() -> list[str]:
    """Return the kinds of tests that the suite skips on this host, each with the reason."""
    root = os.geteuid() == 0
    reasons = {
        "real sshd, sudo and su, installations and other accounts (requires root)": not root,
        "real sshd, sudo and su, installations and full disks (requires permission to mount)": root and not MAY_MOUNT,
        f"the portal in a browser (requires {BROWSERS[0]})": installed_browser() is None,
        "a store in PostgreSQL (requires the package postgresql)": not any(Path("/usr/lib/postgresql").glob("*/bin")),
        "a failover by Patroni (requires the packages patroni, etcd-server and etcd-client)": not all(
            map(shutil.which, ("patroni", "etcd", "etcdctl"))
        ),
        "logins through FreeRADIUS (requires freeradius-rest, freeradius-utils and libpam-radius-auth)": not all(
            map(shutil.which, ("freeradius", "radclient"))
        ),
        "the demo of a fleet (requires iproute2, python3-aiohttp and python3-psycopg)": not has_fleet_packages(),
        "units and their filters (requires systemd-analyze)": root and shutil.which("systemd-analyze") is None,
        "fuzzing the relay (requires clang)": shutil.which("clang") is None,
        **{what: variable not in os.environ for variable, what in OWN_SYSTEMS.items()},
    }
    return [what for what, holds in reasons.items() if holds]
