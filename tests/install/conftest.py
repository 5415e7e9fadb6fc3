"""A machine that all tests of an installation share. Each test starts with pam_totp installed and alice enrolled."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install.machine import Fresh
from tests.support.isolation import MAY_MOUNT


@pytest.fixture(scope="session")
def _installed() -> Iterator[Fresh]:
    if not MAY_MOUNT:
        pytest.skip("requires root and permission to mount: `make install` runs in a separate mount namespace")
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
    """Return the machine in the state after `make install`, with one token for alice."""
    _installed.reset()
    return _installed
