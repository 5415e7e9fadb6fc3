"""The messages between the relay and the service or helper (the list is at the top of `relay.c`).

Rules:
1. A packet is one message of at most 4096 bytes. The first byte of a packet is the type.
2. Every prompt gets exactly one answer.
3. Any message outside the protocol raises ProtocolError, which denies the login.
4. A received packet is in a buffer that can be wiped.
"""

from __future__ import annotations

from _socket import MSG_DONTWAIT, MSG_NOSIGNAL  # imported instead of `socket`, which loads enum and selectors

from pam_totp.core.answer import MAX_ANSWER, wipe
from pam_totp.core.fields import Value
from pam_totp.core.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from _socket import socket
    from typing import ClassVar

MAX_PACKET = 4096  # bytes
HELLO_WAIT = 2.0  # seconds
TURN_WAIT = 10.0  # seconds: for the relay's own replies
PERSON_WAIT = 300.0  # seconds

PROTOCOL_VERSION = "1"

# Linux-PAM, _pam_types.h
PAM_SUCCESS = 0
PAM_SERVICE_ERR = 3
PAM_AUTH_ERR = 7
PAM_AUTHINFO_UNAVAIL = 9
PAM_CONV_ERR = 19
PAM_IGNORE = 25
PAM_SILENT = 0x8000


class ProtocolError(Exception):
    """The error for a relay that broke the protocol or a time limit."""


class Gone(ProtocolError):
    """The error for a relay that closed the channel, or whose process has ended."""


class NoMessage(ProtocolError):
    """The error for a relay that sent no message in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"no message from the relay within {seconds:g} s")


def send(channel: socket, kind: bytes, body: bytes | memoryview = b"") -> None:
    """Send a message of the type `kind`, without a copy of `body`.

    Raise Gone if the relay has exited or does not read.
    """
    try:
        channel.sendmsg((kind, body), (), MSG_NOSIGNAL | MSG_DONTWAIT)
    except OSError as e:
        raise Gone(f"cannot send to the relay: {e}") from e


def receive(channel: socket, buffer: bytearray) -> bytearray | None:
    """Return the packet that has arrived, or None. Raise Gone if the relay has closed the channel.

    Raise another ProtocolError if the read fails, or if the packet is too long.
    `buffer` must be longer than the longest packet. Wipe `buffer` after the read; the caller wipes the packet.
    """
    try:
        size = channel.recv_into(buffer, 0, MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError as e:
        raise ProtocolError(f"cannot receive from the relay: {e}") from e
    packet = buffer[: size if size <= MAX_PACKET else 0]
    wipe(buffer, size)
    if size > MAX_PACKET:
        raise ProtocolError(f"the message of the relay must be at most {MAX_PACKET} bytes")
    if not packet:
        raise Gone("the relay closed the channel")
    return packet


def parse_answer(packet: bytearray) -> bytearray | None:
    """Return the answer in an `A` message, or None for an `N` message. Raise ProtocolError for any other message.

    Wipe the packet.
    """
    try:
        if packet == b"N":
            return None
        if packet[:1] != b"A" or len(packet) > 1 + MAX_ANSWER or 0 in packet:
            raise ProtocolError(f"the relay must send an answer of at most {MAX_ANSWER} bytes without NUL")
        return packet[1:]
    finally:
        wipe(packet)


class Hello(Value):
    """The relay's first message. Absent items are None. `arguments` are the module arguments, in order."""

    version: str
    service: str
    user: str
    rhost: str | None = None
    ruser: str | None = None
    tty: str | None = None
    flags: int = 0
    arguments: tuple[str, ...] = ()

    def with_arguments(self, arguments: tuple[str, ...]) -> Hello:
        """Return the hello with the module arguments `arguments`."""
        return self._replace(arguments=arguments)

    def without_origin(self) -> Hello:
        """Return the hello without remote host, calling user and terminal."""
        return self._replace(rhost=None, ruser=None, tty=None)

    def packet(self) -> bytes:
        """Return the hello as a packet."""
        items = [f"{name}={value}" for name in self.ITEMS if (value := getattr(self, name)) is not None]
        return b"H" + "\0".join([*items, *(f"arg={a}" for a in self.arguments)]).encode("utf-8", "surrogateescape")

    ITEMS: ClassVar[tuple[str, ...]] = ("version", "service", "user", "rhost", "ruser", "tty", "flags")


def parse_hello(packet: bytes | bytearray) -> Hello:
    """Return the hello in an `H` message. Raise ProtocolError for any other message. The caller checks the version."""
    if packet[:1] != b"H":
        raise ProtocolError("the first message must be a hello")
    items: dict[str, str] = {}
    arguments: list[str] = []
    for field in packet[1:].decode("utf-8", "surrogateescape").split("\0"):
        key, equals, value = field.partition("=")
        if key == "arg" and equals:
            arguments.append(value)
        elif key in Hello.ITEMS and key not in items and equals:
            items[key] = value
        else:
            raise ProtocolError("each field of the hello must be a module argument, or a known item that occurs once")
    flags = items.pop("flags", "0")
    if not (flags.isascii() and flags.isdigit() and len(flags) <= 10):
        raise ProtocolError("the flags of the hello must be a number of at most 10 digits")
    if not {"version", "service", "user"} <= items.keys():
        raise ProtocolError("the hello must have version, service and user")
    given: dict[str, str | None] = {**items}
    return Hello(**given, flags=int(flags), arguments=tuple(arguments))  # type: ignore[arg-type]
