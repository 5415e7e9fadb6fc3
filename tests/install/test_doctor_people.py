"""Tests of doctor's findings about locked-out users, and about logins without a code."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pam_totp.core.record import HotpToken, UserRecord
from pam_totp.system import sshd, sudo
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding
from tests.install.machine import Fresh
from tests.install.test_doctor import LINE, codes_found, examine, with_line
from tests.install.test_ways import CIS
from tests.services.namespace import ACCOUNTS, STORE
from tests.support.etc import PASSWORD, STACKS
from tests.support.site import codes

SUDOERS = "root ALL=(ALL:ALL) ALL\nalice ALL=(ALL:ALL) ALL\n"
KEY_LINE = "auth [success=done ignore=ignore default=die] pam_totp.so\n"


def only(machine: Fresh, code: Code, *services: str) -> Finding:
    [finding] = [f for f in examine(machine, *services) if f.code == code]
    return finding


@pytest.fixture
def sudoers(machine: Fresh) -> Iterator[Fresh]:
    yield machine
    machine.write("/etc/sudoers", SUDOERS, 0o440)


def configure_sshd(machine: Fresh, *lines: str) -> None:
    """Write settings that take precedence over those of the machine, and a stack that asks for a code after a key."""
    machine.write("/etc/ssh/sshd_config.d/00-test.conf", "".join(f"{line}\n" for line in lines))
    machine.write("/etc/pam.d/sshd", KEY_LINE + STACKS["sshd"])


BY_KEY = ("KbdInteractiveAuthentication yes", "AuthenticationMethods publickey,keyboard-interactive:pam")


# ---- stacks


def test_a_stack_of_the_cis_benchmark_is_an_error_with_a_remedy(machine: Fresh) -> None:
    with_line(machine, "sudo")
    machine.write("/etc/pam.d/common-auth", CIS)
    finding = only(machine, Code.LOGIN_WITHOUT_CODE)
    assert finding.severity == ERROR
    assert "pam_faillock.so (common-auth:4)" in finding.what
    assert finding.remedy.endswith(", or replace '@include common-auth' in sudo by 'auth substack common-auth'")


def test_a_line_under_account_in_an_included_file_names_all_services(machine: Fresh) -> None:
    machine.write("/etc/pam.d/common-account", "account required pam_totp.so\naccount required pam_unix.so\n")
    finding = only(machine, Code.MODULE_IN_WRONG_PHASE)
    assert finding.severity == ERROR
    assert finding.what == (
        "common-account:1: pam_totp.so is in the phase account, where it always fails: "
        "every login is refused by sshd, su, su-l, sudo, sudo-i"
    )
    assert machine.run("sudo", "id").returncode == 1, "sudo refuses root too"


@pytest.mark.parametrize(("phase", "text"), [("password", "every change of a password"), ("session", "every session")])
def test_a_line_in_another_phase_names_the_refused_operations(machine: Fresh, phase: str, text: str) -> None:
    with_line(machine, "sudo", f"{LINE}\n{phase} required pam_totp.so")
    assert f"{text} is refused by sudo" in only(machine, Code.MODULE_IN_WRONG_PHASE).what


def test_a_line_in_another_phase_that_is_ignored_is_a_warning(machine: Fresh) -> None:
    with_line(machine, "sudo", f"{LINE}\naccount optional pam_totp.so")
    assert codes_found(machine) == [(WARNING, Code.MODULE_IN_WRONG_PHASE)]


def test_users_exempted_by_a_group_are_named(machine: Fresh) -> None:
    exempt = "auth [success=1 default=ignore] pam_succeed_if.so quiet user ingroup bob\n"
    machine.write(
        "/etc/pam.d/su", "auth requisite pam_unix.so\n" + exempt + LINE + "\naccount required pam_permit.so\n"
    )
    finding = only(machine, Code.CODE_EXEMPTION, "su")
    assert finding.severity == NOTE
    assert finding.what.endswith("these users log in without a code: bob")


# ---- tokens


def test_users_admitted_by_nullok_are_named(sudoers: Fresh) -> None:
    with_line(sudoers, "sudo", f"{LINE} nullok")
    sudoers.write("/etc/sudoers", "alice ALL=(ALL) ALL\nbob ALL=(ALL) ALL\n", 0o440)
    [finding] = examine(sudoers)
    assert (finding.severity, finding.code) == (WARNING, Code.USERS_WITHOUT_CODE)
    assert finding.what == "sudo: nullok lets these users in without a code: bob"


def test_records_without_an_account_are_named_with_a_similar_account(machine: Fresh) -> None:
    with_line(machine, "sudo")
    for name in ("alcie", "BOB", "carol@corp", "zzz-deleted"):
        machine.enrol(name)
    machine.shell(f"chown pam_totp: {STORE}/*.record")
    finding = only(machine, Code.RECORDS_WITHOUT_ACCOUNT)
    assert finding.severity == WARNING
    assert finding.what == (
        f"{STORE}: these records have no account: BOB (account: bob), alcie (account: alice), "
        "carol@corp (account: carol), zzz-deleted"
    )


def in_home(machine: Fresh, user: str, *, confirmed: bool = True) -> None:
    token = HotpToken(name="fob", secret=b"12345678901234567890", created=0, confirmed=confirmed)
    machine.put(f"/home/{user}/.pam_totp.json", user, UserRecord(user=user, tokens=(token,)))


@pytest.fixture
def homes(sudoers: Fresh) -> Iterator[Fresh]:
    sudoers.write("/etc/sudoers", "alice ALL=(ALL) ALL\nbob ALL=(ALL) ALL\n", 0o440)
    yield sudoers
    sudoers.shell("rm -f /home/*/.pam_totp.json*")


def test_tokens_that_exist_only_in_a_home_are_named(homes: Fresh) -> None:
    with_line(homes, "sudo")
    in_home(homes, "bob")
    finding = only(homes, Code.TOKENS_ELSEWHERE)
    assert finding.what == (
        "sudo: these users have tokens only in their file ~/.pam_totp.json, which this service does not read: bob"
    )
    assert only(homes, Code.USERS_WITHOUT_TOKEN).what.endswith("locked out: bob")


def test_tokens_that_exist_only_in_the_store_are_named(homes: Fresh) -> None:
    with_line(homes, "sudo", f"{LINE} secret=~/.pam_totp.json")
    in_home(homes, "bob")
    finding = only(homes, Code.TOKENS_ELSEWHERE)
    assert finding.what == f"sudo: these users have tokens only in {STORE}, which this service does not read: alice"
    assert only(homes, Code.USERS_WITHOUT_TOKEN).what.endswith("locked out: alice")
    in_home(homes, "alice")
    assert codes_found(homes) == []
    in_home(homes, "alice", confirmed=False)
    assert only(homes, Code.USERS_WITHOUT_TOKEN).what.endswith("locked out: alice")


FILE = "/home/alice/.pam_totp.json"
UNUSABLE = [  # the damage, the reason and the remedy in the finding; the test runs the remedy, too
    (f"chmod 0400 {FILE}", ".pam_totp.json: its mode must be 0600", f"chmod 0600 {FILE}"),
    (f"chmod 0640 {FILE}", ".pam_totp.json: its mode must be 0600", f"chmod 0600 {FILE}"),
    (f"chown root: {FILE}", ".pam_totp.json: Permission denied", f"chown {ACCOUNTS['alice']} {FILE}"),
    (f"chown bob {FILE}; chmod 0666 {FILE}", "must be owned by uid", f"chown {ACCOUNTS['alice']} {FILE}"),
    ("chmod 0775 /home/alice", "/home/alice: must not be writable by other accounts", "chmod go-w /home/alice"),
    ("chown bob /home/alice", "/home/alice: must be owned by uid", f"chown {ACCOUNTS['alice']} /home/alice"),
]


@pytest.mark.parametrize("nullok", ["", "nullok"])
@pytest.mark.parametrize(("damage", "reason", "remedy"), UNUSABLE)
def test_a_file_that_a_login_refuses_is_named_with_its_remedy(
    homes: Fresh, damage: str, reason: str, remedy: str, nullok: str
) -> None:
    with_line(homes, "sudo", f"{LINE} {nullok} secret=~/.pam_totp.json")
    in_home(homes, "alice")
    in_home(homes, "bob")
    homes.shell(damage)
    try:
        finding = only(homes, Code.HOME_FILE_UNUSABLE)
        assert (finding.severity, finding.remedy) == (WARNING, f"run '{remedy}'")
        assert finding.what.startswith("sudo: these users are locked out, because a login refuses their file: alice (")
        assert reason in finding.what
        assert not any(f.code in (Code.USERS_WITHOUT_CODE, Code.USERS_WITHOUT_TOKEN) for f in examine(homes))
        answers = f"{PASSWORD}\n{codes(0)}\n"
        assert homes.run("sudo", "-kS", "true", user="alice", stdin=answers).returncode == 1, "the real login fails too"
        homes.shell(remedy)
        if "0666" in damage:  # the next run reports the mode
            homes.shell(only(homes, Code.HOME_FILE_UNUSABLE).remedy.removeprefix("run '").removesuffix("'"))
        assert Code.HOME_FILE_UNUSABLE not in [f.code for f in examine(homes)]
        assert homes.run("sudo", "-kS", "true", user="alice", stdin=answers).returncode == 0
    finally:
        homes.shell("chown alice: /home/alice; chmod 0755 /home/alice")


def test_a_home_that_its_user_cannot_write_is_named(homes: Fresh) -> None:
    with_line(homes, "sudo", f"{LINE} secret=~/.pam_totp.json")
    in_home(homes, "alice")
    homes.shell("mount --bind /home/alice /home/alice; mount -o remount,bind,ro /home/alice")
    try:
        finding = only(homes, Code.HOME_FILE_UNUSABLE)
        assert (finding.severity, finding.what.partition(": alice (")[2]) == (
            ERROR,
            f"{FILE}: the user lacks write access)",
        )
        assert homes.run("sudo", "-kS", "true", user="alice", stdin=f"{PASSWORD}\n{codes(0)}\n").returncode == 1
    finally:
        homes.shell("umount /home/alice")


def test_nullok_with_files_in_homes_that_may_be_missing_is_found(homes: Fresh) -> None:
    in_home(homes, "alice")
    with_line(homes, "sudo", f"{LINE} nullok secret=~/.pam_totp.json")
    finding = only(homes, Code.NULLOK_WITHOUT_HOME)
    assert (finding.severity, finding.what) == (
        WARNING,
        "sudo: nullok with secret=~/.pam_totp.json lets a user in without a code while the home is unmounted "
        "(homes missing now: bob)",
    )
    homes.write("/etc/pam.d/common-session", "session optional pam_mount.so\n")
    assert only(homes, Code.NULLOK_WITHOUT_HOME).severity == ERROR


# ---- sudo


@pytest.mark.parametrize(
    ("setting", "owner"), [("rootpw", "root"), ("targetpw", "root"), ("runaspw, runas_default=carol", "carol")]
)
def test_a_sudo_rule_that_requires_another_users_code_is_found(sudoers: Fresh, setting: str, owner: str) -> None:
    with_line(sudoers, "sudo")
    sudoers.write("/etc/sudoers", f"Defaults {setting}\nalice ALL=(ALL) ALL\n", 0o440)
    finding = only(sudoers, Code.SUDO_ASKS_OTHER_USER)
    assert finding.what.startswith(f"sudo asks for the password and the code of {owner}, not of alice")
    assert only(sudoers, Code.NO_USER_WITH_TOKEN).severity == ERROR, "alice has a token, but sudo does not ask for it"
    sudoers.enrol(owner)
    sudoers.shell(f"chown pam_totp: {STORE}/{owner}.record")
    assert (ERROR, Code.NO_USER_WITH_TOKEN) not in codes_found(sudoers)


def test_the_defaults_of_sudo_are_read_from_its_paragraph() -> None:
    text = (
        "Matching Defaults entries for alice on host:\n    env_reset, secure_path=/usr/sbin\\:/usr/bin,\n"
        "    !rootpw, runas_default=carol, targetpw\n\nUser alice may run the following commands on host:\n"
        "    (ALL : ALL) NOPASSWD: /bin/rootpw\n    (ALL) ALL\n"
    )
    assert sudo.parse(text) == sudo.Rules(may_use=True, asks_other="targetpw", other="carol")
    assert sudo.parse("User bob is not allowed to run sudo on host.\n") == sudo.Rules(may_use=False)


# ---- sshd


def test_an_sshd_that_refuses_every_code_of_root_is_found(machine: Fresh) -> None:
    machine.enrol("root")
    machine.shell(f"chown pam_totp: {STORE}/root.record")
    configure_sshd(machine, *BY_KEY, "PasswordAuthentication no", "PermitRootLogin prohibit-password")
    finding = only(machine, Code.ROOT_REFUSED_BY_SSHD)
    assert finding.severity == WARNING
    assert finding.what == "sshd: root is locked out: PermitRootLogin prohibit-password refuses every code of root"
    configure_sshd(machine, *BY_KEY, "PermitRootLogin yes")
    assert Code.ROOT_REFUSED_BY_SSHD not in {f.code for f in examine(machine)}


def reload_sshd(machine: Fresh) -> None:
    with machine.sshd_starts_anew():
        machine.shell("kill -HUP $(cat /run/sshd.pid)")


def test_the_real_sshd_refuses_a_right_code_of_root(machine: Fresh) -> None:
    machine.enrol("root")
    machine.shell(f"chown pam_totp: {STORE}/root.record; mkdir -p /root/.ssh; rm -f /run/sshd/key*")
    machine.shell("ssh-keygen -q -t ed25519 -N '' -f /run/sshd/key; cp /run/sshd/key.pub /root/.ssh/authorized_keys")
    machine.sshd()
    options = ("IdentityFile=/run/sshd/key", "NumberOfPasswordPrompts=1")
    try:
        configure_sshd(machine, *BY_KEY, "PermitRootLogin prohibit-password")
        reload_sshd(machine)
        refused = machine.ssh("echo in as $(id -un)", "root", *options)
        refused.asks("code: ").says(codes(0)).asks("Next code: ").says(codes(1))
        status, shown = refused.ends()
        assert (status, "in as root" in shown) == (255, False), shown
        configure_sshd(machine, *BY_KEY, "PermitRootLogin yes")
        reload_sshd(machine)
        accepted = machine.ssh("echo in as $(id -un)", "root", *options)
        accepted.asks("code: ").says(codes(0))
        assert "in as root" in accepted.ends()[1]
    finally:
        machine.shell("rm -r /root/.ssh /etc/ssh/sshd_config.d/00-test.conf")
        reload_sshd(machine)


KEY = "IdentityFile=/run/sshd/key"


@pytest.fixture
def key_of_bob(machine: Fresh) -> Iterator[None]:
    """Authorise the key of the ssh option KEY for bob. bob has no token."""
    machine.shell("rm -f /run/sshd/key*; ssh-keygen -q -t ed25519 -N '' -f /run/sshd/key")
    machine.shell(
        "mkdir -p /home/bob/.ssh; cp /run/sshd/key.pub /home/bob/.ssh/authorized_keys; chown -R bob: /home/bob"
    )
    machine.sshd()
    yield
    machine.shell("rm -r /home/bob/.ssh; rm -f /etc/ssh/sshd_config.d/00-test.conf")
    reload_sshd(machine)


@pytest.mark.usefixtures("key_of_bob")
@pytest.mark.parametrize(
    ("stack", "methods", "lets_in", "found"),
    [
        # libpam refuses a login if every module is ignored
        ("", "publickey,keyboard-interactive:pam", False, (WARNING, "are locked out in spite of nullok")),
        (
            "auth required pam_permit.so\n",
            "publickey,keyboard-interactive:pam",
            True,
            (WARNING, "nullok lets these users in without a code"),
        ),
        ("auth required pam_permit.so\n", "keyboard-interactive:pam", True, (ERROR, "in without any factor")),
    ],
)
def test_doctor_and_the_real_sshd_agree_about_nullok_without_a_password(
    machine: Fresh, stack: str, methods: str, lets_in: bool, found: tuple[str, str]
) -> None:
    strict = ("UsePAM yes", "KbdInteractiveAuthentication yes", "PasswordAuthentication no", "PermitRootLogin no")
    configure_sshd(machine, *strict, f"AuthenticationMethods {methods}")
    rest = STACKS["sshd"].replace("@include common-auth\n", "")
    machine.write("/etc/pam.d/sshd", f"auth required pam_totp.so nullok\n{stack}{rest}")
    reload_sshd(machine)
    shown = machine.ssh("echo in as $(id -un)", "bob", KEY, "NumberOfPasswordPrompts=1").ends()[1]
    assert ("in as bob" in shown) == lets_in, shown
    [finding] = [f for f in examine(machine, "sshd") if f.code in (Code.USERS_WITHOUT_CODE, Code.USERS_WITHOUT_TOKEN)]
    assert (finding.severity, found[1] in finding.what) == (found[0], True), finding


def test_nullok_at_sudo_without_a_password_is_an_error(sudoers: Fresh) -> None:
    sudoers.write("/etc/sudoers", "bob ALL=(ALL) ALL\n", 0o440)
    rest = STACKS["sudo"].replace("@include common-auth\n", "")
    sudoers.write("/etc/pam.d/sudo", f"auth required pam_totp.so nullok\nauth required pam_permit.so\n{rest}")
    assert sudoers.run("sudo", "-k", "id", "-un", user="bob").stdout == "root\n"
    assert only(sudoers, Code.USERS_WITHOUT_CODE, "sudo").severity == ERROR
    sudoers.write("/etc/pam.d/sudo", f"auth requisite pam_unix.so\nauth required pam_totp.so nullok\n{rest}")
    assert only(sudoers, Code.USERS_WITHOUT_CODE, "sudo").severity == WARNING


@pytest.mark.usefixtures("key_of_bob")
@pytest.mark.parametrize(
    ("methods", "lets_in"),
    [
        ("password,keyboard-interactive:pam", False),
        ("publickey,keyboard-interactive:pam password,keyboard-interactive:pam", True),
    ],
)
def test_a_required_method_password_that_locks_users_out_is_an_error(
    machine: Fresh, methods: str, lets_in: bool
) -> None:
    machine.enrol("bob")
    machine.shell(f"chown pam_totp: {STORE}/bob.record")
    strict = ("UsePAM yes", "KbdInteractiveAuthentication yes", "PasswordAuthentication yes", "PermitRootLogin no")
    configure_sshd(machine, *strict, f"AuthenticationMethods {methods}")
    with_line(machine, "sshd")
    reload_sshd(machine)
    finding = only(machine, Code.PASSWORD_AS_CODE, "sshd")
    assert finding.severity == (WARNING if lets_in else ERROR)
    login = machine.ssh("echo in as $(id -un)", "bob", KEY, "NumberOfPasswordPrompts=1")
    login.asks("Password: " if lets_in else "password: ").says(PASSWORD)
    if lets_in:
        login.asks("One-time code: ").says(codes(0))
    assert ("in as bob" in login.ends()[1]) == lets_in


def test_enable_for_root_whose_code_sshd_refuses_is_an_error(machine: Fresh) -> None:
    machine.enrol("root")
    machine.shell(f"chown pam_totp: {STORE}/root.record")
    machine.write("/etc/ssh/sshd_config.d/x.conf", "PasswordAuthentication no\nPermitRootLogin prohibit-password\n")
    done = machine.installed("enable", "sshd", "--for-user", "root", "--dry-run")
    assert (done.returncode, "error: sshd: root is locked out" in done.stdout) == (1, True), done.stdout + done.stderr


def test_users_without_a_key_are_named_if_sshd_requires_a_key(machine: Fresh) -> None:
    machine.shell("mkdir -p /home/alice/.ssh /home/bob/.ssh; echo '# no key yet' > /home/bob/.ssh/authorized_keys")
    machine.shell("echo ssh-ed25519 AAAA > /home/alice/.ssh/authorized_keys")
    try:
        configure_sshd(machine, *BY_KEY, "PermitRootLogin no")
        finding = only(machine, Code.USERS_WITHOUT_KEY)
        assert finding.what == "sshd: these users have no key and are locked out: bob, carol"
        configure_sshd(machine, *BY_KEY, "PermitRootLogin no", "AuthorizedKeysFile /home/%u/.ssh/authorized_keys")
        assert only(machine, Code.USERS_WITHOUT_KEY).what.endswith("locked out: bob, carol")
        configure_sshd(machine, *BY_KEY, "AuthorizedKeysCommand /bin/true", "AuthorizedKeysCommandUser root")
        assert Code.USERS_WITHOUT_KEY not in {f.code for f in examine(machine)}, "the command may print keys"
    finally:
        machine.shell("rm -r /home/alice/.ssh /home/bob/.ssh")


def test_enable_for_a_user_without_a_key_is_an_error(machine: Fresh) -> None:
    done = machine.installed("enable", "sshd", "--for-user", "alice", "--first-factor", "key", "--dry-run")
    assert (done.returncode, "alice has no key, and would be locked out" in done.stdout) == (1, True), done.stdout


def test_a_password_that_sshd_sends_as_a_code_is_found(machine: Fresh) -> None:
    with_line(machine, "sshd")
    finding = only(machine, Code.PASSWORD_AS_CODE)
    assert (finding.severity, finding.what.endswith("counts as a wrong code (alice, bob, carol, root)")) == (
        WARNING,
        True,
    )
    with_line(machine, "sshd", "auth required pam_totp.so forward_pass")
    assert Code.PASSWORD_AS_CODE not in {f.code for f in examine(machine)}


@pytest.mark.parametrize(
    ("settings", "sends"),
    [
        ({"passwordauthentication": "yes"}, True),
        ({"passwordauthentication": "yes", "authenticationmethods": "any"}, True),
        ({"passwordauthentication": "yes", "authenticationmethods": "publickey,password"}, True),
        ({"passwordauthentication": "yes", "authenticationmethods": "keyboard-interactive:pam"}, False),
        ({"passwordauthentication": "no", "authenticationmethods": "any"}, False),
    ],
)
def test_the_method_password_needs_both_settings(settings: dict[str, str], sends: bool) -> None:
    assert sshd.sends_password(settings) is sends


# ---- enrolment at the login


def test_with_enroll_a_user_with_a_ticket_is_not_locked_out(machine: Fresh) -> None:
    with_line(machine, "su", f"{LINE} enroll=ticket")
    finding = only(machine, Code.USERS_WITHOUT_TOKEN, "su")
    assert finding.what.endswith("locked out: bob, carol, root")
    assert finding.remedy == "run 'pam-totp invite bob', and do the same for each other user"
    assert machine.installed("invite", "bob", "--output", "-").returncode == 0
    finding = only(machine, Code.USERS_WITHOUT_TOKEN, "su")
    assert finding.what.endswith("locked out: carol, root")
    with_line(machine, "su")
    assert only(machine, Code.USERS_WITHOUT_TOKEN, "su").what.endswith("locked out: bob, carol, root")


def test_with_enroll_a_ticket_is_enough_for_the_first_login(machine: Fresh) -> None:
    with_line(machine, "su", f"{LINE} enroll=ticket")
    machine.path(f"{STORE}/alice.record").unlink()
    finding = only(machine, Code.NO_USER_WITH_TOKEN, "su")
    assert finding.what.startswith("su: no user has a token or a ticket; ")
    assert machine.installed("invite", "bob", "--output", "-").returncode == 0
    finding = only(machine, Code.USERS_WITHOUT_TOKEN, "su")
    assert (finding.severity, finding.what.rpartition(": ")[2]) == (WARNING, "alice, carol, root")
    with_line(machine, "su")
    assert only(machine, Code.NO_USER_WITH_TOKEN, "su").what.startswith("su: no user has a token; ")


@pytest.mark.parametrize("argument", ["use_first_pass", "forward_pass"])
def test_enroll_without_a_prompt_is_a_warning(machine: Fresh, argument: str) -> None:
    with_line(machine, "su", f"{LINE} enroll=ticket {argument}")
    finding = only(machine, Code.ENROLL_WITHOUT_EFFECT, "su")
    assert (finding.severity, finding.what) == (WARNING, f"su: enroll=ticket has no effect with {argument}")
    with_line(machine, "su", f"{LINE} enroll=ticket")
    assert Code.ENROLL_WITHOUT_EFFECT not in [f.code for f in examine(machine, "su")]
