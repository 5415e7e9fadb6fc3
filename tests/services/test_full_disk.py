"""Tests of services on a full or read-only disk: a code is accepted at most once, and all refusals are equal."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.logins.test_full_disk import ANSWERS, RECOVERY, USERS
from tests.services.namespace import STORE, Machine, Sshd
from tests.support.site import codes
from tests.torture.images import fill

CODE = "One-time code: "
RIGHT = {codes(0), codes(0, 2), RECOVERY}  # answers that are right for one or more users


@pytest.fixture(params=["full", "read-only"])
def disk(request: pytest.FixtureRequest, machine: Machine) -> Iterator[str]:
    """Put the store on a small disk, cause one refusal for each user, then fill the disk or remount it read-only."""
    made = machine.run("mount", "-t", "tmpfs", "-o", "size=2m,mode=0700,uid=54000,gid=54000", "private", STORE)
    assert made.returncode == 0, made.stderr
    try:
        machine.make_decoys()
        machine.stack("demo", machine.module_line())
        for name, record in USERS.items():
            machine.put(f"{STORE}/{name}.record", "pam_totp", record)
        machine.enrol("alice")
        for name in (*USERS, "no-such-user"):
            seen(machine, name, "777777")
        if request.param == "full":
            fill(machine.path(STORE))
        else:
            machine.run("mount", "-o", "remount,ro", STORE)
        yield request.param
    finally:
        machine.run("umount", "-l", STORE)


def seen(machine: Machine, user: str, answer: str) -> tuple[int, str]:
    done = machine.run("pamtester", "demo", user, "authenticate", stdin=f"{answer}\n")
    return done.returncode, done.stdout + done.stderr


def test_all_refusals_look_alike(machine: Machine, disk: str) -> None:
    for answer in ANSWERS:
        if disk == "full" and answer in RIGHT:
            continue
        all_seen = {name: seen(machine, name, answer) for name in (*USERS, "no-such-user")}
        assert len(set(all_seen.values())) == 1, (answer, all_seen)
        assert all_seen["one-token"][0] != 0


@pytest.mark.parametrize("disk", ["full"], indirect=True)
def test_sudo_and_sshd_accept_a_code_once_on_a_full_disk(
    machine: Machine, sshd: Sshd, disk: str, way_there: str
) -> None:
    for service in ("sudo", "sshd"):
        machine.stack(service, machine.module_line(way=way_there))
    status, shown = machine.talk("sudo", "id", "-un", user="alice").asks(CODE).says(codes(0)).ends()
    assert (status, shown.strip()) == (0, "root")
    status, shown = sshd.ssh().asks(CODE).says(codes(1)).ends()
    assert (status, "in as alice" in shown) == (0, True)
    status, shown = sshd.ssh("alice", "NumberOfPasswordPrompts=1").asks(CODE).fails(codes(1)).ends()
    assert status == 255, shown
    talk = machine.talk("sudo", "id", "-un", user="alice").asks(CODE).fails("000000").asks(CODE).says(codes(2))
    assert talk.ends()[0] == 0, "a wrong code is counted, and the next right code is accepted"
    assert machine.record("alice").failures == 1
    assert machine.counter("alice") == 3
