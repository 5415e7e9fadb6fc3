"""Tests of doctor on a host whose FreeRADIUS is a member."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pam_totp.system import radius as pack
from pam_totp.system.doctor import checks_radius
from pam_totp.system.doctor.context import Context
from pam_totp.system.machine import Machine
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding
from tests.support.cluster import with_postgresql
from tests.support.fleet import Fleet
from tests.support.radius import FreeRadius, running, with_freeradius

pytestmark = [with_postgresql, with_freeradius]


@pytest.fixture(scope="module")
def installed(fleet: Fleet) -> Iterator[FreeRadius]:
    with running(fleet, "radius-doctor.example.org") as made:
        yield made


@pytest.fixture
def radius(installed: FreeRadius, monkeypatch: pytest.MonkeyPatch) -> Iterator[FreeRadius]:
    """Yield FreeRADIUS with its installed files, and restore these files after the test."""
    monkeypatch.setattr(checks_radius, "FOLDER", str(installed.folder))
    kept = {path: (path.read_bytes(), path.stat().st_mode) for path in installed.folder.iterdir() if path.is_file()}
    yield installed
    for path, (content, mode) in kept.items():
        path.write_bytes(content)
        path.chmod(mode)


def found(radius: FreeRadius) -> tuple[list[Finding], Context]:
    context = Context(Machine(str(radius.folder)), ())
    return list(checks_radius.radius(context)), context


def test_a_new_installation_has_no_findings(fleet: Fleet, radius: FreeRadius) -> None:
    findings, context = found(radius)
    assert findings == []
    facts = {fact.name: fact.value for fact in context.facts}
    assert facts["freeradius"].startswith("3.")
    assert [facts[f"radius {address}"]["member"] for address in fleet.addresses] == [radius.name] * 2


def test_a_host_without_the_pack_has_no_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_radius, "FOLDER", str(tmp_path))
    assert list(checks_radius.radius(Context(Machine(str(tmp_path)), ()))) == []


def replace(name: str, old: str, new: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


AUTHENTICATOR = "require_message_authenticator = "
CHANGES = {
    "updated clause": (
        replace(pack.CONFIGURATION, 'elsif (updated && &control:Tmp-String-3 == "accepted")', "elsif (noop)"),
        (WARNING, Code.RADIUS_CONFIGURATION),
    ),
    "syntax": (replace(pack.LISTEN, "}", ""), (ERROR, Code.RADIUS_CONFIGURATION)),
    "authenticator": (
        replace(pack.CLIENTS, f"{AUTHENTICATOR}yes", f"{AUTHENTICATOR}no"),
        (WARNING, Code.RADIUS_CLIENT_UNSAFE),
    ),
    "absent authenticator": (
        replace(pack.CLIENTS, f"{AUTHENTICATOR}yes", "# none"),
        (WARNING, Code.RADIUS_CLIENT_UNSAFE),
    ),
    "member's file": (
        lambda folder: (folder / pack.MEMBER).write_text("[member\n"),
        (ERROR, Code.RADIUS_CONFIGURATION),
    ),
    "readable": (lambda folder: (folder / pack.CLIENTS).chmod(0o644), (WARNING, Code.RADIUS_CLIENT_UNSAFE)),
    "no clients": (lambda folder: (folder / pack.CLIENTS).write_text(""), (NOTE, Code.RADIUS_WITHOUT_CLIENTS)),
    "short secret": (
        lambda folder: (folder / pack.CLIENTS).write_text(
            f"client x {{\n\tipaddr = 192.0.2.1\n\tsecret = testing123 # short\n\t{AUTHENTICATOR}yes\n}}\n"
        ),
        (WARNING, Code.RADIUS_CLIENT_UNSAFE),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_a_file_is_found(radius: FreeRadius, name: str) -> None:
    change, expected = CHANGES[name]
    change(radius.folder)
    findings, _ = found(radius)
    assert [(finding.severity, finding.code) for finding in findings] == [expected], findings


def test_a_lost_key_and_a_revoked_member_are_errors(fleet: Fleet, radius: FreeRadius) -> None:
    key = radius.folder / pack.TLS / "key.pem"
    key.chmod(0o644)
    assert [(f.severity, f.code) for f in found(radius)[0]] == [(ERROR, Code.RADIUS_CREDENTIALS)]
    key.chmod(0o600)
    fleet.members.revoke(radius.name)
    assert [(f.severity, f.code) for f in found(radius)[0]] == [(ERROR, Code.RADIUS_AUTHORITY)] * 2


def test_clients_are_read_as_freeradius_reads_them() -> None:
    text = (
        "# client comment {\nclient a {\n\tsecret = 'x y' # z\n\tlimit {\n\t\tsecret = inner\n\t}\n\tproto = tls\n}\n"
        "client b { \n\tsecret=tight\n}\n"
    )
    first, second = pack.clients(text)
    assert (first.name, dict(first.settings)) == ("a", {"secret": "x y", "proto": "tls"})
    assert pack.is_safe(first)
    assert second.name == "b"
    assert not pack.is_safe(second)
