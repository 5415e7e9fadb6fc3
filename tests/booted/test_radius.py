"""Tests of FreeRADIUS as a member of a fleet. Only `make booted` runs these tests.

systemd starts FreeRADIUS and PostgreSQL by the units of their Debian packages, and the authority by a unit of pam_totp.
One machine has all roles: database, authority, FreeRADIUS, and client of FreeRADIUS.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pam_totp.core.oath import hotp
from tests.booted.machine import SUITE, Booted, Shell, System, make_disk, only_booted, until
from tests.support.site import KEY

pytestmark = only_booted
SYSTEM = System(
    f"{SUITE}-radius",
    "freeradius freeradius-rest freeradius-utils openssl postgresql python3-aiohttp python3-psycopg",
)
URL = "postgresql://authority@/otp?host=/run/postgresql"
SITE = f"""
[store]
url = "{URL}"
[authority]
addresses = ["otp1.example.org:8443"]
"""
ROLES = ("ROLE otp_owner LOGIN", "ROLE authority LOGIN")
DATABASE = "DATABASE otp OWNER otp_owner ENCODING 'UTF8' TEMPLATE template0"
# The commands of docs/fleet.md and docs/radius.md, for a database without standbys.
COMMANDS = (
    "echo 127.0.0.1 otp1.example.org radius1.example.org >>/etc/hosts",
    "sed -i '1i local otp all trust' /etc/postgresql/*/main/pg_hba.conf; systemctl restart postgresql",
    *(f'runuser -u postgres -- psql --quiet --command="CREATE {what}"' for what in (*ROLES, DATABASE)),
    "make install",
    f"pam-totp store init '{URL.replace('authority', 'otp_owner')}' --grant authority --replication none",
    f"printf %s '{SITE}' >/etc/pam_totp.toml",
    "pam-totp authority init",
    "systemctl enable --now pam_totp-authority",
    f"echo hex:{KEY.hex()} | pam-totp enroll alice --type hotp --secret-stdin --yes",
    "pam-totp member groups vpn --allow all",
    "pam-totp member add radius1.example.org --group vpn --service openvpn >/run/line",
    "pam-totp member radius install --yes </run/line",
    "pam-totp member radius client vpn1 127.0.0.1 --service openvpn --no-challenge >/run/secret",
    "systemctl restart freeradius",
)


class Host:
    """The machine, which can boot again, and the codes of alice."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self.counter = itertools.count()
        self.machine = Booted(disk, system=SYSTEM)
        self.secret = ""

    @property
    def root(self) -> Shell:
        return self.machine.first

    def reboot(self) -> None:
        self.machine.shuts_down()
        self.machine = Booted(self._disk, system=SYSTEM)

    def radclient(self, code: str) -> str:
        """Send a request of alice with `code`. Return the kind of the reply, such as Access-Accept."""
        request = f"User-Name = alice, User-Password = {code}, Message-Authenticator = 0x00"
        said = self.root.tries(f"echo '{request}' | radclient -x -t 5 -r 10 127.0.0.1 auth {self.secret}")[1]
        return said.partition("Received ")[2].partition(" ")[0]

    def findings(self) -> set[str]:
        """Return the codes of doctor's errors and warnings."""
        findings = json.loads(self.root.tries("pam-totp doctor --json")[1])["findings"]
        return {finding["code"] for finding in findings if finding["severity"] != "note"}

    def has_failed_units(self) -> bool:
        return "0 loaded units" not in self.root.does("systemctl --no-pager --failed")


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="pam_totp-radius-", dir="/var/tmp") as folder:
        disk = Path(folder) / "disk"
        make_disk(disk, system=SYSTEM)
        made = Host(disk)
        try:
            for command in COMMANDS:
                made.root.does(command)
            made.secret = made.root.does("cat /run/secret").strip()
            yield made
        finally:
            made.machine.stop()


def test_freeradius_serves_pam_totp_by_the_unit_of_its_package(host: Host) -> None:
    code = hotp(KEY, next(host.counter))
    assert host.radclient(code) == "Access-Accept"
    assert host.radclient(code) == "Access-Reject"
    assert "-d /etc/pam_totp-radius" in host.root.does("systemctl show --property ExecStart freeradius")
    host.root.does("systemctl reload freeradius")
    assert host.radclient(hotp(KEY, next(host.counter))) == "Access-Accept"
    said = host.root.does("journalctl --no-pager --output=cat --identifier=pam_totp")
    assert "pam_totp(openvpn:auth): accepted user=alice" in said
    assert "member=radius1.example.org" in said


def test_the_certificate_is_renewed_by_a_unit_of_systemd(host: Host) -> None:
    read = "openssl x509 -noout -serial -in /etc/pam_totp-radius/tls/certificate.pem"
    before = host.root.does(read)
    assert "pam_totp-radius.timer" in host.root.does("systemctl --no-pager list-timers")
    host.root.does("systemctl start pam_totp-radius.service")
    assert host.root.does(read) != before
    assert host.radclient(hotp(KEY, next(host.counter))) == "Access-Accept"


def test_after_a_boot_the_host_answers_and_refuses_used_codes(host: Host) -> None:
    host.reboot()
    assert host.root.does("systemctl is-system-running --wait").strip() == "running"
    assert host.radclient(hotp(KEY, 0)) == "Access-Reject"
    assert host.radclient(hotp(KEY, next(host.counter))) == "Access-Accept"
    assert not host.has_failed_units()
    expected = {"clock-not-synchronised", "seal-not-exported"}
    until(lambda: host.findings() == expected, "doctor has no other finding after the start of the service")


def test_the_units_of_an_authority_decide_with_sealed_secrets(host: Host) -> None:
    status = json.loads(host.root.does("pam-totp seal status --json"))
    assert [store["records"] for store in status["stores"]] == [{status["keys"][0]: 1}]
    assert "LoadCredential=" in host.root.does("systemctl cat --no-pager pam_totp-authority.service")
