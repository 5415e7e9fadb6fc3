"""A store on a full disk: logins go on as if there were room. On a read-only disk all are refused alike.

Rules:
- A right code is accepted, a replay and a wrong code are refused and counted.
- Refusals of enrolled, not enrolled and unknown users look alike.
- No file is created. What needs room fails, and says so.
For a limit on the size of files, see tests/logins/test_limits.py.
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
from tests.torture.images import SYSTEMS, fill, is_full, make_room, mounted, use_up_inodes
from tests.torture.private import in_mount_namespace, mount
from tests.torture.test_oracle import SAME, seen

SALT, RECOVERY = "5a" * 16, "0123456789ABCDEF"
ANSWERS = {"right": codes(0), "wrong": "000000", "row": codes(0, 2), "recovery": RECOVERY}
UNKNOWN_USERS = ["nobody", "no-such-account"]
SPOILED: dict[str, Callable[[Path], object]] = {"full": fill, "no inodes": use_up_inodes}
NOW = 1_700_000_000
LOGINS = 1000  # accepted logins in a row


def enrol(site: Site) -> None:
    """Enrol as the command does, which makes the decoys too."""

    def change(record: UserRecord) -> tuple[UserRecord, None]:
        return record.with_token(fob()).with_token(phone()).with_recovery(SALT, digests), None

    digests = (recovery_digest(SALT, RECOVERY),)
    FileStore(str(site.store)).update(ME, change, create=True)


def on(system: str, site: Site, way: str, work: Callable[[], None]) -> None:
    """Run `work` in a mount namespace where the store is on a file system of that kind."""
    site.stop()  # the service must be in the namespace of the mount

    def mounts_and_works() -> None:
        mounted(system, site.folder / "image", site.store)
        enrol(site)
        if way == "socket":
            site.start()
        site.configure("demo", way=way)
        try:
            work()
        finally:
            site.stop()

    in_mount_namespace(mounts_and_works)


@with_mounts
@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("system", SYSTEMS)
def test_on_a_full_disk_codes_are_accepted_once_and_wrong_ones_counted(
    site: Site, way: str, system: str, how: str
) -> None:
    def work() -> None:
        SPOILED[how](site.store)
        names = site.files()
        assert site.gets_in(codes(0)), "the first login after the enrolment"
        assert not site.gets_in(codes(0))
        assert not site.gets_in("000000")
        assert (site.record().failures, site.record().refused) == (1, 2)
        assert site.gets_in(RECOVERY)
        assert not site.gets_in(RECOVERY)
        logins_go_on(site, 1, LOGINS if way == "spawn" else 20)  # they use no service
        assert site.files() == names

    on(system, site, way, work)


def logins_go_on(site: Site, first: int, count: int) -> None:
    store = FileStore(str(site.store))
    for counter in range(first, first + count):
        for answer, accepted in ((codes(counter), True), (codes(counter), False)):
            decision = decide(store, ME, Answer.parse(answer.encode()), Policy(), lambda: NOW)
            assert decision.outcome.accepted is accepted, (counter, decision.outcome)
    assert site.counter() == first + count


@with_mounts
@pytest.mark.parametrize("system", [system for system in SYSTEMS if system != "tmpfs"])
def test_a_full_disk_that_is_mounted_again_takes_logins(site: Site, system: str) -> None:
    def work() -> None:
        fill(site.store)
        logins_go_on(site, 0, 20)
        subprocess.run(["umount", str(site.store)], check=True)
        mount("-o", "loop", str(site.folder / "image"), str(site.store))
        assert is_full(site.store)
        logins_go_on(site, 20, LOGINS)

    on(system, site, "spawn", work)


@with_mounts
@pytest.mark.parametrize("how", SPOILED)
@pytest.mark.parametrize("system", SYSTEMS)
def test_on_a_full_disk_refusals_look_alike_for_every_user(site: Site, way: str, system: str, how: str) -> None:
    def work() -> None:
        SPOILED[how](site.store)
        for user in (ME, *UNKNOWN_USERS):
            for answer in ("000000", codes(500), "ZZZZ-ZZZZ-ZZZZ-ZZZZ"):
                done = site.login(answer, user=user)
                assert seen(done) == SAME, (user, answer)
                assert done.seconds >= refusal_delay(Policy())
        assert not site.log.has("decoys")

    on(system, site, way, work)


@with_mounts
@pytest.mark.parametrize("system", SYSTEMS)
def test_on_a_full_disk_what_needs_room_fails_and_changes_nothing(site: Site, system: str) -> None:
    def work() -> None:
        path = enrol_1(site.store, "carl")
        fill(site.store)
        store, names, document = FileStore(str(site.store)), site.files(), path.read_bytes()
        for user, create in (("bob", True), ("carl", False)):
            with pytest.raises(StoreError, match=os.strerror(errno.ENOSPC)):
                store.update(user, lambda record: (record.with_token(phone()), None), create=create)
        assert site.files() == names
        assert path.read_bytes() == document
        assert store.read("carl").tokens == (fob(),), "a user of version 1 stays enrolled"
        make_room(site.store)
        store.update("carl", lambda record: (record.with_token(phone()), None))
        assert store.read("carl").tokens == (fob(), phone())

    on(system, site, "spawn", work)


@with_mounts
def test_a_read_only_store_refuses_all_alike_and_loses_no_data(site: Site, way: str) -> None:
    def work() -> None:
        assert not site.gets_in("000000")
        mount("-o", "remount,ro", str(site.store))
        before, names = site.path().read_bytes(), site.files()
        logins = [site.login(answer, user=user) for user in (ME, *UNKNOWN_USERS) for answer in ANSWERS.values()]
        assert min(login.seconds for login in logins) >= refusal_delay(Policy()), "nor does the range of the search"
        shown = [seen(login) for login in logins]
        assert shown == [(Result.AUTHINFO_UNAVAIL, ["One-time code: "], [], 0)] * len(shown)
        assert (site.path().read_bytes(), site.files()) == (before, names)
        mount("-o", "remount,rw", str(site.store))
        assert site.gets_in(codes(0)), "the right code is still valid"
        assert not site.gets_in(codes(0))
        assert site.record().failures == 1

    on("tmpfs", site, way, work)


@with_mounts
@pytest.mark.skipif("xfs" not in SYSTEMS, reason="needs mkfs.xfs: its files can share blocks with copies")
def test_a_record_with_shared_blocks_is_found_and_written_anew(site: Site) -> None:
    """On a full disk, a login that writes to shared blocks would need new ones."""

    def work() -> None:
        store, copy = FileStore(str(site.store)), site.store / "copy"
        assert list(upkeep.examine(store)) == []
        subprocess.run(["cp", "--reflink=always", str(site.path()), str(copy)], check=True)
        assert [trouble.text for trouble in upkeep.examine(store)] == [
            f"{ME}.record: shares blocks with a copy (reflink)"
        ]
        assert len(list(upkeep.repair(store))) == 1
        assert list(upkeep.examine(store)) == []
        fill(site.store)
        logins_go_on(site, 0, 20)

    on("xfs", site, "spawn", work)
