"""Tests of RadSec (FreeRADIUS over TLS), with packets of the test, and with radsecproxy for clients without TLS."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pam_totp.core.settings import NEXT_PROMPT
from pam_totp.system import radius as pack
from tests.support import tls
from tests.support.cluster import with_postgresql
from tests.support.fleet import HOST, Fleet, free_ports
from tests.support.pamconf import Result, login, service
from tests.support.radius import PAM_MODULE, FreeRadius, Nas, free_udp_port, running, with_freeradius
from tests.support.site import PATIENCE, codes, fob, until

pytestmark = [with_postgresql, with_freeradius, pytest.mark.timeout(300)]
RADSEC = "radsec"  # RFC 6614 2.3
LOCAL = "secret-of-a-proxy-on-this-host"


class Encrypted:
    """FreeRADIUS with RadSec, which must accept certificates of the CA `ca`, and refuse those of the CA `other`."""

    def __init__(self, radius: FreeRadius, folder: Path) -> None:
        self.radius, self.folder = radius, folder
        self.ca, self.other = tls.Authority("clients"), tls.Authority("others")
        (self.port,) = free_ports(1)
        certificate, key = self.ca.sign(server=True).write(folder, "server")
        target = radius.folder
        shutil.copy(certificate, target / "radsec.pem")
        shutil.copy(key, target / "radsec.key")
        for name in ("radsec.pem", "radsec.key"):
            shutil.chown(target / name, pack.ACCOUNT)
        (target / "radsec-ca.pem").write_bytes(self.ca.pem)
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(self.ca.pem)
        text = (target / pack.RADSEC).read_text()
        lines = [line[1:] for line in text.splitlines() if line.startswith("#") and not line.startswith("# ")]
        text = "\n".join(lines).replace("192.0.2.0/24", HOST).replace("2083", str(self.port)) + "\n"
        (target / pack.RADSEC).write_text(text.replace("ipaddr = *", f"ipaddr = {HOST}"))

    def connect(self, signed: tls.Signed | None) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if signed is not None:
            context.load_cert_chain(*signed.write(self.folder, "client"))
        plain = socket.create_connection((HOST, self.port), timeout=PATIENCE)
        return context.wrap_socket(plain, server_hostname=HOST)


@pytest.fixture(scope="module")
def encrypted(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encrypted]:
    with running(fleet, "radius-tls.example.org") as radius:
        made = Encrypted(radius, tmp_path_factory.mktemp("radsec"))
        radius.restart()
        yield made


def exchanged(connection: ssl.SSLSocket, packet: bytes) -> bytes:
    """Return the reply to `packet`, or b"" if the server closes the connection."""
    connection.sendall(packet)
    return connection.recv(4096)


def test_a_client_with_a_certificate_logs_in_over_tls(fleet: Fleet, encrypted: Encrypted) -> None:
    user = fleet.user()
    with encrypted.connect(encrypted.ca.sign("branch")) as connection, Nas(1, RADSEC) as nas:
        packet = nas.request(user, codes(0), is_signed=False)
        assert nas._read(exchanged(connection, packet), packet[4:20]).kind == "accept"
    line = next(line for authority in fleet.authorities for line in authority.lines(f"accepted user={user}"))
    assert "pam_totp(radsec:auth)" in line


@pytest.mark.parametrize("is_signed_by_others", [False, True])
def test_without_a_certificate_of_the_ca_there_is_no_login(
    fleet: Fleet, encrypted: Encrypted, is_signed_by_others: bool
) -> None:
    user = fleet.user()
    signed = encrypted.other.sign("branch") if is_signed_by_others else None
    with Nas(1, RADSEC) as nas:
        try:
            with encrypted.connect(signed) as connection:
                assert exchanged(connection, nas.request(user, codes(0))) == b""
        except OSError:
            pass  # FreeRADIUS has sent a TLS alert
    assert fleet.store.read(user).tokens[0].next_factor == 0


@pytest.mark.skipif(shutil.which("radsecproxy") is None, reason="needs the package radsecproxy")
def test_stock_pam_radius_auth_logs_in_through_radsecproxy(fleet: Fleet, encrypted: Encrypted, tmp_path: Path) -> None:
    """The packets may lack a Message-Authenticator, because plain RADIUS stays on the host."""
    port, client = free_udp_port(), encrypted.ca.sign("proxy")
    certificate, key = client.write(tmp_path, "proxy")
    configuration = tmp_path / "radsecproxy.conf"
    configuration.write_text(
        f"ListenUDP {HOST}:{port}\n"
        f"tls default {{\n CACertificateFile {encrypted.ca_file}\n CertificateFile {certificate}\n"
        f" CertificateKeyFile {key}\n}}\n"
        f"client {HOST} {{\n type udp\n secret {LOCAL}\n}}\n"
        f"server {HOST} {{\n type tls\n port {encrypted.port}\n secret {RADSEC}\n}}\n"
        f"realm * {{\n server {HOST}\n}}\n"
    )
    servers, confdir = tmp_path / "servers", tmp_path / "pam.d"
    servers.touch(0o600)
    servers.write_text(f"{HOST}:{port} {LOCAL} 20\n")
    confdir.mkdir()
    service(confdir, "vpn", f"auth required {PAM_MODULE} conf={servers} prompt=Code prompt_attribute")
    user = fleet.user(tokens=(fob(row_needed=True),))
    log = tmp_path / "log"
    with log.open("wb") as file:
        command = ["radsecproxy", "-f", "-c", str(configuration), "-i", str(tmp_path / "pid")]
        proxy = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        until(lambda: " up" in log.read_text(), "radsecproxy connects")
        done = login("vpn", user, [codes(3), codes(4)], confdir)
        assert done.result is Result.SUCCESS, (done, log.read_text())
        assert [prompt.text for prompt in done.prompts] == ["Code: ", NEXT_PROMPT]
        assert login("vpn", user, ["000000", "000001"], confdir).result is Result.AUTH_ERR
    finally:
        proxy.kill()
        proxy.wait()
