"""Test of the reason why the portal's PAM service does not use pam_faillock: it counts only for root."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import pytest

from tests.conftest import as_root
from tests.support.site import TREE

STACK = """\
auth required pam_faillock.so preauth dir={folder} deny=3
auth [success=1 default=ignore] pam_deny.so
auth [default=die] pam_faillock.so authfail dir={folder} deny=3
"""
TRY_FIVE_TIMES = """\
import os, sys
from pam_totp.system.libpam import Login
os.setgroups([])
os.setresuid(*3 * [int(sys.argv[2])])
for _ in range(5):
    with Login("demo", "daemon", lambda *_: b"wrong", folder=sys.argv[1]) as login:
        print(login.authenticate().replace(' ', '_'))
"""


MODULES = glob("/usr/lib/*/security/pam_faillock.so") + glob("/usr/lib*/security/pam_faillock.so")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a folder that every account can read."""
    with tempfile.TemporaryDirectory(prefix="pam_totp-faillock-") as made:
        path = Path(made)
        path.chmod(0o755)
        yield path


@as_root
@pytest.mark.skipif(not MODULES, reason="requires pam_faillock.so")
def test_pam_faillock_counts_wrong_passwords_only_for_root(folder: Path) -> None:
    by_root = results(folder, 0)
    assert by_root[0] == by_root[2] != by_root[3] == by_root[4], "the account is locked after three failures"
    assert results(folder, 65534) == by_root[:1] * 5


def results(folder: Path, uid: int) -> list[str]:
    """Return the results of five wrong passwords, given by a process of `uid`."""
    tallies = folder / f"tallies-{uid}"
    tallies.mkdir()
    (folder / "demo").write_text(STACK.format(folder=tallies))
    script = [sys.executable, "-c", TRY_FIVE_TIMES, str(folder), str(uid)]
    done = subprocess.run(script, cwd=TREE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any(tallies.iterdir()) is (uid == 0)
    return done.stdout.split()


def test_the_shipped_pam_service_checks_passwords_only() -> None:
    text = (TREE / "pam_totp" / "web" / "pam_totp-portal").read_text()
    modules = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    assert [line[2] for line in modules if line[0] == "auth"] == ["pam_succeed_if.so", "pam_unix.so"]
