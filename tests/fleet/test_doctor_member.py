"""Tests of doctor on a member of a fleet, with real authorities, and with scripted authorities for rare replies."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pam_totp.authority.certificates import make_key
from pam_totp.core.record import UserRecord
from pam_totp.member.health import Seen
from pam_totp.operations.enroll import new_recovery_codes
from pam_totp.store.file import FileStore
from pam_totp.system import fleet_member
from pam_totp.system.doctor import checks_member, checks_people, checks_radius
from pam_totp.system.doctor.checks_member import DAY, member
from pam_totp.system.doctor.context import Context
from pam_totp.system.machine import Machine
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding, Severity
from tests.conftest import as_root
from tests.support.cluster import with_postgresql
from tests.support.fleet import Fleet, Member
from tests.support.site import fob
from tests.support.tls import Fleet as Scripted
from tests.support.tls import free_port

pytestmark = as_root  # doctor reads the files as their owner

HEALTH = {"version": "1", "member": "web1", "certificate_days": 90, "store": "ok"}
JOIN = "run 'pam-totp member add' for this host on an authority, then 'pam-totp join' here"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileStore:
    """Return the store of the member, which is empty."""
    folder = tmp_path / "store"
    folder.mkdir(0o700)
    monkeypatch.setattr(checks_member, "DEFAULT_STORE", str(folder))
    return FileStore(str(folder))


def context_of(folder: Path, site: str, *services: str) -> Context:
    (folder / "etc" / "pam.d").mkdir(parents=True, exist_ok=True)
    file = folder / "etc" / "pam_totp.toml"
    file.write_text(site)
    file.chmod(0o644)
    return Context(Machine(str(folder)), services)


def examine(folder: Path, site: str) -> list[Finding]:
    return list(member(context_of(folder, site)))


def codes(findings: list[Finding]) -> list[tuple[Severity, Code]]:
    return [(finding.severity, finding.code) for finding in findings]


def joined(fleet: Fleet) -> Member:
    """Return a new member whose files have the modes that `pam-totp join` sets."""
    made = fleet.member()
    made.folder.chmod(0o700)
    for file in (made.key, made.certificate, made.ca):
        file.chmod(0o600)
    return made


def scripted(fleet: Scripted, *addresses: str, more: str = "") -> str:
    paths = "".join(f"{name} = '{fleet.credentials}/{name}.pem'\n" for name in ("certificate", "key", "ca"))
    return f"[member]\nauthorities = {list(addresses)}\n{paths}{more}"


def health(fleet: Scripted, ahead: float = 0.0, **fields: object) -> str:
    """Start an authority whose database is `ahead` seconds behind this host. Return the address of the authority."""
    document = HEALTH | {"time": int(time.time() - ahead)} | fields
    return fleet.server(lambda request: (200, document)).address


# ---- real authorities


@with_postgresql
def test_a_member_in_order_has_facts_and_no_findings(fleet: Fleet, tmp_path: Path) -> None:
    host = joined(fleet)
    context = context_of(tmp_path, host.site)
    assert list(member(context)) == []
    names = [f"authority {address}" for address in fleet.addresses]
    assert [fact.name for fact in context.facts] == ["certificate", *names]
    assert context.facts[0].value in ({"days": 89}, {"days": 90})  # 90 days, minus the age of the certificate
    assert [fact.value["member"] for fact in context.facts[1:]] == [host.name, host.name]
    assert all(0 < fact.value["milliseconds"] < 5000 and abs(fact.value["ahead"]) <= 2 for fact in context.facts[1:])


@with_postgresql
def test_a_revoked_member_is_told_so_by_each_authority(fleet: Fleet, tmp_path: Path) -> None:
    host = joined(fleet)
    fleet.members.revoke(host.name)
    found = examine(tmp_path, host.site)
    assert codes(found) == [(ERROR, Code.MEMBER_REFUSED)] * 2
    assert found[0].what.startswith(f"{fleet.addresses[0]} does not accept this host: ")
    assert found[0].what.endswith("; every login is refused")
    assert found[0].remedy.startswith(JOIN)


@with_postgresql
def test_an_authority_out_of_reach_is_a_warning(fleet: Fleet, tmp_path: Path) -> None:
    host, closed = joined(fleet), f"127.0.0.1:{free_port()}"
    [finding] = examine(tmp_path, host.site.replace(fleet.addresses[1], closed))
    assert (finding.severity, finding.code) == (WARNING, Code.AUTHORITY_UNREACHABLE)
    assert finding.what == f"{closed}: connection refused; logins use the other authorities"


@with_postgresql
def test_a_key_that_does_not_fit_is_an_error(fleet: Fleet, tmp_path: Path) -> None:
    host = joined(fleet)
    host.key.write_text(make_key())
    [finding] = examine(tmp_path, host.site)
    assert (finding.severity, finding.code) == (ERROR, Code.MEMBER_CREDENTIALS)
    assert finding.what == f"{host.key}: must be the key of {host.certificate}; every login is refused"


@with_postgresql
@pytest.mark.parametrize(
    ("file", "command", "remedy"),
    [
        ("key.pem", "chmod 0640 {}", "chmod 0600 {}"),
        ("", "chmod 0755 {}", "chmod 0700 {}"),
        ("certificate.pem", "chmod 0666 {}", "chmod 0600 {}"),
        ("key.pem", "chown 65534 {}", "chown root: {}"),
        ("ca.pem", "chown 65534 {}", "chown root: {}"),
    ],
)
def test_the_remedy_for_a_file_is_exact(fleet: Fleet, tmp_path: Path, file: str, command: str, remedy: str) -> None:
    host = joined(fleet)
    path = str(host.folder / file).rstrip("/")
    assert os.system(command.format(path)) == 0  # noqa: S605  a fixed command
    [finding] = examine(tmp_path, host.site)
    assert (finding.severity, finding.code) == (ERROR, Code.MEMBER_FILE)
    assert (finding.what.startswith(f"{path}: "), finding.remedy) == (True, f"run '{remedy.format(path)}'")
    assert os.system(remedy.format(path)) == 0  # noqa: S605
    assert examine(tmp_path, host.site) == []


def test_missing_files_are_errors(tmp_path: Path) -> None:
    found = examine(tmp_path, f"[member]\nauthorities = ['otp1:8443']\nkey = '{tmp_path}/x/key.pem'\n")
    assert {finding.code for finding in found} == {Code.MEMBER_FILE}
    assert found[0].what == f"{tmp_path}/x: no such file or directory; every login is refused"


def test_a_host_that_is_no_member_has_no_findings(tmp_path: Path) -> None:
    assert examine(tmp_path, "") == []


# ---- scripted authorities


def test_no_authority_is_an_error_within_bounded_time(members: Scripted, tmp_path: Path) -> None:
    with silent(members) as silence:
        found = examine(tmp_path, scripted(members, silence, f"127.0.0.1:{free_port()}"))
    assert codes(found) == [(ERROR, Code.AUTHORITY_UNREACHABLE)] * 2
    assert [f.what.partition(": ")[2] for f in found] == [
        "no answer in time; every login is refused",
        "connection refused; every login is refused",
    ]


@contextmanager
def silent(fleet: Scripted) -> Iterator[str]:
    """Yield the address of a server that never answers. Shorten the time limit of the checks."""
    before, fleet_member.WAIT = fleet_member.WAIT, 0.3
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    fleet_member.WAIT = before


def test_an_unsafe_database_is_reported(members: Scripted, tmp_path: Path) -> None:
    addresses = health(members, store="fsync is off"), health(members)
    [finding] = examine(tmp_path, scripted(members, *addresses))
    assert (finding.severity, finding.code) == (WARNING, Code.AUTHORITY_UNREACHABLE)
    assert "does not keep changes safely: fsync is off; logins use the other authorities" in finding.what


@pytest.mark.parametrize(
    ("ahead", "severity", "words"),
    [
        (280, None, ""),
        (-280, None, ""),
        (345, WARNING, "6 minutes ahead of"),
        (-345, WARNING, "6 minutes behind"),
        (400 * DAY, ERROR, "400.0 days ahead of"),
    ],
)
def test_the_clock_is_compared_with_the_database(
    members: Scripted,
    tmp_path: Path,
    ahead: int,
    severity: Severity | None,
    words: str,
) -> None:
    found = examine(tmp_path, scripted(members, health(members, ahead)))
    assert codes(found) == ([] if severity is None else [(severity, Code.MEMBER_CLOCK)])
    assert all(words in finding.what for finding in found)


def test_a_slow_authority_is_a_warning(members: Scripted, tmp_path: Path) -> None:
    site = scripted(members, health(members), more="patience = 0.1\n")
    seen = Seen("otp1:8443", None, store="ok", seconds=0.06)
    settings = context_of(tmp_path, site).site().member
    assert settings is not None
    [finding] = checks_member._authority(seen, settings, WARNING, "")
    assert (finding.severity, finding.code) == (WARNING, Code.AUTHORITY_SLOW)
    assert finding.what == "otp1:8443 answers in 0.06 s; a login asks another authority after 0.1 s"


@pytest.mark.parametrize(
    ("days", "severity", "words"),
    [
        ((-60, 30), None, ""),
        ((-62, 28), WARNING, " days, and the service has not renewed it"),
        ((-95, -5), ERROR, "expired 5 days ago"),
    ],
)
def test_the_days_of_the_certificate_are_counted(
    members: Scripted,
    tmp_path: Path,
    days: tuple[int, int],
    severity: Severity | None,
    words: str,
) -> None:
    signed = members.authority.sign("web1", days=days)
    (members.credentials / "certificate.pem").write_bytes(signed.certificate)
    (members.credentials / "key.pem").write_bytes(signed.key)
    found = examine(tmp_path, scripted(members, health(members)))
    assert codes(found) == ([] if severity is None else [(severity, Code.MEMBER_CERTIFICATE)])
    assert all(words in finding.what for finding in found)


# ---- logins with break-glass

BREAK_GLASS_ON = "centre_down = 'break-glass'\n"


def effects(findings: list[Finding]) -> list[str]:
    """Return the consequences of the errors for logins."""
    return [finding.what.rpartition("; ")[2] for finding in findings if finding.severity is ERROR]


def test_without_credentials_break_glass_is_an_exception(members: Scripted, store: FileStore, tmp_path: Path) -> None:
    emergency(store, "root", 2)
    site, exception = (
        scripted(members, health(members), more=BREAK_GLASS_ON),
        "every login is refused, except by break-glass",
    )
    (members.credentials / "key.pem").write_text(make_key())  # does not fit the certificate
    assert effects(examine(tmp_path, site)) == [exception]
    (members.credentials / "key.pem").chmod(0o644)
    assert effects(examine(tmp_path, site)) == [exception]
    (members.credentials / "key.pem").unlink()
    assert effects(examine(tmp_path, site)) == [exception]


def test_after_the_certificate_s_end_break_glass_is_an_exception(
    members: Scripted, store: FileStore, tmp_path: Path
) -> None:
    emergency(store, "root", 2)
    signed = members.authority.sign("web1", days=(-95, -5))
    (members.credentials / "certificate.pem").write_bytes(signed.certificate)
    (members.credentials / "key.pem").write_bytes(signed.key)
    site = scripted(members, health(members), more=BREAK_GLASS_ON)
    assert effects(examine(tmp_path, site)) == ["every login is refused, except by break-glass"]


def test_a_revoked_member_has_no_break_glass(members: Scripted, store: FileStore, tmp_path: Path) -> None:
    """A refusal of the member is an answer of an authority, so the host does not use its own recovery codes."""
    emergency(store, "root", 2)
    refusing = members.server(lambda request: (401, {"error": "the member is revoked"})).address
    closed = f"127.0.0.1:{free_port()}"
    found = examine(tmp_path, scripted(members, refusing, closed, more=BREAK_GLASS_ON))
    assert effects(found) == ["every login is refused"] * 2
    found = examine(tmp_path, scripted(members, closed, more=BREAK_GLASS_ON))
    assert effects(found) == ["every login is refused, except by break-glass"]


def test_an_authority_that_refuses_the_member_refuses_its_logins(members: Scripted, tmp_path: Path) -> None:
    """A login does not ask another authority after a refusal of the member."""
    refusing = members.server(lambda request: (401, {"error": "the member is revoked"})).address
    [finding] = examine(tmp_path, scripted(members, refusing, health(members)))
    assert (finding.severity, finding.code) == (ERROR, Code.MEMBER_REFUSED)
    assert finding.what.endswith(": the member is revoked; this authority refuses every login that asks it")


@pytest.mark.parametrize(
    ("days", "expected"), [(2, (WARNING, "expires in 2 days")), (-3, (ERROR, "expired 3 days ago"))]
)
def test_the_days_of_the_certificate_of_freeradius_are_counted(
    members: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, expected: tuple[Severity, str]
) -> None:
    context = context_of(tmp_path, scripted(members, health(members)))
    settings = context.site().member
    assert settings is not None
    state = fleet_member.State(ends=int(time.time()) + days * DAY + 60)
    monkeypatch.setattr(fleet_member, "state_of", lambda settings: state)
    [finding] = checks_radius._authorities(context, settings)
    severity, words = expected
    assert (finding.severity, finding.code) == (severity, Code.RADIUS_CREDENTIALS)
    assert f": {words}, and " in finding.what


# ---- break-glass and the store of the host


def emergency(store: FileStore, user: str, count: int) -> None:
    record, _ = new_recovery_codes(UserRecord(user=user), 2)
    record = record._replace(recovery=record.recovery[:count])
    store.update(user, lambda _: (record, None), create=True)


def test_break_glass_is_there_and_fresh(members: Scripted, store: FileStore, tmp_path: Path) -> None:
    site = scripted(members, health(members), more="centre_down = 'break-glass'\n")
    [finding] = examine(tmp_path, site)
    assert (finding.severity, finding.code) == (WARNING, Code.BREAK_GLASS_MISSING)
    emergency(store, "root", 2)
    assert examine(tmp_path, site) == []
    emergency(store, "alice", 1)
    emergency(store, "bob", 0)
    year = time.time() - 366 * DAY
    os.utime(tmp_path / "store" / "root.record", (year, year))
    few, old = examine(tmp_path, site)
    assert (few.severity, few.code) == (WARNING, Code.BREAK_GLASS_FEW)
    assert few.what == "break-glass: these users have at most one valid recovery code: alice, bob"
    assert (few.remedy, old.code) == ("run 'pam-totp member break-glass alice'", Code.BREAK_GLASS_OLD)
    assert old.what == "break-glass: the codes of these users are more than a year old: root"
    emergency(store, "root", 0)
    (tmp_path / "store" / "alice.record").unlink()
    assert codes(examine(tmp_path, site)) == [(WARNING, Code.BREAK_GLASS_MISSING)], "root has used all recovery codes"


def test_codes_that_do_not_count_are_a_note(members: Scripted, store: FileStore, tmp_path: Path) -> None:
    emergency(store, "root", 2)
    [finding] = examine(tmp_path, scripted(members, health(members)))
    assert (finding.severity, finding.code) == (NOTE, Code.BREAK_GLASS_OFF)
    assert 'set centre_down = "break-glass"' in finding.remedy


def test_users_of_the_hosts_own_store_are_named(members: Scripted, store: FileStore, tmp_path: Path) -> None:
    for user in ("alice", "bob"):
        store.update(user, lambda record: (record._replace(tokens=(fob(),)), None), create=True)
    [finding] = examine(tmp_path, scripted(members, health(members)))
    assert (finding.severity, finding.code) == (WARNING, Code.MEMBER_LOCAL_USERS)
    assert finding.what == f"{store.folder}: no login of this member uses these users' tokens: alice, bob"


# ---- enrolled users


def test_a_member_does_not_report_its_users_as_not_enrolled(
    members: Scripted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks_people, "_ssh", lambda *_: iter(()))
    monkeypatch.setattr(checks_people, "login_check", lambda service: lambda name: True)
    monkeypatch.setattr(Context, "people", property(lambda _: ["alice", "bob"]))
    server = members.server()
    context = context_of(tmp_path, scripted(members, server.address), "demo", "door")
    stack = "auth required pam_unix.so\nauth required pam_totp.so{}\naccount required pam_permit.so\n"
    (tmp_path / "etc/pam.d/demo").write_text(stack.format(""))
    (tmp_path / "etc/pam.d/door").write_text(stack.format(" nullok"))
    note, note_too, open_ = checks_people.users(context)
    for finding, service in ((note, "demo"), (note_too, "door")):
        assert (finding.severity, finding.code) == (NOTE, Code.ENROLMENT_UNKNOWN)
        assert finding.what.startswith(f"{service}: this host cannot find locked-out users")
    assert (open_.severity, open_.code) == (WARNING, Code.USERS_WITHOUT_CODE)
    assert open_.what.endswith("if the authorities permit it")
    assert server.connections == 0, "no authority was asked"
