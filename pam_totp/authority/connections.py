"""Connections to an authority: TLS, the limits before a member is known, and the time of each request.

Rules:
1. TLS 1.3 only. A certificate must be signed by the fleet's CA. A peer without a certificate may read the CA and join.
2. A peer is unknown until a request shows that its certificate belongs to a member. Connections of unknown peers are
   limited for each network, and together, so that they cannot block members. The connections of a member beyond
   OF_ONE_MEMBER count as those of an unknown peer, so that one member cannot block the others.
3. A handshake has HANDSHAKE seconds. The first request must end within REQUEST seconds of the handshake. A later
   request has REQUEST seconds from its first byte to its end.
4. A peer must wait for each reply before its next request. Otherwise aiohttp 3.8 would keep all requests in memory.
5. The peer of a refused handshake gets the alert, so that both sides know the reason. The log has at most one line a
   second, with a count.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import os
import re
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from hashlib import sha256
from typing import Any

from pam_totp.authority import certificates
from pam_totp.authority.certificates import CertificateError
from pam_totp.core.address import networks, parse
from pam_totp.core.settings import AuthoritySettings

HANDSHAKE = 10.0  # seconds
REQUEST = 10.0  # seconds
# Connections from one IPv4 address or IPv6 link, and from the larger networks of `core.address.networks`. One host may
# have thousands of IPv6 links.
UNKNOWN = (256, 1000, 2000)
ALL_UNKNOWN = 4000
OF_ONE_MEMBER = 512  # connections: each thread of a service that waits for a reply has a connection
CONNECTIONS = 20_000  # in total
_ALL = ""  # stands for all networks in the counts of unknown peers
LINGER = 1.0  # seconds
MAX_LINGERING = 256
SILENCE = 1.0  # seconds between two lines about refused connections
# asyncio keeps a buffer of this size for each connection, by default of 256 KiB, and reads longer messages in parts.
asyncio.sslproto.SSLProtocol.max_size = 32_768

_REQUEST_LINE_END = re.compile(rb" HTTP/\d\.\d\r?\n")  # never in a member's JSON, which is one line

Event = Callable[[str, str, int], None]  # reason, address of the last peer, number since the last event


class Seldom:
    """A log of events that any host can cause: at most one line in SILENCE seconds, with the number of events."""

    def __init__(self, write: Event) -> None:
        self._write = write
        self._count, self._last = 0, ("", "")
        self._timer: asyncio.TimerHandle | None = None

    def note(self, reason: str, peer: str) -> None:
        """Log an event now, or later."""
        self._count, self._last = self._count + 1, (reason, peer)
        if self._timer is None:
            self._flush()

    def _flush(self) -> None:
        self._timer = None
        if self._count:
            count, self._count = self._count, 0
            self._timer = asyncio.get_running_loop().call_later(SILENCE, self._flush)
            self._write(*self._last, count)


class Connections:
    """All connections of a server. `http` returns a new protocol of aiohttp for a connection after its handshake."""

    def __init__(self, tls: ssl.SSLContext, http: Callable[[], Any], refused: Event) -> None:
        self.tls, self.http = tls, http
        self.refused = Seldom(refused)
        self.known: dict[asyncio.BaseTransport, Connection] = {}  # after their handshake
        self._unknown: Counter[str] = Counter()  # connections of unknown peers, by network
        self.of_member: Counter[str | None] = Counter()  # connections of known peers, by the name of the member
        self._handshakes: set[asyncio.Task[None]] = set()
        self._lingering: set[socket.socket] = set()

    async def listen(self, host: str, port: int) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(lambda: _Gate(self), host, port, backlog=1024)

    def close(self) -> None:
        """End all handshakes, and close all connections once their replies are written."""
        for task in list(self._handshakes):
            task.cancel()
        for connection in list(self.known.values()):
            connection.transport.close()

    def admit(self, networks: tuple[str, ...], peer: str) -> bool:
        """Return True if a new connection is within the limits, and count the connection."""
        total = len(self.known) + len(self._handshakes)
        is_full = any(self._unknown[network] >= limit for network, limit in zip(networks, UNKNOWN, strict=False))
        if is_full or self._unknown[_ALL] >= ALL_UNKNOWN or total >= CONNECTIONS:
            self.refused.note("too many connections", peer)
            return False
        self._unknown.update((_ALL, *networks))
        return True

    def forget_unknown(self, networks: tuple[str, ...]) -> None:
        for network in (_ALL, *networks):
            self._unknown[network] -= 1
            if not self._unknown[network]:
                del self._unknown[network]

    def linger(self, descriptor: int, alert: bytes) -> None:
        """Send `alert`, and close the connection when the peer does, or after LINGER seconds."""
        loop, peer = asyncio.get_running_loop(), socket.socket(fileno=descriptor)
        if len(self._lingering) >= MAX_LINGERING:
            peer.close()
            return

        def close() -> None:
            if peer in self._lingering:
                self._lingering.remove(peer)
                loop.remove_reader(peer)
                peer.close()

        def discard() -> None:
            try:
                if peer.recv(4096):
                    return
            except BlockingIOError:
                return
            except OSError:
                pass
            close()

        self._lingering.add(peer)
        loop.add_reader(peer, discard)
        loop.call_later(LINGER, close)
        with suppress(OSError):
            peer.send(alert)
            peer.shutdown(socket.SHUT_WR)

    def shake_hands(self, gate: _Gate) -> None:
        task = asyncio.get_running_loop().create_task(gate.shake_hands())
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)


class _Gate(asyncio.Protocol):
    """A connection before its handshake."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()  # until TLS reads
        self._transport = transport
        name = transport.get_extra_info("peername")
        self.peer = str(name[0]) if name else "unknown"
        address = parse(self.peer)
        self.networks = (self.peer,) if address is None else networks(address)
        if self._connections.admit(self.networks, self.peer):
            self._connections.shake_hands(self)
        else:
            transport.abort()

    def send_alert(self, alert: bytes) -> None:
        """Send an alert on a copy of the socket, which `linger` closes.

        asyncio closes its socket immediately. The kernel would discard the alert if the peer then sent more data.
        """
        with suppress(OSError):
            self._connections.linger(os.dup(self._transport.get_extra_info("socket").fileno()), alert)

    async def shake_hands(self) -> None:
        _gate.set(self)
        loop, connection = asyncio.get_running_loop(), Connection(self._connections, self)
        try:
            transport = await loop.start_tls(
                self._transport, connection, self._connections.tls, server_side=True, ssl_handshake_timeout=HANDSHAKE
            )
        except OSError as e:
            self._connections.refused.note(f"handshake failed: {_reason(e)}", self.peer)
            transport = None
        except BaseException:
            self._end()
            raise
        if transport is None or transport.is_closing():
            self._end()
        else:
            connection.begin(transport)

    def _end(self) -> None:
        self._transport.abort()
        self._connections.forget_unknown(self.networks)


_gate: ContextVar[_Gate | None] = ContextVar("gate", default=None)


class Connection(asyncio.Protocol):
    """A connection after its handshake, in front of the protocol of aiohttp.

    `fingerprint` is the SHA-256 of the peer's certificate, and `name` the name in the certificate. Both are None if the
    peer has no certificate.
    """

    def __init__(self, connections: Connections, gate: _Gate) -> None:
        self._connections, self.networks, self.peer = connections, gate.networks, gate.peer
        self._http: Any = None
        self._early = b""  # received before `begin`, because asyncio delivers data before it reports the handshake
        self._limit: asyncio.TimerHandle | None = None
        self._is_answering = False
        self._is_unknown = True

    def begin(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        tls = transport.get_extra_info("ssl_object")
        der = tls.getpeercert(binary_form=True)
        self.fingerprint = None if der is None else sha256(der).digest()
        certificate = tls.getpeercert() or {}
        names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
        self.name = names[0] if names else None
        self.not_after = int(ssl.cert_time_to_seconds(certificate["notAfter"])) if certificate else 0
        self._http = self._connections.http()
        self._connections.known[transport] = self
        self._http.connection_made(transport)
        self._set_limit()
        if self._early:
            self.data_received(self._early)
            self._early = b""

    def becomes_known(self) -> None:
        """Count this connection as a connection of its member, unless the member has too many connections."""
        of_member = self._connections.of_member
        if self._is_unknown and of_member[self.name] < OF_ONE_MEMBER:
            of_member[self.name] += 1
            self._is_unknown = False
            self._connections.forget_unknown(self.networks)

    def _forget(self) -> None:
        """Stop counting this connection."""
        of_member = self._connections.of_member
        if self._is_unknown:
            self._connections.forget_unknown(self.networks)
        else:
            of_member[self.name] -= 1
            if not of_member[self.name]:
                del of_member[self.name]

    def received(self) -> None:
        """End the time limit, because a whole request was read."""
        self._is_answering = True
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def answered(self) -> None:
        """Wait for the next request, without a limit before its first byte."""
        self._is_answering = False

    def _set_limit(self) -> None:
        if self._limit is None and not self._is_answering:
            self._limit = asyncio.get_running_loop().call_later(REQUEST, self._exceed_limit)

    def _exceed_limit(self) -> None:
        self._connections.refused.note("no whole request in time", self.peer)
        self.transport.abort()

    # ---- asyncio calls these methods

    def data_received(self, data: bytes) -> None:
        if self._http is None:
            self._early += data
        elif self._is_answering or len(_REQUEST_LINE_END.findall(data)) > 1:
            self._connections.refused.note("a request before the reply to another", self.peer)
            self.transport.abort()
        else:
            self._set_limit()
            self._http.data_received(data)

    def eof_received(self) -> None:
        if self._http is not None:
            self._http.eof_received()

    def pause_writing(self) -> None:
        if self._http is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        if self._http is not None:
            self._http.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        if self._http is not None:
            self.received()
            self._forget()
            del self._connections.known[self.transport]
            self._http.connection_lost(error)


def _reason(error: OSError) -> str:
    """Return the reason of a failed handshake, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.lower()
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return (error.strerror or str(error) or "connection lost").lower()


# ---- TLS


class _Object(ssl.SSLObject):
    """TLS of one connection. `do_handshake` sends the alert of a failed handshake, which asyncio would discard."""

    outgoing: ssl.MemoryBIO
    gate: _Gate | None

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError:
            if self.gate is not None:
                self.gate.send_alert(self.outgoing.read())
            raise


class _Context(ssl.SSLContext):
    sslobject_class = _Object

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **options: Any) -> ssl.SSLObject:
        made = super().wrap_bio(incoming, outgoing, *args, **options)
        assert isinstance(made, _Object)
        made.outgoing, made.gate = outgoing, _gate.get()
        return made


def tls_context(settings: AuthoritySettings) -> ssl.SSLContext:
    """Return the TLS context for the connections of an authority. Raise CertificateError."""
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL
    context.num_tickets = 0  # a resumed session would not check the certificate again
    for path in (settings.certificate, settings.key, settings.ca):
        certificates.read(path)  # so that an error names the file
    try:
        context.load_cert_chain(settings.certificate, settings.key)
        context.load_verify_locations(settings.ca)
    except OSError as e:  # also ssl.SSLError
        raise CertificateError(f"{settings.certificate}, its key, or {settings.ca}: {_reason(e)}") from e
    return context
