"""Tests of the certificates of a fleet: their names, uses and times, and the requests that are refused."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from pam_totp.authority import certificates
from pam_totp.authority.certificates import CertificateError, Issuer


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    folder = tmp_path_factory.mktemp("ca")
    key = certificates.make_key()
    (folder / "ca.key").write_text(key)
    (folder / "ca.pem").write_text(certificates.make_ca(key, "pam_totp"))
    return Issuer(str(folder / "ca.pem"), str(folder / "ca.key"))


def shown(pem: str, *options: str) -> str:
    words = ["/usr/bin/openssl", "x509", "-noout", *options]
    return subprocess.run(words, input=pem, text=True, capture_output=True, check=True).stdout


def days(pem: str) -> tuple[float, float]:
    """Return the days since the start of a certificate's validity, and the days until its end."""
    lines = dict(line.split("=") for line in shown(pem, "-dates").splitlines())
    now = ssl.cert_time_to_seconds(
        subprocess.run(
            ["date", "-u", "+%b %e %H:%M:%S %Y GMT"], text=True, capture_output=True, check=True
        ).stdout.strip()
    )
    begin, end = (ssl.cert_time_to_seconds(lines[name]) for name in ("notBefore", "notAfter"))
    return round((now - begin) / 86400, 2), round((end - now) / 86400, 2)


def test_a_members_certificate_has_its_name_and_ends_in_90_days(issuer: Issuer) -> None:
    pem = issuer.sign_member(certificates.make_request(certificates.make_key()), "web1.example.org")
    assert shown(pem, "-subject").strip() == "subject=CN = web1.example.org"
    text = shown(pem, "-ext", "subjectAltName,extendedKeyUsage,basicConstraints")
    assert "DNS:web1.example.org\n" in text
    assert "TLS Web Client Authentication\n" in text
    assert "CA:FALSE" in text
    assert days(pem) == (1, 90)


def test_an_authoritys_certificate_has_all_its_hosts(issuer: Issuer) -> None:
    request = certificates.make_request(certificates.make_key())
    pem = issuer.sign_authority(request, ["otp1.example.org", "192.0.2.7", "::1", "otp1.example.org"])
    text = shown(pem, "-ext", "subjectAltName,extendedKeyUsage")
    assert "DNS:otp1.example.org, IP Address:192.0.2.7, IP Address:0:0:0:0:0:0:0:1\n" in text
    assert "TLS Web Server Authentication\n" in text
    assert days(pem) == (1, 825)


def test_the_ca_signs_itself_for_ten_years(issuer: Issuer) -> None:
    pem = Path(issuer.certificate).read_text()
    assert days(pem) == (1, 3650)
    assert "CA:TRUE, pathlen:0" in shown(pem, "-ext", "basicConstraints")
    done = subprocess.run(
        ["/usr/bin/openssl", "verify", "-CAfile", issuer.certificate, issuer.certificate], check=False
    )
    assert done.returncode == 0
    assert len(certificates.fingerprint(pem)) == 32


def test_the_wishes_of_a_request_are_ignored(issuer: Issuer, tmp_path: Path) -> None:
    words = ["/usr/bin/openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    words += ["-keyout", "/dev/null", "-subj", "/CN=otp1/O=evil", "-addext", "subjectAltName=DNS:otp1"]
    words += ["-addext", "basicConstraints=CA:true"]
    request = subprocess.run(words, text=True, capture_output=True, check=True).stdout
    pem = issuer.sign_member(request, "web1")
    assert shown(pem, "-subject").strip() == "subject=CN = web1"
    text = shown(pem, "-text")
    assert "otp1" not in text
    assert "CA:TRUE" not in text


@pytest.mark.parametrize("kind", ["rsa:2048", "secp384r1", "garbage", "empty", "forged"])
def test_a_request_with_another_key_or_a_wrong_signature_is_refused(issuer: Issuer, kind: str) -> None:
    request = certificates.make_request(certificates.make_key())
    if kind == "garbage":
        request = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
    elif kind == "empty":
        request = ""
    elif kind == "forged":
        lines = request.splitlines()
        lines[-2] = ("A" if lines[-2][0] != "A" else "B") + lines[-2][1:]
        request = "\n".join(lines)
    else:
        words = ["/usr/bin/openssl", "req", "-new", "-nodes", "-keyout", "/dev/null", "-subj", "/CN=web1", "-newkey"]
        words += [kind] if ":" in kind else ["ec", "-pkeyopt", f"ec_paramgen_curve:{kind}"]
        request = subprocess.run(words, text=True, capture_output=True, check=True).stdout
    with pytest.raises(CertificateError):
        issuer.sign_member(request, "web1")


def test_a_missing_key_of_the_ca_is_an_error_without_a_secret(issuer: Issuer) -> None:
    request = certificates.make_request(certificates.make_key())
    with pytest.raises(CertificateError, match="openssl ca failed"):
        Issuer(issuer.certificate, "/missing.key").sign_member(request, "web1")


def test_a_text_that_is_no_certificate_has_no_fingerprint() -> None:
    for text in ("", "-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"):
        with pytest.raises(CertificateError):
            certificates.fingerprint(text)
