"""Tests of doctor on an authority of a fleet: its files, its certificates, the other authorities, and the members."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from pam_totp.authority.certificates import Issuer, make_ca, make_key, make_request
from pam_totp.core.settings import AuthoritySettings
from pam_totp.store.postgres_members import ALL_USERS, Member
from pam_totp.system.doctor import checks_authority
from pam_totp.system.doctor.checks_authority import DAY, authority
from pam_totp.system.doctor.context import Context
from pam_totp.system.fleet_authority import Answer, Members, State, state_of
from pam_totp.system.machine import Machine
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding, Severity
from tests.conftest import as_root
from tests.support import tls
from tests.support.cluster import with_postgresql
from tests.support.fleet import Fleet
from tests.support.site import UNPRIVILEGED_UID
from tests.support.tls import Signed, free_port

pytestmark = [as_root, with_postgresql]

UNPRIVILEGED = pwd.getpwuid(UNPRIVILEGED_UID).pw_name
FILES = ("authority.pem", "authority.key", "ca.pem", "ca.key")


class Host:
    """An authority with its own files. `listen` is the first address of the fleet, and `addresses` has them all."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self._fleet, self._folder = fleet, folder
        self.tls = folder / "tls"
        shutil.copytree(Path(fleet.issuer.certificate).parent, self.tls)
        for file in self.tls.iterdir():
            file.chmod(0o640 if file.suffix == ".key" else 0o644)
        self.tls.chmod(0o750)
        self.certificate, self.key, self.ca, self.ca_key = (self.tls / name for name in FILES)
        self.listen, self.addresses = fleet.addresses[0], list(fleet.addresses)
        self.store = f"[store]\nurl = {json.dumps(fleet.url)}\n"
        (folder / "etc").mkdir()

    def context(self) -> Context:
        site = self._folder / "etc" / "pam_totp.toml"
        site.write_text(
            f"{self.store}[authority]\nlisten = '{self.listen}'\naddresses = {json.dumps(self.addresses)}\n"
            f"certificate = '{self.certificate}'\nkey = '{self.key}'\nca = '{self.ca}'\nca_key = '{self.ca_key}'\n"
        )
        site.chmod(0o644)
        return Context(Machine(str(self._folder)), [])

    def examine(self) -> list[Finding]:
        """Return the findings, without those about the members of the fleet, which other tests change."""
        about_members = (Code.MEMBERS_NOT_JOINED, Code.MEMBERS_WITHOUT_USERS, Code.GROUP_NOT_FOUND, Code.GROUP_UNUSED)
        return [finding for finding in authority(self.context()) if finding.code not in about_members]

    def sign(self, *hosts: str) -> None:
        signed = Issuer(str(self.ca), str(self.ca_key)).sign_authority(make_request(self.key.read_text()), hosts)
        self.certificate.write_text(signed)

    def use(self, signed: Signed, by: tls.Authority) -> None:
        self.certificate.write_bytes(signed.certificate)
        self.key.write_bytes(signed.key)
        self.ca.write_bytes(by.pem)
        self.ca_key.unlink()


@pytest.fixture
def host(fleet: Fleet, tmp_path: Path) -> Host:
    return Host(fleet, tmp_path)


def codes(findings: list[Finding]) -> list[tuple[Severity, Code]]:
    return [(finding.severity, finding.code) for finding in findings]


# ---- settings and files


def test_an_authority_in_order_has_facts_and_no_findings(host: Host) -> None:
    assert host.examine() == []
    context = host.context()
    list(authority(context))
    assert [fact.name for fact in context.facts] == [str(host.certificate), str(host.ca), "members"]
    certificate, ca = (fact.value["days"] for fact in context.facts[:2])
    assert (certificate in (824, 825), ca in (3649, 3650)) == (True, True), "825 days and 10 years, minus some seconds"
    assert context.facts[2].value.keys() == {"joined", "added", "revoked"}


def test_an_authority_without_a_database_is_an_error(host: Host) -> None:
    host.store = ""
    [finding] = host.examine()
    assert (finding.severity, finding.code) == (ERROR, Code.AUTHORITY_WITHOUT_DATABASE)
    assert "url" in finding.remedy


def test_an_authority_without_addresses_is_an_error(host: Host) -> None:
    host.addresses = []
    [finding] = host.examine()
    assert (finding.severity, finding.code) == (ERROR, Code.AUTHORITY_WITHOUT_ADDRESSES)


def test_a_host_that_is_no_authority_has_no_findings(tmp_path: Path) -> None:
    assert list(authority(Context(Machine(str(tmp_path)), []))) == []


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("ca.key", "chmod 0644 {}", "every account of this host can read this key (mode 0644)"),
        ("authority.key", "chmod 0660 {}", "must not be writable by accounts other than root (mode 0660)"),
        ("ca.pem", "chmod 0666 {}", "must not be writable by accounts other than root (mode 0666)"),
        ("authority.pem", "chown 65534 {}", "must belong to root"),
        ("", "chmod 0777 {}", "must not be writable by accounts other than root (mode 0777)"),
    ],
)
def test_the_rights_of_a_file_have_an_exact_remedy(host: Host, name: str, change: str, words: str) -> None:
    path = str(host.tls / name).rstrip("/")
    assert os.system(change.format(path)) == 0  # noqa: S605  a fixed command
    [finding] = host.examine()
    assert (finding.severity, finding.code) == (ERROR, Code.AUTHORITY_FILE)
    assert finding.what == f"{path}: {words}"
    for command in finding.remedy.split("'")[1::2]:
        assert os.system(command) == 0  # noqa: S605  the remedy of the finding
    assert host.examine() == []


def test_a_missing_key_of_the_ca_is_a_note(host: Host) -> None:
    host.ca_key.unlink()
    [finding] = host.examine()
    assert (finding.severity, finding.code) == (NOTE, Code.AUTHORITY_WITHOUT_CA_KEY)


@pytest.mark.parametrize("name", FILES[:3])
def test_another_missing_file_is_an_error(host: Host, name: str) -> None:
    (host.tls / name).unlink()
    [finding] = host.examine()
    assert (finding.severity, finding.code) == (ERROR, Code.AUTHORITY_FILE)
    assert finding.remedy == "run 'pam-totp authority init'"


def test_a_file_that_the_service_cannot_read_is_found(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = host.context().site().authority
    assert settings is not None
    for folder in (tmp_path, *tmp_path.parents[:3]):
        monkeypatch.setattr(checks_authority, "ACCOUNT", UNPRIVILEGED)
        folder.chmod(folder.stat().st_mode | 0o011)
    host.tls.chmod(0o755)
    for file in (host.key, host.ca_key):
        file.chmod(0o600)
    found = host.examine()
    assert codes(found) == [(ERROR, Code.AUTHORITY_FILE)] * 2
    assert found[0].what == f"{host.key}: the account {UNPRIVILEGED} cannot read this file"
    host.tls.chmod(0o700)
    assert state_of(settings, UNPRIVILEGED).unreadable == [str(host.tls / name) for name in FILES]


# ---- certificates


def test_a_key_that_does_not_fit_is_an_error(host: Host) -> None:
    host.key.write_text(make_key())
    [finding] = host.examine()
    assert (finding.severity, finding.code) == (ERROR, Code.AUTHORITY_CERTIFICATE)
    assert "the key must be that of the certificate" in finding.what


def test_a_key_of_another_ca_is_an_error(host: Host) -> None:
    host.ca_key.write_text(make_key())
    [finding] = host.examine()
    assert (finding.severity, finding.code) == (ERROR, Code.AUTHORITY_CA)
    assert (
        finding.what == f"no member can join or renew its certificate here: {host.ca_key}: must be the key of {host.ca}"
    )


def test_an_address_that_is_not_in_the_certificate_is_an_error(host: Host) -> None:
    host.sign("otp9.example.org")
    found = [finding for finding in host.examine() if finding.severity == ERROR]
    assert {finding.code for finding in found} == {Code.AUTHORITY_CERTIFICATE}
    assert len(found) == len(host.addresses)
    assert f"members that connect to {host.addresses[0]} reject this certificate: its cert" in found[0].what
    assert (WARNING, Code.AUTHORITY_NOT_RELOADED) in codes(host.examine())


def test_a_certificate_of_another_ca_is_an_error(host: Host) -> None:
    key = make_key()
    host.ca_key.write_text(key)
    host.ca.write_text(make_ca(key, "another"))
    found = codes(host.examine())
    assert found.count((ERROR, Code.AUTHORITY_CERTIFICATE)) == 2
    assert (ERROR, Code.AUTHORITY_NOT_RUNNING) in found, "the certificate of the listening authority is of the old CA"


@pytest.mark.parametrize(
    ("days", "severity", "words"),
    [
        ((-1, 61), None, ""),
        ((-1, 59), WARNING, " days"),
        ((-90, -3), ERROR, "expired 3 days ago, or the clock is wrong"),
    ],
)
def test_the_days_of_the_certificate_are_counted(
    host: Host, days: tuple[int, int], severity: Severity | None, words: str
) -> None:
    ca = tls.Authority()
    host.use(ca.sign("127.0.0.1", days=days, server=True), ca)
    about = [f for f in host.examine() if f.code == Code.AUTHORITY_CERTIFICATE and "reject" not in f.what]
    assert codes(about) == ([] if severity is None else [(severity, Code.AUTHORITY_CERTIFICATE)])
    assert all(words in finding.what for finding in about)


def test_the_days_of_the_ca_are_counted(host: Host) -> None:
    settings, now = AuthoritySettings(addresses=("otp1:8443",)), int(time.time())
    for days, severity in ((400, None), (300, WARNING), (-2, ERROR)):
        state = State(ends=now + 800 * DAY, ca_ends=now + days * DAY + 60)
        found = codes(list(checks_authority._certificates(host.context(), settings, state, "")))
        assert found == ([] if severity is None else [(severity, Code.AUTHORITY_CA)])


# ---- the service and the other authorities


def test_an_authority_that_does_not_run_is_an_error(host: Host) -> None:
    host.listen = f"127.0.0.1:{free_port()}"
    [finding] = host.examine()
    assert (finding.severity, finding.code) == (ERROR, Code.AUTHORITY_NOT_RUNNING)
    assert finding.what == f"no authority answers on {host.listen} of this host: connection refused"
    assert finding.remedy.startswith("run 'systemctl enable --now pam_totp-authority.service'")


def test_another_authority_out_of_reach_is_a_warning(host: Host) -> None:
    host.addresses[1] = f"127.0.0.1:{free_port()}"
    [finding] = host.examine()
    assert (finding.severity, finding.code) == (WARNING, Code.AUTHORITY_UNREACHABLE)
    assert finding.what == f"{host.addresses[1]} in authority.addresses: connection refused"


def test_a_server_on_every_address_is_asked_on_loopback(host: Host) -> None:
    host.listen = host.listen.replace("127.0.0.1", "0.0.0.0")  # noqa: S104  only a setting: no socket is opened
    assert host.examine() == []


def test_a_clock_that_is_certainly_a_second_off_is_a_warning() -> None:
    now = 1_000_000.3
    for date, apart in ((1_000_000, 0), (999_999, 0), (999_998, 1.3), (1_000_001, 0), (1_000_002, -1.7), (None, 0)):
        answer = Answer("otp2:8443", None, None, date, now, 0.0)
        assert checks_authority._apart(answer) == pytest.approx(apart)
    [finding] = checks_authority._others(State(others=[Answer("otp2:8443", None, None, 999_990, now, 0.0)]))
    assert (finding.severity, finding.code) == (WARNING, Code.AUTHORITY_CLOCK)
    assert finding.what == "the clock of otp2:8443 is at least 9 s behind that of this host"
    slow = Answer("otp2:8443", None, None, 999_998, now, 0.5)
    assert checks_authority._apart(slow) == 0, "the authority might have read its clock before the delay"


# ---- members


@pytest.fixture
def own(fleet: Fleet) -> Iterator[Fleet]:
    """Yield the fleet. Delete the groups that a test has created."""
    before = fleet.members.groups()
    yield fleet
    after = fleet.members.groups()
    for group, allowed in after.may.items():
        fleet.members.deny(group, set(allowed) - set(before.may.get(group, ())))
    for group, users in after.users.items():
        fleet.members.take(group, set(users) - set(before.users.get(group, ())))


def test_members_and_groups_with_a_problem_are_named(own: Fleet, host: Host) -> None:
    late, mute, gone = (f"{name}.doctor.example.org" for name in ("late", "mute", "gone"))
    for name, group in ((late, "web"), (mute, "mute"), (gone, "gone")):
        own.members.add(name, [group], None, sha256(name.encode()).digest(), 60)
    for name in (mute, gone):
        own.members.join(sha256(name.encode()).digest(), sha256(name.encode()).digest())
    own.members.revoke(gone)
    own.members.allow("web", ["staff"])
    own.members.allow("nowhere", [ALL_USERS])
    own.members.put("unused", ["alice"])
    found = {f.code: f for f in authority(host.context())}
    assert mute in found[Code.MEMBERS_WITHOUT_USERS].what
    assert gone not in found[Code.MEMBERS_WITHOUT_USERS].what, "the member is revoked"
    assert found[Code.GROUP_NOT_FOUND].what == (
        "members of web may ask about the users of staff, but that group has no user"
    )
    assert found[Code.GROUP_NOT_FOUND].remedy.endswith("'pam-totp member groups web --deny staff'")
    unused = [f.what for f in authority(host.context()) if f.code == Code.GROUP_UNUSED]
    assert any(what.startswith("no member is in these groups: ") and "nowhere" in what for what in unused)
    assert "no member may ask about the users of these groups: unused" in unused


def test_members_that_did_not_join_in_time_are_named(fleet: Fleet, host: Host) -> None:
    now = int(time.time())
    rows = {"late": now - 7200, "new": now - 60}
    members = [Member(name, ("web",), None, added, None, None, None, None) for name, added in rows.items()]
    [finding] = checks_authority._members(host.context(), Members(members, {"web": ("all",)}, {}))
    assert (finding.severity, finding.code) == (NOTE, Code.MEMBERS_NOT_JOINED)
    assert finding.what == "these members have not joined, and their join lines have expired: late"


def test_a_database_out_of_reach_leaves_the_members_unknown(host: Host, tmp_path: Path) -> None:
    host.store = f'[store]\nurl = "postgresql:///x?host={tmp_path}"\nwait = 0.5\n'
    [finding] = host.examine()
    assert (finding.severity, finding.code) == (WARNING, Code.MEMBERS_NOT_KNOWN)
    assert finding.what.startswith("the members cannot be read from the database: the database is out of reach")
