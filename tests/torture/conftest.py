"""The machine of the real services, for the torture too."""

from __future__ import annotations

from tests.services.conftest import _machine, _sshd, machine, sshd

__all__ = ["_machine", "_sshd", "machine", "sshd"]
