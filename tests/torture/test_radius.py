"""Tests of FreeRADIUS under load: every login is decided while authorities are killed."""

from __future__ import annotations

import time

import pytest

from tests.fleet.radius_load import log_in_under_load
from tests.support.cluster import with_postgresql
from tests.support.fleet import Fleet
from tests.support.radius import running, with_freeradius
from tests.torture.pace import report, rounds

pytestmark = [with_postgresql, with_freeradius, pytest.mark.timeout(3600)]


def test_logins_through_freeradius_survive_killed_authorities(fleet: Fleet) -> None:
    logins, kills = rounds(80, 1000), rounds(1, 10)
    with running(fleet, "radius-torture.example.org") as radius:
        begun = time.monotonic()
        log_in_under_load(fleet, radius, logins=logins, kills=kills)
        seconds = time.monotonic() - begun
    report(f"FreeRADIUS: {logins} logins in {seconds:.1f} s, {kills} authorities killed, each code accepted once")
