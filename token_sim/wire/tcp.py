"""A line over TCP: bare, for `socket://`, or with the telnet of RFC 2217, for `rfc2217://`.

The law:
- it listens on loopback, and nowhere else;
- one client at a time; a second is told `ERR 8 IN-USE` and let go;
- whatever a client sends, at worst it loses its own connection.
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

LINGER_S = 1.0  # for a refused client to speak or go
MAX_REFUSED = 8  # clients that were told, and have not gone yet


class Tcp:
    """A listening port (0: any free one), kept over unplugging. With a device in `modem`, RFC 2217."""

    def __init__(self, port: int = 0, modem: Device | None = None) -> None:
        self._port, self._modem = port, modem
        self._telnet: Telnet | None = None
        self._listener: socket.socket | None = None
        self._client: socket.socket | None = None
        self._refused_clients: list[tuple[socket.socket, float]] = []
        self._is_client_new = False
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
        return [s.fileno() for s in (self._listener, self._client) if s is not None]

    def take_new_client(self) -> bool:
        self._accept()
        is_new, self._is_client_new = self._is_client_new, False
        return is_new

    def read(self) -> bytes:
        if self._client is None:
            return b""
        try:
            data = self._client.recv(4096)
            if not data:
                self._drop()
            return self._telnet.decode(data) if self._telnet is not None else data
        except BlockingIOError:
            return b""
        except (OSError, NotTelnet):
            self._drop()
            return b""

    def write(self, data: bytes) -> int:
        if self._client is None:
            return len(data)
        try:
            if self._telnet is None:
                return self._client.send(data)
            pending = self._telnet.encode(data)
            del pending[: self._client.send(pending)]
            return len(data)  # what is left is in the telnet's own buffer
        except BlockingIOError:
            return 0 if self._telnet is None else len(data)
        except OSError:
            self._drop()
            return len(data)

    def _accept(self) -> None:
        self._close_refused()
        if self._listener is None:
            return
        with contextlib.suppress(BlockingIOError):
            client, _ = self._listener.accept()
            client.setblocking(False)
            if self._client is not None:
                self._refuse(client)
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._client, self._is_client_new = client, True
            self._telnet = None if self._modem is None else Telnet(self._modem)

    def _refuse(self, client: socket.socket) -> None:
        """Say why. It is said again when the client speaks, as pyserial drops what came while it was opening."""
        with contextlib.suppress(OSError):
            client.send(IN_USE)
        self._refused_clients.append((client, time.monotonic() + LINGER_S))
        if len(self._refused_clients) > MAX_REFUSED:
            self._refused_clients.pop(0)[0].close()

    def _close_refused(self) -> None:
        for refused in list(self._refused_clients):
            client, until = refused
            try:
                if client.recv(4096):
                    client.send(IN_USE)
                    client.shutdown(socket.SHUT_WR)  # not closed: unread bytes would take the answer back
                    continue
            except BlockingIOError:
                if time.monotonic() < until:
                    continue
            except OSError:
                pass  # it went by itself
            client.close()
            self._refused_clients.remove(refused)

    def _drop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
            self._telnet = None


def need_rfc2217() -> None:
    """Raise ImportError without pyserial: better when the port is made than when a client comes."""
    import serial.rfc2217  # noqa: F401


class NotTelnet(Exception):
    """What came is no telnet that RFC 2217 allows."""


class Telnet:
    """The server's half of RFC 2217: pyserial's PortManager, which talks of a serial port's settings and lines."""

    LONGEST = 64 * 1024  # bytes not yet taken by a client that does not read

    def __init__(self, device: Device) -> None:
        from serial.rfc2217 import PortManager  # an extra, and slow to load

        self._out = bytearray()
        # typed for serial.Serial on both sides; it asks for no more than Modem and `write` have
        self._manager = PortManager(cast(Any, Modem(device)), cast(Any, self))

    def write(self, data: bytes) -> None:
        """What the manager itself sends."""
        self._out += data

    def decode(self, data: bytes) -> bytes:
        try:
            return b"".join(self._manager.filter(data))
        except Exception as error:  # it raises TypeError, KeyError, struct.error, … for malformed options
            raise NotTelnet from error

    def encode(self, data: bytes) -> bytearray:
        """Add `data` to what goes out, and return all of it."""
        self._manager.check_modem_lines()
        self._out += b"".join(self._manager.escape(data))
        if len(self._out) > self.LONGEST:
            raise BrokenPipeError("the client does not read")
        return self._out


class Modem:
    """The settings that a client may make, which change nothing here, and the lines that the device drives."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.baudrate, self.bytesize, self.parity, self.stopbits = 9600, 8, "N", 1
        self.xonxoff = self.rtscts = self.break_condition = False
        self.dtr = self.rts = True

    cts = True

    @property
    def dsr(self) -> bool:
        """The token has power."""
        return self._device.state is not State.DEAD

    @property
    def cd(self) -> bool:
        """Its display is on."""
        return bool(self._device.chip.text)

    @property
    def ri(self) -> bool:
        """A finger is on the button."""
        return self._device.is_button_closed

    def reset_input_buffer(self) -> None: ...

    def reset_output_buffer(self) -> None: ...
