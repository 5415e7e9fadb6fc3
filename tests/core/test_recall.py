"""What a process remembers of the files that it read and wrote: never more than the files themselves say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pam_totp.core.record import Grace, RecordError, UserRecord
from pam_totp.core.secretfile import parse, serialize
from pam_totp.store import StoreError, recall
from pam_totp.store.file import FileStore
from tests.core.stores import code, counter_of, enrol, says


@pytest.fixture(autouse=True)
def _nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "_records", {})


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All that was parsed since."""
    seen: list[bytes] = []

    def noted(data: bytes) -> UserRecord:
        seen.append(data)
        return parse(data)

    monkeypatch.setattr(recall, "parse", noted)
    return seen


def test_one_login_after_another_parses_once(folder: Path, parsed: list[bytes]) -> None:
    path = enrol(folder)
    enrolled = path.read_bytes()
    assert [says(folder, code(i)) for i in (0, 0, 1, 2)] == ["code", "replayed", "code", "code"]
    assert parsed == [enrolled]
    assert counter_of(path) == 3


def test_what_another_process_wrote_is_what_counts(folder: Path) -> None:
    path = enrol(folder)
    enrolled = path.read_bytes()
    assert says(folder, code(0)) == "code"
    child = os.fork()
    if child == 0:
        os._exit(says(folder, code(1)) != "code")
    assert os.waitpid(child, 0)[1] == 0
    assert says(folder, code(1)) == "replayed"
    path.write_bytes(enrolled)  # as an admin who puts back a copy
    assert says(folder, code(0)) == "code"


def test_a_file_that_was_good_and_is_broken_is_refused(folder: Path) -> None:
    path = enrol(folder)
    assert says(folder, code(0)) == "code"
    path.write_bytes(path.read_bytes().replace(b'"digits": 6', b'"digits": 9'))
    for _ in range(2):  # what is refused is not remembered either
        with pytest.raises(StoreError, match="digits"):
            says(folder, code(1))


def test_a_remembered_record_belongs_to_its_user_alone(folder: Path) -> None:
    path = enrol(folder)
    assert says(folder, code(0)) == "code"
    path.rename(folder / "bob.json")
    with pytest.raises(StoreError, match="not the one that the file is named after"):
        FileStore(str(folder)).read("bob")


def test_a_user_takes_one_place_and_there_are_only_so_many(folder: Path, parsed: list[bytes]) -> None:
    enrol(folder)
    for i in range(recall.MOST // 2):
        says(folder, code(i))
    assert len(parsed) == 1
    assert len(recall._records) == 1
    for i in range(3 * recall.MOST):
        data = serialize(UserRecord(user=f"user{i}"))
        assert recall.parsed(data) == parse(data)
        assert len(recall._records) <= recall.MOST


def test_long_records_are_not_kept_so_that_all_that_is_stays_small(folder: Path, parsed: list[bytes]) -> None:
    grace = tuple(Grace(service="sshd", rhost="x" * 255, granted=i) for i in range(64))
    path = enrol(folder, grace=grace)
    assert len(path.read_bytes()) > recall.LONGEST
    assert [says(folder, code(i)) for i in (0, 0, 1)] == ["code", "replayed", "code"]
    assert len(parsed) == 3
    assert recall._records == {}


def test_what_does_not_parse_is_not_remembered() -> None:
    with pytest.raises(RecordError):
        recall.parsed(b"{}")
    assert recall._records == {}
