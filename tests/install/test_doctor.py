"""doctor and rehearse: each finding on a machine that has what it is about, with a remedy and an exit status."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pam_totp.core.record import HotpToken
from pam_totp.system import people
from pam_totp.system.doctor import checks_machine
from pam_totp.system.doctor.context import Case
from pam_totp.system.machine import Machine
from pam_totp.system.pamd.findings import ERROR, WARNING
from pam_totp.system.trust import distrust
from tests.install.machine import HELPER, STACKS, Fresh
from tests.services.namespace import PASSWORD, STORE
from tests.site import codes

OURS = "auth required pam_totp.so"


def examined(machine: Fresh, *services: str) -> dict[str, list[tuple[str, str]]]:
    """Severity and text of what doctor finds, by check."""
    done = machine.installed("doctor", "--json", *services)
    found = json.loads(done.stdout)["findings"]
    assert all(f["remedy"] for f in found)
    assert done.returncode == (1 if any(f["severity"] == ERROR for f in found) else 0)
    by_check: dict[str, list[tuple[str, str]]] = {}
    for f in found:
        by_check.setdefault(f["check"], []).append((f["severity"], f["what"]))
    by_check.pop("clock", None)  # this machine's own
    return by_check


def with_line(machine: Fresh, service: str, line: str = OURS) -> None:
    machine.write(f"/etc/pam.d/{service}", STACKS[service].replace("common-auth\n", f"common-auth\n{line}\n"))


def test_a_service_that_is_not_there_is_a_name_to_look_at(machine: Fresh) -> None:
    text = "there is no service sodu: no file of that name is in /etc/pam.d"
    assert examined(machine, "sodu") == {"order": [(ERROR, text)]}


def test_an_installation_in_order_has_no_findings(machine: Fresh) -> None:
    with_line(machine, "sudo")
    assert examined(machine) == {}


@pytest.mark.parametrize(
    ("line", "check", "says"),
    [
        ("auth optional pam_totp.so", "order", "is optional"),
        ("auth [success=ok authinfo_unavail=ignore default=bad] pam_totp.so", "order", "out of reach"),
        ("auth required pam_totp.so forward_pass", "order", "no module behind it checks"),
        ("auth required pam_totp.so look_ahead=1000", "settings", "look_ahead"),
        ("auth required pam_totp.so store=/nowhere", "store", "/nowhere: no such file"),
        ("auth required pam_totp.so helper=/tmp/helper.py", "helper", "would not start /tmp/helper.py"),
        (f"{OURS}\naccount required pam_totp.so", "order", "under account"),
        (f"{OURS}\n@include nowhere", "order", "libpam refuses every login"),
        ("auth required /nowhere/pam_totp.so", "module", "/nowhere/pam_totp.so is not there"),
    ],
)
def test_a_line_that_is_wrong_is_an_error(machine: Fresh, line: str, check: str, says: str) -> None:
    with_line(machine, "sudo", line)
    found = examined(machine).get(check, [])
    assert any(severity == ERROR and says in what for severity, what in found), found


@pytest.mark.parametrize(
    ("made_so", "says"),
    [
        ("chmod o+w {}/store/file.py", "/store/file.py can be written by others than root (mode 0646)"),
        ("chgrp pam_totp {}/store/__pycache__; chmod g+w {}/store/__pycache__", "/store/__pycache__ can be written"),
        ("chown pam_totp {}/json.py", "/json.py belongs to uid"),
        ("ln -s /run/x.py {}/web/x.py; touch /run/x.py; chown pam_totp /run/x.py", "/run/x.py belongs to uid"),
    ],
)
def test_code_beside_the_helper_that_others_could_have_written_is_an_error(
    machine: Fresh, made_so: str, says: str
) -> None:
    with_line(machine, "sudo")
    package = HELPER.removesuffix("/pam/helper.py")
    machine.shell(f"cp -a {package} /run/kept; mkdir -p {package}/store/__pycache__; touch {package}/json.py")
    machine.shell(made_so.replace("{}", package))
    try:
        [(severity, what)] = examined(machine)["helper"]
    finally:
        machine.shell(f"rm -r {package}; mv /run/kept {package}")
    assert severity == ERROR
    assert says in what


def test_sshd_that_leads_around_pam_is_an_error(machine: Fresh) -> None:
    with_line(machine, "sshd")
    found = examined(machine)["sshd"]
    assert any("AuthenticationMethods is any, so pubkey is enough" in what for _, what in found)
    assert any("KbdInteractiveAuthentication is no" in what for _, what in found)


def test_sshd_whose_configuration_is_broken_is_an_error(machine: Fresh) -> None:
    with_line(machine, "sshd")
    machine.write("/etc/ssh/sshd_config.d/x.conf", "PermitNonsense yes\n")
    assert any("PermitNonsense" in what for _, what in examined(machine)["sshd"])


def test_who_may_use_sudo_and_has_no_token_is_named(machine: Fresh) -> None:
    with_line(machine, "sudo")
    machine.write("/etc/sudoers", "alice ALL=(ALL) ALL\nbob ALL=(ALL) ALL\ncarol ALL=(ALL) NOPASSWD: ALL\n", 0o440)
    try:
        assert examined(machine)["users"] == [(WARNING, "sudo: locked out, having no token: bob")]
        machine.path(f"{STORE}/alice.json").unlink()
        assert examined(machine)["users"] == [(ERROR, "sudo: nobody has a token; locked out: alice, bob")]
        with_line(machine, "sudo", f"{OURS} nullok")
        assert "users" not in examined(machine)
    finally:
        machine.write("/etc/sudoers", "root ALL=(ALL:ALL) ALL\nalice ALL=(ALL:ALL) ALL\n", 0o440)


def test_a_token_that_was_never_confirmed_is_none(machine: Fresh) -> None:
    with_line(machine, "sudo")
    machine.enrol("alice", HotpToken(name="fob", secret=b"12345678901234567890", created=0, confirmed=False))
    assert [severity for severity, _ in examined(machine)["users"]] == [ERROR]


def test_a_store_that_is_loose_or_roots_is_found(machine: Fresh) -> None:
    machine.shell(f"chmod 755 {STORE}")
    assert (ERROR, f"{STORE}: not a folder of mode 0700") in examined(machine)["store"]
    machine.shell(f"chmod 700 {STORE}; chown -R root: {STORE}")
    assert [severity for severity, what in examined(machine)["store"] if "belongs to root" in what] == [WARNING]
    machine.shell(f"chown -R pam_totp: {STORE}; chmod 644 {STORE}/alice.json")
    assert any("0600" in what for _, what in examined(machine)["store"])


def test_what_enable_put_there_and_somebody_took_away_is_found(machine: Fresh) -> None:
    first = machine.enable("sudo", "--keep-within=60")
    machine.shell("mv /var/lib/pam_totp_enabled/sudo.trial /var/lib/pam_totp_enabled/sudo.json")
    first.ends()
    machine.write("/etc/pam.d/sudo", STACKS["sudo"])  # a package's own version, after an upgrade
    assert any("no longer has" in what for _, what in examined(machine)["changes"])
    assert machine.installed("disable", "sudo").returncode == 0


def test_without_root_it_says_what_it_could_not_look_at(machine: Fresh) -> None:
    with_line(machine, "sudo")
    done = machine.installed("doctor", user="alice")
    assert "was not looked at" in done.stdout


@pytest.mark.parametrize(("answer", "found"), [(5, [WARNING]), (0, [])])
def test_a_clock_that_nobody_keeps_is_a_warning(monkeypatch: pytest.MonkeyPatch, answer: int, found: list[str]) -> None:
    monkeypatch.setattr(checks_machine, "_clock_state", lambda: answer)
    assert [f.severity for f in checks_machine.clock(Case(Machine(), []))] == found


def test_the_kernel_tells_the_state_of_the_clock() -> None:
    assert checks_machine._clock_state() in range(6)  # adjtimex(2): TIME_OK … TIME_ERROR


def test_an_account_that_is_gone_again_logs_in_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts come and go between the list of people and the question what each of them may."""
    monkeypatch.setattr(people, "with_password", lambda: frozenset({"shadowed"}))
    may = people.login_to("sshd")
    assert [may("gone"), may("shadowed")] == [False, False]


def test_a_path_is_distrusted_for_what_leads_to_it(tmp_path: Path) -> None:
    me = {0, os.getuid()}
    for part in (tmp_path, *tmp_path.parents):
        me.add(part.stat().st_uid)
    inner = tmp_path / "inner"
    inner.mkdir(mode=0o755)
    (inner / "file").touch(mode=0o644)
    (tmp_path / "link").symlink_to("inner/file")
    assert distrust(str(tmp_path / "link"), me) is None
    inner.chmod(0o775)
    assert f"{inner} can be written" in str(distrust(str(tmp_path / "link"), me))
    inner.chmod(0o1777)
    assert distrust(str(inner / "file"), me) is None, "sticky: others can add, not replace"
    (tmp_path / "loop").symlink_to("loop")
    assert "too many links" in str(distrust(str(tmp_path / "loop"), me))
    assert "no such file" in str(distrust(str(inner / "gone"), me))


# ---- rehearse


def test_rehearse_logs_in_to_the_live_stack_and_shows_every_prompt(machine: Fresh) -> None:
    with_line(machine, "sudo")
    done = machine.installed("rehearse", "sudo", "alice", "--json", stdin=f"{PASSWORD}\n{codes(0)}\n")
    told = json.loads(done.stdout)
    assert (done.returncode, told["authenticate"], told["account"]) == (0, "success", "success")
    assert [(s["style"], s["text"]) for s in told["shown"]] == [("prompt", "Password: "), ("prompt", "One-time code: ")]
    assert machine.record("alice").tokens[0].counter == 1, "a rehearsal uses the code up, as a login does"
    again = machine.installed("rehearse", "sudo", "alice", stdin=f"{PASSWORD}\n{codes(0)}\n")
    assert (again.returncode, "would refuse alice: auth_err" in again.stderr) == (1, True)
    assert "refused; if the code was right" in again.stderr, "what the module says is shown too"


def test_rehearse_takes_a_stack_that_is_not_in_force(machine: Fresh) -> None:
    machine.write("/root/new-sudo", STACKS["sudo"].replace("common-auth\n", f"common-auth\n{OURS}\n"))
    given = f"{PASSWORD}\n{codes(0)}\n"
    done = machine.installed("rehearse", "sudo", "alice", "--stack", "/root/new-sudo", stdin=given)
    assert (done.returncode, "would let alice in" in done.stdout) == (0, True), done.stderr
    machine.shell("mkdir -p /root/stacks; cp /root/new-sudo /root/stacks/sudo")
    done = machine.installed("rehearse", "sudo", "alice", "--stack", "/root/stacks", stdin=f"{PASSWORD}\nwrong\n")
    assert (done.returncode, "One-time code: " in done.stderr) == (1, True)


def test_rehearse_asks_oneself_without_root(machine: Fresh) -> None:
    with_line(machine, "sudo", f"{OURS} nullok")
    done = machine.installed("rehearse", "sudo", "bob", user="bob", stdin=f"{PASSWORD}\n")
    assert "Password: " in done.stderr
    assert (done.returncode, "would refuse bob: authinfo_unavail" in done.stderr) == (1, True), done.stderr


CRASH = "int pam_sm_authenticate(void) { return *(volatile int *)0; } int pam_sm_setcred(void) { return 0; }\n"


def test_rehearse_survives_a_module_that_crashes(machine: Fresh) -> None:
    machine.write("/root/crash.c", CRASH)
    machine.shell("cc -shared -fPIC -o /root/pam_crash.so /root/crash.c")
    machine.write("/root/crash", "auth required /root/pam_crash.so\naccount required pam_permit.so\n")
    done = machine.installed("rehearse", "sudo", "alice", "--stack", "/root/crash")
    assert (done.returncode, "the rehearsal died" in done.stderr) == (1, True)
