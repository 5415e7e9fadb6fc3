"""Tests of a store that is full, out of inodes or read-only: every user and every answer is refused alike.

The record is unchanged, and no temporary file remains. When the store is writable again, the code is still valid.
tests/logins/test_limits.py tests the limit of a process on the size of files.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pam_totp.core.answer import recovery_digest
from pam_totp.core.policy import Policy
from pam_totp.operations.authenticate import refusal_delay
from tests.conftest import with_mounts
from tests.support.pamconf import Result
from tests.support.site import ME, Site, codes, fob, phone
from tests.torture.pace import LONG
from tests.torture.private import in_mount_namespace, mount
from tests.torture.test_oracle import seen

SALT, RECOVERY = "5a" * 16, "0123456789ABCDEF"
ANSWERS = {"right": codes(0), "wrong": "000000", "row": codes(0, 2), "recovery": RECOVERY}
UNKNOWN_USER = "no-such-account"


def _fill(store: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), open(store / "ballast", "wb", buffering=0) as ballast:
        while True:
            ballast.write(b"x" * 512)


def _use_up_inodes(store: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        for number in range(10):
            (store / f"ballast{number}").touch()


def _make_room(store: Path) -> None:
    for ballast in store.glob("ballast*"):
        ballast.unlink()


BROKEN: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], object]]] = {
    "16 KiB, full": ("size=16k", _fill, _make_room),
    "no inodes": ("nr_inodes=8", _use_up_inodes, _make_room),
    "read-only": (
        "size=1m",
        lambda store: mount("-o", "remount,ro", str(store)),
        lambda store: mount("-o", "remount,rw", str(store)),
    ),
}
SOME = [
    ("16 KiB, full", True),
    ("no inodes", False),
    ("read-only", True),
]  # True: a login before the fault created the lock file


def enrol(site: Site) -> None:
    site.enrol(fob(), phone(), salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))


def refuses_all_alike(site: Site) -> None:
    before = site.path().read_bytes()
    names = set(os.listdir(site.store))
    logins = [site.login(answer, user=user) for user in (ME, UNKNOWN_USER) for answer in ANSWERS.values()]
    assert min(login.seconds for login in logins) >= refusal_delay(Policy()), "every refusal takes at least the delay"
    shown = [seen(login) for login in logins]
    assert shown == [(Result.AUTHINFO_UNAVAIL, ["One-time code: "], [], 0)] * len(shown)
    assert site.path().read_bytes() == before
    assert set(os.listdir(site.store)) - {f"{ME}.lock"} == names - {f"{ME}.lock"}


@with_mounts
@pytest.mark.parametrize(("how", "used_before"), list(itertools.product(BROKEN, (True, False))) if LONG else SOME)
def test_an_unwritable_store_refuses_all_alike_and_loses_no_data(
    site: Site, way: str, how: str, used_before: bool
) -> None:
    options, spoil, mend = BROKEN[how]
    site.stop()  # the service must start in the mount namespace of `work`

    def work() -> None:
        mount("-t", "tmpfs", "-o", f"{options},mode=0700", "private", str(site.store))
        if way == "socket":
            site.start()
        try:
            refused_and_good_again()
        finally:
            site.stop()

    def refused_and_good_again() -> None:
        enrol(site)
        if used_before:
            assert not site.gets_in("000000")
        spoil(site.store)
        refuses_all_alike(site)
        mend(site.store)
        assert site.gets_in(codes(0)), "the right code is still valid"
        assert not site.gets_in(codes(0))
        assert site.record().failures == int(used_before)
        assert set(os.listdir(site.store)) <= {f"{ME}.json", f"{ME}.lock"}

    in_mount_namespace(work)
