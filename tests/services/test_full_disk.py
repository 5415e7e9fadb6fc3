"""Test of a full or read-only disk: a login does not reveal which users are enrolled, or with which tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.logins.test_full_disk import ANSWERS, USERS
from tests.services.namespace import STORE, Machine


@pytest.fixture(params=["full", "read-only"])
def spoiled(request: pytest.FixtureRequest, machine: Machine) -> Iterator[str]:
    """Put the store on a small disk that becomes full or read-only after one refusal of each user."""
    made = machine.run("mount", "-t", "tmpfs", "-o", "size=128k,mode=0700,uid=54000,gid=54000", "private", STORE)
    assert made.returncode == 0, made.stderr
    try:
        machine.stack("demo", machine.module_line())
        for name, record in USERS.items():
            machine.put(f"{STORE}/{name}.json", "pam_totp", record)
        for name in (*USERS, "no-such-user"):
            seen(machine, name, "777777")
        if request.param == "full":
            machine.run("dd", "if=/dev/zero", f"of={STORE}/.fill", "bs=4096")
        else:
            machine.run("mount", "-o", "remount,ro", STORE)
        yield request.param
    finally:
        machine.run("umount", "-l", STORE)


def seen(machine: Machine, user: str, answer: str) -> tuple[int, str]:
    done = machine.run("pamtester", "demo", user, "authenticate", stdin=f"{answer}\n")
    return done.returncode, done.stdout + done.stderr


def test_all_answers_that_cannot_be_recorded_look_alike(machine: Machine, spoiled: str) -> None:
    for answer in ANSWERS:
        all_seen = {name: seen(machine, name, answer) for name in (*USERS, "no-such-user")}
        assert len(set(all_seen.values())) == 1, (answer, all_seen)
        assert all_seen["one-token"][0] != 0
