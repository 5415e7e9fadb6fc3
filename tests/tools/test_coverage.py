"""Tests of tools/coverage: changed files keep their behaviour, and each file that runs by its path is measured."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.support.site import TREE
from tools.coverage.__main__ import ENTRIES, measure, spare_helpers

pytestmark = pytest.mark.bare


def test_the_files_that_start_the_measurement_run_unchanged(tmp_path: Path) -> None:
    for entry in ENTRIES:
        (tmp_path / entry).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TREE / entry, tmp_path / entry)
        measure(tmp_path, entry, tmp_path / "library")
        assert (tmp_path / entry).read_text().startswith("import sys; ")
        assert (tmp_path / "library" / "originals" / entry).read_text() == (TREE / entry).read_text()


def test_every_file_that_is_run_by_its_path_is_measured() -> None:
    """Check that ENTRIES lists each file that changes `sys.path`: Python runs such files by their path."""
    files = (path for package in ("pam_totp", "token_sim") for path in (TREE / package).rglob("*.py"))
    by_path = {
        str(path.relative_to(TREE)) for path in files if re.search(r"^sys\.path\.", path.read_text(), re.MULTILINE)
    }
    assert by_path
    assert by_path <= set(ENTRIES)


def test_the_measured_relay_differs_only_in_killing_helpers(tmp_path: Path) -> None:
    ours = TREE / "pam_totp" / "pam" / "relay.c"
    copy = tmp_path / "relay.c"
    shutil.copy(ours, copy)
    spare_helpers(copy)
    assert copy.read_text().replace("pidfd, 0, NULL", "pidfd, SIGKILL, NULL") == ours.read_text()
