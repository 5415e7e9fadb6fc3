"""Tests of an installed machine that is a member of a fleet: doctor, enable, rehearse and disable ask the authority."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pam_totp.core.record import HotpToken, UserRecord
from pam_totp.core.settings import NEXT_PROMPT
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding
from pam_totp.system.rehearsal import TRIES
from tests.install.machine import COMMAND, LATE, Fresh
from tests.install.test_enable import as_before
from tests.services.namespace import STORE
from tests.support.cluster import with_postgresql
from tests.support.etc import PASSWORD
from tests.support.fleet import AuthorityProcess, Fleet, free_ports
from tests.support.site import PATIENCE, codes, fob, until

pytestmark = with_postgresql

CODE = "One-time code: "
DROP_IN = "/etc/systemd/system/pam_totp.service.d"
# A substitute for the commands of systemctl that `service_network` uses, because the real program requires systemd.
SYSTEMCTL = """#!/bin/sh
[ "$1" = show ] || exit 0
echo LoadState=loaded
network=yes families=AF_UNIX deny="0.0.0.0/0 ::/0" reload=no
for file in /usr/local/lib/systemd/system/pam_totp.service /etc/systemd/system/pam_totp.service.d/*.conf; do
    [ ! -e "$file" ] || while IFS== read -r name value; do
        case $name in
        PrivateNetwork) network=$value ;;
        RestrictAddressFamilies) families=$value ;;
        IPAddressDeny) deny=$value ;;
        esac
    done <"$file"
done
[ "$deny" != any ] || deny="0.0.0.0/0 ::/0"
printf '%s\\n' "NeedDaemonReload=$reload" "PrivateNetwork=$network" "RestrictAddressFamilies=$families" \\
    "IPAddressDeny=$deny" "IPAddressAllow="
"""


class Joined:
    """The machine as a member of a fleet, without a local record. One authority is on the machine's loopback."""

    def __init__(self, machine: Fresh, fleet: Fleet, folder: Path) -> None:
        self.machine, self._fleet = machine, fleet
        network = f"--net={machine.root.parent}/ns/net"
        [port] = free_ports(1)
        self.authority = AuthorityProcess(folder, port, ("nsenter", network, "--"))
        first, self.address = fleet.authorities[0], f"127.0.0.1:{port}"
        text = first.config.read_text().replace(fleet.addresses[0], self.address)
        self.authority.config.write_text(text.replace(fleet.addresses[1], self.address))
        self.authority.start()
        machine.shell(f"rm -f {STORE}/alice.record")
        self.set_record(fob())
        name = f"host{port}.example.org"
        line = fleet.join_line(name)._replace(authorities=(self.address,)).to_text()
        done = machine.installed("join", stdin=f"{line}\n")
        assert done.returncode == 0, done.stderr

    def set_record(self, *tokens: HotpToken) -> None:
        record = UserRecord(user="alice", tokens=tokens)
        self._fleet.store.update("alice", lambda _: (record, None), create=True)

    def stop(self) -> None:
        self.authority.stop()
        self._fleet.store.update("alice", lambda _: (None, None))
        self.machine.shell(f"rm -rf {STORE}/.member {DROP_IN} /etc/pam_totp.toml")

    def examine(self, *services: str) -> list[Finding]:
        done = self.machine.installed("doctor", "--json", *services)
        found = [Finding(**f) for f in json.loads(done.stdout)["findings"]]
        return [f for f in found if f.code != Code.CLOCK_NOT_SYNCHRONISED]

    def findings(self, *services: str) -> list[tuple[str, str]]:
        return [(f.severity, f.code) for f in self.examine(*services)]


@pytest.fixture
def joined(machine: Fresh, fleet: Fleet, tmp_path: Path) -> Iterator[Joined]:
    made = Joined(machine, fleet, tmp_path)
    yield made
    made.stop()


def test_sshd_on_a_member_is_enabled_by_codes_of_the_authority(joined: Joined) -> None:
    machine = joined.machine
    machine.sshd()
    with machine.sshd_starts_anew():
        first = machine.enable("sshd", LATE)
    second = machine.ssh(f"sudo -k {COMMAND} enable sshd --keep; echo status $?")
    second.asks("Password: ").says(PASSWORD).asks(CODE).says(codes(1)).asks("alice: ").says(PASSWORD)
    second.asks("status 0").ends()
    assert first.ends()[0] == 0
    about_root = (WARNING, Code.ROOT_REFUSED_BY_SSHD)
    assert joined.findings("sshd") == [about_root, (NOTE, Code.ENROLMENT_UNKNOWN)]
    accepted = joined.authority.lines("pam_totp(sshd:auth): accepted user=alice", "member=host")
    assert len(accepted) == 2, "the rehearsal, and the login"
    with machine.sshd_starts_anew():
        assert machine.installed("disable", "sshd").returncode == 0
    assert as_before(machine)


def test_rehearse_on_a_member_asks_the_authority(joined: Joined) -> None:
    machine = joined.machine
    machine.write("/etc/pam.d/demo", "auth required pam_totp.so\naccount required pam_permit.so\n")
    try:
        done = machine.installed("rehearse", "demo", "alice", stdin=f"{codes(0)}\n")
        assert (done.returncode, "would let alice in" in done.stdout) == (0, True), done.stderr
        again = machine.installed("rehearse", "demo", "alice", stdin=f"{codes(0)}\n{codes(0)}\n")
        assert again.returncode == 1
        assert joined.authority.lines("pam_totp(demo:auth): refused user=alice reason=replayed")
        joined.authority.end()
        away = machine.installed("rehearse", "demo", "alice", stdin=f"{codes(1)}\n")
        assert (away.returncode, "authinfo_unavail" in away.stderr) == (1, True)
    finally:
        machine.shell("rm /etc/pam.d/demo")


def test_a_refused_rehearsal_names_the_authority(joined: Joined) -> None:
    talk = joined.machine.talk(COMMAND, "enable", "sudo", "--for-user", "alice", "--with", "nodelay", LATE)
    for _ in range(TRIES):
        talk.asks("Password: ").says(PASSWORD).asks(CODE).says("000000").asks(NEXT_PROMPT).says("000000")
    status, shown = talk.ends()
    assert (status, "'pam-totp list alice' on an authority that alice has a token" in shown) == (1, True), shown


def test_a_trial_on_a_member_without_its_authority_changes_nothing(joined: Joined) -> None:
    joined.authority.end()
    talk = joined.machine.talk(COMMAND, "enable", "sudo", "--for-user", "alice", LATE)
    status, shown = talk.ends()
    assert (status, "sudo was not changed: the checks found errors" in shown) == (1, True)
    assert f"{joined.address}: connection refused; every login is refused" in shown
    assert as_before(joined.machine)


def test_doctor_reads_the_credentials_as_their_owner(joined: Joined) -> None:
    done = joined.machine.installed("doctor")
    assert f"authority {joined.address}: answers in " in done.stdout
    assert joined.findings() == []
    joined.machine.shell(f"chown root {STORE}/.member/key.pem; chmod 0644 {STORE}/.member/key.pem")
    owner, mode = joined.examine()
    assert owner.remedy == f"run 'chown pam_totp: {STORE}/.member/key.pem'"
    assert mode.remedy == f"run 'chmod 0600 {STORE}/.member/key.pem'"
    for finding in (owner, mode):
        joined.machine.shell(finding.remedy.split("'")[1])
    assert joined.findings() == []


def test_a_unit_without_a_network_is_found(joined: Joined) -> None:
    machine = joined.machine
    machine.shell("mkdir -p /run/systemd/system; cp -a /usr/bin/systemctl /run/kept 2>/dev/null || :")
    machine.write("/usr/bin/systemctl", SYSTEMCTL, 0o755)
    try:
        assert joined.findings() == [], "the drop-in of `pam-totp join` permits the network"
        machine.shell(f"rm -r {DROP_IN}")
        assert joined.findings() == [(WARNING, Code.SERVICE_WITHOUT_NETWORK)]
        machine.shell("install -d -o pam_totp /run/pam_totp")
        as_account = ["setpriv", "--reuid=pam_totp", "--regid=pam_totp", "--clear-groups"]
        service = machine.start(*as_account, COMMAND, "serve", "--socket", "/run/pam_totp/socket")
        until(machine.path("/run/pam_totp/socket").exists, "the service listens")
        assert joined.findings() == [(ERROR, Code.SERVICE_WITHOUT_NETWORK)]
        service.terminate()
        service.wait(PATIENCE)
    finally:
        machine.shell("rm -r /run/systemd/system /usr/bin/systemctl; mv /run/kept /usr/bin/systemctl 2>/dev/null || :")
