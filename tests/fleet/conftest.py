"""Fixtures: scripted authorities for a test of a member."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import tls


@pytest.fixture(scope="session")
def ca() -> tls.Authority:
    """Return a certificate authority for scripted authorities."""
    return tls.Authority()


@pytest.fixture(scope="session")
def good(ca: tls.Authority) -> tls.Signed:
    """Return a certificate of a scripted authority."""
    return ca.sign(server=True)


@pytest.fixture
def members(tmp_path: Path, ca: tls.Authority, good: tls.Signed) -> Iterator[tls.Fleet]:
    """Yield a fleet of scripted authorities and one member."""
    fleet = tls.Fleet(tmp_path, ca, good)
    yield fleet
    fleet.close()
