"""FreeRADIUS of this system, as a member of a fleet for tests, on loopback.

Rules:
- The configuration is that of `pam-totp member radius install`. Only `listen.conf` differs.
- The packages are those of Debian: freeradius, freeradius-rest, freeradius-utils and libpam-radius-auth. The tests
  start their own process of FreeRADIUS.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from pam_totp.system import radius as pack
from tests.support.fleet import HOST, Fleet
from tests.support.site import PATIENCE, TREE, until

PAM_MODULE = next(Path("/usr/lib").glob("*-linux-gnu/security/pam_radius_auth.so"), Path("/missing"))
with_freeradius = pytest.mark.skipif(
    os.geteuid() != 0 or bool(pack.missing()) or shutil.which("radclient") is None or not PAM_MODULE.exists(),
    reason="needs root, and the packages freeradius, freeradius-rest, freeradius-utils and libpam-radius-auth",
)
REQUEST, ACCEPT, REJECT, CHALLENGE = 1, 2, 3, 11  # types of packets (RFC 2865 3)
NAMES = {ACCEPT: "accept", REJECT: "reject", CHALLENGE: "challenge"}
USER_NAME, USER_PASSWORD, REPLY_MESSAGE, STATE, CALLING_STATION, AUTHENTICATOR = 1, 2, 18, 24, 31, 80
_LISTEN = "listen {{\n\ttype = auth\n\tipaddr = {host}\n\tport = {port}\n\tclients = pam_totp\n}}\n"


class Packet(NamedTuple):
    """A reply: its kind, its State, and its messages. `content` has all bytes of the packet."""

    kind: str
    state: bytes | None
    messages: tuple[str, ...]
    content: bytes


class FreeRadius:
    """A process of FreeRADIUS with the clients `vpn` and `switch` on loopback."""

    def __init__(self, fleet: Fleet, folder: Path, name: str, *groups: str) -> None:
        self.fleet, self.folder, self.name = fleet, folder, name
        self.port = free_udp_port()
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        line = fleet.join_line(name, *groups).to_text()
        self.installed = self.command("install", stdin=line + "\n")
        (folder / pack.LISTEN).write_text(_LISTEN.format(host=HOST, port=self.port))
        self.secrets = {
            "vpn": self.command("client", "vpn", "127.0.0.1", "--service", "openvpn").stdout.strip(),
            "switch": self.command("client", "switch", "127.0.0.2", "--no-challenge").stdout.strip(),
        }

    def command(self, *words: str, stdin: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `pam-totp member radius` with the folder of this FreeRADIUS."""
        command = [sys.executable, "-m", "pam_totp.cli", "member", "radius", *words, "--folder", str(self.folder)]
        done = subprocess.run(command, cwd=TREE, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        return done

    def start(self) -> None:
        with self.log.open("wb") as log:
            command = [pack.PROGRAM, "-f", "-x", "-d", str(self.folder), "-l", "stdout"]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

        def is_ready() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            return "Ready to process requests" in self.log.read_text()

        until(is_ready, "FreeRADIUS is ready")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(PATIENCE)
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def radclient(
        self, user: str, answer: str, *lines: str, client: str = "vpn", as_chap: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Send a request by radclient. `lines` are further attributes, by default a Message-Authenticator."""
        source = "127.0.0.1" if client == "vpn" else "127.0.0.2"
        password = "CHAP-Password" if as_chap else "User-Password"
        attributes = [f'User-Name = "{user}"', f'{password} = "{answer}"', f"Packet-Src-IP-Address = {source}"]
        command = ["radclient", "-x", "-r", "1", "-t", "5", f"{HOST}:{self.port}", "auth"]
        return subprocess.run(
            [*command, self.secrets[client]],
            input="\n".join([*attributes, *(lines or ["Message-Authenticator = 0x00"])]),
            capture_output=True,
            text=True,
            check=False,
        )

    def nas(self, client: str = "vpn", secret: str | None = None) -> Nas:
        return Nas(self.port, secret or self.secrets[client], "127.0.0.1" if client == "vpn" else "127.0.0.2")


class Nas:
    """A client of RADIUS that builds its own packets, and can send a packet twice. The client verifies each reply."""

    def __init__(self, port: int, secret: str, address: str = HOST) -> None:
        self._secret = secret.encode()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 0))
        self.socket.connect((HOST, port))
        self._next = 0

    def request(
        self,
        user: str,
        answer: str,
        state: bytes | None = None,
        *,
        is_signed: bool = True,
        vector: bytes | None = None,
        more: bytes = b"",
    ) -> bytes:
        """Return a new Access-Request, with a Message-Authenticator if `is_signed` is true.

        `vector` is the Request Authenticator, which is random by default. `more` are further encoded attributes.
        """
        vector, self._next = vector or os.urandom(16), (self._next + 1) % 256
        attributes = {USER_NAME: user.encode(), USER_PASSWORD: self._hidden(answer.encode(), vector)}
        attributes |= {CALLING_STATION: b"192.0.2.7"} | ({} if state is None else {STATE: state})
        body = _attributes(attributes) + more
        if not is_signed:
            return struct.pack(">BBH", REQUEST, self._next, 20 + len(body)) + vector + body
        head = struct.pack(">BBH", REQUEST, self._next, 20 + 18 + len(body)) + vector
        blank = bytes([AUTHENTICATOR, 18]) + bytes(16)
        signature = hmac.digest(self._secret, head + blank + body, "md5")
        return head + bytes([AUTHENTICATOR, 18]) + signature + body

    def _hidden(self, password: bytes, vector: bytes) -> bytes:
        """Return `password` as a User-Password (RFC 2865 5.2). `vector` is the Request Authenticator."""
        padded = password.ljust(max(16, -(-len(password) // 16) * 16), b"\0")
        hidden, last = b"", vector
        for begin in range(0, len(padded), 16):
            mask = hashlib.md5(self._secret + last, usedforsecurity=False).digest()
            last = bytes(a ^ b for a, b in zip(padded[begin : begin + 16], mask, strict=True))
            hidden += last
        return hidden

    def send(self, packet: bytes, seconds: float = PATIENCE) -> Packet | None:
        """Send `packet`, and return the reply, or None after `seconds`."""
        self.socket.settimeout(seconds)
        self.socket.send(packet)
        try:
            while True:
                reply = self.socket.recv(4096)
                if reply[1] == packet[1]:
                    return self._read(reply, packet[4:20])
        except TimeoutError:
            return None

    def insist(self, packet: bytes) -> Packet:
        """Send `packet` each second until a reply arrives, and return the reply.

        FreeRADIUS drops a packet that arrives while FreeRADIUS replies.
        """
        for _ in range(int(PATIENCE)):
            reply = self.send(packet, 1.0)
            if reply is not None:
                return reply
        raise AssertionError("no reply")

    def _read(self, reply: bytes, vector: bytes) -> Packet:
        """Verify both signatures of `reply`, and return the parsed reply. `vector` is the Request Authenticator."""
        expected = hashlib.md5(reply[:4] + vector + reply[20:] + self._secret, usedforsecurity=False).digest()
        assert reply[4:20] == expected, "the Response Authenticator is wrong"
        found, at, signed = list[tuple[int, bytes]](), 20, b""
        while at < len(reply):
            kind, size = reply[at], reply[at + 1]
            found.append((kind, reply[at + 2 : at + size]))
            if kind == AUTHENTICATOR:
                blank = reply[: at + 2] + bytes(16) + reply[at + size :]
                signed = hmac.digest(self._secret, blank[:4] + vector + blank[20:], "md5")
                assert signed == found[-1][1], "the Message-Authenticator is wrong"
            at += size
        assert signed, "a reply without Message-Authenticator"
        state = next((value for kind, value in found if kind == STATE), None)
        return Packet(NAMES[reply[0]], state, tuple(v.decode() for k, v in found if k == REPLY_MESSAGE), reply)

    def ask(self, user: str, answer: str, state: bytes | None = None) -> Packet:
        """Send a request, and return the reply."""
        return self.insist(self.request(user, answer, state))

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Nas:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _attributes(attributes: Mapping[int, bytes]) -> bytes:
    return b"".join(bytes([kind, 2 + len(value)]) + value for kind, value in attributes.items())


def free_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


@contextmanager
def running(fleet: Fleet, name: str, *groups: str) -> Iterator[FreeRadius]:
    """Yield a running FreeRADIUS, in a folder that the account of FreeRADIUS can enter."""
    with tempfile.TemporaryDirectory(prefix="pam_totp-radius-") as folder:
        Path(folder).chmod(0o755)
        made = None
        try:
            made = FreeRadius(fleet, Path(folder), name, *groups)
            made.start()
            yield made
        finally:
            if made is not None:
                made.stop()
