"""The PAM handle `pamh`, over a channel to the relay.

Rules:
1. A packet is one message of at most 4096 bytes. Its first byte is the type.
2. Every prompt gets exactly one answer.
3. Any message outside the protocol raises ProtocolError, which denies.
4. Every wait has a limit.
"""

from __future__ import annotations

import socket
import struct
from typing import ClassVar

from pam_totp.core.answer import MAX_ANSWER
from pam_totp.core.fields import Value

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
PAM_PROMPT_ECHO_OFF = 1
PAM_PROMPT_ECHO_ON = 2
PAM_ERROR_MSG = 3
PAM_TEXT_INFO = 4

# Seconds and microseconds for SO_RCVTIMEO (socket(7)). A 32-bit system with 64-bit times requires these 16 bytes. A
# system that reads only 8 of them gets the whole seconds.
_TIMEVAL = struct.Struct("qq")
_TYPES = {PAM_PROMPT_ECHO_OFF: b"p", PAM_PROMPT_ECHO_ON: b"P", PAM_ERROR_MSG: b"e", PAM_TEXT_INFO: b"i"}


class ProtocolError(Exception):
    """The relay broke the protocol or a time limit."""


class ConversationError(Exception):
    """The application cannot prompt the user, or the user gave no answer."""


def _timeval(seconds: float) -> bytes:
    return _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1_000_000))


class Channel:
    """Messages over a connected SOCK_SEQPACKET socket. It is blocking, and the kernel enforces the time limits."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def send(self, kind: bytes, body: bytes = b"") -> None:
        """Send a message. Raise ProtocolError if the relay has exited or does not read its messages."""
        try:
            self._socket.send(kind + body, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError as e:
            raise ProtocolError(f"cannot send to the relay: {e}") from e

    def receive(self, wait: float) -> tuple[bytes, bytes]:
        """Return the next message's type and body. Raise ProtocolError after `wait` seconds."""
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(wait))
            packet = self._socket.recv(MAX_PACKET + 1)
        except BlockingIOError as e:
            raise ProtocolError(f"no message from the relay within {wait:g} s") from e
        except OSError as e:
            raise ProtocolError(f"cannot receive from the relay: {e}") from e
        if not packet:
            raise ProtocolError("the relay closed the channel")
        if len(packet) > MAX_PACKET:
            raise ProtocolError(f"the message of the relay must be at most {MAX_PACKET} bytes")
        return packet[:1], packet[1:]


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
        """Return the hello with other module arguments."""
        return self._replace(arguments=arguments)

    def without_origin(self) -> Hello:
        """Return the hello without remote host, remote user and terminal."""
        return self._replace(rhost=None, ruser=None, tty=None)

    ITEMS: ClassVar[tuple[str, ...]] = ("version", "service", "user", "rhost", "ruser", "tty", "flags")


def parse_hello(kind: bytes, body: bytes) -> Hello:
    """Return the hello in an `H` message. Raise ProtocolError if it is malformed. The caller checks the version."""
    if kind != b"H":
        raise ProtocolError("the first message must be a hello")
    items: dict[str, str] = {}
    arguments: list[str] = []
    for field in body.decode("utf-8", "surrogateescape").split("\0"):
        key, equals, value = field.partition("=")
        if key == "arg" and equals:
            arguments.append(value)
        elif key in Hello.ITEMS and key not in items and equals:
            items[key] = value
        else:
            raise ProtocolError("malformed hello: unknown or repeated field")
    flags = items.pop("flags", "0")
    if not (flags.isascii() and flags.isdigit() and len(flags) <= 10):
        raise ProtocolError("malformed hello: flags must be a number of at most 10 digits")
    if not {"version", "service", "user"} <= items.keys():
        raise ProtocolError("malformed hello: version, service or user is missing")
    given: dict[str, str | None] = {**items}
    return Hello(**given, flags=int(flags), arguments=tuple(arguments))  # type: ignore[arg-type]


class _Message:
    """A text to show to the user, or a prompt."""

    def __init__(self, msg_style: int, msg: str) -> None:
        self.msg_style = msg_style
        self.msg = msg


class _Response:
    """The user's answer; None if the message was not a prompt."""

    def __init__(self, resp: bytes | None) -> None:
        self.resp = resp

    def __repr__(self) -> str:
        return "<response>"


class PamHandle:
    """The `pamh` of one login. Answers and authtok are bytes, because an answer need not be text.

    Other PAM modules in Python get text.
    """

    Message = _Message
    Response = _Response

    def __init__(self, channel: Channel, hello: Hello) -> None:
        self._channel = channel
        self.service = hello.service
        self.user = hello.user
        self.rhost = hello.rhost
        self.ruser = hello.ruser
        self.tty = hello.tty

    def get_user(self, prompt: str | None = None) -> str:
        """Return the user's name. The relay has prompted for it if necessary."""
        return self.user

    @property
    def authtok(self) -> bytes | None:
        """The answer that an earlier module stored (PAM_AUTHTOK), or None. The user is not prompted."""
        self._channel.send(b"g")
        try:
            return self._answer(TURN_WAIT)
        except ConversationError:
            return None

    @authtok.setter
    def authtok(self, value: bytes) -> None:
        self._channel.send(b"s", value)

    def conversation(self, message: _Message) -> _Response:
        """Show `message`; for a prompt, wait for the answer. Raise ConversationError if there is none."""
        text = message.msg.encode("utf-8", "replace").replace(b"\0", b"")[: MAX_PACKET - 1]
        self._channel.send(_TYPES[message.msg_style], text)
        if message.msg_style in (PAM_PROMPT_ECHO_OFF, PAM_PROMPT_ECHO_ON):
            return _Response(self._answer(PERSON_WAIT))
        return _Response(None)

    def _answer(self, wait: float) -> bytes:
        kind, body = self._channel.receive(wait)
        if kind == b"N" and not body:
            raise ConversationError("no answer")
        if kind != b"A" or len(body) > MAX_ANSWER or b"\0" in body:
            raise ProtocolError("expected an answer from the relay")
        return body
