"""Tests of the logins that `make bench-footprint` measures, without valgrind, which takes many seconds."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.support.site import TREE


def test_the_measured_login_is_accepted_by_a_service() -> None:
    program = """
from tools.bench.footprint import Profile, serve_logins
serve_logins(1, 1, profile := Profile())
print(profile, *[code.co_qualname for code in profile.calls])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=TREE, capture_output=True, text=True, check=True)
    assert re.match(r"\d+ functions of pam_totp \(\d+ bytes\), \d+ calls ", done.stdout)
    names = set(done.stdout.split())
    assert names >= {"decide", "verify", "write", "Session.run"}
