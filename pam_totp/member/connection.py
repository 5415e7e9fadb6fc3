"""One HTTPS connection to an authority, with a deadline for every wait.

Rules:
1. Every wait ends at the deadline of the question: the connection, the handshake, the request, and the whole reply. A
   server that sends one byte at a time therefore cannot extend a wait.
2. A reply has at most MAX_REPLY bytes. A longer reply is an error.
3. A connection that has failed, or whose state is unknown, is closed and not used again. TCP drops unsent data:
   otherwise an abandoned question could use up a code when the network works again.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pam_totp.member.errors import Failed
from pam_totp.member.wire import MAX_BODY, split_address

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_REPLY = MAX_BODY + 16_384  # bytes, with the head
_DROP_UNSENT = struct.pack("ii", 1, 0)  # SO_LINGER of socket(7): on, for 0 seconds
# TCP closes a silent connection after two minutes, so that no question waits for an unreachable host.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


class Closed(Failed):
    """The error for a connection that the authority closed before the first byte of a reply."""


class Connection:
    """A connection to `authority`, which is HOST:PORT."""

    def __init__(self, authority: str, context: ssl.SSLContext, deadline: float) -> None:
        """Connect until `deadline` (monotonic seconds). Raise OSError or Failed."""
        self.context = context
        self.sock = _connect(authority, context, deadline)
        self.is_usable = True
        self.last_used = time.monotonic()
        self.date: str | None = None  # the field Date of the last reply: the clock of the authority
        self._http = http.client.HTTPConnection(authority)

    def ask(self, method: str, path: str, body: bytes | None, deadline: float) -> tuple[int, bytes]:
        """Return the status and the body of the reply. Raise OSError, Closed, or another Failed."""
        self.is_usable = False
        link = _Link(self.sock, deadline)
        self._http.sock = link
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            self._http.request(method, path, body, headers)
            reply = self._http.getresponse()
            content = reply.read()
        except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):  # also RemoteDisconnected of http.client
            self._raise_alert()
            raise (Failed if link.reader.has_received else Closed)("connection closed") from None
        except (http.client.HTTPException, ValueError, OverflowError, MemoryError):  # other errors: impossible lengths
            raise Failed("the reply must be valid HTTP") from None
        self.is_usable = not reply.will_close
        self.date = reply.headers.get("Date")
        self.last_used = time.monotonic()
        return reply.status, content

    def _raise_alert(self) -> None:
        """Raise the alert that preceded the end of the connection, if an alert arrived.

        An authority verifies the certificate of this host after the handshake (RFC 8446, 4.6.2 and E.1.2). The request
        fails before the alert is read if the authority closes the connection before it has read the request.
        """
        try:
            self.sock.settimeout(0)
            self.sock.recv(1)
        except (ssl.SSLWantReadError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            pass
        except ssl.SSLError:
            raise
        except OSError:
            pass

    @property
    def is_open(self) -> bool:
        """Return True if the connection is open, and the server has sent nothing since the last reply."""
        try:
            self.sock.settimeout(0)
            self.sock.recv(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        with suppress(OSError):
            if not self.is_usable:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP_UNSENT)
            self.sock.close()


class _Reader(io.RawIOBase):
    """The bytes of one reply."""

    def __init__(self, sock: ssl.SSLSocket, deadline: float) -> None:
        super().__init__()
        self._sock, self._deadline = sock, deadline
        self._left = MAX_REPLY
        self.has_received = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left <= 0:
            raise Failed(f"the reply must be at most {MAX_REPLY} bytes")
        self._sock.settimeout(_seconds_until(self._deadline))
        size = self._sock.recv_into(memoryview(buffer)[: self._left])
        self._left -= size
        self.has_received |= size > 0
        return size


class _Link:
    """The socket of one request and its reply, with the methods that http.client uses."""

    def __init__(self, sock: ssl.SSLSocket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline
        self.reader = _Reader(sock, deadline)

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(_seconds_until(self._deadline))
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self.reader)

    def close(self) -> None:
        """Do nothing: the connection decides whether its socket is used again."""


def _connect(authority: str, context: ssl.SSLContext, deadline: float) -> ssl.SSLSocket:
    host, port = split_address(authority)
    problem: OSError = socket.gaierror(socket.EAI_NONAME, "host name not found")
    places = names.addresses(host, port, deadline)
    for number, (family, place) in enumerate(places):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(_seconds_until(deadline) / (len(places) - number))
            sock.connect(place)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
            sock.settimeout(_seconds_until(deadline))  # OpenSSL's whole handshake has this limit
            return context.wrap_socket(sock, server_hostname=host)
        except ssl.SSLError:
            sock.close()
            raise
        except OSError as e:
            sock.close()
            problem = e
    raise problem


def _seconds_until(deadline: float) -> float:
    """Return the seconds until `deadline` (monotonic). Raise TimeoutError if `deadline` has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


Place = tuple[socket.AddressFamily, tuple[Any, ...]]  # family and address of a server


class Names:
    """Addresses of host names. A lookup in the C library has no time limit, so it runs in a thread.

    One lookup of a name runs at a time. The last known addresses are used if a lookup fails or still runs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[tuple[str, int], threading.Event] = {}
        self._known: dict[tuple[str, int], list[Place]] = {}

    def addresses(self, host: str, port: int, deadline: float) -> list[Place]:
        """Return the addresses of `host`. Wait for at most half of the time until `deadline` (monotonic seconds).

        Raise OSError or TimeoutError.
        """
        with suppress(socket.gaierror):
            return list(_look_up(host, port, socket.AI_NUMERICHOST))
        key = host, port
        with self._lock:
            done = self._running.get(key)
            if done is None:
                done = self._running[key] = threading.Event()
                threading.Thread(target=self._look_up, args=(key, done), daemon=True).start()
        is_done = done.wait(_seconds_until(deadline) / 2)
        with self._lock:
            known = self._known.get(key)
        if not known:
            raise socket.gaierror(socket.EAI_NONAME, "host name not found") if is_done else TimeoutError
        return known

    def _look_up(self, key: tuple[str, int], done: threading.Event) -> None:
        found: list[Place] = []
        try:
            with suppress(OSError, UnicodeError):
                found = list(_look_up(*key))
        finally:
            with self._lock:
                if found:
                    self._known[key] = found
                del self._running[key]
            done.set()


def _look_up(host: str, port: int, flags: int = 0) -> Iterator[Place]:
    for family, _, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags):
        yield family, place


names = Names()  # of this process: a child process has no thread of its parent, so it replaces this value
