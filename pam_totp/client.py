"""Public: verify a user's code through the service on this host, from an application in Python.

    from pam_totp import client

    if client.verify("alice", "755224", service="web"):
        ...

The account that runs the application must be listed in /etc/pam_totp.toml, with the application's service name:

    [clients]
    www-data = "web"

Rules:
- The application lets a user in only if the outcome is true. It must deny if `verify` raises an exception.
- `verify` sends a code at most once. It may repeat the request only before it sends the code.
- Error reports of web frameworks show the variables of each frame. When this module raises one of its errors, no
  frame of it has a variable that shows the code.
- This module needs only the standard library, and no privilege. Any number of threads may call it at once.
"""

from __future__ import annotations

import enum
import random
import socket
import time
from dataclasses import dataclass, field

from pam_totp.core.answer import MAX_ANSWER
from pam_totp.pam.protocol import (
    MAX_PACKET,
    PAM_AUTH_ERR,
    PAM_AUTHINFO_UNAVAIL,
    PAM_IGNORE,
    PAM_SERVICE_ERR,
    PAM_SUCCESS,
    PROTOCOL_VERSION,
)

__all__ = [
    "DEFAULT_SOCKET",
    "DEFAULT_TIMEOUT",
    "ClientError",
    "Misconfigured",
    "NotAdmitted",
    "OutOfReach",
    "Outcome",
    "Verdict",
    "verify",
]

DEFAULT_SOCKET = "/run/pam_totp/socket"
DEFAULT_TIMEOUT = 15.0  # seconds: the service waits up to 5 for the store's lock, and a busy machine needs more
_RETRY_PAUSE = 0.02  # minimum seconds between two attempts to connect to a service at its limit
_MAX_MESSAGES = 16
_UNEXPECTED = "unexpected reply from the service (restart the service: it may run another version of pam_totp)"


class ClientError(Exception):
    """The code could not be checked, so deny. The message gives the reason and the remedy."""


class OutOfReach(ClientError):
    """The service is not running, did not answer in time, or cannot use its store."""


class NotAdmitted(ClientError):
    """The service does not let this account ask for that user: see `[clients]` in /etc/pam_totp.toml."""


class Misconfigured(ClientError):
    """The service rejects its own configuration. The service's log gives the reason."""


class Verdict(enum.Enum):
    """The service's decision about an answer. ACCEPTED is true; the other verdicts are false."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    NOT_ENROLLED = "not-enrolled"  # only with `nullok` in the site's policy; otherwise the verdict is REFUSED

    def __bool__(self) -> bool:
        return self is Verdict.ACCEPTED


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of `verify`: a verdict, and messages for the user. It is true only if the code was accepted.

    `messages` are in the order in which the service sent them. They state the answers refused since the last success,
    the remaining recovery codes, or the next step.
    """

    verdict: Verdict
    messages: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """True if the code was accepted."""
        return bool(self.verdict)

    def __bool__(self) -> bool:
        return self.accepted


@dataclass(frozen=True, slots=True)
class _Packet:
    """A packet to the service. Its repr is hidden, because it may have the code."""

    data: bytes = field(repr=False)


_NO_ANSWER = _Packet(b"N")
_REFUSED = Outcome(Verdict.REFUSED)
_VERDICTS = {
    PAM_SUCCESS: Verdict.ACCEPTED,
    PAM_AUTH_ERR: Verdict.REFUSED,
    PAM_IGNORE: Verdict.NOT_ENROLLED,
}


def verify(
    user: str,
    code: str | bytes,
    *,
    service: str,
    rhost: str | None = None,
    path: str = DEFAULT_SOCKET,
    timeout: float = DEFAULT_TIMEOUT,
) -> Outcome:
    """Check `code` for `user` and use it up. `code` is one code, two or three in a row, or a recovery code.

    `service` is the name under which /etc/pam_totp.toml lists this account. `rhost` is the user's address, for the
    log; the service ignores it unless the account is listed. `path` is the service's socket. `timeout` is in seconds,
    for the whole call. A name or code that a packet cannot hold is refused at once.
    Raise OutOfReach, NotAdmitted or Misconfigured, or ValueError if `service` is empty or contains NUL.
    """
    answer = _answer(code)
    del code  # see the rules
    if not service or "\0" in service:
        raise ValueError("service must have at least one character, and no NUL")
    hello = _hello(user, service, rhost)
    if hello is None or answer is None:
        return _REFUSED
    deadline = time.monotonic() + timeout
    while True:
        with _connect(path, deadline) as channel:
            dialogue = _Dialogue(channel, deadline)
            try:
                return dialogue.run(hello, answer)
            except _ConnectionClosed:
                if dialogue.answered:
                    reason = "the service closed the connection before the result; the code may be used up"
                    raise OutOfReach(f"{path}: {reason}") from None
        # A service at its limit closes the connection before its prompt. Retry, because the code was not sent.
        if time.monotonic() + 2 * _RETRY_PAUSE > deadline:
            raise OutOfReach(
                f"{path}: the service closed every connection, as it does at its limit (see its log)"
            ) from None
        time.sleep(random.uniform(_RETRY_PAUSE, 2 * _RETRY_PAUSE))


class _ConnectionClosed(Exception):
    """The service closed the connection."""


class _Dialogue:
    """One login over one connection. `answered` is True if the code was sent."""

    def __init__(self, channel: socket.socket, deadline: float) -> None:
        self._channel = channel
        self._deadline = deadline
        self.answered = False

    def run(self, hello: _Packet, answer: _Packet) -> Outcome:
        self._send(hello)
        messages: list[str] = []
        while True:
            packet = self._receive()
            kind, body = packet[:1], packet[1:]
            if kind in (b"p", b"P"):
                self._send(_NO_ANSWER if self.answered else answer)
                self.answered = True
            elif kind == b"g":
                self._send(_NO_ANSWER)
            elif packet == b"f":
                raise OutOfReach("the service is full: root's programs have too many logins at once (see its log)")
            elif kind in (b"i", b"e") and len(messages) < _MAX_MESSAGES:
                messages.append(body.decode("utf-8", "replace"))
            elif kind == b"r":
                return self._outcome(body, tuple(messages))
            else:
                raise OutOfReach(_UNEXPECTED)

    def _outcome(self, body: bytes, messages: tuple[str, ...]) -> Outcome:
        result = int(body) if body.isdigit() and len(body) <= 3 and body == b"%d" % int(body) else None
        if result == PAM_SERVICE_ERR:
            raise Misconfigured("the service rejects its configuration (see its log, or run 'pam-totp policy')")
        if result == PAM_AUTHINFO_UNAVAIL:
            raise OutOfReach("the service cannot use its store (see its log)")
        if result == PAM_AUTH_ERR and not self.answered:
            raise NotAdmitted("this account may not ask for that user (list it under [clients] in /etc/pam_totp.toml)")
        verdict = None if result is None else _VERDICTS.get(result)
        if verdict is None or (verdict is Verdict.ACCEPTED and not self.answered):
            raise OutOfReach(_UNEXPECTED)
        return Outcome(verdict, messages)

    def _send(self, packet: _Packet) -> None:
        try:
            self._channel.settimeout(_remaining(self._deadline))
            self._channel.send(packet.data, socket.MSG_NOSIGNAL)
        except TimeoutError:
            raise OutOfReach("the service did not read the request in time (see its log)") from None
        except OSError:
            raise _ConnectionClosed from None

    def _receive(self) -> bytes:
        try:
            self._channel.settimeout(_remaining(self._deadline))
            packet = self._channel.recv(MAX_PACKET + 1)
        except TimeoutError:
            consequence = "; the code may be used up" if self.answered else ""
            raise OutOfReach(f"the service did not answer in time{consequence} (see its log)") from None
        except OSError:
            raise _ConnectionClosed from None
        if not packet:
            raise _ConnectionClosed
        return packet


def _connect(path: str, deadline: float) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        channel.settimeout(_remaining(deadline))
        channel.connect(path)
    except OSError as e:
        channel.close()
        hint = " (start 'pam-totp serve')" if isinstance(e, FileNotFoundError | ConnectionRefusedError) else ""
        raise OutOfReach(f"{path}: {(e.strerror or str(e)).lower()}{hint}") from None
    return channel


def _remaining(deadline: float) -> float:
    """Return the seconds to the deadline, at least 1 ms: a timeout of 0 would make the socket non-blocking."""
    return max(deadline - time.monotonic(), 0.001)


def _answer(code: str | bytes) -> _Packet | None:
    """Return the packet with the code, or None if no token can have such a code."""
    try:
        answer = code.encode("utf-8", "surrogateescape") if isinstance(code, str) else code
    except UnicodeEncodeError:
        return None
    return None if len(answer) > MAX_ANSWER or b"\0" in answer else _Packet(b"A" + answer)


def _hello(user: str, service: str, rhost: str | None) -> _Packet | None:
    """Return the first packet, or None if the user name is empty, a field cannot be sent, or the packet is too long.

    `grace_period=0` makes the service check this code, even in the user's grace period.
    """
    fields = [f"version={PROTOCOL_VERSION}", f"service={service}", f"user={user}", "flags=0", "arg=grace_period=0"]
    if rhost:
        fields.append(f"rhost={rhost}")
    if not user or any("\0" in field for field in fields):
        return None
    try:
        packet = b"H" + "\0".join(fields).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None
    return _Packet(packet) if len(packet) <= MAX_PACKET else None
