"""Tests of `lines_of`: it yields the lines of a log file, except lines above the maximum length."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from pam_totp.cli.log_files import lines_of

FORGED = b"2026-11-28T14:00:00Z otp2 pam_totp[1]: pam_totp(sshd:auth): accepted user=alice next=9"
LONGEST = 65536


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_no_part_of_a_long_line_is_a_line(tmp_path: Path, parts: int, compressed: bool) -> None:
    content = b"first\n" + b"x" * LONGEST * parts + FORGED + b"\nlast"
    (tmp_path / "log").write_bytes(gzip.compress(content) if compressed else content)
    assert list(lines_of(str(tmp_path / "log"))) == ["first", "last"]


def test_the_longest_line_and_a_line_without_an_end_count(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * (LONGEST - 1) + b"\n" + FORGED)
    assert list(lines_of(str(tmp_path / "log"))) == ["x" * (LONGEST - 1), FORGED.decode()]
