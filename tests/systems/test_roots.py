"""Tests of the bare roots: contents, isolation, network, and removal.

Only `make systems` runs these tests. The first test builds the missing base roots.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pip._internal.models.index import PyPI  # pip's default index

from tests.support.site import TREE, until
from tests.systems.roots import FOLDER, FRESH, SYSTEMS, Network, Root, bare_clone

pytestmark = pytest.mark.skipif(
    "PAM_TOTP_SYSTEMS" not in os.environ, reason="only 'make systems' runs this test: it builds bare roots"
)

TRIXIE = SYSTEMS["trixie"]


@pytest.fixture(params=list(SYSTEMS.values()), ids=list(SYSTEMS))
def root(request: pytest.FixtureRequest) -> Iterator[Root]:
    with Root(request.param) as made:
        yield made


def says(root: Root, script: str, user: str = "root") -> str:
    return root.run("sh", "-c", script, user=user, check=True).stdout.strip()


def mounts_below(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {folder}/" in line]


def test_a_base_root_is_the_named_system_without_build_tools(root: Root) -> None:
    assert says(root, '. /etc/os-release; echo "$VERSION_CODENAME"') == root.system.name
    assert set(FRESH) <= root.installed()
    assert not {"gcc", "libc6-dev", "python3-venv", "python3-pip", "ca-certificates"} & root.installed()
    assert says(root, "ls /var/lib/apt/lists") == ""


def test_a_root_has_its_own_namespaces_and_file_systems(root: Root) -> None:
    names = ("mnt", "pid", "ipc", "uts", "net")
    inside = says(root, f"cd /proc/self/ns; readlink {' '.join(names)}").split()
    outside = [os.readlink(f"/proc/self/ns/{name}") for name in names]
    assert [a == b for a, b in zip(inside, outside, strict=True)] == [False, False, False, False, True]
    assert says(root, "stat -f -c %T / /tmp /run /dev/shm").split() == ["overlayfs", "tmpfs", "tmpfs", "tmpfs"]
    assert "Read-only" in root.run("mkdir", "/sys/x").stdout
    assert says(root, "ls /old /.old 2>&1 | grep -c 'No such'") == "2"
    assert not mounts_below(FOLDER)


def test_nsenter_enters_the_root_and_not_the_host(root: Root) -> None:
    says(root, "touch /only-here")
    assert says(root, "nsenter --mount=/proc/1/ns/mnt -- ls /only-here") == "/only-here"


def test_orphans_are_reaped(root: Root) -> None:
    assert says(root, "sh -c 'sleep 0 & echo $!'").isdecimal()
    until(lambda: "Z" not in says(root, "cat /proc/[0-9]*/stat | cut -d' ' -f3"), "process 1 reaps the orphan")


def test_changes_stay_in_their_root(root: Root) -> None:
    says(root, "echo changed > /etc/changed; rm /usr/bin/git")
    lower = FOLDER / root.system.name / "root"
    assert (lower / "usr/bin/git").exists()
    assert not (lower / "etc/changed").exists()
    with Root(root.system) as another:
        assert not another.path("/etc/changed").exists()


def test_an_account_has_a_clone_of_the_committed_head(root: Root, tmp_path: Path) -> None:
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=TREE, check=True, capture_output=True, text=True).stdout
    repository = bare_clone(tmp_path)
    root.add_account("newcomer")
    for user in ("root", "newcomer"):
        tree = root.clone(repository, user)
        assert tree == f"{root.home(user)}/pam_totp"
        assert says(root, f"git -C {tree} rev-parse HEAD; git -C {tree} status --porcelain", user) == head.strip()
        assert says(root, f"stat -c %U {tree} {tree}/Makefile; id -un", user).split() == [user] * 3
        assert not root.path(f"{tree}/build").exists()


@pytest.mark.parametrize("network", Network)
def test_a_root_reaches_only_its_chosen_network(network: Network) -> None:
    with Root(TRIXIE, network=network) as root:
        assert reaches(root, f"{PyPI.simple_url}/six/") == (network is Network.ALL)
        archive = says(root, "apt-get --print-uris update | head -1 | cut -d\\' -f2")
        assert reaches(root, archive) == (network is not Network.NONE)


def reaches(root: Root, url: str) -> bool:
    unverified = "ssl._create_unverified_context()"  # a bare root lacks certificates
    script = f"import ssl, urllib.request as u; u.urlopen({url!r}, timeout=20, context={unverified})"
    return root.run("python3", "-c", script).returncode == 0


def test_closing_a_root_ends_its_processes_mounts_and_folder() -> None:
    with Root(TRIXIE) as root:
        started = root.start("sleep", "1000")
        assert root.scratch.exists()
    assert started.wait(10) != 0
    assert not mounts_below(FOLDER)
    assert not root.scratch.exists()


_WAITS = """
import sys
from tests.systems.roots import *
with Root(SYSTEMS["trixie"]) as root:
    started = root.start("sleep", "1000")
    print(root._holder.pid, root.scratch, flush=True)
    root.run("sleep", "1000")
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_root_ends_when_its_process_ends_or_is_killed(how: signal.Signals) -> None:
    """The next root removes the scratch folder of a killed process."""
    process = subprocess.Popen([sys.executable, "-c", _WAITS], cwd=TREE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    holder, scratch = process.stdout.readline().split()
    namespace = os.readlink(f"/proc/{holder}/ns/mnt")
    process.send_signal(how)
    process.wait(20)

    def gone() -> bool:
        return namespace not in {link for link in map(_mount_namespace, Path("/proc").glob("[0-9]*")) if link}

    until(gone, "all processes of the root end")
    with Root(TRIXIE):
        assert not Path(scratch).exists()


def _mount_namespace(process: Path) -> str | None:
    try:
        return os.readlink(process / "ns" / "mnt")
    except OSError:
        return None


_MAKES = """
from pathlib import Path
from tests.systems import roots
roots.FOLDER = Path({folder!r})
roots.base(roots.SYSTEMS["bookworm"])
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_base_root_is_never_used(how: signal.Signals, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _MAKES.format(folder=str(tmp_path))],
        cwd=TREE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    half = tmp_path / ".bookworm.making"
    until((half / "root" / "usr" / "bin").exists, "debootstrap creates usr/bin")
    process.send_signal(how)
    process.wait(20)
    assert not (tmp_path / "bookworm").exists()
    if how is signal.SIGINT:
        assert not half.exists()
    until(lambda: not _users_of(half), "debootstrap ends")
    assert not mounts_below(tmp_path)


def _users_of(folder: Path) -> list[Path]:
    def works_there(process: Path) -> bool:
        try:
            return str(folder) in (process / "cmdline").read_text()
        except OSError:
            return False

    return [process for process in Path("/proc").glob("[0-9]*") if works_there(process)]
