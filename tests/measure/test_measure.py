"""That measuring changes nothing but that it measures, and misses nothing that is run."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

import pytest

from tests.measure.__main__ import ENTRIES, measure, spare_helpers
from tests.site import TREE


@pytest.mark.parametrize("entry", ENTRIES)
def test_measuring_a_file_moves_none_of_its_lines(entry: str, tmp_path: Path) -> None:
    copy = tmp_path / "module.py"
    shutil.copy(TREE / entry, copy)
    measure(copy, tmp_path / "library")
    before, after = (TREE / entry).read_text().splitlines(), copy.read_text().splitlines()
    assert len(after) == len(before)
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 1
    assert changed[0].endswith("import measured; sys.path.pop()")
    assert ast.get_docstring(ast.parse(copy.read_text())) == ast.get_docstring(ast.parse((TREE / entry).read_text()))


def test_every_file_that_is_run_by_its_path_is_measured() -> None:
    """It finds the package by itself, so no test says from where."""
    files = (path for package in ("pam_totp", "token_sim") for path in (TREE / package).rglob("*.py"))
    by_path = {str(path.relative_to(TREE)) for path in files if "sys.path." in path.read_text()}
    assert by_path
    assert by_path <= set(ENTRIES)


def test_the_measured_relay_is_ours_but_for_the_killing(tmp_path: Path) -> None:
    copy = tmp_path / "relay.c"
    shutil.copy(TREE / "pam_totp" / "pam" / "relay.c", copy)
    spare_helpers(copy)
    assert (
        copy.read_text().replace("pidfd, 0, NULL", "pidfd, SIGKILL, NULL")
        == (TREE / "pam_totp" / "pam" / "relay.c").read_text()
    )
