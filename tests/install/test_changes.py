"""Tests of changes of files. A roll-back restores the original file, but keeps later edits by other programs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pam_totp.system.enable import changes
from pam_totp.system.enable.changes import Change, ChangeError, apply, undo
from tests.conftest import as_root

ADDED = "# added\nauth required pam_totp.so\n"
BEFORE = "auth required pam_unix.so\n"


def a_change(folder: Path, before: str | None = BEFORE) -> Change:
    path = folder / "service"
    if before is not None:
        path.write_text(before)
        path.chmod(0o640)
    return Change(str(path), before, (before or "") + ADDED, ADDED)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_rollback_restores_the_original_file(tmp_path: Path) -> None:
    change = a_change(tmp_path)
    status = os.stat(change.path)
    apply(change)
    assert Path(change.path).read_text() == BEFORE + ADDED
    assert os.stat(change.path).st_mode == status.st_mode, "the changed file has the mode of the original"
    undo(change)
    back = os.stat(change.path)
    assert (back.st_ino, back.st_mode, back.st_mtime_ns) == (status.st_ino, status.st_mode, status.st_mtime_ns)
    assert names(tmp_path) == ["service"], "no temporary file remains"


def test_a_rollback_deletes_a_file_that_the_change_created(tmp_path: Path) -> None:
    change = a_change(tmp_path, before=None)
    apply(change)
    assert Path(change.path).read_text() == ADDED
    undo(change)
    assert names(tmp_path) == []


def test_a_file_created_in_the_meantime_is_not_overwritten(tmp_path: Path) -> None:
    change = a_change(tmp_path, before=None)
    Path(change.path).write_text("another edit\n")
    with pytest.raises(ChangeError, match="edited by another process"):
        apply(change)
    assert Path(change.path).read_text() == "another edit\n"


def test_a_file_edited_in_the_meantime_is_not_overwritten(tmp_path: Path) -> None:
    change = a_change(tmp_path)
    Path(change.path).write_text("another edit\n")
    with pytest.raises(ChangeError, match="edited by another process"):
        apply(change)
    assert (names(tmp_path), Path(change.path).read_text()) == (["service"], "another edit\n")


def test_an_edit_at_the_last_moment_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = a_change(tmp_path)
    write = changes._write

    def write_during_another_edit(path: str, text: str, like: str | None) -> None:
        write(path, text, like)
        (tmp_path / "edited").write_text("another edit\n")
        os.rename(tmp_path / "edited", change.path)

    monkeypatch.setattr(changes, "_write", write_during_another_edit)
    with pytest.raises(ChangeError, match="edited by another process"):
        apply(change)
    assert (names(tmp_path), Path(change.path).read_text()) == (["service"], "another edit\n")


def test_a_rollback_of_an_edited_file_removes_only_the_added_lines(tmp_path: Path) -> None:
    change = a_change(tmp_path)
    apply(change)
    Path(change.path).write_text("# another edit\n" + BEFORE + ADDED + "session optional pam_umask.so\n")
    assert "kept the edits" in undo(change)
    assert Path(change.path).read_text() == "# another edit\n" + BEFORE + "session optional pam_umask.so\n"


@pytest.mark.parametrize(
    ("before", "now", "why"),
    [
        (BEFORE, BEFORE + ADDED.replace("required", "optional"), "remove these lines by hand"),
        (BEFORE, None, ": file not found"),
        (None, "# added\n# another edit\n", "delete the file by hand"),
    ],
)
def test_a_file_that_cannot_be_rolled_back_is_unchanged(
    tmp_path: Path, before: str | None, now: str | None, why: str
) -> None:
    change = a_change(tmp_path, before)
    apply(change)
    if now is None:
        os.unlink(change.path)
    else:
        Path(change.path).write_text(now)
    with pytest.raises(ChangeError, match=why):
        undo(change)
    assert (Path(change.path).read_text() if now is not None else None) == now


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_text(BEFORE)
    (tmp_path / "service").symlink_to("real")
    with pytest.raises(ChangeError, match="must be a regular file"):
        apply(Change(str(tmp_path / "service"), BEFORE, BEFORE + ADDED, ADDED))
    assert (tmp_path / "real").read_text() == BEFORE


@pytest.mark.parametrize("step", ["link", "rename", "fsync", "pread"])
def test_a_change_killed_at_any_step_is_rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    change = a_change(tmp_path)

    class Killed(BaseException):
        pass

    def dies(*_: object, **__: object) -> None:
        raise Killed

    def leave_the_file(_: str) -> None:
        """Leave the temporary file in place, as a killed process does."""

    with monkeypatch.context() as broken:
        broken.setattr(os, step, dies)
        broken.setattr(changes, "_unlink", leave_the_file)
        with pytest.raises(Killed):
            apply(change)
    undo(change)
    assert (names(tmp_path), Path(change.path).read_text()) == (["service"], BEFORE)


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[], None]:
    """Mount a disk of 16 KiB at tmp_path/disk. Return a function that fills that disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "private", disk], check=True)
    request.addfinalizer(lambda: subprocess.run(["umount", disk], check=True))

    def fill() -> None:
        with pytest.raises(OSError, match="No space"), open(disk / "full", "wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)

    return fill


@as_root
def test_on_a_full_disk_a_change_fails_and_changes_nothing(tmp_path: Path, small_disk: Callable[[], None]) -> None:
    change = a_change(tmp_path / "disk")
    small_disk()
    with pytest.raises(ChangeError, match="No space left on device; nothing was changed"):
        apply(change)
    assert (names(tmp_path / "disk"), Path(change.path).read_text()) == (["full", "service"], BEFORE)


@as_root
def test_a_rollback_needs_no_disk_space(tmp_path: Path, small_disk: Callable[[], None]) -> None:
    change = a_change(tmp_path / "disk")
    apply(change)
    small_disk()
    undo(change)
    assert (names(tmp_path / "disk"), Path(change.path).read_text()) == (["full", "service"], BEFORE)
