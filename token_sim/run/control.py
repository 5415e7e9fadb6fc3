"""The owner's channel to a running token: a Unix socket, one JSON document a line each way.

The law:
- only the token's owner, and root, get an answer: the socket is 0600, and the peer's credentials are looked at;
- a request is answered by exactly one line, `{"ok": true, …}` or `{"ok": false, "error": …}`;
- it is never on a device's port, and no answer holds a seed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

LONGEST = 64 * 1024  # bytes a line
TIMEOUT = 10.0  # seconds, for an answer
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)

Request = dict[str, Any]


class NotRunning(Exception):
    """Nobody answers on the socket."""


def socket_path(token: str) -> str:
    """Where the running token in file `token` is reached."""
    return f"{token}.control"


class Control:
    """The server's end, without a thread: `descriptors` to wait for, `serve` to do what came."""

    def __init__(self, path: str) -> None:
        """Listen on `path`; one that was left behind is replaced, so the caller holds the token's lock."""
        self._path = path
        self._clients: dict[socket.socket, bytearray] = {}
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
        return [self._listener.fileno(), *(client.fileno() for client in self._clients)]

    def serve(self, answer: Callable[[Request], Request]) -> None:
        """Answer every request that has come whole. `answer` raises ValueError or its kind for a bad one."""
        self._accept()
        for client, buffer in list(self._clients.items()):
            try:
                data = client.recv(LONGEST)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            buffer.extend(data)
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
        with contextlib.suppress(BlockingIOError):
            client, _ = self._listener.accept()
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
            raise ValueError("a request is a JSON object")
        return {"ok": True, **answer(request)}
    except ValueError as error:  # JSON's and UTF-8's are of its kind, and so is BadRequest
        return {"ok": False, "error": str(error)}


def ask(path: str, request: Request) -> Request:
    """Ask the token at socket `path`. Raises NotRunning, ValueError with the token's complaint, or OSError."""
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
