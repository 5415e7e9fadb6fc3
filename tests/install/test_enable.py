"""Tests of `enable` and `disable` on an installed machine: trial, confirmation, roll-back, and other edits."""

from __future__ import annotations

import json
import os
import re
import signal
import time

import pytest

from pam_totp.cli.enable import KEEP_WITHIN
from pam_totp.core.oath import totp
from pam_totp.core.secretfile import unbase32
from tests.install.machine import COMMAND, LATE, SOON, SSHD_CONFIG, Fresh
from tests.support.etc import PASSWORD, STACKS
from tests.support.site import codes, until

LINE = "auth required pam_totp.so\n"
INCLUDE = "Include /etc/ssh/sshd_config.d/*.conf\n"
WATCHDOG = "/usr/local/lib/pam_totp/pam_totp/system/enable/watchdog.py"


def as_before(machine: Fresh) -> bool:
    """Return True if /etc/pam.d and /etc/ssh contain no change by pam_totp."""
    found = machine.pam_d()
    drop_ins = list(machine.path("/etc/ssh/sshd_config.d").iterdir())
    return all(found[s] == text for s, text in STACKS.items()) and not drop_ins and not any(n[0] == "." for n in found)


def enable_and_confirm(machine: Fresh) -> None:
    """Enable sudo, and confirm the change by a login through sudo."""
    first = machine.enable("sudo", LATE)
    second = machine.sudo(COMMAND, "enable", "sudo", "--keep")
    second.asks("alice: ").says(PASSWORD).asks("One-time code: ").says(codes(1))
    status, shown = second.ends()
    assert status == 0, shown
    status, shown = first.ends()
    assert (status, "confirmed" in shown) == (0, True)


def test_a_change_confirmed_from_a_second_login_is_kept(machine: Fresh) -> None:
    enable_and_confirm(machine)
    assert machine.state("sudo") == "json"
    assert LINE in machine.pam_d()["sudo"]
    assert LINE in machine.pam_d()["sudo-i"], "enable sudo also changes sudo-i"
    login = machine.sudo("-i", "id", "-un")
    login.asks("alice: ").says(PASSWORD).asks("One-time code: ").says(codes(2))
    assert login.ends() == (0, "\r\nroot\r\n")


def test_disable_restores_the_original_files(machine: Fresh) -> None:
    before = {s: machine.path(f"/etc/pam.d/{s}").stat() for s in ("sudo", "sudo-i")}
    enable_and_confirm(machine)
    assert machine.installed("disable", "sudo", "--dry-run").returncode == 0
    assert machine.state("sudo") == "json", "a dry run changes nothing"
    done = machine.installed("disable", "sudo")
    assert done.returncode == 0, done.stderr
    assert as_before(machine)
    after = {s: machine.path(f"/etc/pam.d/{s}").stat() for s in before}
    assert all((after[s].st_mtime_ns, after[s].st_mode) == (was.st_mtime_ns, was.st_mode) for s, was in before.items())
    assert machine.state("sudo") is None
    login = machine.sudo("id", "-un")
    login.asks("alice: ").says(PASSWORD)
    assert login.ends() == (0, "\r\nroot\r\n")


def test_a_change_that_is_not_confirmed_is_rolled_back(machine: Fresh) -> None:
    status, shown = machine.enable("sudo", SOON).ends()
    assert (status, "sudo was rolled back: the change was not confirmed" in shown) == (1, True)
    assert as_before(machine)
    assert machine.state("sudo") is None
    machine.log.wait_for("pam_totp[", "what=roll-back service=sudo")


def test_ctrl_c_rolls_the_change_back_at_once(machine: Fresh) -> None:
    talk = machine.enable("sudo", LATE)
    assert LINE in machine.pam_d()["sudo"]
    status, _ = talk.presses_ctrl_c().ends()
    assert status == 130
    assert as_before(machine)


def test_the_change_is_rolled_back_after_the_terminal_is_closed(machine: Fresh) -> None:
    talk = machine.enable("sudo", "--keep-within=3")
    watchdog = machine.pid(WATCHDOG, "sudo")
    assert os.getsid(watchdog) == watchdog, "the watchdog has its own session, without a terminal"
    talk.hangs_up()
    until(
        lambda: machine.state("sudo") is None and as_before(machine),
        "the watchdog rolls back the trial after the terminal was closed",
    )


def test_the_change_is_rolled_back_after_enable_is_killed(machine: Fresh) -> None:
    talk = machine.enable("sudo", "--keep-within=3")
    watchdog = machine.pid(WATCHDOG, "sudo")
    os.kill(talk.terminal.pid, signal.SIGKILL)
    os.kill(watchdog, signal.SIGHUP)
    os.kill(watchdog, signal.SIGINT)
    until(
        lambda: machine.state("sudo") is None and as_before(machine),
        "the watchdog rolls back the trial after `enable` was killed",
    )


def test_a_terminated_watchdog_rolls_the_change_back_first(machine: Fresh) -> None:
    talk = machine.enable("sudo", LATE)
    os.kill(machine.pid(WATCHDOG, "sudo"), signal.SIGTERM)
    status, _ = talk.ends()
    assert status == 1
    assert as_before(machine)


def test_after_a_crash_of_all_processes_the_next_boot_rolls_back(machine: Fresh) -> None:
    talk = machine.enable("sudo", LATE)
    os.kill(talk.terminal.pid, signal.SIGKILL)
    os.kill(machine.pid(WATCHDOG, "sudo"), signal.SIGKILL)
    findings = json.loads(machine.installed("doctor", "--json").stdout)["findings"]
    assert "trial-not-rolled-back" in [f["code"] for f in findings]
    unit = machine.path("/usr/local/lib/systemd/system/pam_totp-takeback.service").read_text()
    command = next(line.removeprefix("ExecStart=") for line in unit.splitlines() if line.startswith("ExecStart="))
    machine.shell(command)
    assert as_before(machine)
    assert machine.state("sudo") is None


def test_the_same_terminal_cannot_confirm(machine: Fresh) -> None:
    """sudo caches logins by terminal, so a confirmation on the same terminal might succeed without a code."""
    script = (
        f"set -m; {COMMAND} enable sudo --for-user alice {LATE} & fg %1;"
        f"su alice -c 'sudo -k -S {COMMAND} enable sudo --keep'; echo status $?; kill -INT %1; kill -CONT %1; wait"
    )
    shell = machine.talk("bash", "-ic", script)
    shell.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(codes(0)).asks("Keep this terminal open.")
    shell.terminal.sendcontrol("z")
    shell.asks("alice: ").says(PASSWORD).asks("One-time code: ").says(codes(1)).asks("status 1")
    assert "cannot confirm: the change was made on this terminal" in shell.before
    shell.ends()
    assert as_before(machine)


def test_a_login_before_the_change_cannot_confirm(machine: Fresh) -> None:
    machine.sshd()
    before = machine.ssh(f"echo in; cat; sudo -k; sudo {COMMAND} enable sshd --keep; echo status $?")
    before.asks("password: ").says(PASSWORD).asks("in")
    first = machine.enable("sshd", LATE)
    before.terminal.sendeof()
    before.asks("alice: ").says(PASSWORD).asks("status 1")
    assert "cannot confirm: a login through sshd after" in before.before
    assert machine.state("sshd") == "trial"
    first.presses_ctrl_c().ends()
    before.ends()
    assert as_before(machine)


def test_root_cannot_confirm_sudo_since_sudo_does_not_prompt_root(machine: Fresh) -> None:
    first = machine.enable("sudo", LATE)
    done = machine.run("sudo", COMMAND, "enable", "sudo", "--keep")
    assert (done.returncode, "asks only other users for a code" in done.stderr) == (1, True), done
    first.presses_ctrl_c().ends()


def test_sshd_requires_both_password_and_code(machine: Fresh) -> None:
    machine.sshd()
    with machine.sshd_starts_anew():
        first = machine.enable("sshd", LATE)
    second = machine.ssh(f"sudo -k {COMMAND} enable sshd --keep; echo status $?")
    second.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(codes(1)).asks("alice: ").says(PASSWORD)
    second.asks("status 0").ends()
    assert first.ends()[0] == 0
    only_password = machine.ssh(
        "echo in", "alice", "PreferredAuthentications=password,publickey", "NumberOfPasswordPrompts=1"
    )
    status, shown = only_password.ends()
    assert status == 255
    assert "Permission denied (keyboard-interactive)" in shown
    with machine.sshd_starts_anew():
        assert machine.installed("disable", "sshd").returncode == 0
    assert as_before(machine)
    plain = machine.ssh("echo in as $(id -un)")
    plain.asks("password: ").says(PASSWORD)
    assert "in as alice" in plain.ends()[1]


def test_sshd_with_keys_requires_both_key_and_code(machine: Fresh) -> None:
    machine.write(
        "/etc/ssh/sshd_config", machine.path("/etc/ssh/sshd_config").read_text().replace("cation yes", "cation no")
    )
    machine.shell("mkdir -p /home/alice/.ssh; rm -f /run/sshd/key*; ssh-keygen -q -t ed25519 -N '' -f /run/sshd/key")
    machine.shell("cp /run/sshd/key.pub /home/alice/.ssh/authorized_keys")
    machine.sshd()
    with machine.sshd_starts_anew():
        machine.shell("kill -HUP $(cat /run/sshd.pid)")
    with machine.sshd_starts_anew():
        first = machine.talk(COMMAND, "enable", "sshd", "--for-user", "alice", LATE)
        first.asks("One-time code: ").says(codes(0)).asks("Keep this terminal open.")
    with_key = machine.ssh("echo in as $(id -un)", "alice", "IdentityFile=/run/sshd/key")
    with_key.asks("One-time code: ").says(codes(1))
    assert "in as alice" in with_key.ends()[1]
    without = machine.ssh("echo in", "alice", "PubkeyAuthentication=no").ends()
    assert (without[0], "Permission denied (publickey)" in without[1]) == (255, True)
    first.presses_ctrl_c().ends()
    assert as_before(machine)


def test_sshd_with_key_or_password_requires_a_code_after_each(machine: Fresh) -> None:
    machine.shell("mkdir -p /home/alice/.ssh; rm -f /run/sshd/key*; ssh-keygen -q -t ed25519 -N '' -f /run/sshd/key")
    machine.shell("cp /run/sshd/key.pub /home/alice/.ssh/authorized_keys")
    machine.sshd()
    with machine.sshd_starts_anew():
        first = machine.talk(
            COMMAND, "enable", "sshd", "--for-user", "alice", "--first-factor", "key-or-password", LATE
        )
        first.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(codes(0))
        first.asks("after a key: use the next code").asks("One-time code: ").says(codes(1))
        assert "Password" not in first.before, "after a key, PAM asks for the code only"
        first.asks("Keep this terminal open.")
    key = "IdentityFile=/run/sshd/key"
    with_key = machine.ssh("echo in as $(id -un)", "alice", key).asks("One-time code: ").says(codes(2))
    assert "Password" not in with_key.before
    assert "in as alice" in with_key.ends()[1]
    with_password = machine.ssh("echo in as $(id -un)", "alice", "PubkeyAuthentication=no")
    with_password.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(codes(3))
    assert "in as alice" in with_password.ends()[1]
    for options in ((key,), ("PubkeyAuthentication=no",)):
        refused = machine.ssh("echo in", "alice", "NumberOfPasswordPrompts=1", *options)
        if len(options) == 1 and options[0] != key:
            refused.asks("Password: ").says(PASSWORD)
        refused.asks("One-time code: ").fails("000000")
        assert refused.ends()[0] == 255
    wrong = machine.ssh("echo in", "alice", "NumberOfPasswordPrompts=1", "PubkeyAuthentication=no")
    wrong.asks("Password: ").says("wrong")
    status, shown = wrong.ends()
    assert (status, "One-time code" in shown) == (255, False)
    findings = json.loads(machine.installed("doctor", "sshd", "--json").stdout)["findings"]
    assert [f for f in findings if f["severity"] == "error" and f["code"] != "trial-not-rolled-back"] == []
    first.presses_ctrl_c().ends()
    assert as_before(machine)


def test_ctrl_c_in_the_rehearsal_reports_the_unchanged_service(machine: Fresh) -> None:
    talk = machine.talk(COMMAND, "enable", "sshd", "--for-user", "alice", LATE).asks("Password: ")
    status, shown = talk.interrupts()
    assert (status, "interrupted: sshd does not ask for a code: its files are unchanged" in shown) == (130, True), shown
    assert as_before(machine)


def test_the_default_time_is_enough_for_three_codes(machine: Fresh) -> None:
    talk = machine.talk(COMMAND, "enable", "sudo", "--for-user", "alice")
    talk.asks("Password: ").says(PASSWORD).asks("One-time code: ").says("000000")
    talk.asks("Next code: ").says("").asks("check the password, and use the next code")
    talk.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(codes(0)).asks("Keep this terminal open.")
    assert KEEP_WITHIN >= 3 * 60
    assert f"within {KEEP_WITHIN} seconds" in talk.before
    assert "Each login needs another code: use the next code" in talk.before
    status, shown = talk.presses_ctrl_c().ends()
    assert (status, "interrupted: sudo does not ask for a code: its files are unchanged" in shown) == (130, True)


def test_enable_writes_the_limits_of_nullok(machine: Fresh) -> None:
    machine.write("/etc/pam.d/x", STACKS["sudo"])
    limits = ("--nullok-until", "2099-12-31", "--nullok-group", "new staff")
    done = machine.installed("enable", "sudo", "--for-user", "alice", "--dry-run", *limits)
    assert "+auth required pam_totp.so nullok_until=2099-12-31 [nullok_group=new staff]\n" in done.stdout, done
    done = machine.installed("enable", "sudo", "--for-user", "alice", "--dry-run", "--nullok-until", "soon")
    assert (done.returncode, "must be a date from 1970-01-01 on, such as 2026-12-31" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("Match User bob\n    AuthenticationMethods publickey\n", "AuthenticationMethods allows publickey (for bob)"),
        ("Match Address 192.0.2.0/24\n    AuthenticationMethods publickey\n", "alice from 192.0.2.0"),
        ("Match User bob\n    KbdInteractiveAuthentication no\n", "KbdInteractiveAuthentication is no"),
    ],
)
def test_a_bypass_of_pam_in_sshd_config_ends_the_trial_at_once(machine: Fresh, config: str, says: str) -> None:
    file = machine.path("/etc/ssh/sshd_config")
    file.write_text(file.read_text() + config)
    talk = machine.talk(COMMAND, "enable", "sshd", "--for-user", "alice", LATE)
    talk.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(codes(0))
    status, shown = talk.ends()
    assert (status, says in shown) == (1, True), shown
    assert as_before(machine)


@pytest.mark.parametrize(
    ("first", "last", "says"),
    [
        ("", "", "put 'Include /etc/ssh/sshd_config.d/*.conf' at the beginning of"),
        ("", f"Match User dave\nX11Forwarding no\n{INCLUDE}", "before the first Match block"),
        (f"UsePAM no\n{INCLUDE}", "", "/etc/ssh/sshd_config sets usepam no before sshd reads"),
    ],
)
def test_a_drop_in_without_effect_is_reported_before_any_prompt(
    machine: Fresh, first: str, last: str, says: str
) -> None:
    machine.write("/etc/ssh/sshd_config", first + SSHD_CONFIG.replace(INCLUDE, "") + last)
    done = machine.installed("enable", "sshd", "--for-user", "alice")
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert as_before(machine)
    assert machine.counter("alice") == 0


def test_a_service_file_that_is_a_link_is_reported_before_any_prompt(machine: Fresh) -> None:
    """Some tools manage service files as symbolic links, and could not update a file that replaces the link."""
    machine.shell("mkdir /run/target; mv /etc/pam.d/sudo /run/target/; ln -s /run/target/sudo /etc/pam.d/sudo")
    try:
        done = machine.installed("enable", "sudo", "--for-user", "alice")
        assert (done.returncode, done.stdout) == (1, "")
        assert "/etc/pam.d/sudo: must be a regular file, not a link (replace it by a copy" in done.stderr
        assert machine.shell("readlink /etc/pam.d/sudo") == "/run/target/sudo"
        assert machine.counter("alice") == 0
    finally:
        machine.shell("rm /etc/pam.d/sudo; rm -r /run/target")


def test_a_folder_that_cannot_be_written_is_reported_before_any_prompt(machine: Fresh) -> None:
    machine.shell("mount --bind /etc/pam.d /etc/pam.d; mount -o remount,bind,ro /etc/pam.d")
    try:
        done = machine.installed("enable", "sudo", "--for-user", "alice")
        assert (done.returncode, done.stdout) == (1, "")
        assert "/etc/pam.d: cannot be written" in done.stderr
    finally:
        machine.shell("umount /etc/pam.d")
    assert machine.counter("alice") == 0


def test_su_and_su_l_ask_for_a_code_and_do_not_ask_root(machine: Fresh) -> None:
    first = machine.enable("su", LATE)
    for option in ("-c", "-lc"):
        login = machine.talk("su", option, "id -un", "alice", user="bob")
        login.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(codes(1 if option == "-c" else 2))
        assert "alice" in login.ends()[1]
    assert machine.run("su", "-c", "id -un", "alice").stdout == "alice\n"
    second = machine.talk("su", "-c", f"sudo -S {COMMAND} enable su --keep", "alice", user="bob")
    second.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(codes(3)).asks("alice: ").says(PASSWORD)
    assert second.ends()[0] == 0
    assert first.ends()[0] == 0


def test_disable_keeps_later_edits(machine: Fresh) -> None:
    enable_and_confirm(machine)
    file = machine.path("/etc/pam.d/sudo")
    file.write_text("# site policy\n" + file.read_text())
    done = machine.installed("disable", "sudo")
    assert (done.returncode, "kept the edits" in done.stdout) == (0, True)
    assert machine.pam_d()["sudo"] == "# site policy\n" + STACKS["sudo"]
    assert machine.pam_d()["sudo-i"] == STACKS["sudo-i"]


def test_an_edited_module_line_must_be_removed_by_hand(machine: Fresh) -> None:
    enable_and_confirm(machine)
    file = machine.path("/etc/pam.d/sudo")
    edited = file.read_text().replace("pam_totp.so", "pam_totp.so nullok")
    file.write_text(edited)
    done = machine.installed("disable", "sudo")
    assert (done.returncode, "by hand" in done.stderr) == (1, True)
    assert machine.pam_d()["sudo"] == edited
    assert LINE in machine.pam_d()["sudo-i"], "disable restores all files or no file"


def test_a_dry_run_shows_the_change_and_makes_none(machine: Fresh) -> None:
    done = machine.installed("enable", "sshd", "--for-user", "alice", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"+{LINE}" in done.stdout
    assert "+AuthenticationMethods keyboard-interactive:pam\n" in done.stdout
    assert as_before(machine)
    assert machine.state("sshd") is None


def test_a_failed_rehearsal_changes_nothing(machine: Fresh) -> None:
    talk = machine.talk(COMMAND, "enable", "sudo", "--for-user", "alice")
    for _ in range(3):
        talk.asks("Password: ").says(PASSWORD).asks("One-time code: ").fails("000000")
    status, shown = talk.ends()
    assert (status, "could not log in" in shown) == (1, True)
    assert as_before(machine)


def test_a_stack_that_lets_users_in_without_a_code_is_refused(machine: Fresh) -> None:
    machine.write("/etc/pam.d/sudo", "auth sufficient pam_permit.so\n" + STACKS["sudo"])
    talk = machine.talk(COMMAND, "enable", "sudo", "--for-user", "alice")
    status, shown = talk.ends()
    reason = "no code is required when pam_permit.so (sudo:1) (sufficient) returns success"
    assert (status, reason in shown) == (1, True), shown
    assert machine.state("sudo") is None


def test_the_rehearsal_refuses_a_stack_without_a_prompt(machine: Fresh) -> None:
    """The checks report a condition that exempts some users. Only the rehearsal detects that alice is exempt."""
    exempt = "auth sufficient pam_exec.so /bin/true\n"
    machine.write("/etc/pam.d/sudo", exempt + STACKS["sudo"])
    talk = machine.talk(COMMAND, "enable", "sudo", "--for-user", "alice")
    status, shown = talk.ends()
    assert (status, "without a prompt" in shown) == (1, True), shown
    assert machine.state("sudo") is None


def test_a_second_enable_and_a_late_confirmation_are_refused(machine: Fresh) -> None:
    first = machine.enable("sudo", LATE)
    done = machine.installed("enable", "sudo", "--for-user", "alice")
    assert (done.returncode, "already on trial" in done.stderr) == (1, True)
    first.presses_ctrl_c().ends()
    confirmed_later = machine.installed("enable", "sudo", "--keep")
    assert (confirmed_later.returncode, "not on trial" in confirmed_later.stderr) == (1, True)


def test_enable_and_disable_require_root(machine: Fresh) -> None:
    for words in (("enable", "sudo"), ("disable", "sudo")):
        done = machine.installed(*words, user="alice")
        assert (done.returncode, "requires root" in done.stderr) == (3, True)


def test_with_enroll_a_user_without_a_token_enrols_at_the_login(machine: Fresh) -> None:
    done = machine.installed("enable", "sudo", "--for-user", "alice", "--dry-run", "--enroll", "ticket")
    assert "+auth required pam_totp.so enroll=ticket\n" in done.stdout, done
    done = machine.installed("enable", "sudo", "--for-user", "alice", "--dry-run", "--enroll=ticket", "--with=nullok")
    assert (done.returncode, "nullok and enroll=ticket: only one is allowed" in done.stderr) == (1, True), done
    ticket = json.loads(machine.installed("invite", "bob", "--json", "--output", "-").stdout)[0]["ticket"]
    machine.sshd()
    with machine.sshd_starts_anew():
        trial = machine.enable("sshd", "--enroll", "ticket", LATE)
    talk = machine.ssh("id -un", "bob").asks("Password: ").says(PASSWORD).asks("One-time code: ").says(ticket)
    key = re.search(r"\s((?:[A-Z2-7]{4} ?){8})", talk.asks("or q for a QR code: ").before)
    assert key is not None
    talk.says(totp(unbase32(key[1].replace(" ", "")), int(time.time()))).asks("Press Enter: ")
    status, shown = talk.says("").ends()
    assert (status, "bob" in shown) == (0, True)
    assert machine.record("bob").enrolled
    trial.presses_ctrl_c().ends()
