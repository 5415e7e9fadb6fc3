"""What is made of sshd's settings, and that nobody but sshd is told to read them again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pam_totp.system import sshd
from pam_totp.system.sshd import SshdError, around_pam, matches, reload
from tests.install.machine import Fresh

GOOD = {"usepam": "yes", "kbdinteractiveauthentication": "yes", "pubkeyauthentication": "yes"}
NO_KEYBOARD = "kbdinteractiveauthentication"
BY_PAM = "publickey,keyboard-interactive:pam"


@pytest.mark.parametrize(
    ("changed", "ways"),
    [
        ({"authenticationmethods": BY_PAM}, []),
        ({"authenticationmethods": f"{BY_PAM} password"}, []),
        ({}, ["AuthenticationMethods is any, so pubkey is enough"]),
        ({"authenticationmethods": "any", "pubkeyauthentication": "no"}, []),
        ({"authenticationmethods": f"{BY_PAM} publickey"}, ["AuthenticationMethods has publickey"]),
        ({"authenticationmethods": BY_PAM, "usepam": "no"}, ["UsePAM is no"]),
        (
            {"authenticationmethods": BY_PAM, "kbdinteractiveauthentication": "no"},
            ["KbdInteractiveAuthentication is no"],
        ),
    ],
)
def test_every_way_around_pam_is_named(changed: dict[str, str], ways: list[str]) -> None:
    assert list(around_pam({**GOOD, **changed})) == ways


def test_of_each_match_block_somebody_whom_it_fits_is_asked_about() -> None:
    text = (
        "UsePAM yes\n  match user alice,bob address 10.0.0.0/8\n X y\nMatch Host example.org\nMatch User !root,*\n"
        'Match User="carol"\n'
    )
    assert matches([text, "# Match User dave\n"]) == [
        ("alice", "localhost", "10.0.0.0"),
        ("root", "example.org", "127.0.0.1"),
        ("carol", "localhost", "127.0.0.1"),
    ]


def test_files_that_cannot_be_read_have_no_match_blocks(tmp_path: Path) -> None:
    (tmp_path / "etc/ssh/sshd_config.d/folder.conf").mkdir(parents=True)
    (tmp_path / "etc/ssh/sshd_config.d/a.conf").write_text("Match User alice\n")
    assert sshd.files(str(tmp_path)) == ["Match User alice\n"]
    assert sshd.files(str(tmp_path / "nowhere")) == []


def test_an_sshd_that_is_not_there_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sshd, "PROGRAM", "/nonexistent/sshd")
    monkeypatch.setattr(sshd, "SYSTEMD", "/nonexistent")
    with pytest.raises(SshdError, match=r"/nonexistent/sshd: .*No such file"):
        sshd.settings("root")
    with pytest.raises(SshdError, match="No such file"):
        sshd.wrong()
    assert not reload()


def test_where_sshd_never_ran_it_is_said_what_to_do(machine: Fresh) -> None:
    machine.shell("mv /run/sshd /run/sshd-away; sed -i s,/run/sshd/host,/run/sshd-away/host, /etc/ssh/sshd_config")
    try:
        done = machine.installed("enable", "sshd", "--for-user", "alice", "--dry-run")
    finally:
        machine.shell("mv /run/sshd-away /run/sshd; sed -i s,/run/sshd-away,/run/sshd, /etc/ssh/sshd_config")
    said = "sshd -T: Missing privilege separation directory: /run/sshd (start sshd once, or mkdir /run/sshd)"
    assert (done.returncode, done.stderr) == (1, f"pam-totp: {said}\n")
    assert machine.installed("enable", "sshd", "--for-user", "alice", "--dry-run").returncode == 0


@pytest.mark.parametrize("written", ["us", "", "0", "999999999", "-1"])
def test_a_pid_file_that_names_no_sshd_gets_nobody_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    told: list[tuple[int, int]] = []
    file = tmp_path / "pid"
    file.write_text(str(os.getpid()) if written == "us" else written)
    monkeypatch.setattr(sshd, "SYSTEMD", "/nonexistent")
    monkeypatch.setattr(sshd, "settings", lambda user: {"pidfile": str(file)})
    monkeypatch.setattr(os, "kill", lambda *words: told.append(words))
    assert not reload()
    assert told == []


def test_the_sshd_of_its_pid_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    (tmp_path / "pid").write_text("4242\n")
    monkeypatch.setattr(sshd, "SYSTEMD", "/nonexistent")
    monkeypatch.setattr(sshd, "settings", lambda user: {"pidfile": str(tmp_path / "pid")})
    monkeypatch.setattr(os, "readlink", {"/proc/4242/exe": "/usr/sbin/sshd"}.__getitem__)
    monkeypatch.setattr(os, "kill", lambda *words: told.append(words))
    assert reload()
    assert told == [(4242, signal.SIGHUP)]


def test_where_systemd_runs_it_the_unit_is_reloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def systemctl(*words: str) -> bool:
        asked.append(words)
        return words[-1] == "sshd.service"

    monkeypatch.setattr(sshd, "SYSTEMD", str(tmp_path))
    monkeypatch.setattr(sshd, "_systemctl", systemctl)
    assert reload()
    assert asked[-1] == ("reload", "sshd.service")
    assert ("reload", "ssh.service") not in asked, "it is not active"
