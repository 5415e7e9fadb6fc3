"""A measurement by gcov of the lines and branches of relay.c that the relay's own tests reach."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = ("tests/test_relay.py", "tests/test_relay_process.py", "tests/test_relay_trust.py")
FLAGS = "-std=c11 -O0 -fPIC -fvisibility=hidden --coverage"
NOT_THIS_BUILD = "not exported"  # for pytest -k: skip the test of exported symbols, because gcov exports more
DEMANDED = 90.0  # the minimum in per cent of the lines of relay.c


def cover(tree: Path) -> bool:
    """Build the relay of a copy of the tree for gcov, run its tests, and print the result.

    Return True if the tests pass and reach the minimum. Two parts leave no data: killed host processes, and
    the relays that tests/support/relay_kit.py builds.
    """
    subprocess.run(["make", "--no-print-directory", "build/pam_totp.so", f"CFLAGS={FLAGS}"], cwd=tree, check=True)
    command = [sys.executable, "-m", "pytest", "-q", "-k", NOT_THIS_BUILD, *TESTS]
    held = subprocess.run(command, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=False).returncode == 0
    data = next((tree / "build").glob("*.gcda"))
    said = subprocess.run(
        ["gcov", "-b", "-o", "build", data], cwd=tree, capture_output=True, text=True, check=True
    ).stdout.split("relay.c'")[1]
    lines, taken = (float(re.findall(rf"{what}:([\d.]+)%", said)[0]) for what in ("executed", "Taken at least once"))
    print(f"pam_totp/pam/relay.c: {lines:.1f} % of the lines, {taken:.1f} % of the branches taken", flush=True)
    return held and lines >= DEMANDED
