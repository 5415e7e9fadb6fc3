"""A change of a file, and its rollback: the very file from before, or others' edits without the added lines."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pam_totp.system.enable import changes
from pam_totp.system.enable.changes import Change, ChangeError, apply, undo
from tests.conftest import as_root

OURS = "# ours\nauth required pam_totp.so\n"
BEFORE = "auth required pam_unix.so\n"


def a_change(folder: Path, before: str | None = BEFORE) -> Change:
    path = folder / "service"
    if before is not None:
        path.write_text(before)
        path.chmod(0o640)
    return Change(str(path), before, (before or "") + OURS, OURS)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_the_very_file_from_before_comes_back(tmp_path: Path) -> None:
    change = a_change(tmp_path)
    status = os.stat(change.path)
    apply(change)
    assert Path(change.path).read_text() == BEFORE + OURS
    assert os.stat(change.path).st_mode == status.st_mode, "the new one has its mode"
    undo(change)
    back = os.stat(change.path)
    assert (back.st_ino, back.st_mode, back.st_mtime_ns) == (status.st_ino, status.st_mode, status.st_mtime_ns)
    assert names(tmp_path) == ["service"], "nothing is left beside it"


def test_a_file_that_was_not_there_is_gone_again(tmp_path: Path) -> None:
    change = a_change(tmp_path, before=None)
    apply(change)
    assert Path(change.path).read_text() == OURS
    undo(change)
    assert names(tmp_path) == []


def test_a_file_that_somebody_made_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    change = a_change(tmp_path, before=None)
    Path(change.path).write_text("theirs\n")
    with pytest.raises(ChangeError, match="edited in the meantime"):
        apply(change)
    assert Path(change.path).read_text() == "theirs\n"


def test_a_file_that_somebody_edited_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    change = a_change(tmp_path)
    Path(change.path).write_text("theirs\n")
    with pytest.raises(ChangeError, match="edited in the meantime"):
        apply(change)
    assert (names(tmp_path), Path(change.path).read_text()) == (["service"], "theirs\n")


def test_an_edit_at_the_last_moment_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change = a_change(tmp_path)
    write = changes._write

    def writes_while_somebody_edits(path: str, text: str, like: str | None) -> None:
        write(path, text, like)
        (tmp_path / "theirs").write_text("theirs\n")
        os.rename(tmp_path / "theirs", change.path)

    monkeypatch.setattr(changes, "_write", writes_while_somebody_edits)
    with pytest.raises(ChangeError, match="edited in the meantime"):
        apply(change)
    assert (names(tmp_path), Path(change.path).read_text()) == (["service"], "theirs\n")


def test_of_an_edited_file_only_the_added_lines_are_removed(tmp_path: Path) -> None:
    change = a_change(tmp_path)
    apply(change)
    Path(change.path).write_text("# theirs\n" + BEFORE + OURS + "session optional pam_umask.so\n")
    assert "the edits stay" in undo(change)
    assert Path(change.path).read_text() == "# theirs\n" + BEFORE + "session optional pam_umask.so\n"


@pytest.mark.parametrize(
    ("before", "now", "why"),
    [
        (BEFORE, BEFORE + OURS.replace("required", "optional"), "remove them by hand"),
        (BEFORE, None, "not found, so no lines"),
        (None, "ours\nand theirs\n", "delete it by hand"),
    ],
)
def test_a_file_that_cannot_be_rolled_back_is_left_alone(
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
        apply(Change(str(tmp_path / "service"), BEFORE, BEFORE + OURS, OURS))
    assert (tmp_path / "real").read_text() == BEFORE


@pytest.mark.parametrize("step", ["link", "rename", "fsync", "pread"])
def test_killed_at_any_step_it_can_be_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    change = a_change(tmp_path)

    class Killed(BaseException):
        pass

    def dies(*_: object, **__: object) -> None:
        raise Killed

    def leaves_it_all(_: str) -> None:
        """A killed process cleans nothing up."""

    with monkeypatch.context() as broken:
        broken.setattr(os, step, dies)
        broken.setattr(changes, "_unlink", leaves_it_all)
        with pytest.raises(Killed):
            apply(change)
    undo(change)
    assert (names(tmp_path), Path(change.path).read_text()) == (["service"], BEFORE)


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[], None]:
    """A disk of 16 KiB at tmp_path/disk; call it to fill the disk up."""
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
