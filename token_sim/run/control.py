"""The control socket of a running token: a Unix socket, with one JSON document per line in both directions.

Rules:
- Only the token's owner and root receive replies: the mode of the socket is 0600, and `Control` checks the peer's uid.
- The reply to a request is exactly one line, `{"ok": true, …}` or `{"ok": false, "error": …}`.
- The socket is separate from the ports, and no reply contains a seed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

LONGEST = 64 * 1024  # bytes per line
TIMEOUT = 10.0  # maximum seconds until a reply
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)

Request = dict[str, Any]


class NotRunning(Exception):
    """The error if no process answers on the socket."""


def socket_path(token: str) -> str:
    """Return the path of the control socket of the token in file `token`."""
    return f"{token}.control"


class Control:
    """The server of the socket, without a thread: the caller waits for `descriptors`, then calls `serve`."""

    def __init__(self, path: str) -> None:
        """Listen on `path`, and replace the socket of a crashed process. The caller must hold the token's lock."""
        self._path = path
        self._clients: dict[socket.socket, bytearray] = {}
        self._is_accepting = True  # False after a failed `accept`, for example if all descriptors are in use
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener = socket.socket(socket.AF_UNIX)
        mask = os.umask(0o177)
        try:
            self._listener.bind(path)
        except OSError as error:
            raise OSError(error.errno, str(error), path) from error
        finally:
            os.umask(mask)
        self._listener.listen()
        self._listener.setblocking(False)

    def close(self) -> None:
        for client in list(self._clients):
            self._drop(client)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def descriptors(self) -> list[int]:
        """Return the sockets to wait for. Omit the listener after a failed `accept`: `poll` would report it again."""
        listener = [self._listener.fileno()] if self._is_accepting else []
        return [*listener, *(client.fileno() for client in self._clients)]

    def serve(self, answer: Callable[[Request], Request]) -> None:
        """Answer every complete request. `answer` raises ValueError for an invalid request."""
        self._accept()
        for client, buffer in list(self._clients.items()):
            try:
                data = client.recv(LONGEST)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            buffer.extend(data)
            if not data and buffer:
                buffer.extend(b"\n")  # the end of the input also ends a line
            *lines, rest = buffer.split(b"\n")
            buffer[:] = rest
            try:
                for line in lines:
                    client.sendall(json.dumps(_answered(bytes(line), answer)).encode() + b"\n")
            except OSError:
                data = b""
            if not data or len(buffer) > LONGEST:
                self._drop(client)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
            self._is_accepting = True
        except OSError as error:  # the queue of clients is empty, or all descriptors are in use
            self._is_accepting = isinstance(error, BlockingIOError)
            return
        with contextlib.suppress(OSError):  # the client has disconnected
            packed = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            if _CREDENTIALS.unpack(packed)[1] not in (0, os.geteuid()):
                client.close()
                return
            client.setblocking(False)
            self._clients[client] = bytearray()

    def _drop(self, client: socket.socket) -> None:
        client.close()
        self._clients.pop(client, None)


def _answered(line: bytes, answer: Callable[[Request], Request]) -> Request:
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError("a request must be a JSON object")
        return {"ok": True, **answer(request)}
    except ValueError as error:  # BadRequest, or an error of JSON or UTF-8
        return {"ok": False, "error": str(error)}


def ask(path: str, request: Request) -> Request:
    """Send a request to socket `path`, and return the reply.

    Raise NotRunning, OSError, or ValueError with the token's error message.
    """
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(TIMEOUT)
        try:
            channel.connect(path)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunning(path) from error
        try:
            channel.sendall(json.dumps(request).encode() + b"\n")
            with channel.makefile("rb") as stream:
                line = stream.readline()
        except ConnectionError:
            line = b""
    if not line:
        raise NotRunning(path)
    reply: Request = json.loads(line)
    if not reply.pop("ok"):
        raise ValueError(reply["error"])
    return reply
