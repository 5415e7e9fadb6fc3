"""The coverage of relay.c by the relay's tests: the lines and branches, measured by gcov."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = ("tests/test_relay.py", "tests/test_relay_process.py", "tests/test_relay_trust.py")
FLAGS = "-std=c11 -O0 -fPIC -fvisibility=hidden --coverage"
NOT_THIS_BUILD = "not exported"  # for pytest -k: skip the test of exported symbols, because gcov exports more
MINIMUM = 90.0  # the minimum in per cent of the lines of relay.c


def cover(tree: Path) -> bool:
    """Build the relay of a copy of the tree for gcov, run its tests, and print the result.

    Return True if the tests pass and reach the minimum. Killed host processes, and the relays that
    tests/support/relay_kit.py builds, leave no data.
    """
    subprocess.run(["make", "--no-print-directory", "build/pam_totp.so", f"CFLAGS={FLAGS}"], cwd=tree, check=True)
    command = [sys.executable, "-m", "pytest", "-q", "-k", NOT_THIS_BUILD, *TESTS]
    tests = subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=False)
    data = next((tree / "build").glob("*.gcda"))
    report = subprocess.run(
        ["gcov", "-b", "-o", "build", data], cwd=tree, capture_output=True, text=True, check=True
    ).stdout.split("relay.c'")[1]
    lines, branches = (
        float(re.findall(rf"{what}:([\d.]+)%", report)[0]) for what in ("executed", "Taken at least once")
    )
    print(f"pam_totp/pam/relay.c: {lines:.1f} % of the lines, {branches:.1f} % of the branches taken", flush=True)
    return tests.returncode == 0 and lines >= MINIMUM
