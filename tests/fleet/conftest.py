"""Fixtures of the tests of members: a certificate authority for all tests, and scripted authorities for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tls import Authority, Fleet, Signed


@pytest.fixture(scope="session")
def ca() -> Authority:
    return Authority()


@pytest.fixture(scope="session")
def good(ca: Authority) -> Signed:
    return ca.sign(server=True)


@pytest.fixture
def members(tmp_path: Path, ca: Authority, good: Signed) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path, ca, good)
    yield fleet
    fleet.close()
