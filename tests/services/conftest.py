"""Fixtures for the tests of the real services. All these tests share a machine and an sshd."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services.namespace import Machine, Sshd
from tests.support.etc import PASSWORD
from tests.support.isolation import MAY_MOUNT
from tests.support.site import codes


@pytest.fixture(scope="session")
def _machine() -> Iterator[Machine]:
    if not MAY_MOUNT:
        pytest.skip("requires root and permission to mount: real services run in a separate mount namespace")
    with tempfile.TemporaryDirectory(prefix="pam_totp-machine-") as folder:
        machine = Machine(Path(folder))
        try:
            yield machine
        finally:
            machine.stop()


@pytest.fixture
def machine(_machine: Machine) -> Iterator[Machine]:
    """Yield the machine, without enrolled users and log lines. Check after the test that pam_totp logged no secret."""
    _machine.reset()
    yield _machine
    _machine.hang_up()
    said = "\n".join(_machine.log.module_lines())
    assert not [secret for secret in (PASSWORD, *map(codes, range(3))) if secret in said]


@pytest.fixture(scope="session")
def _sshd(_machine: Machine) -> Sshd:
    return Sshd(_machine)


@pytest.fixture
def sshd(machine: Machine, _sshd: Sshd) -> Sshd:
    return _sshd


@pytest.fixture(params=["spawn", "socket"])
def way_there(request: pytest.FixtureRequest, machine: Machine) -> str:
    """Return the verifier in a stack line: `spawn` for a new helper, `socket` for the running service."""
    if request.param == "socket":
        machine.serve()
    way: str = request.param
    return way
