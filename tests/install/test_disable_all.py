"""Tests of `disable --all`, which a package runs before its removal. The command restores all files, or changes no
file."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.install.machine import COMMAND, ENABLED, LATE, Fresh
from tests.install.test_enable import LINE, as_before
from tests.services.namespace import STORE
from tests.support.etc import PASSWORD, STACKS
from tests.support.site import codes, until

SAVED = "/run/both-enabled"  # a copy of PLACES with sudo and su enabled
PLACES = f"/etc/pam.d {ENABLED} {STORE}"


def enable(machine: Fresh, service: str, first_code: int) -> None:
    """Enable `service`, and confirm the change by renaming the trial file. test_enable.py confirms by a login."""
    talk = machine.enable(service, LATE, code=codes(first_code))
    machine.shell(f"mv /var/lib/pam_totp_enabled/{service}.trial /var/lib/pam_totp_enabled/{service}.json")
    assert talk.ends()[0] == 0


@pytest.fixture
def both(machine: Fresh) -> Fresh:
    """Return the machine with sudo and su enabled. The first test enables both, and saves the files for later tests."""
    if not machine.path(SAVED).exists():
        enable(machine, "sudo", 0)
        enable(machine, "su", 1)
        machine.shell(f"mkdir {SAVED} && cp -a --parents {PLACES} {SAVED}")
    else:
        machine.shell(f"rm -rf {PLACES} && cp -a {SAVED}/. /")
    return machine


def test_every_service_gets_its_original_files_back(both: Fresh) -> None:
    done = both.installed("disable", "--all")
    assert done.returncode == 0, done.stderr
    assert as_before(both)
    assert both.state("sudo") is both.state("su") is None
    login = both.sudo("id", "-un")
    login.asks("alice: ").says(PASSWORD)
    assert login.ends() == (0, "\r\nroot\r\n")


def test_a_dry_run_of_all_changes_nothing(both: Fresh) -> None:
    done = both.installed("disable", "--all", "--dry-run")
    assert (done.returncode, "/etc/pam.d/sudo" in done.stdout, "/etc/pam.d/su:" in done.stdout) == (0, True, True)
    assert (both.state("sudo"), both.state("su")) == ("json", "json")
    assert LINE in both.pam_d()["sudo"]


def test_a_file_edited_by_others_keeps_every_service_enabled(both: Fresh) -> None:
    file = both.path("/etc/pam.d/su")
    file.write_text("# site policy\n" + file.read_text())
    before = both.pam_d()
    done = both.installed("disable", "--all")
    assert done.returncode == 1
    assert "/etc/pam.d/su: edited since" in done.stderr
    assert "pam-totp disable su" in done.stderr, "the message names the remedy"
    assert both.pam_d() == before
    assert (both.state("sudo"), both.state("su")) == ("json", "json")


@pytest.mark.parametrize("line", [LINE, "account required /x/pam_totp.so\n", "auth required \\\n pam_totp\n"])
@pytest.mark.parametrize("path", ["/etc/pam.d/vlock", "/usr/lib/pam.d/vlock", "/etc/pam.conf"])
def test_a_line_added_by_hand_keeps_every_service_enabled(both: Fresh, path: str, line: str) -> None:
    if path.startswith("/usr"):
        both.shell("mkdir -p /run/vendor && mount --bind /run/vendor /usr/lib/pam.d")
    both.write(path, line if path != "/etc/pam.conf" else f"vlock {line}")
    try:
        done = both.installed("disable", "--all")
        assert (done.returncode, path in done.stderr, "by hand" in done.stderr) == (1, True, True), done.stderr
        assert (both.state("sudo"), both.state("su")) == ("json", "json")
    finally:
        both.path(path).unlink()
        if path.startswith("/usr"):
            both.shell("umount /usr/lib/pam.d")


def test_an_unreadable_trial_file_keeps_every_service_enabled(both: Fresh) -> None:
    both.write("/var/lib/pam_totp_enabled/su.json", "{")
    done = both.installed("disable", "--all")
    assert (done.returncode, "must be a trial file of 'enable'" in done.stderr, both.state("sudo")) == (1, True, "json")


def test_a_service_on_trial_is_rolled_back_too(machine: Fresh) -> None:
    first = machine.enable("sudo", LATE)
    assert machine.installed("disable", "--all").returncode == 0
    assert first.ends()[0] == 1
    assert as_before(machine)


def test_a_trial_confirmed_meanwhile_is_rolled_back_too(both: Fresh) -> None:
    folder = both.path("/var/lib/pam_totp_enabled")
    (folder / "sudo.json").rename(folder / "sudo.trial")
    with holds_lock(folder) as lock:
        command = both.talk(COMMAND, "disable", "--all")
        until(lambda: waits_for(lock), "disable waits for the lock")
        (folder / "sudo.trial").rename(folder / "sudo.json")
    assert command.ends()[0] == 0
    assert as_before(both)


@pytest.mark.parametrize("path", ["/etc/pam.d/sudo", "/etc/pam.d"])
def test_a_read_only_file_keeps_every_service_enabled(both: Fresh, path: str) -> None:
    before = both.pam_d()
    both.shell(f"mount --bind {path} {path} && mount -o remount,bind,ro {path}")
    try:
        for words in ((), ("--dry-run",)):
            done = both.installed("disable", "--all", *words)
            assert (done.returncode, f"{path}: cannot be written" in done.stderr) == (1, True), done.stderr
    finally:
        both.shell(f"umount {path}")
    assert both.pam_d() == before
    assert (both.state("sudo"), both.state("su")) == ("json", "json")


@contextmanager
def holds_lock(folder: Path) -> Iterator[int]:
    """Hold the lock that `keep` and `roll_back` acquire. Yield the file descriptor of the lock."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def waits_for(lock: int) -> bool:
    """Return True if a process waits for the lock of the file descriptor `lock` (proc_locks(5))."""
    inode = os.fstat(lock).st_ino
    return any("->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines())


def test_with_no_service_enabled_nothing_is_changed(machine: Fresh) -> None:
    machine.write("/etc/pam.d/vlock", "# without pam_totp.so\n")
    try:
        done = machine.installed("disable", "--all")
    finally:
        machine.path("/etc/pam.d/vlock").unlink()
    assert (done.returncode, done.stdout) == (0, "no service asks for a code\n")
    assert {s: machine.pam_d()[s] for s in STACKS} == STACKS


@pytest.mark.parametrize("words", [(), ("sudo", "--all")])
def test_either_a_service_or_all_is_required(machine: Fresh, words: tuple[str, ...]) -> None:
    done = machine.installed("disable", *words)
    assert (done.returncode, "--all" in done.stderr) == (2, True), done.stderr
