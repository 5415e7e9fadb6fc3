"""One machine for all tests that install; each test finds it installed, with nothing enabled and alice enrolled."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install.machine import Fresh
from tests.isolation import MAY_MOUNT


@pytest.fixture(scope="session")
def _installed() -> Iterator[Fresh]:
    if not MAY_MOUNT:
        pytest.skip("needs root, and leave to mount: an installation takes a mount namespace of its own")
    with tempfile.TemporaryDirectory(prefix="pam_totp-installed-") as folder:
        machine = Fresh(Path(folder))
        try:
            done = machine.make("install")
            assert done.returncode == 0, done.stderr
            yield machine
        finally:
            machine.stop()


@pytest.fixture
def machine(_installed: Fresh) -> Fresh:
    """The machine as `make install` leaves it, with one token: alice's."""
    _installed.reset()
    return _installed
