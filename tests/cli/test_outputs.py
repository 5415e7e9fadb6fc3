"""Files that a command makes in folders that are not its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pam_totp.cli import files_out


def test_what_takes_a_file_away_takes_no_other_where_the_folder_is_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (other / "file").write_text("somebody else's")
    same = os.path.samestat

    def exchange_then_tell(one: os.stat_result, two: os.stat_result) -> bool:
        """Between the look at the path and the removal, in the process that does both."""
        told = same(one, two)
        folder.rename(tmp_path / "moved")
        folder.symlink_to(other)
        return told

    monkeypatch.setattr(os.path, "samestat", exchange_then_tell)
    with pytest.raises(RuntimeError), files_out.new_file(str(folder / "file")):
        raise RuntimeError
    assert folder.is_symlink(), "it was exchanged"
    assert (other / "file").read_text() == "somebody else's"
    assert os.listdir(tmp_path / "moved") == []


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(2):  # the second time it is there
        try:
            with files_out.new_file(str(tmp_path / "file")) as file:
                file.write(b"x")
        except files_out.CommandError as e:
            assert "already exists" in str(e)
    with pytest.raises(FileNotFoundError, match="nosuch"), files_out.new_file(str(tmp_path / "nosuch" / "file")):
        pass
    assert set(os.listdir("/proc/self/fd")) == before
