"""Tests of callers without root, such as screen lockers: each caller may authenticate only its own user."""

from __future__ import annotations

import subprocess

import pytest

from tests.services.namespace import Machine
from tests.support.site import codes


@pytest.fixture(autouse=True)
def serving(machine: Machine) -> None:
    machine.serve()
    machine.stack("locker", machine.module_line(way="socket"))
    machine.enrol("alice")


def unlock(machine: Machine, user: str, answer: str, *options: str, caller: str = "alice") -> bool:
    """Return True if pamtester, run by `caller`, logs `user` in."""
    done: subprocess.CompletedProcess[str] = machine.run(
        "pamtester", *options, "locker", user, "authenticate", user=caller, stdin=f"{answer}\n"
    )
    assert (done.returncode == 0) == ("successfully authenticated" in done.stdout), done
    return done.returncode == 0


def test_a_user_may_authenticate_themselves(machine: Machine) -> None:
    assert unlock(machine, "alice", codes(0))
    assert not unlock(machine, "alice", codes(0))
    machine.log.wait_for("pam_totp(locker:auth): accepted user=alice by=code")


def test_a_user_may_not_authenticate_as_another_user(machine: Machine) -> None:
    before = machine.path("/var/lib/pam_totp/alice.record").read_bytes()
    assert not unlock(machine, "alice", codes(0), caller="bob")
    machine.log.wait_for("refused user=alice reason=not-yours-to-ask uid=54002")
    assert machine.path("/var/lib/pam_totp/alice.record").read_bytes() == before
    assert not unlock(machine, "root", codes(0)), "alice may not authenticate as root"


def test_an_ordinary_caller_cannot_change_the_policy(machine: Machine) -> None:
    machine.stack("locker", machine.module_line("nullok user=bob look_ahead=100 lock_after=1", way="socket"))
    machine.enrol("bob")
    assert not unlock(machine, "alice", codes(50)), "the argument look_ahead is ignored"
    assert unlock(machine, "alice", codes(10)), "the arguments lock_after and user are ignored"
    machine.path("/var/lib/pam_totp/alice.record").unlink()
    assert not unlock(machine, "alice", codes(11)), "the argument nullok is ignored"


def test_an_ordinary_caller_may_choose_the_prompt(machine: Machine) -> None:
    machine.stack("locker", machine.module_line("[prompt=Unlock: ]", way="socket"))
    talk = machine.talk("pamtester", "locker", "alice", "authenticate", user="alice")
    assert talk.asks("Unlock: ").says(codes(0)).ends()[0] == 0


def test_an_ordinary_caller_neither_uses_nor_gets_grace(machine: Machine) -> None:
    machine.write("/etc/pam_totp.toml", "[policy]\ngrace_period = 600\n")
    here = ("-I", "rhost=192.0.2.7")
    assert unlock(machine, "alice", codes(0), *here)
    assert machine.record("alice").grace == ()
    assert unlock(machine, "alice", codes(1), *here, caller="root")
    assert [g.rhost for g in machine.record("alice").grace] == ["192.0.2.7"]
    assert unlock(machine, "alice", "", *here, caller="root"), "a login has grace if the caller is root"
    assert not unlock(machine, "alice", "", *here), "a login has no grace if the caller is alice"


def test_without_the_service_an_ordinary_caller_is_refused(machine: Machine) -> None:
    machine.stack("locker", machine.module_line("nullok", way="spawn"))
    assert not unlock(machine, "alice", codes(0))
    assert not unlock(machine, "bob", codes(0), caller="bob"), (
        "a caller that cannot read the store is refused even with nullok"
    )


def test_a_listed_client_may_name_any_user_only_under_its_service(machine: Machine) -> None:
    machine.write("/etc/pam_totp.toml", '[clients]\ncarol = "locker"\n')
    machine.stack("other", machine.module_line(way="socket"))
    assert unlock(machine, "alice", codes(0), caller="carol")
    done = machine.run("pamtester", "other", "alice", "authenticate", user="carol", stdin=f"{codes(1)}\n")
    assert done.returncode != 0
    assert not unlock(machine, "alice", codes(1), caller="bob")
