"""Tests of resource limits: the caller of sudo or su chooses them, and su passes them on to the module."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pam_totp.core.answer import Answer
from pam_totp.core.policy import Policy
from pam_totp.core.record import UserRecord
from pam_totp.core.verify import verify
from pam_totp.operations.authenticate import decide
from pam_totp.operations.grace import granted
from pam_totp.store import StoreError
from pam_totp.store.file import FileStore
from tests.conftest import as_root
from tests.core.stores import enrol
from tests.support.pamconf import Result
from tests.support.site import Site, codes, fob
from tests.torture.sites import FOLDERS

NOW = 1_700_000_000


def in_a_child(work: Callable[[], bool]) -> bool:
    """Return True if `work` returns True in a child process with its own limits."""
    child = os.fork()
    if child == 0:
        found = 2
        try:
            found = not work()
        finally:
            os._exit(found)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 1), "the child ends without an exception"
    return status == 0


def limited(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def answered(folder: Path, answer: str, size: int) -> bool:
    """Return True if the outcome of `answer` could be recorded with files of at most `size` bytes."""

    def change(record: UserRecord) -> tuple[UserRecord, bool]:
        decision = verify(record, Answer.parse(answer.encode()), NOW, Policy())
        after = decision.record
        if decision.outcome.accepted:
            after = granted(after, ("sshd", "2001:db8::7"), NOW)
        return after, True

    def update() -> bool:
        limited(size)
        try:
            return FileStore(str(folder)).update("alice", change)
        except StoreError:
            return False

    return in_a_child(update)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """Yield a folder in memory, because hundreds of logins on a disk are slow."""
    with tempfile.TemporaryDirectory(dir=FOLDERS["tmpfs"]) as folder:
        yield Path(folder)


def test_at_every_file_size_limit_all_answers_are_recorded_or_none(in_memory: Path) -> None:
    """A wrong answer lengthens the record more than a right answer, because it adds the time of the first failure."""
    recorded = set()
    for size in (*range(4096 + 300, 4096 + 1500, 30), 4095, 4096, 4097, 8191, 8192, 65536):
        could = set()
        for answer in ("000000", codes(5), codes(4)):
            enrol(in_memory, tokens=(fob(5, last_used=NOW - 60),))
            could.add(answered(in_memory, answer, size))
        assert len(could) == 1, f"with {size} bytes a file, all answers can be recorded, or none"
        recorded |= could
    assert recorded == {True, False}


def may_raise() -> bool:
    def raised() -> bool:
        limited(1)
        try:
            limited(resource.RLIM_INFINITY)
        except (OSError, ValueError):
            return False
        return True

    return in_a_child(raised)


@as_root
@pytest.mark.parametrize("hard", [False, True])
def test_the_limits_of_the_caller_are_lifted(site: Site, hard: bool) -> None:
    if hard and not may_raise():
        pytest.skip("requires CAP_SYS_RESOURCE to raise a hard limit")
    site.enrol()
    site.configure()

    def wrong_then_right() -> bool:
        most = 1 if hard else resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, most))
        return site.login("000000").result is Result.AUTH_ERR and site.login(codes(0)).result is Result.SUCCESS

    assert in_a_child(wrong_then_right)
    assert (site.record().failures, site.counter()) == (1, 1)


@pytest.mark.parametrize("size", [0, 500, 100_000])
def test_the_work_for_an_unknown_user_needs_the_same_file_size(tmp_path: Path, size: int) -> None:
    tmp_path.chmod(0o700)
    enrol(tmp_path)
    FileStore(str(tmp_path)).prepare()

    def for_an_unknown_user() -> bool:
        limited(size)
        try:
            FileStore(str(tmp_path)).update_decoy("zoe", int)
        except StoreError:
            return False
        return True

    assert in_a_child(for_an_unknown_user) == answered(tmp_path, "000000", size)


def test_no_descriptor_limit_distinguishes_unknown_from_known_users(in_memory: Path) -> None:
    """The caller of su sets the limit. The result must not show whether a refusal could be recorded."""
    store = FileStore(str(in_memory))
    store.update("alice", lambda record: (record.with_token(fob()), None), create=True)

    def refused_to(user: str, most: int) -> bool:
        def refuse() -> bool:
            free = [os.open("/", os.O_RDONLY) for _ in range(most + 1)]  # these have the lowest free numbers
            for descriptor in free:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], free[-1]))
            try:
                return decide(store, user, Answer.parse(b"000000"), Policy(), lambda: NOW).outcome is not None
            except StoreError:
                return False

        return in_a_child(refuse)

    alice, zoe = ([refused_to(user, most) for most in range(6)] for user in ("alice", "zoe"))
    assert alice == zoe
    assert set(alice) == {True, False}
