"""Tests of `make demo` on the distribution's interpreter: its results, a broken module, and its clean-up."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.site import PATIENCE, TREE

PYTHON = "/usr/bin/python3"
WIDTH = 80  # columns of a terminal


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the arguments `command` and with `folder` for temporary files. Return the completed process.

    The process has the variables `environment`, and no Python settings of the caller.
    """
    given = {"PATH": "/usr/bin:/bin", "TMPDIR": str(folder), "LC_ALL": "C.UTF-8", **environment}
    return subprocess.run(
        [PYTHON, *command], cwd=TREE, env=given, capture_output=True, text=True, timeout=PATIENCE * 3, check=False
    )


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pam_totp-test-") as made:  # a socket's path must have at most 107 bytes
        yield Path(made)


def test_the_demo_shows_every_step_and_removes_its_files(folder: Path) -> None:
    done = run(folder, "-m", "demo")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("PAM_SUCCESS") == 5
    assert done.stdout.count("PAM_AUTH_ERR") == 2
    assert done.stdout.count("refused, as expected: PAM_AUTH_ERR") == 2
    assert "the demo presses the button" in done.stdout
    assert re.search(r"Every step had the expected result \(\d+ s\)", done.stdout)
    assert "\x1b" not in done.stdout, "the demo prints colours only on a terminal"
    assert list(folder.iterdir()) == []


def test_the_demo_draws_the_qr_code_and_the_token(folder: Path) -> None:
    lines = run(folder, "-m", "demo").stdout.splitlines()
    assert sum(bool(re.fullmatch(r" +[█▀▄ ]{30,}", line)) for line in lines) > 15
    assert any("(●)" in line for line in lines)
    assert [line for line in lines if len(line) > WIDTH and str(TREE) not in line] == []


def test_the_demo_fails_when_the_module_accepts_everything(folder: Path) -> None:
    """The step fails, and the exit status is 1, if the module accepts a replay."""
    done = run(folder, "-c", "import sys; from demo.__main__ import main; sys.exit(main('pam_permit.so'))")
    assert done.returncode == 1, done.stderr
    assert "FAILED" in done.stdout
    assert "accepted, expected: refused: PAM_SUCCESS" in done.stdout
    assert "A step had an unexpected result" in done.stdout


def test_the_demo_prints_ascii_if_the_character_set_is_ascii(folder: Path) -> None:
    done = run(folder, "-m", "demo", PYTHONIOENCODING="ascii:replace", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "(o)" in done.stdout
    assert done.stdout.isascii()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_stops_its_processes(folder: Path, number: signal.Signals) -> None:
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(folder), "LC_ALL": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [PYTHON, "-m", "demo"], cwd=TREE, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        assert any("2. Press the button" in line for line in demo.stdout)
        demo.send_signal(number)
        _, errors = demo.communicate(timeout=PATIENCE)
    assert demo.returncode == 128 + number
    assert "Traceback" not in errors
    assert list(folder.iterdir()) == []
    assert processes_in(folder) == []


def processes_in(folder: Path) -> list[str]:
    """Return the command lines of all processes that contain the path `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # the process has ended
            continue
        if str(folder) in command and int(entry.name) != os.getpid():
            found.append(command)
    return found
