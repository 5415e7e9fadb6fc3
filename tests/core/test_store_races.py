"""Tests of the file store: conversions, decoys and copies under concurrent updates, and locks of killed processes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pam_totp.core.answer import Answer
from pam_totp.core.policy import Policy
from pam_totp.core.record import HotpToken, RecordError, UserRecord
from pam_totp.core.slots import decode
from pam_totp.core.verify import Outcome
from pam_totp.operations.authenticate import decide
from pam_totp.store import LockBusy, StoreError
from pam_totp.store.decoys import FOLDER as DECOYS
from pam_totp.store.file import LOCK_WAIT, FileStore
from tests.core.conftest import TIMES
from tests.core.racing import in_processes, in_threads
from tests.core.stores import LOCK_TIMEOUT, NOW, code, counter_of, enrol, enrol_1, holding, log_in
from tests.support.site import fob

MANY = 50
ROUNDS = max(TIMES, 1)


@pytest.mark.bare
@pytest.mark.parametrize("race", [in_processes, in_threads], ids=["processes", "threads"])
def test_a_code_is_accepted_once_while_a_file_of_version_1_is_converted(
    folder: Path, race: Callable[[int, Callable[[int], str]], list[str]]
) -> None:
    for _ in range(ROUNDS):
        for name in os.listdir(folder):
            if name not in (".lock", DECOYS):
                (folder / name).unlink()
        enrol_1(folder)
        assert Counter(race(MANY, lambda _: log_in(folder, code(0)))) == {"code": 1, "replayed": MANY - 1}
        assert sorted(os.listdir(folder)) == [DECOYS, ".lock", "alice.json", "alice.record"]


def test_concurrent_decoy_work_leaves_every_decoy_valid(folder: Path) -> None:
    """Answers for different names can write the same decoy at the same time."""
    store = FileStore(str(folder), LOCK_TIMEOUT)
    store.prepare()

    def works(number: int) -> str:
        for _ in range(20):
            store.update_decoy(f"user{number}", int)
        return "done"

    assert in_processes(MANY, works) == ["done"] * MANY
    found = [decode(path.read_bytes()) for path in (folder / DECOYS).iterdir()]
    assert all(slots.other for slots in found)
    assert sum(slots.sequence - 2 for slots in found) <= MANY * 20


COPY: dict[str, list[str]] = {
    "cp": ["cp", "alice.record", "../copy"],
    "tar": ["sh", "-c", "tar -c alice.record | tar -x -C .. --transform s/alice.record/copy/"],
}


@pytest.mark.parametrize("program", COPY)
def test_a_copy_that_is_made_during_logins_is_valid(folder: Path, program: str) -> None:
    """A copy can contain an older record. A copy during two writes might lack a valid slot, and is then refused."""
    enrol(folder)
    store, done = FileStore(str(folder)), threading.Event()

    def log_in_repeatedly() -> None:
        counter = 0
        while not done.is_set():
            assert log_in(folder, code(counter)) == "code"
            counter += 1

    logins = threading.Thread(target=log_in_repeatedly)
    logins.start()
    last, copied = 0, 0
    for _ in range(50):
        token = store.read("alice").tokens[0]
        assert isinstance(token, HotpToken)
        subprocess.run(COPY[program], cwd=folder, check=True)
        with suppress(RecordError):
            assert counter_of(folder.parent / "copy") >= last
            copied += 1
        last = token.counter - 1
    done.set()
    logins.join()
    assert copied >= 45


# ---- waiting for the lock


class Holder:
    """A process that holds a user's lock and has written a part of a temporary file."""

    def __init__(self, folder: Path, user: str = "alice") -> None:
        held_read, held_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._hold(folder, user, held_write)
        os.close(held_write)
        assert os.read(held_read, 1) == b"!"
        os.close(held_read)

    @staticmethod
    def _hold(folder: Path, user: str, held: int) -> None:
        def waits(record: UserRecord) -> tuple[UserRecord, None]:
            (folder / f".{user}.record").write_bytes(b"half a reco")
            os.write(held, b"!")
            signal.pause()
            return record, None

        try:
            FileStore(str(folder)).update(user, waits)
        finally:
            os._exit(1)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def test_a_lock_not_acquired_in_time_is_unavailable_and_changes_nothing(folder: Path) -> None:
    path = enrol(folder)
    holder = Holder(folder)
    try:
        begun = time.monotonic()
        with pytest.raises(StoreError, match=r"alice.record: the lock was not acquired within 0.2 s"):
            log_in(folder, code(0), store=FileStore(str(folder), lock_wait=0.2))
        assert time.monotonic() - begun >= 0.2
        assert counter_of(path) == 0
        assert (folder / ".alice.record").exists(), "the temporary file of the holder of the lock is kept"
        assert FileStore(str(folder)).read("alice").tokens == (fob(),), "reading needs no lock"
        enrol(folder, "bob")
        assert log_in(folder, code(0), "bob", store=FileStore(str(folder), lock_wait=0.0)) == "code", (
            "another user does not wait for the lock"
        )
    finally:
        holder.kill()


@pytest.mark.parametrize("user", ["alice", "unproved", "unknown"])
def test_a_decision_that_met_a_busy_lock_can_be_made_again(folder: Path, user: str) -> None:
    """The first attempt changes no file, for every kind of user. The second attempt counts the answer once."""
    FileStore(str(folder)).prepare()
    enrol(folder)
    enrol(folder, "unproved", tokens=(fob(confirmed=False),))
    before = contents(folder)
    answer, policy = Answer.parse(b"000000"), Policy()
    lock = holding(folder, f"{user}.record")
    try:
        begun = time.monotonic()
        with pytest.raises(LockBusy):
            decide(FileStore(str(folder), 0.0), user, answer, policy, lambda: NOW)
        assert time.monotonic() - begun < LOCK_WAIT
        assert contents(folder) == before
    finally:
        os.close(lock)
    outcome = decide(FileStore(str(folder)), user, answer, policy, lambda: NOW).outcome
    assert outcome is (Outcome.WRONG if user == "alice" else Outcome.NOT_ENROLLED)
    changed = [path for path, content in contents(folder).items() if content != before[path]]
    assert len(changed) == 1
    if user == "alice":
        assert FileStore(str(folder)).read(user).failures == 1


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_writer_releases_the_lock_and_its_leftover_is_removed(folder: Path) -> None:
    path = enrol(folder)
    holder = Holder(folder)
    outcome: list[str] = []
    waiting = threading.Thread(
        target=lambda: outcome.append(log_in(folder, code(0), store=FileStore(str(folder), 60.0)))
    )
    waiting.start()
    holder.kill()
    waiting.join()
    assert outcome == ["code"]
    assert counter_of(path) == 1
    assert sorted(os.listdir(folder)) == [".lock", "alice.record"]


def test_a_lock_released_in_time_is_acquired(folder: Path) -> None:
    enrol(folder)
    assert log_in(folder, b"000000") == "wrong"
    lock = holding(folder, "alice.record")
    outcome: list[str] = []
    waiting = threading.Thread(
        target=lambda: outcome.append(log_in(folder, code(0), store=FileStore(str(folder), 60.0)))
    )
    waiting.start()
    os.close(lock)
    waiting.join()
    assert outcome == ["code"]


def test_the_default_lock_timeout_is_five_seconds() -> None:
    assert FileStore("/nowhere")._lock_wait == 5.0


def test_the_lock_is_held_only_during_a_change(folder: Path) -> None:
    """The store acquires the lock before the change, and releases it after the update."""
    enrol(folder)
    probes: list[bool] = []

    def is_free() -> bool:
        try:
            os.close(holding(folder, "alice.record"))
        except BlockingIOError:
            return False
        return True

    def probe(record: UserRecord) -> tuple[UserRecord, None]:
        probes.append(is_free())
        return record, None

    FileStore(str(folder)).update("alice", probe)
    probes.append(is_free())
    assert probes == [False, True]
