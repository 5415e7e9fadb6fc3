"""Tests of callers without root, such as screen lockers: each caller can authenticate only its own user."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.services.namespace import Machine
from tests.support.etc import PASSWORD
from tests.support.site import codes


@pytest.fixture(autouse=True)
def serving(machine: Machine) -> None:
    machine.serve()
    machine.stack("locker", machine.module_line(way="socket"))
    machine.enrol("alice")


def unlock(machine: Machine, user: str, answer: str, *options: str, caller: str = "alice") -> bool:
    """Return True if pamtester, run by `caller`, authenticates `user`."""
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


STACK = "auth required pam_unix.so use_first_pass"


def one_field(machine: Machine, site: str = "[service.locker]\nforward_pass = true\n") -> None:
    """Write the stack of a screen locker, which has one field for password and code."""
    machine.write("/etc/pam_totp.toml", site)
    machine.stack("locker", machine.module_line("forward_pass", way="socket"), STACK)


def test_the_site_file_sets_forward_pass_for_a_screen_locker(machine: Machine) -> None:
    one_field(machine)
    assert unlock(machine, "alice", PASSWORD + codes(0))
    machine.log.wait_for("pam_totp(locker:auth): accepted user=alice by=code")
    assert not unlock(machine, "alice", PASSWORD + codes(0)), "a code is accepted once"
    assert not unlock(machine, "alice", "wrong" + codes(1)), "the next module checks the password"
    assert not unlock(machine, "alice", codes(2)), "a code alone is refused"
    talk = machine.talk("pamtester", "locker", "alice", "authenticate", user="alice")
    assert talk.asks("Password and one-time code: ").says(PASSWORD + codes(3)).ends()[0] == 0


def test_the_site_file_sets_forward_pass_for_a_listed_client(machine: Machine) -> None:
    """pam_exec shows the forwarded password, because pam_unix checks another user's password only for root."""
    one_field(machine, '[clients]\ncarol = "locker"\n[service.locker]\nforward_pass = true\n')
    line = machine.module_line(way="socket")
    shows = "auth required pam_exec.so expose_authtok stdout /usr/bin/cat"
    machine.stack("locker", line, shows)
    done = machine.run("pamtester", "-v", "locker", "alice", "authenticate", user="carol", stdin=f"hunter{codes(0)}\n")
    assert (done.returncode, "hunter" in done.stdout, codes(0) in done.stdout) == (0, True, False), done


def test_without_the_site_setting_the_argument_is_ignored(machine: Machine) -> None:
    one_field(machine, "")
    assert not unlock(machine, "alice", PASSWORD + codes(0))
    machine.log.wait_for("pam_totp(locker:auth): refused user=alice reason=malformed")


def test_policy_shows_the_settings_of_programs_without_root(machine: Machine) -> None:
    one_field(machine, '[clients]\ncarol = "locker"\n')
    shown = json.loads(machine.pam_totp("policy", "locker", "--json").stdout)
    assert shown["first_pass"] == {"value": "forward_pass", "from": "argument"}
    others = shown["others"]
    assert (others["clients"], others["ignored"]) == (["carol"], ["forward_pass"])
    assert others["settings"]["first_pass"] == {"value": None, "from": "default"}
    assert others["settings"]["prompt"]["value"] == "One-time code: "
    text = machine.pam_totp("policy", "locker").stdout
    assert "ignored for other programs: forward_pass" in text
    assert "carol (in [clients]) about every user" in text
    one_field(machine)
    others = json.loads(machine.pam_totp("policy", "locker", "--json").stdout)["others"]
    assert "first_pass" not in others["settings"], "forward_pass of the site file is in force for all"
