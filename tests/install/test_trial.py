"""A change on trial, where its record or its way back is in trouble."""

from __future__ import annotations

from pathlib import Path

import pytest

from pam_totp.system.enable import trial
from pam_totp.system.enable.changes import Change, ChangeError, apply
from pam_totp.system.enable.trial import BACK, TRIAL, Record, TrialError

BEFORE, OURS = "auth required pam_unix.so\n", "auth required pam_totp.so\n"


@pytest.fixture(autouse=True)
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is logged; the records are in a folder of the test's."""
    lines: list[str] = []
    (tmp_path / "records").mkdir()
    monkeypatch.setattr(trial, "FOLDER", str(tmp_path / "records"))
    monkeypatch.setattr(trial, "log", lambda text, *_: lines.append(text))
    return lines


def made(folder: Path, *names: str) -> tuple[Change, ...]:
    """Files that were changed."""
    changes = tuple(Change(str(folder / name), BEFORE, BEFORE + OURS, OURS) for name in names)
    for change in changes:
        Path(change.path).write_text(BEFORE)
        apply(change)
    return changes


def on_trial(service: str, *changes: Change, keep_within: int = 60, began: int = 7) -> Path:
    path = Path(trial.FOLDER, f"{service}.{TRIAL}")
    path.write_text(Record(service, changes, keep_within, began).text())
    return path


def records() -> list[tuple[str, str]]:
    return trial.records()


def test_what_can_be_put_back_is_and_the_rest_is_tried_again(tmp_path: Path) -> None:
    first, second = made(tmp_path, "sudo", "sudo-i")
    on_trial("sudo", first, second)
    Path(first.path).unlink()
    Path(first.path).mkdir()
    with pytest.raises(ChangeError, match=r"sudo: Is a directory; it is as it was$"):
        trial.take_back("sudo")
    assert Path(second.path).read_text() == BEFORE
    assert records() == [("sudo", BACK)], "it is known what is still to be done"
    Path(first.path).rmdir()
    Path(first.path).write_text(first.after)
    assert trial.take_back("sudo") == [f"{first.path}: as it was before", f"{second.path}: as it was before"]
    assert Path(first.path).read_text() == BEFORE
    assert list(Path(trial.FOLDER).iterdir()) == []


def test_what_is_left_over_is_taken_back_whatever_becomes_of_another(tmp_path: Path, said: list[str]) -> None:
    lost, good = made(tmp_path, "lost", "good")
    Path(lost.path).unlink()
    on_trial("a-lost", lost)
    on_trial("good", good)
    Path(trial.FOLDER, f"odd.{TRIAL}").write_text("{}")
    assert trial.take_back_left_over() == ["a-lost", "good", "odd"]
    assert Path(good.path).read_text() == BEFORE
    assert [line.partition(": ")[0] for line in said] == ["enable a-lost", "enable good", "enable odd"]
    assert "could not be taken back" in said[0]
    assert "taken back, nobody had confirmed it" in said[1]
    assert "not a record of ours" in said[2]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"version": 2}', '{"version": 1, "changes": [{}]}', '{"version": 1, "changes": []}', "\xff"],
)
def test_a_record_that_is_not_ours_is_refused_and_left_alone(text: str) -> None:
    path = Path(trial.FOLDER, f"sudo.{TRIAL}")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TrialError, match="not a record of ours; undo by hand"):
        trial.load("sudo", TRIAL)
    assert path.read_bytes() == text.encode("latin-1")


def test_a_record_that_cannot_be_read_is_said_to_be_there() -> None:
    Path(trial.FOLDER, f"sudo.{TRIAL}").mkdir()
    with pytest.raises(TrialError, match=r"sudo\.trial: Is a directory"):
        trial.load("sudo", TRIAL)


def test_what_is_not_on_trial_is_neither_kept_nor_taken_back() -> None:
    with pytest.raises(TrialError, match="sudo is not on trial"):
        trial.keep("sudo")
    with pytest.raises(TrialError, match="sudo is not on trial"):
        trial.take_back("sudo")


def test_whoever_waited_for_one_trial_leaves_the_next_alone(tmp_path: Path) -> None:
    (change,) = made(tmp_path, "sudo")
    on_trial("sudo", change, began=8)
    with pytest.raises(TrialError, match="another trial"):
        trial.take_back("sudo", only=7)
    assert Path(change.path).read_text() == change.after
    assert records() == [("sudo", TRIAL)]


def test_whoever_waits_takes_back_when_told_and_says_what_came_of_it(tmp_path: Path, said: list[str]) -> None:
    good, lost = made(tmp_path, "good", "lost")
    on_trial("sudo", good)
    trial.watch("sudo", ["told"])
    assert Path(good.path).read_text() == BEFORE
    Path(lost.path).unlink()
    on_trial("su", lost, keep_within=0)
    trial.watch("su", [])
    trial.watch("sshd", [])  # nothing is on trial there
    assert len(said) == 2
    assert "taken back, nobody confirmed" in said[0]
    assert "could not be taken back" in said[1]
    assert not trial.watched("sudo")


def test_a_record_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sudo"
    path.write_text(BEFORE)
    Path(trial.FOLDER, f"sudo.{TRIAL}").mkdir()  # where the record would go
    with pytest.raises(TrialError, match="nothing was changed"):
        trial.begin(Record("sudo", (Change(str(path), BEFORE, BEFORE + OURS, OURS),), 60))
    assert path.read_text() == BEFORE
    assert not list(Path(trial.FOLDER).glob("*.new"))


def test_a_change_that_nobody_would_take_back_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sudo"
    path.write_text(BEFORE)
    monkeypatch.setattr(trial, "INTERPRETER", "/bin/true")
    monkeypatch.setattr(trial, "READY_WITHIN", 0.3)
    with pytest.raises(TrialError, match="does not start"):
        trial.begin(Record("sudo", (Change(str(path), BEFORE, BEFORE + OURS, OURS),), 60))
    assert path.read_text() == BEFORE
    assert records() == []
