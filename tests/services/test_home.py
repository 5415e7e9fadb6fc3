"""Tests of secret= with files in the homes of several accounts, and of commands that ordinary users run."""

from __future__ import annotations

import re
import stat

import pytest

from pam_totp.core.record import UserRecord
from tests.services.namespace import ACCOUNTS, Machine, Sshd
from tests.support.etc import PASSWORD
from tests.support.site import codes, fob, until

CODE = "One-time code: "
OWN = "/home/alice/.pam_totp.json"
HOTP_KEY = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # the key of RFC 4226 in base32


@pytest.fixture(autouse=True)
def at_home(machine: Machine) -> None:
    for name in ("alice", "bob"):
        home = machine.path(f"/home/{name}")
        home.chmod(0o755)
        for file in home.glob(".pam_totp*"):
            file.unlink()
    machine.stack("su", machine.module_line("secret=~/.pam_totp.json", way="socket"))
    machine.stack("sudo", machine.module_line("secret=${HOME}/.pam_totp.json"))


def put(machine: Machine, owner: str = "alice", path: str = OWN, user: str = "alice") -> None:
    machine.put(path, owner, UserRecord(user=user, tokens=(fob(),)))


def gets_in(machine: Machine, answer: str, user: str = "alice") -> bool:
    """Return True if su accepts `answer` and runs a command of bob as `user`."""
    done = machine.run("su", user, "-c", "id -un", user="bob", stdin=f"{answer}\n")
    assert (done.returncode == 0) == (done.stdout == f"{user}\n"), done
    return done.returncode == 0


def test_a_user_enrols_without_root_and_logs_in(machine: Machine, sshd: Sshd) -> None:
    machine.stack("sshd", "auth requisite pam_unix.so nodelay", machine.module_line("secret=~/.pam_totp.json"))
    done = machine.pam_totp(
        "enroll",
        "--type",
        "hotp",
        "--name",
        "fob",
        "--secret-stdin",
        user="alice",
        stdin=f"{HOTP_KEY}\n{codes(0, 2)}\n",
    )
    assert done.returncode == 0, done.stderr
    assert "alice now has the hotp token fob\n" in done.stdout
    status = machine.path(OWN).stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (ACCOUNTS["alice"], 0o600)
    talk = sshd.ssh().asks("Password: ").says(PASSWORD).asks(CODE)
    assert talk.says(codes(2)).ends()[0] == 0
    assert machine.counter("alice", OWN) == 3
    assert machine.pam_totp("verify", "alice", codes(3), user="alice").returncode == 0
    assert "fob" in machine.pam_totp("list", user="alice").stdout
    assert machine.pam_totp("remove", "alice", "--yes", user="alice").returncode == 0
    assert not machine.path(OWN).exists()


def test_without_root_users_can_change_only_their_own_tokens(machine: Machine) -> None:
    put(machine)
    done = machine.pam_totp("verify", "alice", codes(0), user="bob")
    assert done.returncode == 3
    assert "only root can manage the tokens of alice" in done.stderr
    done = machine.pam_totp("enroll", "alice", "--secret-stdin", "--yes", user="bob", stdin=f"{HOTP_KEY}\n")
    assert done.returncode == 3
    assert machine.record("alice", OWN).tokens == (fob(),)


@pytest.mark.parametrize("program", ["su", "sudo"])
def test_the_helper_becomes_the_user_before_it_opens_any_file(machine: Machine, program: str) -> None:
    put(machine)
    words = ("su", "alice", "-c", "true") if program == "su" else ("sudo", "true")
    talk = machine.talk(*words, user="alice")
    talk.asks(CODE)
    status = _helper_of(machine, talk.terminal.pid)
    uid = str(ACCOUNTS["alice"])
    assert _values(status, "Uid") == [uid] * 4
    assert _values(status, "Gid") == [uid] * 4
    assert _values(status, "Groups") == []
    for held in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
        assert [int(value, 16) for value in _values(status, held)] == [0], held
    assert talk.says(codes(0)).ends()[0] == 0
    assert machine.counter("alice", OWN) == 1


def _values(status: str, field: str) -> list[str]:
    found = re.search(rf"^{field}:(.*)$", status, re.MULTILINE)
    assert found is not None
    return found[1].split()


def _helper_of(machine: Machine, pid: int) -> str:
    """Return the text of /proc/…/status of the helper's child, a descendant of `pid` that opens the file."""

    def find(parent: int) -> str | None:
        tasks = machine.path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        for child in map(int, tasks):
            found = find(child)
            if found is not None:
                return found
            if b"helper.py" in machine.path(f"/proc/{child}/cmdline").read_bytes():
                return machine.path(f"/proc/{child}/status").read_text()
        return None

    until(lambda: find(pid) is not None, "the program starts a helper")
    status = find(pid)
    assert status is not None
    return status


def test_a_link_to_a_file_that_only_root_can_read_is_not_followed(machine: Machine) -> None:
    put(machine, owner="root", path="/run/secret-of-root.json")
    machine.path(OWN).symlink_to("/run/secret-of-root.json")
    machine.own(OWN, "alice")
    assert not gets_in(machine, codes(0))
    machine.log.wait_for("pam_totp(su:auth): error user=alice")
    assert machine.record("alice", "/run/secret-of-root.json").tokens == (fob(),)


def test_a_link_to_the_users_own_file_is_not_followed(machine: Machine) -> None:
    put(machine, path="/home/alice/.pam_totp_elsewhere.json")
    machine.path(OWN).symlink_to(".pam_totp_elsewhere.json")
    assert not gets_in(machine, codes(0))


@pytest.mark.parametrize("owner", ["root", "bob"])
def test_a_file_of_another_account_denies(machine: Machine, owner: str) -> None:
    put(machine, owner=owner)
    assert not gets_in(machine, codes(0))
    machine.log.wait_for("pam_totp(su:auth): error user=alice")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o400, 0o700])
def test_a_mode_other_than_0600_denies(machine: Machine, mode: int) -> None:
    put(machine)
    machine.path(OWN).chmod(mode)
    assert not gets_in(machine, codes(0))


def test_a_home_that_others_can_write_denies(machine: Machine) -> None:
    put(machine)
    machine.path("/home/alice").chmod(0o777)
    assert not gets_in(machine, codes(0))
    machine.path("/home/alice").chmod(0o755)
    assert gets_in(machine, codes(0))


def test_a_home_that_only_its_owner_may_enter_is_accepted(machine: Machine) -> None:
    put(machine)
    machine.path("/home/alice").chmod(0o700)
    assert gets_in(machine, codes(0))


def test_users_without_a_file_get_no_file_in_their_home(machine: Machine) -> None:
    assert not gets_in(machine, codes(0))
    machine.log.wait_for("refused user=alice reason=not-enrolled")
    assert not list(machine.path("/home/alice").glob(".pam_totp*"))


def test_a_copy_of_another_users_file_is_refused(machine: Machine) -> None:
    """The attack: copy bob's file to alice's path, and use bob's key. The user name in the file prevents the attack."""
    put(machine, user="bob")
    assert not gets_in(machine, codes(0))


def test_an_unknown_user_is_refused_by_a_helper_as_account_nobody(machine: Machine, sshd: Sshd) -> None:
    machine.stack("sshd", machine.module_line("secret=~/.pam_totp.json nullok"))
    talk = sshd.ssh("mallory", "NumberOfPasswordPrompts=1")
    status, _ = talk.ends()
    assert status == 255, "sshd refuses an unknown user even with nullok"
    machine.stack("sshd", machine.module_line("secret=~/.pam_totp.json"))
    talk = sshd.ssh("mallory", "NumberOfPasswordPrompts=1").asks(CODE)
    talk.says(codes(0))
    assert talk.ends()[0] == 255
    machine.log.wait_for("refused user=mallory reason=not-enrolled")


def test_nullok_does_not_apply_to_a_second_name_of_an_account_with_a_file(machine: Machine) -> None:
    """The second name can have another home folder, or another path through ${USER}."""
    passwd = machine.path("/etc/passwd").read_text()
    ids = f"{ACCOUNTS['alice']}:{ACCOUNTS['alice']}"
    machine.write("/etc/passwd", f"{passwd}ALICE:x:{ids}::/home/alice:/bin/sh\nalice2:x:{ids}::/run:/bin/sh\n")
    try:
        machine.stack("su", machine.module_line("secret=~/.pam_totp.json nullok"), "auth required pam_permit.so")
        assert gets_in(machine, "", "carol")
        put(machine)
        for user in ("ALICE", "alice2", "alice"):
            assert machine.run("su", user, "-c", "true", user="bob", stdin="000000\n").returncode != 0
        machine.log.wait_for("error user=alice2", "the account is enrolled as alice")
    finally:
        machine.write("/etc/passwd", passwd)


def test_users_may_omit_their_own_name(machine: Machine) -> None:
    def does(*words: str, status: int = 0) -> str:
        done = machine.pam_totp(*words, user="alice")
        assert done.returncode == status, done
        return done.stdout + done.stderr

    put(machine)
    assert "fob" in does("list")
    assert "accepted" in does("verify", codes(0))
    assert "accepted" in does("verify", "alice", codes(1))
    assert "fob is resynchronised" in does("resync", *codes(20, 2).split())
    assert "renamed to 'blue'" in does("rename", "fob", "blue")
    assert "'blue' disabled" in does("disable-token", "blue")
    assert "'blue' enabled" in does("enable-token")
    assert "otpauth://hotp/" in does("qr", "blue", "--yes", "--json", "--output", "-")
    assert "recovery codes of alice" in does("recovery", "--output", "-")
    assert "alice has no token named 'green'" in does("remove", "green", status=1)
    assert "only root can manage the tokens of bob" in does("remove", "bob", status=3)
    assert "only root can manage the tokens of bob" in does("verify", "bob", codes(30), status=3)
    assert "count of wrong answers is now 0" in does("unlock")
    assert "has a new key" in does("replace", "blue", "--yes", "--output", "-")
    assert "token 'blue' removed" in does("remove", "blue", "--yes")


def test_list_names_the_own_file_if_it_is_missing(machine: Machine) -> None:
    machine.enrol("alice")
    machine.path("/home/alice/.pam_totp.json").unlink(missing_ok=True)
    environment = ["env", "PYTHONPATH=/run/tree"]
    done = machine.run(*environment, "/usr/bin/python3", "-m", "pam_totp.cli", "list", user="alice")
    assert done.stdout.startswith("no tokens found in ~/.pam_totp.json (the portal shows your tokens "), done.stderr
