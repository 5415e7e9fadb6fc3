"""Tests of a store on a full or read-only disk.

Rules for a full disk:
- A right code is accepted. A replay and a wrong code are refused. Only the wrong code is counted as a failure.
- Refusals of enrolled, unenrolled and unknown users are identical.
- A login creates no file. An enrolment and a conversion from version 1 fail with ENOSPC, and change no file.
All refusals on a read-only disk are identical. tests/logins/test_limits.py tests a limit on the size of files.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.policy import Policy
from pam_totp.core.record import UserRecord
from pam_totp.operations.authenticate import decide, refusal_delay
from pam_totp.store import StoreError, upkeep
from pam_totp.store.file import FileStore
from tests.conftest import with_mounts
from tests.core.stores import enrol_1
from tests.support.pamconf import Result
from tests.support.site import ME, Site, codes, fob, phone
from tests.torture.images import ON_DISK, SYSTEMS, fill, free_space, is_full, make_and_mount, needs, use_up_inodes
from tests.torture.private import in_mount_namespace, mount
from tests.torture.test_oracle import SAME, seen

SALT, RECOVERY = "5a" * 16, "0123456789ABCDEF"
ANSWERS = {"right": codes(0), "wrong": "000000", "row": codes(0, 2), "recovery": RECOVERY}
UNKNOWN_USERS = ["nobody", "no-such-account"]
FULL: dict[str, Callable[[Path], object]] = {"full": fill, "no inodes": use_up_inodes}
NOW = 1_700_000_000
LOGINS = 1000  # consecutive accepted logins


def enrol(site: Site) -> None:
    """Enrol the user through the store, which also creates the decoys."""

    def change(record: UserRecord) -> tuple[UserRecord, None]:
        return record.with_token(fob()).with_token(phone()).with_recovery(SALT, digests), None

    digests = (recovery_digest(SALT, RECOVERY),)
    FileStore(str(site.store)).update(ME, change, create=True)


def on(system: str, site: Site, way: str, work: Callable[[], None]) -> None:
    """Run `work` in a mount namespace in which the store is on a file system of the kind `system`."""
    site.stop()  # the service must run in the mount namespace

    def mount_and_work() -> None:
        make_and_mount(system, site.folder / "image", site.store)
        enrol(site)
        if way == "socket":
            site.start()
        site.configure("demo", way=way)
        try:
            work()
        finally:
            site.stop()

    in_mount_namespace(mount_and_work)


@with_mounts
@pytest.mark.parametrize("how", FULL)
@pytest.mark.parametrize("system", SYSTEMS)
def test_on_a_full_disk_codes_are_accepted_once_and_failures_counted(
    site: Site, way: str, system: str, how: str
) -> None:
    def work() -> None:
        FULL[how](site.store)
        names = site.files()
        assert site.gets_in(codes(0)), "the first login after the enrolment succeeds"
        assert not site.gets_in(codes(0))
        assert not site.gets_in("000000")
        assert (site.record().failures, site.record().refused) == (1, 2)
        assert site.gets_in(RECOVERY)
        assert not site.gets_in(RECOVERY)
        check_logins(site, 1, LOGINS if way == "spawn" else 20)  # many logins for one way only, to save time
        assert site.files() == names

    on(system, site, way, work)


def check_logins(site: Site, first: int, count: int) -> None:
    store = FileStore(str(site.store))
    for counter in range(first, first + count):
        for answer, accepted in ((codes(counter), True), (codes(counter), False)):
            decision = decide(store, ME, Answer.parse(answer.encode()), Policy(), lambda: NOW)
            assert decision.outcome.accepted is accepted, (counter, decision.outcome)
    assert site.counter() == first + count


@with_mounts
@pytest.mark.parametrize("system", ON_DISK)
def test_a_full_disk_that_is_mounted_again_allows_logins(site: Site, system: str) -> None:
    def work() -> None:
        fill(site.store)
        check_logins(site, 0, 20)
        subprocess.run(["umount", str(site.store)], check=True)
        mount("-o", "loop", str(site.folder / "image"), str(site.store))
        assert is_full(site.store)
        check_logins(site, 20, LOGINS)

    on(system, site, "spawn", work)


@with_mounts
@pytest.mark.parametrize("how", FULL)
@pytest.mark.parametrize("system", SYSTEMS)
def test_on_a_full_disk_refusals_look_alike_for_every_user(site: Site, way: str, system: str, how: str) -> None:
    def work() -> None:
        FULL[how](site.store)
        for user in (ME, *UNKNOWN_USERS):
            for answer in ("000000", codes(500), "ZZZZ-ZZZZ-ZZZZ-ZZZZ"):
                done = site.login(answer, user=user)
                assert seen(done) == SAME, (user, answer)
                assert done.seconds >= refusal_delay(Policy())
        assert not site.log.has("decoys")

    on(system, site, way, work)


@with_mounts
@pytest.mark.parametrize("system", SYSTEMS)
def test_on_a_full_disk_an_update_that_needs_blocks_changes_no_file(site: Site, system: str) -> None:
    def work() -> None:
        path = enrol_1(site.store, "carl")
        fill(site.store)
        store, names, document = FileStore(str(site.store)), site.files(), path.read_bytes()
        for user, create in (("bob", True), ("carl", False)):
            with pytest.raises(StoreError, match=os.strerror(errno.ENOSPC)):
                store.update(user, lambda record: (record.with_token(phone()), None), create=create)
        assert site.files() - {"carl.lock"} == names
        assert path.read_bytes() == document
        assert store.read("carl").tokens == (fob(),), "a user of version 1 remains enrolled"
        free_space(site.store)
        store.update("carl", lambda record: (record.with_token(phone()), None))
        assert store.read("carl").tokens == (fob(), phone())

    on(system, site, "spawn", work)


@with_mounts
def test_a_read_only_store_refuses_all_users_alike_and_loses_no_data(site: Site, way: str) -> None:
    def work() -> None:
        assert not site.gets_in("000000")
        mount("-o", "remount,ro", str(site.store))
        before, names = site.path().read_bytes(), site.files()
        logins = [site.login(answer, user=user) for user in (ME, *UNKNOWN_USERS) for answer in ANSWERS.values()]
        assert min(login.seconds for login in logins) >= refusal_delay(Policy()), "every refusal is delayed"
        shown = [seen(login) for login in logins]
        assert shown == [(Result.AUTHINFO_UNAVAIL, ["One-time code: "], [], 0)] * len(shown)
        assert (site.path().read_bytes(), site.files()) == (before, names)
        mount("-o", "remount,rw", str(site.store))
        assert site.gets_in(codes(0)), "the right code is still valid"
        assert not site.gets_in(codes(0))
        assert site.record().failures == 1

    on("tmpfs", site, way, work)


@with_mounts
@needs("xfs")  # files on xfs can share blocks with copies
def test_a_record_with_shared_blocks_is_found_and_replaced(site: Site) -> None:
    """A login with this record would fail on a full disk, because a write to shared blocks needs new blocks."""

    def work() -> None:
        store, copy = FileStore(str(site.store)), site.store / "copy"
        assert list(upkeep.examine(store)) == []
        subprocess.run(["cp", "--reflink=always", str(site.path()), str(copy)], check=True)
        assert [defect.text for defect in upkeep.examine(store)] == [
            f"{ME}.record: shares blocks with a copy (reflink)"
        ]
        assert len(list(upkeep.repair(store))) == 1
        assert list(upkeep.examine(store)) == []
        fill(site.store)
        check_logins(site, 0, 20)

    on("xfs", site, "spawn", work)
