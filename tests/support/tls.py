"""Certificates of a fleet, and a scripted HTTPS server in place of an authority."""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pam_totp.core.settings import MemberSettings
from pam_totp.member.client import Client
from tests.support.site import PATIENCE

DAY = datetime.timedelta(days=1)


class Signed(NamedTuple):
    """A certificate and its key in PEM."""

    certificate: bytes
    key: bytes

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write the certificate and the key to files of mode 0600, and return the paths."""
        paths = folder / f"{name}.pem", folder / f"{name}.key"
        for path, content in zip(paths, self, strict=True):
            path.touch(0o600)
            path.write_bytes(content)
        return paths


class Authority:
    """A certificate authority. `days` is the validity of a signed certificate: its start and end, in days from now."""

    def __init__(self, name: str = "test CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.certificate = self._build(self._name, self._key.public_key(), (-1, 3650), ca=True)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def pin(self) -> str:
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    def sign(self, name: str = "localhost", *, days: tuple[int, int] = (-1, 90), server: bool = False) -> Signed:
        """Return a new certificate. A server's certificate is for `name`, or for 127.0.0.1 and localhost."""
        key = ec.generate_private_key(ec.SECP256R1())
        return Signed(_pem(self._build(_name(name), key.public_key(), days, server=server)), _key_pem(key))

    def sign_request(self, csr: bytes, name: str, *, days: tuple[int, int] = (-1, 90)) -> bytes:
        """Return the certificate for a certificate request in PEM."""
        request = x509.load_pem_x509_csr(csr)
        assert request.is_signature_valid
        key = request.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return _pem(self._build(_name(name), key, days))

    def _build(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        days: tuple[int, int],
        *,
        ca: bool = False,
        server: bool = False,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        text = subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        assert isinstance(text, str)
        names: list[x509.GeneralName] = [x509.DNSName(text)]
        if text == "localhost":
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        builder = (
            x509.CertificateBuilder(subject_name=subject, issuer_name=self._name, public_key=key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + days[0] * DAY)
            .not_valid_after(now + days[1] * DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return builder.sign(self._key, hashes.SHA256())


def self_signed() -> Signed:
    """Return a self-signed certificate of a server."""
    authority = Authority("localhost")
    return Signed(authority.pem, _key_pem(authority._key))


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Request(NamedTuple):
    """A request that a server has received. `peer` is the DER of the client's certificate, or None."""

    method: str
    path: str
    body: bytes
    peer: bytes | None

    @property
    def document(self) -> dict[str, object]:
        document = json.loads(self.body)
        assert isinstance(document, dict)
        return document


# A status and a document, or raw bytes. None closes the connection without a reply.
Reply = tuple[int, object] | bytes | None
Script = Callable[[Request], Reply]
ACCEPTED = {"verdict": "accepted", "messages": [], "by": "code", "again": False}
REFUSED: dict[str, object] = {"verdict": "refused", "messages": [], "by": None, "again": False}


class Server:
    """An HTTPS server with a thread for each connection. `script` returns the reply to each request."""

    def __init__(
        self,
        signed: Signed,
        folder: Path,
        script: Script,
        *,
        ca: bytes | None = None,
        listener: socket.socket | None = None,
    ) -> None:
        self.script = script
        self.requests: list[Request] = []
        self.raw = bytearray()  # everything that clients have sent, after decryption
        self.connections = 0
        self.handshake_errors: list[str] = []
        self.failures: list[Exception] = []  # raised by the script
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_cert_chain(*signed.write(folder, f"server-{id(self)}"))
        if ca is not None:
            self._context.load_verify_locations(cadata=ca.decode())
            self._context.verify_mode = ssl.CERT_OPTIONAL
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop the server. Raise the first error of the script."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        if self.failures:
            raise self.failures[0]

    def hang_up(self) -> None:
        """Close all connections."""
        for sock in list(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        try:
            with self._context.wrap_socket(sock, server_side=True) as tls:
                self._open.add(tls)
                while self._answer(tls):
                    pass
        except ssl.SSLError as e:
            self.handshake_errors.append(e.reason or "")
        except OSError:  # the client has disconnected
            pass
        except Exception as e:
            self.failures.append(e)
        finally:
            sock.close()

    def _answer(self, tls: ssl.SSLSocket) -> bool:
        """Answer one request. Return False if the connection must be closed."""
        head = b""
        while b"\r\n\r\n" not in head:
            part = tls.recv(65_536)
            if not part:
                return False
            head += part
        head, _, body = head.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        while len(body) < int(fields.get("content-length", "0")):
            body += tls.recv(65_536)
        self.raw += head + body
        method, path, _ = lines[0].split(" ")
        request = Request(method, path, body, tls.getpeercert(binary_form=True))
        self.requests.append(request)
        reply = self.script(request)
        if reply is None:
            return False
        if isinstance(reply, bytes):
            tls.sendall(reply)
            return False
        status, document = reply
        content = json.dumps(document).encode()
        tls.sendall(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(content), content))
        return True


def free_port() -> int:
    """Return a port of the loopback address on which no process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def write_credentials(folder: Path, authority: Authority, member: Signed) -> Path:
    """Write the files of a member's credentials to a new folder. Return the folder."""
    folder.mkdir(0o700)
    for name, content in (("certificate", member.certificate), ("key", member.key), ("ca", authority.pem)):
        path = folder / f"{name}.pem"
        path.write_bytes(content)
        os.chmod(path, 0o600)
    return folder


class Fleet:
    """Scripted authorities, and clients of one member. `close` closes the servers and the clients."""

    def __init__(self, folder: Path, authority: Authority, good: Signed) -> None:
        self.folder, self.authority, self.good = folder, authority, good
        self.credentials = write_credentials(folder / "member", authority, authority.sign("web1"))
        self._open: list[Server | Client] = []

    def server(self, script: Script | None = None, signed: Signed | None = None) -> Server:
        server = Server(
            signed or self.good, self.folder, script or (lambda request: (200, ACCEPTED)), ca=self.authority.pem
        )
        self._open.append(server)
        return server

    def client(self, *addresses: str, **settings: Any) -> Client:
        client = Client(self.settings(*addresses, **settings))
        self._open.append(client)
        return client

    def settings(self, *addresses: str, **settings: Any) -> MemberSettings:
        paths = {name: str(self.credentials / f"{name}.pem") for name in ("certificate", "key", "ca")}
        return MemberSettings(authorities=addresses, **{**paths, "answer": 0.5, "patience": 0.25, **settings})

    def close(self) -> None:
        for thing in self._open:
            thing.close()
