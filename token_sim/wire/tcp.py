"""A port over TCP: raw bytes for `socket://`, or telnet with RFC 2217 for `rfc2217://`.

Rules:
- The port listens on loopback only.
- The port has one client at a time. A second client receives `ERR 8 IN-USE`, and its connection is closed.
- A client that ends its input (a half close) still receives the output of its requests, until a new client connects.
- Invalid telnet closes only the connection of the client that sent it.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import Any, cast

from token_sim.device.states import State
from token_sim.device.token import Device
from token_sim.wire.protocol import EOL, ERRORS

LOOPBACK = "127.0.0.1"
IN_USE = f"ERR {ERRORS['IN-USE']} IN-USE".encode() + EOL

LINGER_S = 1.0  # maximum seconds until a refused client is disconnected
MAX_REFUSED = 8  # open connections of refused clients


class Tcp:
    """A port on TCP port `port` (0: any free port), with RFC 2217 if `modem` is given. `plug` opens the same port."""

    def __init__(self, port: int = 0, modem: Device | None = None) -> None:
        self._port, self._modem = port, modem
        self._telnet: Telnet | None = None
        self._listener: socket.socket | None = None
        self._client: socket.socket | None = None
        self._refused_clients: list[tuple[socket.socket, float]] = []
        self._is_client_new = False
        self._has_ended = False  # the client has ended its input
        self._is_accepting = True  # False after a failed `accept`, for example if all descriptors are in use
        self.plug()

    def url(self) -> str:
        return f"{'socket' if self._modem is None else 'rfc2217'}://{LOOPBACK}:{self._port}"

    def plug(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server((LOOPBACK, self._port))
            self._listener.setblocking(False)
            self._port = self._listener.getsockname()[1]

    def unplug(self) -> None:
        self._drop()
        while self._refused_clients:
            self._refused_clients.pop()[0].close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    close = unplug

    def descriptors(self) -> list[int]:
        """Return the sockets to wait for. Omit sockets that `poll` would report again without delay."""
        listener = self._listener if self._is_accepting else None
        client = None if self._has_ended else self._client
        return [s.fileno() for s in (listener, client) if s is not None]

    def take_new_client(self) -> bool:
        self._accept()
        is_new, self._is_client_new = self._is_client_new, False
        return is_new

    def read(self) -> bytes:
        if self._client is None or self._has_ended:
            return b""
        try:
            data = self._client.recv(4096)
            self._has_ended = not data
            return self._telnet.decode(data) if self._telnet is not None else data
        except BlockingIOError:
            return b""
        except (OSError, NotTelnet):
            self._drop()
            return b""

    def drop_ended_client(self) -> None:
        if self._has_ended:
            self._drop()

    def write(self, data: bytes) -> int:
        if self._client is None:
            return len(data)
        try:
            if self._telnet is None:
                return self._client.send(data)
            pending = self._telnet.encode(data)
            del pending[: self._client.send(pending)]
            return len(data)  # `Telnet` buffers the remaining bytes
        except BlockingIOError:
            return 0 if self._telnet is None else len(data)
        except OSError:
            self._drop()
            return len(data)

    def _accept(self) -> None:
        self._close_refused()
        if self._listener is None:
            return
        try:
            client, _ = self._listener.accept()
            self._is_accepting = True
        except OSError as error:  # the queue of clients is empty, a client has left, or all descriptors are in use
            self._is_accepting = isinstance(error, BlockingIOError)
            return
        client.setblocking(False)
        if self._is_client_over():
            self._drop()
        if self._client is not None:
            self._refuse(client)
            return
        with contextlib.suppress(OSError):  # the client has disconnected
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client, self._is_client_new = client, True
        self._telnet = None if self._modem is None else Telnet(self._modem)

    def _is_client_over(self) -> bool:
        """Return True if the client has ended its input, even if `read` has not reached the end yet."""
        if self._client is None or self._has_ended:
            return self._has_ended
        try:
            return not self._client.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _refuse(self, client: socket.socket) -> None:
        """Send IN_USE. `_close_refused` sends it again, because pyserial drops input that arrives during `open`."""
        with contextlib.suppress(OSError):
            client.send(IN_USE)
        self._refused_clients.append((client, time.monotonic() + LINGER_S))
        if len(self._refused_clients) > MAX_REFUSED:
            self._refused_clients.pop(0)[0].close()

    def _close_refused(self) -> None:
        """Answer refused clients that send input. Close connections that have ended, or that are older than
        LINGER_S."""
        for refused in list(self._refused_clients):
            client, until = refused
            try:
                if client.recv(4096):
                    client.send(IN_USE)
                    client.shutdown(socket.SHUT_WR)  # close() with unread input would discard the answer
                    continue
            except BlockingIOError:
                if time.monotonic() < until:
                    continue
            except OSError:
                pass  # the client disconnected
            client.close()
            self._refused_clients.remove(refused)

    def _drop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
            self._telnet = None
        self._has_ended = False


def need_rfc2217() -> None:
    """Raise ImportError if pyserial is missing, so that `run` fails at the start instead of at the first client."""
    import serial.rfc2217  # noqa: F401


class NotTelnet(Exception):
    """The error if input violates the telnet protocol (RFC 2217)."""


class Telnet:
    """The server side of RFC 2217: pyserial's PortManager, which negotiates settings and modem lines."""

    LONGEST = 64 * 1024  # bytes of output for a client that does not read

    def __init__(self, device: Device) -> None:
        from serial.rfc2217 import PortManager  # pyserial is optional, and slow to load

        self._out = bytearray()
        # PortManager's type hints require serial.Serial twice, but PortManager uses only Modem's methods and `write`.
        self._manager = PortManager(cast(Any, Modem(device)), cast(Any, self))

    def write(self, data: bytes) -> None:
        """Queue bytes that PortManager sends."""
        self._out += data

    def decode(self, data: bytes) -> bytes:
        """Return the input without telnet commands. Raise NotTelnet for invalid options."""
        try:
            return b"".join(self._manager.filter(data))
        except Exception as error:  # PortManager raises many types of errors for invalid options
            raise NotTelnet from error

    def encode(self, data: bytes) -> bytearray:
        """Add `data` to the output, and return the output buffer."""
        self._manager.check_modem_lines()
        self._out += b"".join(self._manager.escape(data))
        if len(self._out) > self.LONGEST:
            raise BrokenPipeError("the client does not read")
        return self._out


class Modem:
    """The client's settings, which have no effect, and the modem lines of the device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.baudrate, self.bytesize, self.parity, self.stopbits = 9600, 8, "N", 1
        self.xonxoff = self.rtscts = self.break_condition = False
        self.dtr = self.rts = True

    cts = True

    @property
    def dsr(self) -> bool:
        """Return True if the token has power."""
        return self._device.state is not State.DEAD

    @property
    def cd(self) -> bool:
        """Return True if the display is on."""
        return bool(self._device.chip.text)

    @property
    def ri(self) -> bool:
        """Return True if the button is pressed."""
        return self._device.is_button_closed

    def reset_input_buffer(self) -> None: ...

    def reset_output_buffer(self) -> None: ...
