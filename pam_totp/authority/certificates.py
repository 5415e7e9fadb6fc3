"""The certificates of a fleet, created by /usr/bin/openssl.

Rules:
1. Keys are on the curve P-256. The CA is valid for ten years, an authority's certificate for 825 days, a member's for
   90 days. Each certificate is valid from a day before its creation, because clocks can differ.
2. Only the key of a certificate request is used. The signer chooses the name, the use and the time.
3. openssl runs with a fixed path and a clean environment, in a new temporary folder, and for at most TIMEOUT seconds.
4. A key is in a file that only its owner, and the group of the service, can read. A key is never an argument of
   openssl.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

OPENSSL = "/usr/bin/openssl"
TIMEOUT = 10.0  # seconds
MEMBER_DAYS, AUTHORITY_DAYS, CA_DAYS = 90, 825, 3650
BACKDATED = timedelta(days=1)
MAX_FILE = 65_536  # bytes
# The beginning of a public key on P-256, as SubjectPublicKeyInfo in DER (RFC 5480 2), and the whole size in bytes.
_P256, _P256_SIZE = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004"), 91
_CONFIGURATION = """\
[ca]
default_ca = default
[default]
dir = .
new_certs_dir = .
database = index.txt
rand_serial = yes
default_md = sha256
policy = any
email_in_dn = no
unique_subject = no
[any]
commonName = supplied
[req]
distinguished_name = name
prompt = no
[name]
commonName = request
[authority_of_all]
basicConstraints = critical, CA:true, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[signed]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = {use}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
"""
CA, SERVER, CLIENT = "", "serverAuth", "clientAuth"


class CertificateError(Exception):
    """The error for a certificate or key that cannot be created or used. The text has no secret."""


class BadRequest(CertificateError):
    """The error for a certificate request of a member that cannot be signed."""


@dataclass(frozen=True)
class Issuer:
    """The CA: the paths of its certificate and its key."""

    certificate: str
    key: str

    def sign_member(self, csr: str, name: str) -> str:
        """Sign a request of the member with this name. Return the certificate in PEM. Raise CertificateError."""
        return self._sign(csr, name, CLIENT, [f"DNS:{name}"], MEMBER_DAYS)

    def sign_authority(self, csr: str, hosts: Iterable[str]) -> str:
        """Sign a request of an authority that members reach as `hosts`. Return the certificate in PEM. Raise
        CertificateError.
        """
        listed = list(dict.fromkeys(hosts))
        return self._sign(csr, "pam_totp authority", SERVER, [_alternative(host) for host in listed], AUTHORITY_DAYS)

    def _sign(self, csr: str, name: str, use: str, names: list[str], days: int) -> str:
        with _Workshop(use, names) as workshop:
            (workshop.folder / "csr").write_text(csr)
            try:
                public_key = workshop.run("req", "-in", "csr", "-noout", "-pubkey")
            except CertificateError:
                raise BadRequest("the certificate request must be in PEM") from None
            _require_p256(public_key)
            return workshop.certify(self.certificate, self.key, name, days, "signed")


def make_key() -> str:
    """Return a new private key in PEM."""
    with _Workshop() as workshop:
        return workshop.run("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")


def make_request(key: str) -> str:
    """Return a certificate request for a private key, both in PEM."""
    with _Workshop() as workshop:
        workshop.put_secret("key", key)
        return workshop.run("req", "-new", "-config", "configuration", "-key", "key")


def make_ca(key: str, name: str) -> str:
    """Return the certificate of a new CA for its private key, both in PEM."""
    request = make_request(key)
    with _Workshop() as workshop:
        (workshop.folder / "csr").write_text(request)
        workshop.put_secret("key", key)
        return workshop.certify(None, "key", name, CA_DAYS, "authority_of_all")


def fingerprint(pem: str) -> bytes:
    """Return the SHA-256 of the first certificate in `pem`, in DER. Raise CertificateError."""
    der = _der(first_certificate(pem))
    if not der:
        raise CertificateError("the certificate must be in PEM")
    return sha256(der).digest()


def first_certificate(pem: str) -> str:
    """Return the first certificate in `pem`, which can contain several. Raise CertificateError."""
    begin, end = pem.find("-----BEGIN CERTIFICATE-----"), pem.find("-----END CERTIFICATE-----")
    if not 0 <= begin < end:
        raise CertificateError("the certificate must be in PEM")
    return pem[begin : end + len("-----END CERTIFICATE-----")] + "\n"


def read(path: str) -> str:
    """Return the text of a file of certificates. Raise CertificateError."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read(MAX_FILE)
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None)
        raise CertificateError(f"{path}: {reason.lower() if reason else 'must be in PEM'}") from e


class _Workshop:
    """A temporary folder in which openssl runs."""

    def __init__(self, use: str = SERVER, names: Iterable[str] = ("DNS:localhost",)) -> None:
        self._configuration = _CONFIGURATION.format(use=use, names=",".join(names))

    def __enter__(self) -> _Workshop:
        self._folder = tempfile.TemporaryDirectory(prefix="pam_totp-openssl-")  # of mode 0700
        self.folder = Path(self._folder.name)
        (self.folder / "configuration").write_text(self._configuration)
        (self.folder / "index.txt").touch()
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def put_secret(self, name: str, text: str) -> None:
        descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(text)

    def run(self, *words: str) -> str:
        """Return the output of openssl. Raise CertificateError with the first line of its error."""
        try:
            done = subprocess.run(
                [OPENSSL, *words],
                cwd=self.folder,
                env={"LC_ALL": "C", "HOME": str(self.folder), "RANDFILE": "/dev/null"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise CertificateError(f"openssl did not end within {TIMEOUT:g} s") from None
        except OSError as e:
            raise CertificateError(f"{OPENSSL}: {(e.strerror or str(e)).lower()} (install openssl)") from e
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "rror" in line or "nable" in line]
            raise CertificateError(f"openssl {words[0]} failed: {(lines or ['no reason given'])[0].strip()[:200]}")
        return done.stdout

    def certify(self, ca: str | None, key: str, name: str, days: int, section: str) -> str:
        """Return the certificate in PEM for the request in the file `csr`: self-signed if `ca` is None.

        `ca` and `key` are files of the signer, and `section` is a section of the configuration.
        """
        begins = datetime.now(UTC) - BACKDATED
        ends = begins + BACKDATED + timedelta(days=days)
        signer = ["-selfsign"] if ca is None else ["-cert", ca]
        self.run(
            *("ca", "-batch", "-notext", "-config", "configuration", "-in", "csr", "-out", "certificate"),
            *(*signer, "-keyfile", key, "-subj", f"/CN={name}", "-extensions", section),
            *("-startdate", f"{begins:%Y%m%d%H%M%SZ}", "-enddate", f"{ends:%Y%m%d%H%M%SZ}"),
        )
        try:
            return first_certificate((self.folder / "certificate").read_text())
        except OSError:  # openssl reports a wrong signature in words only
            raise BadRequest("the certificate request must be signed with its own key") from None


def _require_p256(public_key: str) -> None:
    """Raise CertificateError unless the public key, in PEM, is on P-256."""
    lines = "".join(line for line in public_key.splitlines() if not line.startswith("-"))
    der = _der(f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
    if len(der) != _P256_SIZE or not der.startswith(_P256):
        raise BadRequest("the key of a certificate request must be on the curve P-256")


def _der(pem: str) -> bytes:
    """Return the content of one certificate in PEM; empty if the certificate is not in base64."""
    try:
        return ssl.PEM_cert_to_DER_cert(pem)
    except ValueError:
        return b""


def _alternative(host: str) -> str:
    try:
        return f"IP:{ip_address(host)}"
    except ValueError:
        return f"DNS:{host}"
