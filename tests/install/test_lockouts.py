"""Tests that provoke lock-outs: the administrator can still log in, or sees an error before a file is changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.install.machine import COMMAND, ENABLED, HELPER, LATE, SOON, Fresh
from tests.services.namespace import STORE
from tests.services.terminal import Talk
from tests.support.etc import PASSWORD, STACKS
from tests.support.site import codes, until


def as_before(machine: Fresh) -> bool:
    return all(machine.pam_d()[s] == text for s, text in STACKS.items())


def gets_in_by_password(machine: Fresh) -> bool:
    login = machine.sudo("id", "-un")
    login.asks("alice: ").says(PASSWORD)
    return login.ends() == (0, "\r\nroot\r\n")


def refused_beforehand(machine: Fresh, service: str, says: str, user: str = "alice") -> None:
    done = machine.installed("enable", service, "--for-user", user)
    assert done.returncode == 1
    assert says in done.stdout + done.stderr
    assert "Password" not in done.stderr, "the problem is reported before the first prompt"
    assert as_before(machine)
    assert machine.state(service) is None


def on_trial(machine: Fresh) -> Talk:
    return machine.enable("sudo", SOON)


def back_in(machine: Fresh, talk: Talk) -> None:
    """Wait until the trial ends, and check that the change was rolled back."""
    assert talk.ends()[0] == 1
    assert as_before(machine)
    assert gets_in_by_password(machine)


# ---- no user has a token


def test_no_token_for_the_admin_is_reported_beforehand(machine: Fresh) -> None:
    refused_beforehand(machine, "sshd", "bob has no token, and would be locked out", user="bob")


def test_a_store_without_tokens_is_reported_beforehand(machine: Fresh) -> None:
    machine.path(f"{STORE}/alice.record").unlink()
    refused_beforehand(machine, "sudo", "pam-totp enroll alice")


def test_other_users_without_a_token_are_named(machine: Fresh) -> None:
    done = machine.installed("enable", "sshd", "--for-user", "alice", "--dry-run")
    assert done.returncode == 0
    assert "sshd: these users have no token and are locked out: bob, carol\n" in done.stdout
    assert "sshd: root is locked out: PermitRootLogin prohibit-password refuses every code of root" in done.stdout


# ---- a broken helper


@pytest.fixture
def broken_helper(machine: Fresh) -> Iterator[None]:
    path = machine.path(HELPER)
    path.rename(path.with_suffix(".away"))
    yield
    path.with_suffix(".away").rename(path)


@pytest.mark.usefixtures("broken_helper")
def test_a_broken_helper_is_reported_beforehand(machine: Fresh) -> None:
    refused_beforehand(machine, "sudo", f"the relay would not start {HELPER}")


def test_a_helper_that_does_not_start_is_reported_beforehand(machine: Fresh) -> None:
    path = machine.path(HELPER)
    good = path.read_text()
    path.write_text("raise SystemExit('a bad upgrade')\n")
    try:
        refused_beforehand(machine, "sudo", "a bad upgrade")
    finally:
        path.write_text(good)


def test_a_helper_that_others_can_write_is_reported_beforehand(machine: Fresh) -> None:
    machine.shell("chmod 2775 /usr/local/lib")
    try:
        refused_beforehand(machine, "sudo", "/usr/local/lib can be written by users other than root")
    finally:
        machine.shell("chmod 755 /usr/local/lib")


def test_a_helper_that_breaks_on_trial_locks_no_user_out(machine: Fresh) -> None:
    talk = on_trial(machine)
    path = machine.path(HELPER)
    path.rename(path.with_suffix(".away"))
    try:
        login = machine.sudo("id")
        login.asks("alice: ").says(PASSWORD)
        until(lambda: machine.state("sudo") is None, "the trial is rolled back")
        login.terminal.close(force=True)
        back_in(machine, talk)
    finally:
        path.with_suffix(".away").rename(path)


# ---- a full disk


@pytest.fixture
def small_var(machine: Fresh) -> Iterator[Fresh]:
    """Mount a disk of 2 MiB on /var/lib, with free space."""
    machine.shell(
        "mkdir /run/lib && cp -a /var/lib/pam_totp /run/lib/ && mount -t tmpfs -o size=2m,mode=755 small /var/lib"
        " && cp -a /run/lib/pam_totp /var/lib/"
    )
    yield machine
    machine.shell("umount /var/lib; rm -rf /run/lib")


def fill(machine: Fresh, folder: str) -> None:
    machine.shell(f"! cat /dev/zero > {folder}/full 2>/dev/null")


def test_on_a_full_disk_nothing_is_enabled_and_the_reason_is_shown(small_var: Fresh) -> None:
    fill(small_var, "/var/lib")
    talk = small_var.talk(COMMAND, "enable", "sudo", "--for-user", "alice")
    talk.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(codes(0))
    status, shown = talk.ends()
    assert (status, "No space left on device" in shown) == (1, True), shown
    assert as_before(small_var)
    assert small_var.state("sudo") is None


def test_a_disk_that_fills_up_on_trial_locks_no_user_out(small_var: Fresh) -> None:
    """A login and a roll-back require no free space: codes are accepted, and the original files are restored."""
    talk = small_var.enable("sudo", "--keep-within=3")
    fill(small_var, "/var/lib")
    login = small_var.sudo("id")
    login.asks("alice: ").says(PASSWORD).asks("One-time code: ").says(codes(1))
    assert login.ends()[0] == 0
    until(lambda: small_var.state("sudo") is None, "the trial is rolled back")
    back_in(small_var, talk)


@pytest.fixture
def small_pam_d(machine: Fresh) -> Iterator[Fresh]:
    """Mount a disk of 256 KiB on /etc/pam.d, with free space."""
    machine.shell("mount -t tmpfs -o size=256k,mode=755 small /mnt && cp -a /etc/pam.d/. /mnt")
    machine.shell("mount --move /mnt /etc/pam.d")
    yield machine
    machine.shell("umount /etc/pam.d")


def test_a_full_etc_changes_nothing(small_pam_d: Fresh) -> None:
    fill(small_pam_d, "/etc/pam.d")
    talk = small_pam_d.talk(COMMAND, "enable", "sudo", "--for-user", "alice")
    talk.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(codes(0))
    status, shown = talk.ends()
    assert (status, "No space left on device; nothing was changed" in shown) == (1, True), shown
    assert as_before(small_pam_d)
    assert small_pam_d.state("sudo") is None


def test_an_etc_that_fills_up_on_trial_is_rolled_back(small_pam_d: Fresh) -> None:
    talk = on_trial(small_pam_d)
    fill(small_pam_d, "/etc/pam.d")
    back_in(small_pam_d, talk)


def test_a_confirmation_needs_no_disk_space(small_var: Fresh) -> None:
    first = small_var.enable("sudo", LATE)
    second = small_var.sudo("sh", "-c", f"cat /dev/zero > /var/lib/full 2>/dev/null; {COMMAND} enable sudo --keep")
    second.asks("alice: ").says(PASSWORD).asks("One-time code: ").says(codes(1))
    assert second.ends()[0] == 0
    assert first.ends()[0] == 0
    assert small_var.state("sudo") == "json"
    assert small_var.installed("disable", "sudo").returncode == 0, "disable restores the files on a full disk too"
    assert as_before(small_var)


# ---- a service that is stopped, or hangs


def test_with_the_service_stopped_a_helper_answers(machine: Fresh) -> None:
    """The socket of a killed service remains. The relay must start a helper, and doctor must report the socket."""
    machine.shell("mkdir -p /run/pam_totp; chown pam_totp: /run/pam_totp")
    machine.shell(
        "/usr/bin/python3 -c 'import socket as s; s.socket(s.AF_UNIX, s.SOCK_SEQPACKET).bind(\"/run/pam_totp/socket\")'"
    )
    first = machine.enable("sudo", LATE)
    login = machine.sudo("id", "-un")
    login.asks("alice: ").says(PASSWORD).asks("One-time code: ").says(codes(1))
    assert "root" in login.ends()[1]
    assert '"service-not-listening"' in machine.installed("doctor", "--json").stdout
    first.presses_ctrl_c().ends()


def test_a_service_that_does_not_answer_is_reported_beforehand(machine: Fresh) -> None:
    """systemd's socket accepts connections while systemd fails to start the service."""
    machine.shell("mkdir -p /run/pam_totp")
    listens = "import socket as s, signal; l = s.socket(s.AF_UNIX, s.SOCK_SEQPACKET); l.bind('/run/pam_totp/socket'); "
    process = machine.start("/usr/bin/python3", "-c", listens + "l.listen(); signal.pause()")
    until(machine.path("/run/pam_totp/socket").exists, "the process creates the socket")
    try:
        refused_beforehand(machine, "sudo", "/run/pam_totp/socket: the process did not answer within")
    finally:
        process.kill()
        process.wait()


def test_the_real_service_answers_logins_once_enabled(machine: Fresh) -> None:
    machine.shell("mkdir -p /run/pam_totp; chown pam_totp: /run/pam_totp")
    serving = machine.start("setpriv", "--reuid=pam_totp", "--regid=pam_totp", "--clear-groups", COMMAND, "serve",
                            "--socket", "/run/pam_totp/socket")  # fmt: skip
    until(machine.path("/run/pam_totp/socket").exists, "the service creates its socket")
    try:
        assert '"socket"' not in machine.installed("doctor", "--json").stdout
        first = machine.enable("sudo", LATE)
        login = machine.sudo("id", "-un")
        login.asks("alice: ").says(PASSWORD).asks("One-time code: ").says(codes(1))
        assert "root" in login.ends()[1]
        first.presses_ctrl_c().ends()
    finally:
        serving.terminate()
        serving.wait()


# ---- settings and files that would refuse every user


def test_an_invalid_site_file_is_reported_beforehand(machine: Fresh) -> None:
    machine.write("/etc/pam_totp.toml", "[policy]\nlook_ahaed = 5\n")
    refused_beforehand(machine, "sudo", "unknown setting 'look_ahaed'")


def test_an_invalid_record_is_reported_beforehand(machine: Fresh) -> None:
    machine.write(f"{STORE}/alice.record", "{}\n", 0o600)
    machine.shell(f"chown pam_totp: {STORE}/alice.record")
    refused_beforehand(machine, "sudo", "alice.record")


def test_a_module_of_another_architecture_is_reported_beforehand(machine: Fresh) -> None:
    path = machine.path(f"{machine.modules}/pam_totp.so")
    good = path.read_bytes()
    machine.write(f"{machine.modules}/pam_totp.so", good[:4] + b"\x01" + good[5:])  # the byte EI_CLASS: a 32-bit module
    try:
        refused_beforehand(machine, "sudo", "must be built for libpam's architecture")
    finally:
        machine.write(f"{machine.modules}/pam_totp.so", good)


def test_a_trial_folder_that_cannot_be_created_changes_nothing(machine: Fresh) -> None:
    machine.write(ENABLED, "a file at the path of the folder")
    talk = machine.talk(COMMAND, "enable", "sudo", "--for-user", "alice")
    talk.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(codes(0))
    status, shown = talk.ends()
    assert (status, "nothing was changed" in shown) == (1, True), shown
    assert as_before(machine)
