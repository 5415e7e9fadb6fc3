"""Tests of a change on trial: invalid trial files, and files that cannot be restored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pam_totp.operations import audit_log
from pam_totp.system.enable import trial
from pam_totp.system.enable.changes import Change, ChangeError, apply, undo
from pam_totp.system.enable.trial import BACK, TRIAL, Record, TrialError
from pam_totp.system.machine import Machine

BEFORE, ADDED = "auth required pam_unix.so\n", "auth required pam_totp.so\n"


@pytest.fixture(autouse=True)
def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Use a temporary folder for trial files. Return the list of logged lines."""
    lines: list[str] = []
    (tmp_path / "records").mkdir()
    monkeypatch.setattr(trial, "FOLDER", str(tmp_path / "records"))
    monkeypatch.setattr(audit_log, "to_syslog", lambda _, line: lines.append(line.partition("auth): ")[2]))
    return lines


def make_changes(folder: Path, *names: str) -> tuple[Change, ...]:
    """Write the files `names`, change them, and return the changes."""
    changes = tuple(Change(str(folder / name), BEFORE, BEFORE + ADDED, ADDED) for name in names)
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


def test_a_rollback_restores_each_file_it_can_and_retries_the_rest(tmp_path: Path) -> None:
    first, second = make_changes(tmp_path, "sudo", "sudo-i")
    on_trial("sudo", first, second)
    Path(first.path).unlink()
    Path(first.path).mkdir()
    with pytest.raises(ChangeError, match=r"sudo: Is a directory; nothing was changed$"):
        trial.roll_back("sudo")
    assert Path(second.path).read_text() == BEFORE
    assert records() == [("sudo", BACK)], "an unfinished roll-back keeps its trial file"
    Path(first.path).rmdir()
    Path(first.path).write_text(first.after)
    assert trial.roll_back("sudo") == [f"{first.path}: restored", f"{second.path}: already has the old content"]
    assert Path(first.path).read_text() == BEFORE
    assert list(Path(trial.FOLDER).iterdir()) == []


def test_a_rollback_of_all_services_continues_after_an_error(
    tmp_path: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_changes(tmp_path, "first", "second")
    on_trial("first", first)
    on_trial("second", second)

    def undo_second_only(change: Change, *, dry_run: bool = False) -> str:
        if change == first and not dry_run:
            raise ChangeError("first: No space left on device; nothing was changed")
        return undo(change, dry_run=dry_run)

    monkeypatch.setattr(trial, "undo", undo_second_only)
    machine = Machine(str(tmp_path))
    with pytest.raises(TrialError, match=r"first: No space .*run the command again\); done: .*second: restored$"):
        trial.roll_back_all(machine)
    assert (Path(first.path).read_text(), Path(second.path).read_text()) == (first.after, BEFORE)
    assert [line.partition(" at=")[0] for line in logged] == ["changed what=disable service=second"]
    monkeypatch.setattr(trial, "undo", undo)
    assert trial.roll_back_all(machine) == [f"{first.path}: restored"]


def test_left_over_trials_are_rolled_back_after_a_failed_roll_back(tmp_path: Path, logged: list[str]) -> None:
    lost, good = make_changes(tmp_path, "lost", "good")
    Path(lost.path).unlink()
    on_trial("a-lost", lost)
    on_trial("good", good)
    Path(trial.FOLDER, f"odd.{TRIAL}").write_text("{}")
    assert trial.roll_back_left_over() == ["a-lost", "good", "odd"]
    assert Path(good.path).read_text() == BEFORE
    assert len(logged) == 3
    assert logged[0].startswith('error problem="a-lost: the roll-back failed: ')
    assert logged[1].startswith('changed what=roll-back service=good why="not confirmed before the machine')
    assert logged[2].startswith('error problem="odd: the roll-back failed: ')
    assert "must be a trial file of 'enable'" in logged[2]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"version": 2}', '{"version": 1, "changes": [{}]}', '{"version": 1, "changes": []}', "\xff"],
)
def test_an_invalid_trial_file_is_refused_and_unchanged(text: str) -> None:
    path = Path(trial.FOLDER, f"sudo.{TRIAL}")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TrialError, match=r"must be a trial file of 'enable' \(roll back"):
        trial.load("sudo", TRIAL)
    assert path.read_bytes() == text.encode("latin-1")


def test_a_trial_file_has_the_keys_of_earlier_versions(tmp_path: Path) -> None:
    change = Change(str(tmp_path / "sudo"), BEFORE, BEFORE + ADDED, ADDED, "auth required pam_oath.so\n")
    path = on_trial("sudo", change)
    assert list(json.loads(path.read_text())["changes"][0]) == ["path", "before", "after", "ours", "replaced"]
    record = trial.load("sudo", TRIAL)
    assert record is not None
    assert record.changes == (change,)


def test_an_unreadable_trial_file_is_an_error() -> None:
    Path(trial.FOLDER, f"sudo.{TRIAL}").mkdir()
    with pytest.raises(TrialError, match=r"sudo\.trial: Is a directory"):
        trial.load("sudo", TRIAL)


def test_a_service_not_on_trial_is_neither_kept_nor_rolled_back() -> None:
    with pytest.raises(TrialError, match="sudo is not on trial"):
        trial.keep("sudo")
    with pytest.raises(TrialError, match="sudo is not on trial"):
        trial.roll_back("sudo")


def test_a_watchdog_does_not_roll_back_the_next_trial(tmp_path: Path) -> None:
    (change,) = make_changes(tmp_path, "sudo")
    on_trial("sudo", change, began=8)
    with pytest.raises(TrialError, match="another trial has started"):
        trial.roll_back("sudo", only=7)
    assert Path(change.path).read_text() == change.after
    assert records() == [("sudo", TRIAL)]


def test_a_watchdog_rolls_back_when_stopped_and_logs_the_result(tmp_path: Path, logged: list[str]) -> None:
    good, lost = make_changes(tmp_path, "good", "lost")
    on_trial("sudo", good)
    trial.watch("sudo", ["stop"])
    assert Path(good.path).read_text() == BEFORE
    Path(lost.path).unlink()
    on_trial("su", lost, keep_within=0)
    trial.watch("su", [])
    trial.watch("sshd", [])  # sshd is not on trial
    assert len(logged) == 2
    assert logged[0].startswith('changed what=roll-back service=sudo why="not confirmed within 60 s"')
    assert logged[1].startswith('error problem="su: the roll-back failed: ')
    assert not trial.has_watchdog("sudo")


def test_a_trial_file_that_cannot_be_written_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sudo"
    path.write_text(BEFORE)
    Path(trial.FOLDER, f"sudo.{TRIAL}").mkdir()  # a folder at the path of the trial file
    with pytest.raises(TrialError, match="nothing was changed"):
        trial.begin(Record("sudo", (Change(str(path), BEFORE, BEFORE + ADDED, ADDED),), 60))
    assert path.read_text() == BEFORE
    assert not list(Path(trial.FOLDER).glob("*.new"))


def test_without_a_watchdog_no_change_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sudo"
    path.write_text(BEFORE)
    monkeypatch.setattr(trial, "INTERPRETER", "/bin/true")
    monkeypatch.setattr(trial, "READY_WITHIN", 0.3)
    with pytest.raises(TrialError, match="did not start"):
        trial.begin(Record("sudo", (Change(str(path), BEFORE, BEFORE + ADDED, ADDED),), 60))
    assert path.read_text() == BEFORE
    assert records() == []
