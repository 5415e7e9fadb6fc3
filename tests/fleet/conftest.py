"""A fleet that all tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import Server
from tests.support.fleet import Fleet, running


@pytest.fixture(scope="session")
def fleet(postgresql: Server) -> Iterator[Fleet]:
    """Yield a fleet with two authorities. Mark the test with `tests.support.cluster.with_postgresql`."""
    with running(postgresql) as made:
        yield made
