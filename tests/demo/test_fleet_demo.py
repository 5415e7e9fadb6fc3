"""Tests of `make fleet-demo` on the distribution's interpreter: its results, and its clean-up."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import with_mounts
from tests.demo.test_demo import processes_in
from tests.support import isolation
from tests.support.cluster import with_postgresql
from tests.support.site import PATIENCE, TREE

PYTHON = "/usr/bin/python3"
LIMIT = 300  # seconds: the demo takes less than a minute, and longer on a busy machine


pytestmark = [
    with_postgresql,
    with_mounts,
    pytest.mark.skipif(
        not isolation.has_fleet_packages(), reason="needs the packages iproute2, python3-aiohttp and python3-psycopg"
    ),
]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pam_totp-test-") as made:  # a socket's path must have at most 107 bytes
        yield Path(made)


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(folder), "LC_ALL": "C.UTF-8"}
    return subprocess.Popen(
        [PYTHON, "-u", *words],
        cwd=TREE,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left_in(folder: Path) -> list[str]:
    """Return the files, the mounts and the command lines of processes that contain the path `folder`."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(folder) in line]
    return [*map(str, folder.iterdir()), *mounts, *processes_in(folder)]


@pytest.mark.timeout(LIMIT)
def test_the_demo_shows_every_step_of_a_fleet_and_leaves_nothing(folder: Path) -> None:
    shown, errors = start(folder, "-m", "demo.fleet").communicate()
    assert re.search(r"Every step had the expected result \(\d+ s\)", shown), shown + errors
    results = shown.partition("\nResults\n")[2].splitlines()
    assert len([line for line in results if line.endswith(" yes")]) == 27
    for promise in (
        "one code, four logins at two members: accepted once",
        "an unreachable authority delays one login by 1.5 s",
        "web1 refuses a code that was used before the failover",
        "a member is revoked, and its next login is refused",
    ):
        assert any(promise in line for line in results), promise
    assert errors == ""
    assert left_in(folder) == []


def test_an_unexpected_result_fails_the_demo(folder: Path) -> None:
    changed = "def show(self, folder): self._verdict('the promise', Attempt(True, (), 0.1), accepted=False)"
    program = f"import sys\nfrom demo.fleet import *\n{changed}\nDemo.show = show\nsys.exit(main())"
    demo = start(folder, "-c", program)
    shown, errors = demo.communicate(timeout=PATIENCE)
    assert (demo.returncode, errors) == (1, "")
    assert re.search(r"the promise +NO", shown)
    assert left_in(folder) == []


@pytest.mark.timeout(LIMIT)
def test_an_interrupted_demo_leaves_no_host(folder: Path) -> None:
    with start(folder, "-m", "demo.fleet") as demo:
        assert demo.stdout is not None
        assert any("3. Set up the authority" in line for line in demo.stdout), "hosts and a database run"
        assert processes_in(folder)
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 128 + signal.SIGINT
    assert "Traceback" not in errors
    assert left_in(folder) == []
