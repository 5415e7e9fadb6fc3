"""Tests of libpam through ctypes: a signal ends the login."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.site import TREE

# The module pam_exec runs a program that sends SIGTERM to this process. Python handles the signal in the next callback.
LOGIN = """
import signal, sys
from pam_totp.system.libpam import Login
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with Login("demo", "root", lambda style, text: b"", folder=sys.argv[1]) as login:
    login.authenticate()
print("the login continued")
"""


@pytest.mark.parametrize(
    "stack",
    ["auth required pam_exec.so {} 1\n", "auth required pam_exec.so {} 0\nauth required pam_echo.so a text\n"],
    ids=["before the fail delay", "before a message"],
)
def test_a_signal_during_a_login_ends_it(tmp_path: Path, stack: str) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nkill -TERM $PPID\nexit $1\n")
    program.chmod(0o755)
    (tmp_path / "demo").write_text(stack.format(program))
    command = [sys.executable, "-c", LOGIN, str(tmp_path)]
    done = subprocess.run(command, cwd=TREE, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "")
