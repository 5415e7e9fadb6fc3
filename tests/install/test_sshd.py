"""Tests of the findings about sshd's settings, and of the signal that makes sshd reload them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pam_totp.system import sshd
from pam_totp.system.sshd import SshdError, bypasses, match_examples, reload
from tests.install.machine import Fresh

GOOD = {"usepam": "yes", "kbdinteractiveauthentication": "yes", "pubkeyauthentication": "yes"}
NO_KEYBOARD = "kbdinteractiveauthentication"
BY_PAM = "publickey,keyboard-interactive:pam"


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"authenticationmethods": BY_PAM}, []),
        ({"authenticationmethods": f"{BY_PAM} password"}, []),
        ({}, ["AuthenticationMethods is any, so pubkey is enough"]),
        ({"authenticationmethods": "any", "pubkeyauthentication": "no"}, []),
        ({"authenticationmethods": f"{BY_PAM} publickey"}, ["AuthenticationMethods allows publickey"]),
        ({"authenticationmethods": BY_PAM, "usepam": "no"}, ["UsePAM is no"]),
        (
            {"authenticationmethods": BY_PAM, "kbdinteractiveauthentication": "no"},
            ["KbdInteractiveAuthentication is no"],
        ),
    ],
)
def test_every_setting_that_bypasses_pam_is_found(changed: dict[str, str], found: list[str]) -> None:
    assert list(bypasses({**GOOD, **changed})) == found


def test_each_match_block_without_patterns_gets_an_example_login() -> None:
    text = (
        "UsePAM yes\n  match user alice,bob address 10.0.0.0/8\n X y\nMatch Host example.org\nMatch User !root,*\n"
        'Match User="carol"\n'
    )
    assert match_examples([text, "# Match User dave\n"]) == [
        ("alice", "localhost", "10.0.0.0"),
        ("root", "example.org", "127.0.0.1"),
        ("carol", "localhost", "127.0.0.1"),
    ]


def test_files_that_cannot_be_read_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "etc/ssh/sshd_config.d/folder.conf").mkdir(parents=True)
    (tmp_path / "etc/ssh/sshd_config.d/a.conf").write_text("Match User alice\n")
    assert sshd.configuration_texts(str(tmp_path)) == ["Match User alice\n"]
    assert sshd.configuration_texts(str(tmp_path / "nowhere")) == []


def test_a_missing_sshd_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sshd, "PROGRAM", "/nonexistent/sshd")
    monkeypatch.setattr(sshd, "SYSTEMD", "/nonexistent")
    with pytest.raises(SshdError, match=r"/nonexistent/sshd: .*No such file"):
        sshd.settings("root")
    with pytest.raises(SshdError, match="No such file"):
        sshd.configuration_error()
    assert not reload()


def test_before_the_first_start_of_sshd_the_message_names_the_remedy(machine: Fresh) -> None:
    machine.shell("mv /run/sshd /run/sshd-away; sed -i s,/run/sshd/host,/run/sshd-away/host, /etc/ssh/sshd_config")
    try:
        done = machine.installed("enable", "sshd", "--for-user", "alice", "--dry-run")
    finally:
        machine.shell("mv /run/sshd-away /run/sshd; sed -i s,/run/sshd-away,/run/sshd, /etc/ssh/sshd_config")
    error = "sshd -T: Missing privilege separation directory: /run/sshd (start sshd once, or run 'mkdir /run/sshd')"
    assert (done.returncode, done.stderr) == (1, f"pam-totp: {error}\n")
    assert machine.installed("enable", "sshd", "--for-user", "alice", "--dry-run").returncode == 0


@pytest.mark.parametrize("written", ["this process", "", "0", "999999999", "-1"])
def test_a_pid_file_that_names_another_process_sends_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    signals: list[tuple[int, int]] = []
    file = tmp_path / "pid"
    file.write_text(str(os.getpid()) if written == "this process" else written)
    monkeypatch.setattr(sshd, "SYSTEMD", "/nonexistent")
    monkeypatch.setattr(sshd, "settings", lambda user: {"pidfile": str(file)})
    monkeypatch.setattr(os, "kill", lambda *words: signals.append(words))
    assert not reload()
    assert signals == []


def test_the_sshd_of_the_pid_file_receives_the_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[tuple[int, int]] = []
    (tmp_path / "pid").write_text("4242\n")
    monkeypatch.setattr(sshd, "SYSTEMD", "/nonexistent")
    monkeypatch.setattr(sshd, "settings", lambda user: {"pidfile": str(tmp_path / "pid")})
    monkeypatch.setattr(os, "readlink", {"/proc/4242/exe": "/usr/sbin/sshd"}.__getitem__)
    monkeypatch.setattr(os, "kill", lambda *words: signals.append(words))
    assert reload()
    assert signals == [(4242, signal.SIGHUP)]


def test_where_systemd_runs_sshd_its_unit_is_reloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def systemctl(*words: str) -> bool:
        asked.append(words)
        return words[-1] == "sshd.service"

    monkeypatch.setattr(sshd, "SYSTEMD", str(tmp_path))
    monkeypatch.setattr(sshd, "_systemctl", systemctl)
    assert reload()
    assert asked[-1] == ("reload", "sshd.service")
    assert ("reload", "ssh.service") not in asked, "an inactive unit is not reloaded"
