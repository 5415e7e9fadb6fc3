"""Logins through the real sshd by the real ssh."""

from __future__ import annotations

from tests.services.namespace import PASSWORD, Machine, Sshd
from tests.site import codes

FIRST = "auth requisite pam_unix.so nodelay"


def test_password_then_code(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", FIRST, machine.ours(way=way_there))
    machine.enrol("alice")
    talk = sshd.ssh()
    talk.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(codes(0))
    status, shown = talk.ends()
    assert (status, shown.strip()) == (0, "in as alice")
    assert machine.record("alice").tokens[0].counter == 1
    print(machine.log.lines())
