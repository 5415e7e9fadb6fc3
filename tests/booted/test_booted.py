"""Tests of the units under a real systemd. Only `make booted` runs these tests.

All tests share one virtual machine, with pam_totp installed and alice enrolled. The test of a power cut boots this
machine again.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pam_totp.core.oath import hotp
from tests.booted.machine import PASSWORD, Booted, Shell, make_disk, only_booted, until
from tests.support.site import KEY
from tests.systems.packages import SIGN_IN

pytestmark = only_booted

_counter = itertools.count()


def code() -> str:
    return hotp(KEY, next(_counter))


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pam_totp-disk-", dir="/var/tmp") as folder:
        path, programs = Path(folder) / "disk", Path(folder) / "programs"
        programs.mkdir()
        (programs / "sign_in.py").write_text(SIGN_IN)
        make_disk(path, programs)
        yield path


@pytest.fixture(scope="module")
def machine(disk: Path) -> Iterator[Booted]:
    booted = Booted(disk)
    try:
        booted.first.does("make install")
        enrol = "pam-totp enroll alice --type hotp --name fob --secret-stdin --yes"
        booted.first.does(f"echo hex:{KEY.hex()} | {enrol}")
        yield booted
    finally:
        booted.stop()


@pytest.fixture
def root(machine: Booted) -> Shell:
    return machine.first


def logs_in(root: Shell) -> bool:
    return root.tries(f"echo {code()} | pamtester demo alice authenticate")[0] == 0


def sign_in(root: Shell) -> str:
    """Sign in to the portal. Return the heading of the next page."""
    return root.does(f"python3 -I packages/sign_in.py alice '{PASSWORD}' {code()}").strip()


def pid(root: Shell) -> int:
    """Return the pid of the service, or 0 if the service is not running."""
    return int(root.does("systemctl show --property MainPID --value pam_totp.service"))


def put_on_trial(root: Shell, service: str, seconds: int) -> None:
    root.types(f"pam-totp enable {service} --for-user alice --keep-within={seconds}")
    root.asks("Password: ")
    root.types(PASSWORD).asks("One-time code: ")
    root.types(code()).asks("Keep this terminal open.")


def test_after_installation_the_socket_exists_and_no_unit_has_failed(root: Shell) -> None:
    assert root.does("systemctl is-active pam_totp.socket").strip() == "active"
    assert root.does("systemctl is-enabled pam_totp.socket pam_totp-takeback.service").split() == ["enabled"] * 2
    assert "0 loaded units" in root.does("systemctl --no-pager --failed")


def test_a_login_starts_the_service_with_almost_no_privileges(root: Shell) -> None:
    assert logs_in(root)
    assert root.tries(f"echo {hotp(KEY, 0)} | pamtester demo alice authenticate")[0] != 0
    facts = dict(
        line.split(":\t", 1) for line in root.does(f"cat /proc/{pid(root)}/status").splitlines() if "\t" in line
    )
    account = root.does("id -u pam_totp").strip()
    assert set(facts["Uid"].split()) == {account}
    assert {name: facts[name].split()[0] for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")} == {
        "CapEff": "0000000000000000",
        "CapBnd": "0000000000000000",
        "NoNewPrivs": "1",
        "Seccomp": "2",
    }
    said = root.does("journalctl --no-pager --output=cat --identifier=pam_totp")
    assert "accepted user=alice by=code token=fob" in said
    assert "refused user=alice reason=replayed token=fob" in said


def test_the_metrics_of_the_service_reach_node_exporter(root: Shell) -> None:
    assert logs_in(root)
    owners = root.does("stat --format '%U %a' /run/pam_totp /run/pam_totp/service")
    assert owners.split() == ["root", "755", "pam_totp", "755"]
    folder = "/var/lib/prometheus/node-exporter"
    root.does(f"mkdir -p {folder}; systemctl start pam_totp-metrics.service")
    metrics = root.does(f"cat {folder}/pam_totp.prom")
    assert 'pam_totp_answers_total{role="service",service="demo",outcome="accepted",reason="code"}' in metrics
    assert "pam_totp_store_up 1" in metrics
    assert 'pam_totp_tokens{type="hotp",state="active"} 1' in metrics
    assert root.does("systemctl is-enabled pam_totp-metrics.timer || true").strip() == "disabled"
    root.does("systemctl enable --now pam_totp-metrics.timer")
    assert "pam_totp-metrics.service" in root.does("systemctl --no-pager list-timers")
    root.does("systemctl disable --now pam_totp-metrics.timer")
    drawn = " ".join(root.does("pam-totp stats").split())
    assert "of the journal" in drawn
    assert "demo accepted by code" in drawn
    assert "hotp active 1" in drawn


def test_the_socket_of_the_logins_stays_when_the_service_stops(root: Shell) -> None:
    assert logs_in(root)
    root.does("systemctl stop pam_totp.service")
    assert root.does("ls /run/pam_totp").split() == ["socket"]
    assert logs_in(root)
    assert "service" in root.does("ls /run/pam_totp").split()


def test_a_killed_service_is_started_by_the_next_login(root: Shell) -> None:
    assert logs_in(root)
    before = pid(root)
    root.does(f"kill -KILL {before}")
    assert logs_in(root)
    until(lambda: pid(root) not in (0, before), "systemd starts a new service process")


def test_several_workers_run_under_the_same_unit(root: Shell) -> None:
    edited = "/etc/systemd/system/pam_totp.service.d/workers.conf"
    command = "/usr/local/bin/pam-totp serve --workers 3 --metrics /run/pam_totp/service/metrics"
    said = f"[Service]\\nExecStart=\\nExecStart={command}\\n"
    root.does(f"mkdir -p $(dirname {edited}); printf '{said}' > {edited}")
    root.does("systemctl daemon-reload; systemctl restart pam_totp.service")
    try:
        until(lambda: len(root.tries(f"pgrep --parent {pid(root)}")[1].split()) == 3, "three workers run")
        assert all(logs_in(root) for _ in range(4))
    finally:
        root.does(f"rm {edited}; systemctl daemon-reload; systemctl restart pam_totp.service")


def test_while_the_service_is_stopped_a_helper_answers(root: Shell) -> None:
    root.does("systemctl stop pam_totp.socket pam_totp.service")
    try:
        assert logs_in(root)
        assert pid(root) == 0
    finally:
        root.does("systemctl start pam_totp.socket")


def test_a_helper_leaves_the_cgroup_of_its_caller_under_systemd(root: Shell) -> None:
    """The caller is a unit, which systemd freezes while its helper waits for the answer."""
    root.does("systemctl stop pam_totp.socket pam_totp.service; mkfifo /run/answer")
    try:
        login = "exec pamtester demo alice authenticate </run/answer"
        root.does(f"systemd-run --quiet --unit=caller --property=StandardOutput=file:/run/result sh -c '{login}'")
        root.does("sleep infinity >/run/answer & echo $! >/run/writer")
        until(lambda: root.tries("pgrep -f /helper.py")[0] == 0, "the helper runs")
        until(lambda: "One-time code" in root.does("cat /run/result"), "the helper waits for the answer")
        root.does("systemctl daemon-reload; systemctl freeze caller.service")
        assert root.does("cat /proc/$(pgrep -f /helper.py)/cgroup").strip() == "0::/pam_totp.helpers"
        weight = root.does("(cd /sys/fs/cgroup; echo +cpu >cgroup.subtree_control; cat pam_totp.helpers/cpu.weight)")
        assert weight.strip() == "100", "the cgroup has the default weight"
        assert logs_in(root), "another login of alice"
        root.does(f"systemctl thaw caller.service; echo {code()} >/run/answer; kill $(cat /run/writer)")
        until(lambda: "successfully authenticated" in root.does("cat /run/result"), "the caller's login succeeds")
    finally:
        root.does("rm -f /run/answer; systemctl start pam_totp.socket")


def test_the_portal_without_options_serves_this_machine(root: Shell) -> None:
    root.does("systemctl start pam_totp-portal.service")
    try:
        assert sign_in(root) == "Your tokens"
        said = root.does("journalctl --no-pager --output=cat --unit=pam_totp-portal.service")
        assert "the portal is at http://127.0.0.1:8443/ (without TLS: for this machine only)" in said
    finally:
        root.does("systemctl stop pam_totp-portal.service")


def test_an_unconfirmed_change_is_rolled_back_by_its_own_unit(root: Shell, machine: Booted) -> None:
    before = root.does("cat /etc/pam.d/su")
    # A loop on the machine detects the trial: this process might be too slow for the ten seconds of the trial.
    on_trial = "systemctl is-active --quiet pam_totp-trial-su.service && grep --quiet pam_totp.so /etc/pam.d/su"
    machine.second.does(f"(until {on_trial}; do sleep 0.1; done; touch /run/seen) >/dev/null 2>&1 & true")
    put_on_trial(root, "su", 10)
    assert "su was rolled back: the change was not confirmed" in root.asks(root.prompt)
    machine.second.does("ls /run/seen")
    assert root.does("cat /etc/pam.d/su") == before


def test_sshd_asks_for_a_code_once_confirmed_by_a_login_with_a_code(root: Shell, machine: Booted) -> None:
    other = machine.second
    root.does(f"echo hex:{KEY.hex()}ff | pam-totp enroll root --type hotp --name fob --secret-stdin --yes")
    put_on_trial(root, "sshd", 600)
    other.types("ssh -o ConnectionAttempts=30 -o StrictHostKeyChecking=no alice@localhost").asks("Password: ")
    other.types(PASSWORD).asks("One-time code: ")
    other.types(code()).asks("alice@booted:~$ ")
    other.types("sudo pam-totp enable sshd --keep").asks("password for alice: ")
    assert "sshd asks for a code from now on" in other.types(PASSWORD).asks("alice@booted:~$ ")
    other.types("exit").asks(other.prompt)
    assert "confirmed: sshd asks for a code from now on" in root.asks(root.prompt)
    root.does("pam-totp disable sshd")


def test_an_uninstall_removes_all_units(root: Shell) -> None:
    assert "these files name the module: /etc/pam.d/demo" in root.tries("make uninstall")[1]
    root.does("mv /etc/pam.d/demo /root; make uninstall")
    try:
        assert "0 loaded units" in root.does("systemctl --no-pager --failed")
        assert "pam_totp" not in root.does(
            "systemctl list-unit-files --no-pager; systemctl list-units --no-pager --all"
        )
    finally:
        root.does("make install; mv /root/demo /etc/pam.d")


def test_a_power_cut_on_trial_rolls_the_change_back_at_boot(disk: Path, machine: Booted, root: Shell) -> None:
    before = root.does("cat /etc/pam.d/sudo")
    put_on_trial(root, "sudo", 3000)
    assert "pam_totp.so" in machine.second.does("cat /etc/pam.d/sudo")
    machine.stop()
    again = Booted(disk)
    try:
        assert again.first.does("cat /etc/pam.d/sudo") == before
        said = again.first.does("journalctl --no-pager --boot --output=cat --unit=pam_totp-takeback.service")
        assert 'changed what=roll-back service=sudo why="not confirmed before' in said
        assert logs_in(again.first)
    finally:
        again.stop()
