"""Tests of other callers of PAM: pamtester and python-pam, with a private /etc/pam.d in a mount namespace."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import with_mounts
from tests.support.pamconf import service
from tests.support.site import MODULE, TREE, Site, codes

# `--propagation unchanged`: the mounts of this process are already private (tests/support/isolation.py).
IN_NAMESPACE = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-ec"]


def hosted(site: Site, *command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run `command` in a mount namespace with the site's services in /etc/pam.d. Return the completed process."""
    script = 'mount --bind "$0" /etc/pam.d; exec "$@"'
    return subprocess.run(
        [*IN_NAMESPACE, script, site.confdir, *command],
        cwd=TREE,
        input=stdin,
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )


@with_mounts
def test_pamtester_logs_in_once_with_a_code(site: Site, way: str) -> None:
    site.enrol(user="root")
    first = hosted(site, "pamtester", "demo", "root", "authenticate", stdin=codes(0) + "\n")
    assert (first.returncode, "successfully authenticated" in first.stdout) == (0, True), first
    for refused in (codes(0), "755225", "75522", "7552244", "", "755 x24"):
        done = hosted(site, "pamtester", "demo", "root", "authenticate", stdin=refused + "\n")
        assert done.returncode == 1, refused
        assert "Authentication failure" in done.stderr
    assert hosted(site, "pamtester", "demo", "root", "authenticate", stdin=codes(1) + "\n").returncode == 0


@with_mounts
def test_python_pam_logs_in_with_a_single_answer(site: Site, way: str) -> None:
    site.enrol(user="root")
    service(site.confdir, "other", "account required pam_permit.so")  # for pam_acct_mgmt, which python-pam calls too
    program = "import pam, sys; sys.exit(not pam.authenticate('root', sys.argv[1], 'demo', resetcreds=False))"
    assert hosted(site, sys.executable, "-c", program, codes(0)).returncode == 0
    assert hosted(site, sys.executable, "-c", program, codes(0)).returncode == 1
    assert hosted(site, sys.executable, "-c", program, codes(40, 2)).returncode == 0


def test_the_module_is_not_linked_to_python() -> None:
    dynamic = subprocess.run(["readelf", "--dynamic", MODULE], text=True, capture_output=True, check=True).stdout
    assert set(re.findall(r"NEEDED.*\[(.+)\]", dynamic)) <= {"libpam.so.0", "libc.so.6"}
    assert "BIND_NOW" in dynamic
    symbols = subprocess.run(
        ["nm", "--dynamic", "--defined-only", MODULE], text=True, capture_output=True, check=True
    ).stdout
    assert set(re.findall(r" T (\w+)", symbols)) == {"pam_sm_authenticate", "pam_sm_setcred"}


@pytest.mark.bare
@with_mounts
def test_the_environment_of_the_caller_does_not_reach_the_helper(site: Site, tmp_path: Path) -> None:
    site.configure()
    site.enrol(user="root")
    trap = tmp_path / "trap"
    trap.mkdir()
    (trap / "sitecustomize.py").write_text("raise SystemExit(9)")
    trace = tmp_path / "trace"
    hostile = [f"{name}={trap}" for name in ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TMPDIR", "HOME")]
    strace = ["strace", "-f", "-v", "-s", "4096", "-e", "trace=execve,openat,open", "-o", str(trace)]
    command = [*strace, "/usr/bin/env", "-i", *hostile, "/usr/bin/pamtester", "demo", "root", "authenticate"]
    done = hosted(site, *command, stdin=codes(0) + "\n")
    assert done.returncode == 0, done
    traced = trace.read_text()
    helper = re.findall(r'execve\("/usr/bin/python3", (\[.*?\]), (\[.*?\])', traced)
    assert [(argv.split(", ")[1:3], envp) for argv, envp in helper] == [(['"-I"', '"-S"'], "[]")]
    after = traced[traced.index("/usr/bin/python3") :]
    assert str(trap) not in after, "the helper opens no file in the caller's folder"
