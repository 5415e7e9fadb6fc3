"""Tests of the findings about sshd's settings, and of the signal that makes sshd reload them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from pam_totp.system import sshd, sshd_files, sshd_match
from pam_totp.system.sshd import SshdError, bypasses, reload
from pam_totp.system.sshd_match import LOCAL
from tests.install.machine import SSHD_CONFIG, Fresh
from tests.support.etc import STACKS

GOOD = {"usepam": "yes", "kbdinteractiveauthentication": "yes", "pubkeyauthentication": "yes"}
NO_KEYBOARD = "kbdinteractiveauthentication"
BY_PAM = "publickey,keyboard-interactive:pam"


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"authenticationmethods": BY_PAM}, []),
        ({"authenticationmethods": f"{BY_PAM} password"}, []),
        ({}, ["AuthenticationMethods is any, so pubkey is sufficient"]),
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


PEOPLE = {"root": {"root"}, "alice": {"alice", "staff"}, "bob": {"bob"}, "svc-web": {"svc"}}


@pytest.mark.parametrize(
    ("criteria", "found"),
    [
        ("user alice,bob address 10.0.0.0/8", ["alice from 10.0.0.0", "bob from 10.0.0.0"]),
        ("Host example.org", ["alice from host example.org"]),
        ("Host *.lan", ["alice from host 1.lan"]),
        ("Address 192.168.*", ["alice from 192.168.1.1"]),
        ("Address fd00:*", ["alice from fd00::1"]),
        ("Address !10.0.0.0/8,!127.*,*", ["alice from 192.0.2.1"]),
        ("LocalPort 2222", ["alice to port 2222"]),
        ("LocalPort 2022,22", ["alice to port 2022"]),
        ("LocalAddress 192.0.2.7", ["alice to 192.0.2.7"]),
        ("Group staff Address 192.0.2.0/24", ["alice from 192.0.2.0"]),
        ("User svc-* LocalPort 2222", ["svc-web to port 2222"]),
        ("User *,!root,!bob Address 192.0.2.9", ["alice from 192.0.2.9", "svc-web from 192.0.2.9"]),
        ('User="carol"', ["carol"]),
        ("invalid-user Address 192.0.2.9 # no account", ["alice from 192.0.2.9"]),
        ("User no-such-name-*", []),
        ("Address x*", []),
    ],
)
def test_each_match_block_is_checked_with_logins_that_match(criteria: str, found: list[str]) -> None:
    logins = sshd_match.logins([f"UsePAM yes\n  match {criteria}\n X y\n"], list(PEOPLE), PEOPLE.__getitem__)
    assert [f"{name}{place}" for name, place in logins if name not in PEOPLE or place != LOCAL] == found


def test_comments_are_ignored_and_every_user_is_checked() -> None:
    assert sshd_match.logins(["# Match User dave\n"], list(PEOPLE), PEOPLE.__getitem__) == [
        (name, LOCAL) for name in PEOPLE
    ]


def test_included_files_are_read_as_sshd_reads_them(tmp_path: Path) -> None:
    """sshd resolves relative names below /etc/ssh, reads files in the order of their names, and skips missing files."""
    ssh = tmp_path / "etc/ssh"
    (ssh / "sshd_config.d/folder.conf").mkdir(parents=True)
    (ssh / "sshd_config").write_text('Include /etc/ssh/sshd_config.d/*.conf "/srv/a.conf"\ninclude=more /nowhere\n')
    (ssh / "sshd_config.d/b.conf").write_text("b\n")
    (ssh / "sshd_config.d/a.conf").write_text("a\n")
    (ssh / "more").write_text("Include more\n")
    (tmp_path / "srv").mkdir()
    (tmp_path / "srv/a.conf").write_text("c\n")
    texts = sshd_files.texts(str(tmp_path))
    assert texts[1:5] == ["a\n", "b\n", "c\n", "Include more\n"]
    assert len(texts) < 30, "a file that includes itself must not cause an endless loop"
    assert sshd_files.texts(str(tmp_path / "nowhere")) == []


INCLUDE = "Include /etc/ssh/sshd_config.d/*.conf\n"
NOT_READ = "sshd would not read /etc/ssh/sshd_config.d/00-pam_totp.conf: /etc/ssh/sshd_config must include it"
SET_BEFORE = "/etc/ssh/sshd_config sets {} before sshd reads /etc/ssh/sshd_config.d/00-pam_totp.conf (move"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("", NOT_READ),
        (f"Match User dave\n  X11Forwarding no\n{INCLUDE}", NOT_READ),
        (f"Match all\n{INCLUDE}", NOT_READ),
        ("Include sshd_config.d/5*.conf\n", NOT_READ),
        (f"KbdInteractiveAuthentication no\n{INCLUDE}", SET_BEFORE.format("kbdinteractiveauthentication no")),
        (f"ChallengeResponseAuthentication=no\n{INCLUDE}", SET_BEFORE.format("kbdinteractiveauthentication no")),
        (f"UsePAM no\n{INCLUDE}", SET_BEFORE.format("usepam no")),
        (f"UsePAM yes\nAuthenticationMethods any\n{INCLUDE}UsePAM no\n", None),
        (f"{INCLUDE}Match User dave\n  X11Forwarding no\n", None),
        ('include "sshd_config.d/*.conf" # relative\nKbdInteractiveAuthentication no\n', None),
        ("Include /etc/ssh/more\nUsePAM no\n", None),
    ],
)
def test_an_added_file_that_sshd_would_not_use_is_found(tmp_path: Path, config: str, says: str | None) -> None:
    folder = tmp_path / "etc/ssh/sshd_config.d"
    folder.mkdir(parents=True)
    (folder / "00-a.conf").write_text("Match User dave\n  KbdInteractiveAuthentication no\n")
    (folder / "50-cloud-init.conf").write_text("UsePAM no\n")
    (folder.parent / "more").write_text(INCLUDE)
    (folder.parent / "sshd_config").write_text(config)
    wanted = {"usepam": "yes", "kbdinteractiveauthentication": "yes"}
    why = sshd_files.why_without_effect(sshd.DROP_IN, wanted, str(tmp_path))
    assert (why or "").startswith(says or ""), why
    assert (why is None) == (says is None), why


@pytest.mark.parametrize(
    ("criteria", "login"),
    [
        ("Address 192.168.*", "alice from 192.168.1.1"),
        ("Address *,!10.0.0.0/8,!127.0.0.0/8", "alice from 192.0.2.1"),
        ("LocalPort 2222", "alice to port 2222"),
        ("LocalAddress 192.0.2.7", "alice to 192.0.2.7"),
        ("Group carol Address 10.0.0.0/8", "carol from 10.0.0.0"),
        ("Host *.lan", "alice from host 1.lan"),
        ("User *,!root,!bob,!carol Address 10.0.0.1", "alice from 10.0.0.1"),
    ],
)
@pytest.mark.parametrize("path", ["/etc/ssh/sshd_config.d/x.conf", "/etc/ssh/elsewhere/x.conf"])
def test_the_real_sshd_confirms_that_a_match_block_needs_no_code(
    machine: Fresh, criteria: str, login: str, path: str
) -> None:
    machine.write(
        "/etc/pam.d/sshd", STACKS["sshd"].replace("common-auth\n", "common-auth\nauth required pam_totp.so\n")
    )
    strict = "UsePAM yes\nKbdInteractiveAuthentication yes\nAuthenticationMethods keyboard-interactive:pam\n"
    include = "Include /etc/ssh/sshd_config.d/*.conf /etc/ssh/elsewhere/*.conf\n"
    machine.write("/etc/ssh/sshd_config", include + strict + SSHD_CONFIG.partition("\n")[2])
    machine.shell("mkdir -p /etc/ssh/elsewhere")
    machine.write(path, f"Match {criteria}\n  AuthenticationMethods publickey\n")
    try:
        found = json.loads(machine.installed("doctor", "sshd", "--json").stdout)["findings"]
    finally:
        machine.shell("rm -r /etc/ssh/elsewhere")
    assert [f["what"] for f in found if f["check"] == "sshd"] == [
        f"sshd lets users in without a code: AuthenticationMethods allows publickey (for {login})"
    ]


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
def test_a_process_that_is_not_sshd_gets_no_signal(
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


def test_if_systemd_runs_sshd_the_unit_is_reloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def systemctl(*words: str) -> bool:
        asked.append(words)
        return words[-1] == "sshd.service"

    monkeypatch.setattr(sshd, "SYSTEMD", str(tmp_path))
    monkeypatch.setattr(sshd, "_systemctl", systemctl)
    assert reload()
    assert asked[-1] == ("reload", "sshd.service")
    assert ("reload", "ssh.service") not in asked, "an inactive unit is not reloaded"
