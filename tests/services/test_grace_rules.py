"""Tests of the rules of grace_period, with times as numbers and without a clock."""

from __future__ import annotations

import os

import pytest

from pam_totp.core.policy import Policy
from pam_totp.core.record import KEPT_GRACE, Grace, UserRecord
from pam_totp.core.settings import Site as SiteFile
from pam_totp.operations import grace
from pam_totp.pam.admission import admit, is_listed
from pam_totp.pam.protocol import Hello
from tests.support.site import ME

HERE = "192.0.2.7"
AT = ("demo", HERE)


def test_the_newest_entries_are_kept_and_unusable_entries_dropped() -> None:
    full = tuple(Grace(service="demo", rhost=f"192.0.2.{n}", granted=900_000 + n) for n in range(KEPT_GRACE))
    kept = grace.granted(UserRecord(user="alice", grace=full), ("demo", "::1"), 900_100).grace
    assert len(kept) == KEPT_GRACE
    assert kept[-1] == Grace(service="demo", rhost="::1", granted=900_100)
    assert full[0] not in kept
    assert set(full[1:]) < set(kept)
    old = (Grace(service="a", rhost="::1", granted=900_000 - 86_400), Grace(service="b", rhost="::1", granted=900_101))
    assert [g.service for g in grace.granted(UserRecord(user="alice", grace=old), AT, 900_000).grace] == ["demo"]


def test_a_new_code_from_the_same_address_replaces_the_old_grace() -> None:
    record = grace.granted(grace.granted(UserRecord(user="alice"), AT, 100), AT, 200)
    assert record.grace == (Grace(service="demo", rhost=HERE, granted=200),)


@pytest.mark.parametrize(("now", "holds"), [(99, False), (100, True), (109, True), (110, False)])
def test_grace_holds_from_the_code_for_the_period(now: int, holds: bool) -> None:
    record = grace.granted(UserRecord(user="alice"), AT, 100)
    assert grace.holds(record, AT, now, 10, Policy()) is holds


@pytest.mark.parametrize("service", ["", " sshd", "x" * 33, 'a"b', "a\\b", "sshd\n", "über"])
def test_an_unusual_service_name_gets_no_grace(service: str) -> None:
    assert grace.origin(service, HERE) is None


def test_only_root_reads_and_writes_grace() -> None:
    uid = os.geteuid() or 65534
    hello = Hello(version="1", service="demo", user="nobody" if uid == 65534 else ME, arguments=("grace_period=60",))
    assert not is_listed(uid, hello, SiteFile(policy={"grace_period": 3600}, services={}, clients={}))
    admitted = admit(uid, hello, client=False)
    assert admitted is not None
    assert admitted.arguments == ("grace_period=0", "no_second_prompt")
