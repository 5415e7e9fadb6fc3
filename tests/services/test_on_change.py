"""Tests of `hooks.on_change`, the site's program that receives each change: input, account, limits and failures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pam_totp.core.oath import hotp
from tests.services.namespace import ACCOUNTS, STORE, Machine
from tests.support.site import KEY, fob, until

PROGRAM, FOLDER = "/usr/local/sbin/told", "/run/told"
SCRIPT = f"""#!/bin/sh
umask 022
cat >{FOLDER}/new.$$
{{ id; cat /proc/self/status; }} >{FOLDER}/ids
{{ env; ls /proc/self/fd | wc -l; }} >{FOLDER}/circumstances
mv {FOLDER}/new.$$ {FOLDER}/$$.json
"""


@pytest.fixture
def told(machine: Machine) -> Machine:
    """Return the machine with a site's program that saves its input."""
    folder = machine.path(FOLDER)
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    machine.own(FOLDER, "pam_totp")
    machine.path("/usr/local/sbin").mkdir(parents=True, exist_ok=True)
    machine.write(PROGRAM, SCRIPT, 0o755)
    machine.write("/etc/pam_totp.toml", f'[hooks]\non_change = "{PROGRAM}"\n')
    return machine


def changes(machine: Machine) -> list[dict[str, Any]]:
    """Return the JSON objects that the program has read, the oldest first."""
    found = sorted(machine.path(FOLDER).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in found]


def test_the_program_is_told_of_a_change_and_of_nothing_else(told: Machine) -> None:
    told.enrol("bob", fob(5, created=1234), failures=3, failures_at=1 << 40)
    assert told.pam_totp("list", "bob").returncode == 0
    assert told.pam_totp("verify", "bob", "000000").returncode == 1
    assert told.pam_totp("rename", "bob", "fob", "ring").returncode == 0
    until(lambda: changes(told), "the program receives the change")
    (change,) = changes(told)
    assert isinstance(change.pop("at"), int)
    assert isinstance(change.pop("host"), str)
    assert change == {
        **{"what": "rename", "user": "bob", "token": "fob", "by": "root", "service": "pam-totp", "changes": 1},
        "details": {"created": 1234, "next": 5, "to": "ring"},
    }


@pytest.mark.parametrize(
    "words",
    [
        ("disable-token", "bob"),
        ("recovery", "bob", "--yes", "--output", "/root/codes"),  # this command can regain root's uid
    ],
)
def test_the_program_has_no_rights_and_a_clean_environment(told: Machine, words: tuple[str, ...]) -> None:
    told.enrol("bob")
    assert told.pam_totp(*words).returncode == 0
    until(lambda: changes(told), "the program receives the change")
    *environment, descriptors = told.path(f"{FOLDER}/circumstances").read_text().splitlines()
    ids = told.path(f"{FOLDER}/ids").read_text()
    uid = ACCOUNTS["pam_totp"]
    assert ids.startswith(f"uid={uid}(pam_totp) gid={uid}(pam_totp) groups={uid}(pam_totp)\n")
    for line in (f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n", f"Gid:\t{uid}\t{uid}\t{uid}\t{uid}\n", "Groups:\t \n"):
        assert line in ids
    names = {line.partition("=")[0] for line in environment}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {"PATH", "LANG"}, "the shell sets the other variables"
    assert int(descriptors) == 4, "standard input, output and error, and the folder that ls reads"


@pytest.mark.parametrize("place", ["a store of root", "no default store"])
def test_the_program_never_has_the_rights_of_root(told: Machine, place: str) -> None:
    told.enrol("bob")
    told.path(FOLDER).chmod(0o777)
    store = STORE if place == "a store of root" else "/root/store"
    told.run("cp", "-a", STORE, "/root/store")
    told.run("chown", "-R", "root:root", store)
    told.run("mv", STORE, f"{STORE}.kept") if store != STORE else None
    try:
        done = told.pam_totp("disable-token", "--store", store, "bob")
        assert done.returncode == 0, done.stderr
        until(lambda: changes(told), "the program receives the change")
    finally:
        told.run("mv", f"{STORE}.kept", STORE) if store != STORE else told.run("chown", "-R", "pam_totp:", STORE)
        told.run("rm", "-r", "/root/store")
    ids = told.path(f"{FOLDER}/ids").read_text()
    for line in ("Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65534\t65534\t65534\t65534\n", "Groups:\t \n"):
        assert line in ids


def test_a_command_does_not_wait_for_the_program(told: Machine) -> None:
    told.enrol("bob")
    told.run("mkfifo", "-m", "0666", f"{FOLDER}/gate")
    told.write(PROGRAM, f"{SCRIPT}read line <{FOLDER}/gate\n: >{FOLDER}/passed\n", 0o755)
    assert told.pam_totp("disable-token", "bob").returncode == 0
    until(lambda: changes(told), "the program has started")
    assert not told.path(f"{FOLDER}/passed").exists()
    told.run("sh", "-c", f"echo >{FOLDER}/gate")
    until(told.path(f"{FOLDER}/passed").exists, "the program outlives the command")


def test_many_changes_start_few_programs_and_none_is_forgotten(told: Machine) -> None:
    number = 3000
    lines = "".join(f"HOTP user{i} - {hotp(KEY, i, 8)}{i:032x}\n" for i in range(number))
    told.write("/root/users.oath", lines, 0o600)
    assert told.pam_totp("import", "users-oath", "/root/users.oath").returncode == 0
    until(lambda: sum(c["changes"] for c in changes(told)) == number, "the program receives all changes")
    found = changes(told)
    assert len(found) <= 22
    assert found[-1]["what"] == "summary"
    assert (found[-1]["user"], found[-1]["by"]) == (None, "root")
    assert sum(found[-1]["details"].values()) == found[-1]["changes"]


@pytest.mark.parametrize(
    ("mode", "problem"),
    [(0o775, "can be written by users other than root"), (0o644, "must be executable"), (None, "no such file")],
)
def test_a_program_that_others_could_change_is_not_started(told: Machine, mode: int | None, problem: str) -> None:
    told.enrol("bob")
    if mode is None:
        told.path(PROGRAM).unlink()
    else:
        told.path(PROGRAM).chmod(mode)
    assert told.pam_totp("disable-token", "bob").returncode == 0
    assert not told.record("bob").tokens[0].enabled, "the change is made"
    until(lambda: [line for line in told.log.module_lines() if "on_change:auth): error" in line], "the error is logged")
    (line,) = [line for line in told.log.module_lines() if "on_change" in line]
    assert PROGRAM in line
    assert problem in line
    assert changes(told) == []
