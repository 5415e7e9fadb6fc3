"""Tests of doctor and rehearse: each finding on a machine that causes it, with its code, remedy and exit status."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest

from pam_totp.core.record import HotpToken
from pam_totp.system import people, probe
from pam_totp.system.doctor import checks, checks_machine, store_use
from pam_totp.system.doctor.context import Context
from pam_totp.system.machine import Machine
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding, Severity, errors
from pam_totp.system.trust import distrust
from tests.install.machine import COMMAND, HELPER, Fresh
from tests.services.namespace import SOCKET, STORE
from tests.support.etc import PASSWORD, STACKS
from tests.support.site import TREE, codes, until

LINE = "auth required pam_totp.so"


def examine(machine: Fresh, *services: str) -> list[Finding]:
    """Return doctor's findings about `services`, without the finding about the host's clock."""
    done = machine.installed("doctor", "--json", *services)
    findings = [Finding(**f) for f in json.loads(done.stdout)["findings"]]
    assert all(f.remedy and f.code in set(Code) and f.severity in set(Severity) for f in findings)
    assert done.returncode == (1 if errors(findings) else 0)
    return [f for f in findings if f.code != Code.CLOCK_NOT_SYNCHRONISED]


def codes_found(machine: Fresh, *services: str) -> list[tuple[str, str]]:
    return [(f.severity, f.code) for f in examine(machine, *services)]


def with_line(machine: Fresh, service: str, line: str = LINE) -> None:
    machine.write(f"/etc/pam.d/{service}", STACKS[service].replace("common-auth\n", f"common-auth\n{line}\n"))


def test_the_manual_lists_every_code_of_a_finding() -> None:
    manual = (TREE / "pam_totp/system/data/pam-totp.1").read_text()
    section = manual.partition(".Sh FINDINGS\n")[2].partition("\n.Sh ")[0]
    assert re.findall(r"^\.It Li (\S+)$", section, re.M) == [code.value for code in Code]


def test_every_code_of_a_finding_is_reported_by_a_check() -> None:
    folder = TREE / "pam_totp/system"
    source = "".join(p.read_text() for p in folder.rglob("*.py") if p.name != "findings.py")
    assert [code.name for code in Code if f"Code.{code.name}" not in source] == []


def test_the_output_lists_the_checks(machine: Fresh) -> None:
    names = [
        "module",
        "helper",
        "sockets",
        "stores",
        "seal",
        "site file",
        "clock",
        "stacks",
        "sshd",
        "users",
        "changes of 'enable'",
        "member",
        "radius",
        "authority",
        "portal",
    ]
    assert list(checks.CHECKS) == names
    assert f"\nchecked: {', '.join(names)}\n" in f"\n{machine.installed('doctor').stdout}"
    assert json.loads(machine.installed("doctor", "--json").stdout)["checked"] == names


def test_a_service_without_a_file_is_an_error(machine: Fresh) -> None:
    [finding] = examine(machine, "sodu")
    assert (finding.severity, finding.check, finding.code) == (ERROR, "order", Code.SERVICE_NOT_FOUND)
    assert finding.what == "unknown service sodu: /etc/pam.d has no file of that name"


def test_a_correct_installation_has_no_findings(machine: Fresh) -> None:
    with_line(machine, "sudo")
    assert examine(machine) == []


@pytest.mark.parametrize(
    ("line", "check", "code"),
    [
        ("auth optional pam_totp.so", "order", Code.REFUSAL_ACCEPTED),
        ("auth [success=ok authinfo_unavail=ignore default=bad] pam_totp.so", "order", Code.REFUSAL_ACCEPTED),
        ("auth required pam_totp.so forward_pass", "order", Code.FORWARDED_PASSWORD_UNCHECKED),
        ("auth required pam_totp.so look_ahead=1000", "settings", Code.ARGUMENTS_INVALID),
        ("auth required pam_totp.so store=/nowhere", "store", Code.STORE_UNREACHABLE),
        ("auth required pam_totp.so helper=/tmp/helper.py", "helper", Code.HELPER_UNTRUSTED),
        (f"{LINE}\naccount required pam_totp.so", "order", Code.MODULE_IN_WRONG_PHASE),
        (f"{LINE}\n@include nowhere", "order", Code.STACK_INVALID),
        (f"{LINE}\r", "order", Code.STACK_INVALID),
        ("auth required /nowhere/pam_totp.so", "module", Code.MODULE_NOT_FOUND),
    ],
)
def test_an_invalid_line_is_an_error(machine: Fresh, line: str, check: str, code: Code) -> None:
    with_line(machine, "sudo", line)
    assert (ERROR, check, code) in [(f.severity, f.check, f.code) for f in examine(machine)]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('group = "no-such-group"', "group no-such-group not found"),
        ('group = "root"\nprotect = ["wheel", "admins"]', "group admins not found"),
        ('groups = "root"', "desk: unknown setting 'groups'"),
    ],
)
def test_a_desk_without_members_is_a_warning(machine: Fresh, text: str, what: str) -> None:
    machine.write("/etc/pam_totp.toml", f"[desk]\n{text}\n")
    [finding] = examine(machine)
    assert (finding.severity, finding.code) == (WARNING, Code.DESK_INVALID)
    assert finding.what.endswith(what)
    machine.write("/etc/pam_totp.toml", '[desk]\ngroup = "root"\n')
    assert examine(machine) == []


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('on_change = "/usr/sbin/told"', "/usr/sbin/told: no such file or directory"),
        ('on_change = "told"', "hooks.on_change: must be an absolute path"),
    ],
)
def test_a_program_that_cannot_be_told_of_changes_is_a_warning(machine: Fresh, text: str, what: str) -> None:
    machine.write("/etc/pam_totp.toml", f"[hooks]\n{text}\n")
    [finding] = examine(machine)
    assert (finding.severity, finding.code) == (WARNING, Code.HOOK_INVALID)
    assert finding.what.endswith(what)
    machine.write("/usr/sbin/told", "#!/bin/sh\n", 0o755)
    machine.write("/etc/pam_totp.toml", '[hooks]\non_change = "/usr/sbin/told"\n')
    assert examine(machine) == []
    machine.path("/usr/sbin/told").unlink()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("chmod o+w {}/store/file.py", "/store/file.py can be written by users other than root (mode 0646)"),
        ("chgrp pam_totp {}/store/__pycache__; chmod g+w {}/store/__pycache__", "/store/__pycache__ can be written"),
        ("chown pam_totp {}/json.py", "/json.py belongs to uid"),
        ("ln -s /run/x.py {}/web/x.py; touch /run/x.py; chown pam_totp /run/x.py", "/run/x.py belongs to uid"),
    ],
)
def test_package_code_that_others_can_write_is_an_error(machine: Fresh, command: str, reason: str) -> None:
    with_line(machine, "sudo")
    package = HELPER.removesuffix("/pam/helper.py")
    machine.shell(f"cp -a {package} /run/kept; mkdir -p {package}/store/__pycache__; touch {package}/json.py")
    machine.shell(command.replace("{}", package))
    try:
        [finding] = [f for f in examine(machine) if f.check == "helper"]
    finally:
        machine.shell(f"rm -r {package}; mv /run/kept {package}")
    assert (finding.severity, finding.code) == (ERROR, Code.PACKAGE_UNTRUSTED)
    assert reason in finding.what


def test_an_sshd_that_bypasses_pam_is_an_error(machine: Fresh) -> None:
    with_line(machine, "sshd")
    found = [f.what for f in examine(machine) if f.code == Code.SSHD_BYPASSES_PAM]
    assert any("AuthenticationMethods is any, so pubkey is sufficient" in what for what in found)
    assert any("KbdInteractiveAuthentication is no" in what for what in found)


@pytest.mark.parametrize("service", ["sshd", "sudo", "su"])
def test_a_service_before_enable_is_a_note_without_errors(machine: Fresh, service: str) -> None:
    [finding] = examine(machine, service)
    assert (finding.severity, finding.code) == (NOTE, Code.SERVICE_NOT_ENABLED)
    assert finding.what == f"{service} is not enabled yet: its stack lacks pam_totp.so"
    assert finding.remedy == f"run 'pam-totp enable {service}'"


REST = "@include common-account\n@include common-session\n"
PASSWORD_AND_LINE = "auth requisite pam_unix.so\n{}\n" + REST
COCKPIT = "auth required pam_sepermit.so\n{}auth substack common-auth\n{}auth optional pam_ssh_add.so\n" + REST


@pytest.mark.parametrize(
    ("service", "stack", "found"),
    [
        ("vsftpd", PASSWORD_AND_LINE.format(LINE), "every prompt"),
        ("xrdp-sesman", PASSWORD_AND_LINE.format(f"{LINE} try_first_pass"), "every prompt"),
        ("xrdp-sesman", PASSWORD_AND_LINE.format(f"{LINE} use_first_pass"), None),
        ("vsftpd", f"{LINE} forward_pass\nauth required pam_unix.so use_first_pass\n{REST}", None),
        ("vsftpd", f"{LINE}\n{REST}", None),
        ("cockpit", COCKPIT.format(f"{LINE}\n", ""), "the first prompt"),
        ("cockpit", COCKPIT.format("", f"{LINE}\n"), None),
        ("login", PASSWORD_AND_LINE.format(LINE), None),
        ("i3lock", PASSWORD_AND_LINE.format(f"{LINE} forward_pass"), "every prompt"),
    ],
)
def test_a_program_that_sends_the_password_as_the_code_is_found(
    machine: Fresh, service: str, stack: str, found: str | None
) -> None:
    machine.write(f"/etc/pam.d/{service}", stack)
    try:
        whats = [f.what for f in examine(machine, service) if f.code == Code.PROGRAM_ASKS_ONCE]
    finally:
        machine.path(f"/etc/pam.d/{service}").unlink()
    assert whats == ([] if found is None else [whats[0]])
    assert found is None or f"because the program answers {found} with the password" in whats[0]


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (f"auth requisite pam_unix.so\n{LINE}", Code.FORWARDED_PASSWORD_UNCHECKED),
        (f"{LINE}\nauth required pam_unix.so", Code.PASSWORD_ASKED_TWICE),
        ("auth requisite pam_totp.so\nauth required pam_unix.so use_first_pass", Code.FORWARD_PASS_ENDS_STACK),
    ],
)
def test_forward_pass_in_the_site_file_is_checked_as_in_the_line(machine: Fresh, lines: str, code: Code) -> None:
    machine.write("/etc/pam.d/vsftpd", f"{lines}\n{REST}")
    machine.write("/etc/pam.d/proftpd", f"{lines}\n{REST}")
    machine.write("/etc/pam_totp.toml", "[service.vsftpd]\nforward_pass = true\n")
    try:
        assert code in [f.code for f in examine(machine, "vsftpd")]
        assert code not in [f.code for f in examine(machine, "proftpd")]
    finally:
        machine.path("/etc/pam.d/vsftpd").unlink()
        machine.path("/etc/pam.d/proftpd").unlink()


def test_a_mistake_in_the_table_of_the_portal_is_a_warning(machine: Fresh) -> None:
    machine.write("/etc/logo.png", "no image")
    machine.write("/etc/pam_totp.toml", '[portal]\naccent = "#ffcc00"\n')
    try:
        [finding] = [f for f in examine(machine) if f.check == "portal"]
        assert (finding.severity, finding.code) == (WARNING, Code.PORTAL_TABLE_INVALID)
        assert "portal.accent: the contrast of #ffcc00 to " in finding.what
        assert finding.what.startswith("the portal does not start: ")
        machine.write("/etc/pam_totp.toml", '[portal]\nlogo = "/etc/logo.png"\n')
        [finding] = [f for f in examine(machine) if f.check == "portal"]
        assert "logo.png: must be a PNG, JPEG, WebP or SVG image" in finding.what
        machine.write("/etc/pam_totp.toml", '[portal]\nname = "Example"\n')
        assert not [f for f in examine(machine) if f.check == "portal"]
    finally:
        machine.path("/etc/logo.png").unlink()
        machine.path("/etc/pam_totp.toml").unlink()


def test_arguments_of_the_line_override_the_site_file(machine: Fresh) -> None:
    machine.write("/etc/pam.d/vsftpd", f"{PASSWORD_AND_LINE.format(LINE + ' try_first_pass')}")
    machine.write("/etc/pam_totp.toml", "[service.vsftpd]\nforward_pass = true\n")
    try:
        assert Code.FORWARDED_PASSWORD_UNCHECKED not in [f.code for f in examine(machine, "vsftpd")]
    finally:
        machine.path("/etc/pam.d/vsftpd").unlink()


def test_a_locker_with_forward_pass_in_the_site_file_has_no_finding(machine: Fresh) -> None:
    machine.write("/etc/pam.d/i3lock", f"{LINE}\nauth required pam_unix.so use_first_pass\n{REST}")
    machine.write("/etc/pam_totp.toml", "[service.i3lock]\nforward_pass = true\n")
    try:
        assert Code.PROGRAM_ASKS_ONCE not in [f.code for f in examine(machine, "i3lock")]
    finally:
        machine.path("/etc/pam.d/i3lock").unlink()


def test_enable_refuses_a_program_with_one_field_before_any_prompt(machine: Fresh) -> None:
    machine.write("/etc/pam.d/xrdp-sesman", f"@include common-auth\n{REST}")
    try:
        done = machine.installed("enable", "xrdp-sesman", "--for-user", "alice")
    finally:
        machine.path("/etc/pam.d/xrdp-sesman").unlink()
    assert (done.returncode, "because the program answers every prompt" in done.stdout) == (1, True), done
    assert machine.counter("alice") == 0


def test_only_services_that_authenticate_are_reported_to_lock_users_out(machine: Fresh) -> None:
    """cron and atd include common-auth, but never authenticate. common-auth is an included file, not a service."""
    machine.write("/etc/pam.d/common-auth", f"{STACKS['common-auth']}{LINE}\n")
    quiet, asking = ("cron", "atd", "systemd-user"), ("login",)
    for service in (*quiet, *asking):
        machine.write(f"/etc/pam.d/{service}", f"@include common-auth\n{REST}")
    try:
        whats = [f.what for f in examine(machine) if f.code == Code.USERS_WITHOUT_TOKEN]
    finally:
        for service in (*quiet, *asking):
            machine.path(f"/etc/pam.d/{service}").unlink()
    assert [what.partition(":")[0] for what in whats] == ["login", "sshd", "su", "su-l"]


def test_an_sshd_configuration_that_is_invalid_is_an_error(machine: Fresh) -> None:
    with_line(machine, "sshd")
    machine.write("/etc/ssh/sshd_config.d/x.conf", "PermitNonsense yes\n")
    [finding] = [f for f in examine(machine) if f.check == "sshd"]
    assert finding.code == Code.SSHD_CONFIGURATION_INVALID
    assert "PermitNonsense" in finding.what, "the finding quotes the message of sshd"


def test_users_with_sudo_but_without_a_token_are_named(machine: Fresh) -> None:
    with_line(machine, "sudo")
    machine.write("/etc/sudoers", "alice ALL=(ALL) ALL\nbob ALL=(ALL) ALL\ncarol ALL=(ALL) NOPASSWD: ALL\n", 0o440)
    try:
        [finding] = examine(machine)
        assert (finding.severity, finding.code) == (WARNING, Code.USERS_WITHOUT_TOKEN)
        assert finding.what == "sudo: these users have no token and are locked out: bob"
        machine.path(f"{STORE}/alice.record").unlink()
        [finding] = examine(machine)
        assert (finding.severity, finding.code) == (ERROR, Code.NO_USER_WITH_TOKEN)
        assert finding.what == "sudo: no user has a token; these users are locked out: alice, bob"
        with_line(machine, "sudo", f"{LINE} nullok")
        [finding] = examine(machine)
        assert (finding.severity, finding.code) == (WARNING, Code.USERS_WITHOUT_CODE)
        assert finding.what.endswith("nullok lets these users in without a code: alice, bob")
    finally:
        machine.write("/etc/sudoers", "root ALL=(ALL:ALL) ALL\nalice ALL=(ALL:ALL) ALL\n", 0o440)


def test_nullok_divides_users_by_date_and_group(machine: Fresh) -> None:
    machine.write("/etc/sudoers", "alice ALL=(ALL) ALL\nbob ALL=(ALL) ALL\ncarol ALL=(ALL) ALL\n", 0o440)
    machine.shell("groupadd -f new; usermod -aG new bob")
    try:
        for argument, passing, locked_out in (
            ("nullok_until=2099-12-31", "bob, carol", None),
            ("nullok_until=2020-12-31", None, "bob, carol"),
            ("nullok_group=new", "bob", "carol"),
            ("nullok_group=nosuch", None, "bob, carol"),
        ):
            with_line(machine, "sudo", f"{LINE} {argument}")
            said = f"sudo: nullok lets these users in without a code: {passing}", passing
            denied = f"sudo: these users have no token and are locked out: {locked_out}", locked_out
            expected = {what for what, names in (said, denied) if names is not None}
            assert {f.what for f in examine(machine)} == expected
        with_line(machine, "sudo", f"{LINE} nullok_group=new")
        for user, asks in (("bob", False), ("carol", True)):
            done = machine.installed("rehearse", "sudo", user, stdin=f"{PASSWORD}\n")
            assert ((done.returncode == 0), "One-time code" in done.stderr) == (not asks, asks)
    finally:
        machine.write("/etc/sudoers", "root ALL=(ALL:ALL) ALL\nalice ALL=(ALL:ALL) ALL\n", 0o440)


def test_a_token_that_was_never_confirmed_does_not_count(machine: Fresh) -> None:
    with_line(machine, "sudo")
    machine.enrol("alice", HotpToken(name="fob", secret=b"12345678901234567890", created=0, confirmed=False))
    machine.shell(f"chown pam_totp: {STORE}/alice.record")
    assert (ERROR, Code.NO_USER_WITH_TOKEN) in codes_found(machine)


def test_a_store_that_others_can_read_or_that_root_owns_is_found(machine: Fresh) -> None:
    machine.shell(f"chmod 755 {STORE}")
    assert (ERROR, Code.STORE_MODE) in codes_found(machine)
    machine.shell(f"chmod 700 {STORE}; chown -R root: {STORE}")
    assert (WARNING, Code.STORE_OWNED_BY_ROOT) in codes_found(machine)
    machine.shell(f"chown -R pam_totp: {STORE}; chmod 644 {STORE}/alice.record")
    assert codes_found(machine) == [(ERROR, Code.STORE_DEFECT)], "only the finding whose remedy is sufficient"
    machine.shell(f"chmod 600 {STORE}/alice.record; echo damaged >{STORE}/alice.record")
    assert (ERROR, Code.RECORD_UNREADABLE) in codes_found(machine)


def run_remedy(machine: Fresh, finding: Finding) -> None:
    """Run the command that the remedy of `finding` names."""
    command = re.fullmatch(r"run '(.+)'(?: as root)?", finding.remedy)
    assert command is not None, finding
    machine.shell(command[1])


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        ("chown -R bob: {}", Code.STORE_OWNER, "must belong to pam_totp, not to bob: bob can read all keys"),
        (
            "chown 59999:59999 {}",
            Code.STORE_OWNER,
            "not to uid 59999: uid 59999 can read all keys",
        ),
        ("chown bob: {}/alice.record", Code.STORE_FILE_OWNER, "alice.record must belong to pam_totp (now: bob)"),
        ("chown root: {}/.lock", Code.STORE_FILE_OWNER, ".lock must belong to pam_totp (now: root)"),
        ("chown -R bob: {}/.decoy", Code.STORE_FILE_OWNER, ".decoy, .decoy/00, .decoy/01 and 62 more must belong to"),
        ("mkdir -m 700 {0}/.stock; chown bob: {0}/.stock", Code.STORE_FILE_OWNER, ".stock must belong to pam_totp"),
        ("chmod 0 {}/alice.record", Code.STORE_FILE_MODE, "pam_totp cannot read and write alice.record"),
        ("chmod 0400 {}/.lock", Code.STORE_FILE_MODE, "pam_totp cannot read and write .lock"),
        ("chmod 0700 /var/lib", Code.STORE_CLOSED, "every code is refused, because its owner cannot enter /var/lib"),
        ("mv {0}/alice.record /root/a; ln -s /root/a {0}/alice.record", Code.STORE_FILE_LINK, "not a symbolic link"),
        ("mount --bind -o ro {0} {0}", Code.STORE_READ_ONLY, "the file system is read-only"),
    ],
)
def test_a_store_that_cannot_be_used_is_an_error_with_an_exact_remedy(
    machine: Fresh, damage: str, code: Code, says: str
) -> None:
    with_line(machine, "sudo")
    before = machine.path(f"{STORE}/alice.record").read_bytes()
    machine.shell(damage.replace("{0}", STORE).replace("{}", STORE))
    try:
        finding, *more = examine(machine)
        assert (finding.severity, finding.code) == (ERROR, code), finding
        assert says in finding.what
        assert {f.code for f in more} <= {Code.STORE_DEFECT}, "no finding proposes a new enrolment"
        run_remedy(machine, finding)
        left = examine(machine)
        if code == Code.STORE_FILE_LINK:  # the copy belongs to root
            [owner] = left
            assert owner.code == Code.STORE_FILE_OWNER
            run_remedy(machine, owner)
            left = [f for f in examine(machine) if f.code != Code.STORE_RESTORED]
        assert left == []
    finally:
        machine.shell(f"umount {STORE} 2>/dev/null; chmod 0755 /var/lib; chown -R -h pam_totp: {STORE}")
    assert machine.path(f"{STORE}/alice.record").read_bytes() == before, "the remedy keeps the record"
    done = machine.installed("rehearse", "sudo", "alice", stdin=f"{PASSWORD}\n{codes(0)}\n")
    assert done.returncode == 0, "alice logs in again, without a new enrolment"


def test_an_owner_other_than_the_account_of_the_service_is_an_error(machine: Fresh) -> None:
    with_line(machine, "sudo")
    machine.shell("mkdir -p /run/pam_totp; chown pam_totp: /run/pam_totp")
    become = ("setpriv", "--reuid", "pam_totp", "--regid", "pam_totp", "--clear-groups")
    service = machine.start(*become, COMMAND, "serve", "--socket", SOCKET)
    try:
        until(machine.path(SOCKET).exists, "the service creates its socket")
        for owner, says in (
            ("root", "must belong to pam_totp, not to root: the service refuses every code"),
            ("bob", "must belong to pam_totp, not to bob: the service refuses every code, and bob can read all keys"),
        ):
            machine.shell(f"chown -R {owner}: {STORE}")
            [finding] = examine(machine)
            assert (finding.severity, finding.code) == (ERROR, Code.STORE_OWNER)
            assert says in finding.what
            run_remedy(machine, finding)
            assert examine(machine) == []
    finally:
        service.terminate()
        service.wait()


def test_a_file_that_the_kernel_makes_immutable_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file systems of these tests have no `chattr +i`, so the error of open(2) is simulated."""
    for name in (".lock", "alice.record", "bob.record"):
        (tmp_path / name).touch(0o600)
    real = os.open

    def fails_for_bob(path: str, flags: int, *rest: int) -> int:
        if str(path).endswith("bob.record"):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", fails_for_bob)
    [finding] = store_use.examine(str(tmp_path), tmp_path.stat(), has_service=False).findings
    assert (finding.severity, finding.code) == (ERROR, Code.STORE_FILE_IMMUTABLE)
    assert "writing to bob.record" in finding.what
    assert finding.remedy == f"run 'chattr -R -i -a {tmp_path}' as root"


def test_a_read_only_store_is_an_error(machine: Fresh) -> None:
    machine.shell(f"mount --bind -o ro {STORE} {STORE}")
    try:
        assert (ERROR, Code.STORE_READ_ONLY) in codes_found(machine)
    finally:
        machine.shell(f"umount {STORE}")


def test_a_store_whose_records_were_copied_names_the_database(machine: Fresh) -> None:
    machine.shell(f"mv {STORE} {STORE}.away")
    machine.write(STORE, "The records of this store were copied to postgresql://authority@db1/otp\n")
    try:
        (finding,) = (found for found in examine(machine) if found.check == "store")
        assert (finding.severity, finding.code) == (ERROR, Code.STORE_UNREACHABLE)
        assert f"{STORE}: the records of this store were copied to postgresql://authority@db1/otp" in finding.what
        assert finding.remedy.endswith("in [store] of /etc/pam_totp.toml, or run 'pam-totp join'")
    finally:
        machine.shell(f"rm {STORE}; mv {STORE}.away {STORE}")


def test_a_stack_with_files_in_home_folders_needs_no_store(machine: Fresh) -> None:
    with_line(machine, "sudo", f"{LINE} secret=~/.pam_totp.json")
    machine.shell(f"mv {STORE} {STORE}.away")
    try:
        assert Code.STORE_UNREACHABLE not in {code for _, code in codes_found(machine)}
    finally:
        machine.shell(f"mv {STORE}.away {STORE}")


def test_defects_of_a_store_are_found_and_repaired(machine: Fresh) -> None:
    assert codes_found(machine) == []
    machine.shell(f"rm {STORE}/.lock {STORE}/.decoy/1*; touch {STORE}/.alice.record {STORE}/zoe.lock")
    machine.shell(f"mkdir -m 700 {STORE}/.import; chown pam_totp: {STORE}/.import {STORE}/zoe.lock")
    done = machine.installed("doctor", "--json")
    found = [f["what"] for f in json.loads(done.stdout)["findings"] if f["code"] == Code.STORE_DEFECT]
    assert found == [
        f"{STORE}: .import: left by an interrupted import",
        f"{STORE}: an attacker can distinguish unknown users: 10 of 64 decoys are missing or damaged",
        f"{STORE}: .lock: not found",
        f"{STORE}: .alice.record: left by a killed process",
        f"{STORE}: zoe.lock: left by a killed process",
    ]
    done = machine.installed("doctor", "--repair", "--json")
    assert json.loads(done.stdout)["repaired"] == found
    assert done.returncode == 0
    assert codes_found(machine) == []
    owners = machine.shell(f"find {STORE} -printf '%u %m\\n' | sort -u").split("\n")
    assert owners == ["pam_totp 600", "pam_totp 700"]


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
def test_a_repair_that_fails_is_reported_after_the_others(machine: Fresh, options: list[str]) -> None:
    machine.shell(f"rm -r {STORE}/.decoy; touch {STORE}/.decoy; chmod 640 {STORE}/alice.record")
    done = machine.installed("doctor", "--repair", *options)
    assert done.returncode == 3
    mode = f"{STORE}: alice.record: its mode must be 0600"
    missing = "an attacker can distinguish unknown users: 64 of 64 decoys are missing or damaged"
    if options:
        answer = json.loads(done.stdout)
        assert answer["repaired"] == [mode]
        assert f"{STORE}: {missing}" in [finding["what"] for finding in answer["findings"]]
    else:
        assert done.stdout.startswith(f"repaired: {mode}\n")
        assert f"warning: {STORE}: {missing}\n" in done.stdout
    assert f"{STORE}: not repaired: {missing} ({STORE}: Not a directory)\n" in done.stderr
    machine.shell(f"rm {STORE}/.decoy")
    assert machine.installed("doctor", "--repair").returncode == 0
    assert codes_found(machine) == []


def test_only_root_or_the_owner_can_repair_a_store(machine: Fresh) -> None:
    done = machine.installed("doctor", "--repair", user="alice")
    assert done.returncode == 3
    assert f"{STORE}: not repaired: " in done.stderr


def test_a_missing_line_that_enable_had_added_is_found(machine: Fresh) -> None:
    first = machine.enable("sudo", "--keep-within=60")
    machine.shell("mv /var/lib/pam_totp_enabled/sudo.trial /var/lib/pam_totp_enabled/sudo.json")
    first.ends()
    machine.write("/etc/pam.d/sudo", STACKS["sudo"])  # as an upgrade of sudo's package can do
    assert (ERROR, Code.CHANGE_LOST) in codes_found(machine)
    assert machine.installed("disable", "sudo").returncode == 0


def test_without_root_the_skipped_checks_are_named(machine: Fresh) -> None:
    with_line(machine, "sudo")
    done = machine.installed("doctor", "--json", user="alice")
    notes = [f["code"] for f in json.loads(done.stdout)["findings"] if f["severity"] == NOTE]
    assert notes == [Code.STORE_NOT_CHECKED, Code.USERS_NOT_CHECKED]


@pytest.mark.parametrize(("answer", "found"), [(5, [(WARNING, Code.CLOCK_NOT_SYNCHRONISED)]), (0, [])])
def test_a_clock_that_is_not_synchronised_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, answer: int, found: list[tuple[Severity, Code]]
) -> None:
    monkeypatch.setattr(checks_machine, "_clock_state", lambda: answer)
    assert [(f.severity, f.code) for f in checks_machine.clock(Context(Machine(), []))] == found


def test_the_kernel_reports_the_state_of_the_clock() -> None:
    assert checks_machine._clock_state() in range(6)  # adjtimex(2): TIME_OK to TIME_ERROR


@pytest.mark.parametrize(
    ("problem", "found"),
    [
        (None, []),
        (probe.Code.NOT_LISTENING, [(WARNING, Code.SERVICE_NOT_LISTENING)]),
        (probe.Code.NO_ANSWER, [(ERROR, Code.SERVICE_NOT_ANSWERING)]),
        (probe.Code.CLOSED, [(ERROR, Code.SERVICE_NOT_ANSWERING)]),
        (probe.Code.INVALID_ANSWER, [(ERROR, Code.SERVICE_NOT_ANSWERING)]),
    ],
)
def test_the_severity_of_a_socket_follows_from_the_code_of_its_probe(
    monkeypatch: pytest.MonkeyPatch, problem: probe.Code | None, found: list[tuple[Severity, Code]]
) -> None:
    """The severity must not depend on the text of the message or of the socket's path."""
    monkeypatch.setattr(Context, "sockets", lambda _: ["/run/answer hangs up/socket"])
    monkeypatch.setattr(probe, "service", lambda _: None if problem is None else probe.Problem(problem, "any words"))
    assert [(f.severity, f.code) for f in checks_machine.sockets(Context(Machine(), []))] == found


def test_a_deleted_account_cannot_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """An account can be deleted between the listing of all accounts and the check of that account."""
    monkeypatch.setattr(people, "accounts_with_password", lambda: frozenset({"shadowed"}))
    can_log_in = people.login_check("sshd")
    assert [can_log_in("deleted"), can_log_in("shadowed")] == [False, False]


def test_an_untrusted_part_makes_a_path_untrusted(tmp_path: Path) -> None:
    owners = {0, os.getuid()}
    for part in (tmp_path, *tmp_path.parents):
        owners.add(part.stat().st_uid)
    inner = tmp_path / "inner"
    inner.mkdir(mode=0o755)
    (inner / "file").touch(mode=0o644)
    (tmp_path / "link").symlink_to("inner/file")
    assert distrust(str(tmp_path / "link"), owners) is None
    inner.chmod(0o775)
    assert f"{inner} can be written" in str(distrust(str(tmp_path / "link"), owners))
    inner.chmod(0o1777)
    assert distrust(str(inner / "file"), owners) is None, "other users cannot replace files in a sticky folder"
    (tmp_path / "loop").symlink_to("loop")
    assert "too many levels of symbolic links" in str(distrust(str(tmp_path / "loop"), owners))
    assert "no such file" in str(distrust(str(inner / "gone"), owners))


# ---- rehearse


def test_rehearse_logs_in_to_the_live_stack_and_shows_every_prompt(machine: Fresh) -> None:
    with_line(machine, "sudo")
    done = machine.installed("rehearse", "sudo", "alice", "--json", stdin=f"{PASSWORD}\n{codes(0)}\n")
    outcome = json.loads(done.stdout)
    assert (done.returncode, outcome["authenticate"], outcome["account"]) == (0, "success", "success")
    assert [(s["style"], s["text"]) for s in outcome["shown"]] == [
        ("prompt", "Password: "),
        ("prompt", "One-time code: "),
    ]
    assert machine.counter("alice") == 1, "a rehearsal uses up the code, as a login does"
    again = machine.installed("rehearse", "sudo", "alice", stdin=f"{PASSWORD}\n{codes(0)}\n")
    assert (again.returncode, "would refuse alice: auth_err" in again.stderr) == (1, True)
    assert "Refused. Try the next code." in again.stderr, "rehearse shows the module's message"


def test_rehearse_accepts_a_stack_that_is_not_installed(machine: Fresh) -> None:
    machine.write("/root/new-sudo", STACKS["sudo"].replace("common-auth\n", f"common-auth\n{LINE}\n"))
    given = f"{PASSWORD}\n{codes(0)}\n"
    done = machine.installed("rehearse", "sudo", "alice", "--stack", "/root/new-sudo", stdin=given)
    assert (done.returncode, "would let alice in" in done.stdout) == (0, True), done.stderr
    machine.shell("mkdir -p /root/stacks; cp /root/new-sudo /root/stacks/sudo")
    done = machine.installed("rehearse", "sudo", "alice", "--stack", "/root/stacks", stdin=f"{PASSWORD}\nwrong\n")
    assert (done.returncode, "One-time code: " in done.stderr) == (1, True)


def test_without_root_rehearse_asks_for_the_users_own_password(machine: Fresh) -> None:
    with_line(machine, "sudo", f"{LINE} nullok")
    done = machine.installed("rehearse", "sudo", "bob", user="bob", stdin=f"{PASSWORD}\n")
    assert "Password: " in done.stderr
    assert (done.returncode, "would refuse bob: authinfo_unavail" in done.stderr) == (1, True), done.stderr


CRASH = "int pam_sm_authenticate(void) { return *(volatile int *)0; } int pam_sm_setcred(void) { return 0; }\n"


def test_rehearse_survives_a_module_that_crashes(machine: Fresh) -> None:
    machine.write("/root/crash.c", CRASH)
    machine.shell("cc -shared -fPIC -o /root/pam_crash.so /root/crash.c")
    machine.write("/root/crash", "auth required /root/pam_crash.so\naccount required pam_permit.so\n")
    done = machine.installed("rehearse", "sudo", "alice", "--stack", "/root/crash")
    assert (done.returncode, "the rehearsal crashed" in done.stderr) == (1, True)


def test_a_restored_store_is_reported_until_the_restored_command_ran(machine: Fresh) -> None:
    assert codes_found(machine) == []
    machine.shell(
        f"cd {STORE} && tar -cf /root/backup.tar alice.record && rm alice.record && tar -xpf /root/backup.tar"
    )
    assert codes_found(machine) == [(WARNING, Code.STORE_RESTORED)]
    done = machine.installed("restored", "--yes")
    assert done.returncode == 0, done.stderr
    assert codes_found(machine) == []
