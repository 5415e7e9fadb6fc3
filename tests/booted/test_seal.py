"""Tests of the seal under a real systemd, which passes the key to the services. Only `make booted` runs these tests.

One machine has a sealed store. Its key moves from the file to a host credential, and then to a TPM2 credential.
The tests run in order, because a boot takes a minute.
"""

from __future__ import annotations

import base64
import itertools
import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pam_totp.core.oath import hotp
from pam_totp.core.secretfile import base32
from pam_totp.store.keyring import parse_keyring
from tests.booted.machine import PASSWORD, Booted, Shell, contains, make_disk, only_booted, until
from tests.systems.packages import SIGN_IN

pytestmark = only_booted
FILE = "/etc/pam_totp/seal"
HOST_KEY = "/var/lib/systemd/credential.secret"
COPY = "/run/copy"  # in memory
HAS_TPM = shutil.which("swtpm") is not None
OTHER_HOST = "systemd-creds cannot decrypt it on this host: "


class Sealed:
    """A machine with pam_totp, whose store was sealed before alice was enrolled with `key`."""

    def __init__(self, folder: Path) -> None:
        self.disk, self.key = folder / "disk", secrets.token_bytes(20)
        self.tpm, self.other_tpm = (folder / name if HAS_TPM else None for name in ("tpm", "other"))
        self._counter = itertools.count()
        programs = folder / "programs"
        programs.mkdir()
        (programs / "sign_in.py").write_text(SIGN_IN)
        make_disk(self.disk, programs)
        self.machine = Booted(self.disk, self.tpm)
        self.root.does("make install && pam-totp seal init --yes")
        self.root.does(f"echo hex:{self.key.hex()} | pam-totp enroll alice --type hotp --secret-stdin --yes")
        self.root.does("systemctl --quiet enable --now pam_totp-portal.service")
        for name, arguments in (("demo", "nullok"), ("cold", "nullok socket=none")):
            self.root.does(f"echo 'auth required pam_totp.so nodelay {arguments}' >/etc/pam.d/{name}")

    @property
    def root(self) -> Shell:
        return self.machine.first

    def boot(self, tpm: Path | None) -> None:
        self.machine.shuts_down()
        self.machine = Booted(self.disk, tpm)

    def code(self) -> str:
        return hotp(self.key, next(self._counter))

    def is_accepted(self, service: str = "demo") -> bool:
        """Return True if a code of alice is accepted by the service, or by a helper if `service` is `cold`."""
        return self.root.tries(f"echo {self.code()} | pamtester {service} alice authenticate")[0] == 0

    def assert_accepted_everywhere(self) -> None:
        # The start of the service without KVM can exceed the ten seconds for which a login waits.
        self.root.does("systemctl start pam_totp.service")
        until(lambda: self.root.tries("ls /run/pam_totp/service/metrics")[0] == 0, "the service is ready")
        assert self.is_accepted()
        assert self.root.does("systemctl is-active pam_totp.service").strip() == "active"
        assert self.is_accepted("cold")
        signed_in = self.root.does(f"python3 -I packages/sign_in.py alice '{PASSWORD}' {self.code()}")
        assert signed_in.strip() == "Your tokens"
        assert "0 loaded units" in self.root.does("systemctl --no-pager --failed")

    def assert_refused_with(self, log_text: str, finding_text: str) -> None:
        """Check that the service and a helper refuse logins, and report `log_text` and `finding_text`."""
        for service in ("demo", "demo", "cold"):
            assert not self.is_accepted(service)
        said = self.root.does("journalctl --no-pager --boot --output=cat --identifier=pam_totp")
        assert log_text in said.splitlines()[-1]
        findings = json.loads(self.root.tries("pam-totp doctor --json")[1])["findings"]
        (what,) = (finding["what"] for finding in findings if finding["code"] == "seal-key-missing")
        assert finding_text in what
        assert "every user of /var/lib/pam_totp is refused" in what
        assert not any(finding["code"] == "record-unreadable" for finding in findings)

    def export(self) -> str:
        """Export the keys of the seal to a file in memory, and delete the file. Return its content."""
        self.root.does(f"pam-totp seal export {COPY} --yes")
        return self.root.does(f"cat {COPY}; rm {COPY}")

    def bring_back(self, copy: str) -> None:
        self.root.does(f"printf %s '{copy}' >{COPY}; pam-totp seal init --key {COPY} --yes; rm {COPY}")


@pytest.fixture(scope="module")
def sealed() -> Iterator[Sealed]:
    with tempfile.TemporaryDirectory(prefix="pam_totp-sealed-", dir="/var/tmp") as folder:
        made = Sealed(Path(folder))
        try:
            yield made
        finally:
            made.machine.stop()


def test_all_services_get_the_key_from_the_file_of_root(sealed: Sealed) -> None:
    sealed.assert_accepted_everywhere()
    assert sealed.root.does(f"stat --format '%U %a' {FILE}").split() == ["root", "400"]
    assert "LoadCredential=" in sealed.root.does("systemctl cat --no-pager pam_totp.service")


def test_without_the_file_every_login_is_refused_until_it_is_back(sealed: Sealed) -> None:
    copy = sealed.export()
    sealed.root.does(f"rm {FILE}; systemctl restart pam_totp.service pam_totp-portal.service || true")
    sealed.assert_refused_with("is sealed, and this process has no key", f"{FILE}: not found")
    sealed.bring_back(copy)
    sealed.assert_accepted_everywhere()


def test_a_key_encrypted_for_the_host_is_in_use_after_a_boot(sealed: Sealed) -> None:
    sealed.root.does("pam-totp seal init --with host && pam-totp seal rotate --yes")
    assert sealed.root.tries(f"ls {FILE}")[0] != 0
    sealed.assert_accepted_everywhere()
    sealed.boot(sealed.tpm)
    sealed.assert_accepted_everywhere()
    assert "LoadCredentialEncrypted=" in sealed.root.does("systemctl cat --no-pager pam_totp.service")


def test_with_another_key_of_the_host_every_login_is_refused(sealed: Sealed) -> None:
    sealed.root.does(f"mv {HOST_KEY} /run; systemctl restart pam_totp.service pam_totp-portal.service || true")
    sealed.assert_refused_with(OTHER_HOST, OTHER_HOST)
    sealed.root.does(f"mv /run/credential.secret {HOST_KEY} && pam-totp seal init")
    sealed.assert_accepted_everywhere()


@pytest.mark.skipif(not HAS_TPM, reason="a TPM2 needs the package swtpm")
def test_a_disk_at_the_tpm2_of_another_machine_opens_nothing(sealed: Sealed) -> None:
    sealed.root.does("pam-totp seal init --with tpm2 && pam-totp seal rotate --yes")
    sealed.assert_accepted_everywhere()
    copy = sealed.export()
    sealed.boot(sealed.other_tpm)
    sealed.assert_refused_with(OTHER_HOST, OTHER_HOST)
    sealed.bring_back(copy)
    sealed.assert_accepted_everywhere()
    sealed.boot(sealed.other_tpm)
    sealed.assert_accepted_everywhere()


def test_the_disk_shows_no_key_of_a_token_or_of_the_seal(sealed: Sealed) -> None:
    seal = parse_keyring(sealed.export().encode()).current  # the key has had no file since the last rotation
    sealed.machine.shuts_down()
    assert contains(sealed.disk, b'"secret": "sealed:')
    for key in (sealed.key, seal):
        for form in (key, key.hex().encode(), base32(key).encode(), base64.b64encode(key)):
            assert not contains(sealed.disk, form)
