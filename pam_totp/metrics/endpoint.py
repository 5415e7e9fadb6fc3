"""The socket of the metrics: a Unix socket that answers `GET /metrics` over HTTP.

Rules:
1. Separate threads serve the socket, so that no reader delays a login. The endpoint limits the duration, the size and
   the number of simultaneous requests. Requests of other accounts do not count towards the limits of root and of the
   group.
2. The metrics show the reasons of refusals, and thereby that a guess was right, or that a user is enrolled. Only root,
   this process's account and the members of the group `GROUP` may read them.
3. `open` logs an error instead of raising it. An error of this module affects no login.
"""

from __future__ import annotations

import enum
import grp
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from pam_totp.metrics.counters import Metrics
from pam_totp.metrics.exposition import CONTENT_TYPE, text_of

GROUP = "pam_totp-metrics"  # a site may create this group
METRICS = "/metrics"
WITHOUT_REASONS = "/metrics/without-reasons"  # for files that every account can read
MAX_REQUEST = 8192  # bytes
MAX_REPLY = 1 << 20  # bytes
MAX_CLIENTS = 4  # requests at once: of root and of this process's account, of the group, and of all other accounts
BACKLOG = 16
REQUEST_SECONDS = 5.0
_PAUSE = 1.0  # seconds after an error of accept(2), for example if no descriptor is free
_UCRED = struct.Struct("iII")  # pid, uid, gid: unix(7)
_SO_PEERGROUPS = 59  # unix(7); missing in the module `socket`


class _Who(enum.Enum):
    """The account of a client: root or the account of this process, a member of the group, or another account."""

    OWN = enum.auto()
    GROUP = enum.auto()
    OTHER = enum.auto()


class Endpoint:
    """A socket at `path` for the counters of `metrics`, until `close`. `log` gets the text of an error."""

    def __init__(self, path: str, metrics: Metrics, role: str, log: Callable[[str], None]) -> None:
        self._path, self._metrics, self._role, self._log = path, metrics, role, log
        self._free = {who: threading.BoundedSemaphore(MAX_CLIENTS) for who in _Who}
        self._gid: int | None = None  # of the group, as of the last request: a lookup may wait for a name service
        self._listener: socket.socket | None = None
        self._inode: os.stat_result | None = None

    def open(self) -> None:
        """Listen, and start the thread. Log an error instead of raising it."""
        try:
            self._listener = self._bound()
            self._inode = os.lstat(self._path)
            self._gid = _gid_of_group()
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        except (OSError, RuntimeError) as e:
            self._log(f"metrics: {self._path}: {(getattr(e, 'strerror', None) or str(e)).lower()}")

    def close(self) -> None:
        """Unlink the socket, unless another socket has replaced it. The threads end with the process."""
        with suppress(OSError):
            if self._inode is not None and os.path.samestat(os.lstat(self._path), self._inode):
                os.unlink(self._path)

    def _bound(self) -> socket.socket:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                raise OSError("must be a socket")
        temporary = f"{self._path}.new"
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(temporary)
            os.chmod(temporary, 0o666)  # noqa: S103  rule 2 limits the readers
            listener.listen(BACKLOG)
            os.rename(temporary, self._path)
        except OSError:
            listener.close()
            raise
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                time.sleep(_PAUSE)
                continue
            with suppress(Exception):
                self._begin(client)

    def _begin(self, client: socket.socket) -> None:
        """Serve a client in a thread, unless MAX_CLIENTS clients of its kind are being served."""
        is_own = _peer(client)[0] in (0, os.geteuid())
        who = _Who.OWN if is_own else _Who.GROUP if _has_group(client, self._gid) else _Who.OTHER
        if not self._free[who].acquire(blocking=False):
            client.close()
            return
        try:
            threading.Thread(target=self._serve, args=(client, who), daemon=True).start()
        except RuntimeError:  # the limit of threads is reached
            self._free[who].release()
            client.close()

    def _serve(self, client: socket.socket, who: _Who) -> None:
        try:
            with suppress(Exception), client:
                end = time.monotonic() + REQUEST_SECONDS
                request = _request(client, end)
                reply = self._reply(request, may_read=who is _Who.OWN or self._is_in_group(client))
                client.settimeout(max(end - time.monotonic(), 0.001))
                client.sendall(reply)
        finally:
            self._free[who].release()

    def _is_in_group(self, client: socket.socket) -> bool:
        self._gid = _gid_of_group()
        return _has_group(client, self._gid)

    def _reply(self, request: str, *, may_read: bool) -> bytes:
        if not may_read:
            who = f"root, the account of the service, or a member of {GROUP}"
            return _response(403, f"permission denied: must be {who}\n")
        words = request.split()
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _response(400, "the request must be HTTP/1.0 or HTTP/1.1\n")
        method, path = words[0], words[1].partition("?")[0]
        if method != "GET":
            return _response(405, "only GET is allowed\n")
        if path not in (METRICS, WITHOUT_REASONS):
            return _response(404, f"the metrics are at {METRICS}\n")
        return _response(200, text_of(self._metrics.collect(self._role, reasons=path == METRICS)))


_STATUS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed"}


def _response(status: int, text: str) -> bytes:
    body = text.encode()
    allow = "Allow: GET\r\n" if status == 405 else ""
    head = f"HTTP/1.1 {status} {_STATUS[status]}\r\nContent-Type: {CONTENT_TYPE}\r\n{allow}"
    return f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def _request(client: socket.socket, end: float) -> str:
    """Return the first line of a request with a complete header.

    Return an empty string for a request that is too long, or incomplete at `end` (monotonic seconds).
    """
    received = b""
    while b"\r\n\r\n" not in received and b"\n\n" not in received:
        left = end - time.monotonic()
        if left <= 0 or len(received) > MAX_REQUEST:
            return ""
        client.settimeout(left)
        try:
            part = client.recv(MAX_REQUEST)
        except TimeoutError:
            return ""
        if not part:
            return ""
        received += part
    return received.partition(b"\n")[0].decode("ascii", "replace").rstrip("\r")


def _peer(client: socket.socket) -> tuple[int, int]:
    """Return the effective uid and gid of the peer at the time of its connection."""
    _, uid, gid = _UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid, gid


def _gid_of_group() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


def _has_group(client: socket.socket, gid: int | None) -> bool:
    return gid is not None and (gid == _peer(client)[1] or gid in _groups(client))


def _groups(client: socket.socket) -> tuple[int, ...]:
    """Return the supplementary groups of the peer at the time of its connection."""
    try:
        packed = client.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:  # a peer in more than 256 groups gets no metrics
        return ()
    return struct.unpack(f"{len(packed) // 4}I", packed)


def fetch(path: str, *, reasons: bool) -> str:
    """Return the metrics of the service at `path`, with the reasons of refusals if `reasons` is True. Raise OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        end = time.monotonic() + REQUEST_SECONDS
        client.settimeout(REQUEST_SECONDS)
        client.connect(path)
        client.sendall(f"GET {METRICS if reasons else WITHOUT_REASONS} HTTP/1.0\r\n\r\n".encode())
        received = b""
        while len(received) <= MAX_REPLY:
            client.settimeout(max(end - time.monotonic(), 0.001))
            part = client.recv(65_536)
            if not part:
                break
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].split()
    if len(received) > MAX_REPLY or status[1:2] != [b"200"]:
        raise OSError(
            f"{path}: no metrics (status {status[1].decode('ascii', 'replace') if status[1:] else 'missing'})"
        )
    return body.decode("utf-8", "replace")
