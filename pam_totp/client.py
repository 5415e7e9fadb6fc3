"""Public: verify a user's code through the service on this host, from an application in Python.

    from pam_totp import client

    if client.verify("alice", "755224", service="web"):
        ...

    if await client.averify("alice", "755224", service="web"):  # the same for asyncio, without blocking
        ...

The account that runs the application must be listed in /etc/pam_totp.toml, with the application's service name:

    [clients]
    www-data = "web"

Rules:
- The application must deny if the outcome is false, or if `verify` raises an exception.
- `verify` sends a code at most once. `verify` may repeat the request only before it sends the code.
- `verify` and `averify` only carry packets: `_Dialogue` decides for both, so that they cannot differ.
- Error reports of web frameworks show the variables of each frame. No frame of this module has a variable that shows
  the code when the module raises one of its errors.
- This module needs only the standard library, and no privilege. Any number of threads and tasks may call its functions
  at once.
"""

from __future__ import annotations

import enum
import random
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

__all__ = [
    "DEFAULT_SOCKET",
    "DEFAULT_TIMEOUT",
    "ClientError",
    "Misconfigured",
    "NotAdmitted",
    "OutOfReach",
    "Outcome",
    "Verdict",
    "averify",
    "verify",
]

DEFAULT_SOCKET = "/run/pam_totp/socket"
DEFAULT_TIMEOUT = 15.0  # seconds: the service waits up to 5 for the store's lock, and a busy machine needs more
_RETRY_PAUSE = 0.02  # minimum seconds between two attempts to connect to a busy service
_MAX_MESSAGES = 16
_UNEXPECTED = "unexpected reply from the service (restart the service: it may run another version of pam_totp)"


class ClientError(Exception):
    """The error for a code that could not be checked. The message gives the reason and the remedy."""


class OutOfReach(ClientError):
    """The error for a service that is stopped, too slow, or unable to use its store."""


class NotAdmitted(ClientError):
    """The error for an account that may not ask about that user: see `[clients]` in /etc/pam_totp.toml."""


class Misconfigured(ClientError):
    """The error for a service that rejects its own configuration. The service's log gives the reason."""


class Verdict(enum.Enum):
    """The service's decision about an answer. ACCEPTED is true; the other verdicts are false."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    NOT_ENROLLED = "not-enrolled"  # only with `nullok` in the site's policy; otherwise the verdict is REFUSED

    def __bool__(self) -> bool:
        return self is Verdict.ACCEPTED


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of `verify`: a verdict, and messages for the user. The outcome is true only if the code was accepted.

    `messages` are in the order in which the service sent them. The messages state the answers refused since the last
    success, the remaining recovery codes, or the next step.
    """

    verdict: Verdict
    messages: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Return True if the code was accepted."""
        return bool(self.verdict)

    def __bool__(self) -> bool:
        return self.accepted


@dataclass(frozen=True, slots=True)
class _Packet:
    """A packet to the service. The repr hides the data, which can contain the code."""

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
    """Check `code` for `user`, use the code up, and return the outcome. `code` is one code, two or three in a row, or a
    recovery code.

    `service` is the name under which /etc/pam_totp.toml lists this account. `rhost` is the user's address, for the log;
    the service ignores it unless the account is listed. `path` is the service's socket. `timeout` is in seconds, for
    the whole call. A name or code that a packet cannot hold is refused immediately. Raise OutOfReach, NotAdmitted or
    Misconfigured, TypeError if an argument has the wrong type, or ValueError if `service` is empty or contains NUL.
    """
    request = _request(user, code, service, rhost)
    del code  # see the rules
    if isinstance(request, Exception):
        raise request
    if request is None:
        return _REFUSED
    deadline = time.monotonic() + timeout
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
            try:
                return _run(_Dialogue(request), channel, path, deadline)
            except _BusyError as e:
                if time.monotonic() + 2 * _RETRY_PAUSE > deadline:
                    raise OutOfReach(f"{path}: {e}") from None
        time.sleep(_pause())


async def averify(
    user: str,
    code: str | bytes,
    *,
    service: str,
    rhost: str | None = None,
    path: str = DEFAULT_SOCKET,
    timeout: float = DEFAULT_TIMEOUT,
) -> Outcome:
    """Return the outcome of `verify` in a task of asyncio, without blocking the event loop.

    The cancellation of the task closes the connection immediately. The code might be used up by then.
    """
    request = _request(user, code, service, rhost)
    del code  # see the rules
    if isinstance(request, Exception):
        raise request
    if request is None:
        return _REFUSED
    from asyncio import get_running_loop, sleep  # imported here because the import takes 50 ms

    loop = get_running_loop()
    deadline = loop.time() + timeout
    while True:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
            channel.setblocking(False)
            try:
                return await _arun(_Dialogue(request), channel, path, loop, deadline)
            except _BusyError as e:
                if loop.time() + 2 * _RETRY_PAUSE > deadline:
                    raise OutOfReach(f"{path}: {e}") from None
        await sleep(_pause())


class _BusyError(Exception):
    """The error for a service at its limit, which did not get the code. The caller may retry."""


@dataclass(frozen=True, slots=True)
class _Request:
    hello: _Packet
    answer: _Packet


class _Dialogue:
    """One login over one connection, without I/O: packets in, packets out.

    `has_answered` is True if the code was sent.
    """

    def __init__(self, request: _Request) -> None:
        self._answer = request.answer
        self._messages: list[str] = []
        self.has_answered = False
        self.next: _Packet | None = request.hello  # the packet to send before the next packet is received

    def receive(self, packet: bytes) -> Outcome | None:
        """Handle a packet of the service. Return the outcome, or None if the dialogue continues."""
        kind, body = packet[:1], packet[1:]
        self.next = None
        if not packet:
            raise self.closed()
        if kind in (b"p", b"P"):
            self.next = _NO_ANSWER if self.has_answered else self._answer
            self.has_answered = True
        elif kind == b"g":
            self.next = _NO_ANSWER
        elif packet == b"f":
            raise OutOfReach("the service is full: root's programs have too many logins at once (see its log)")
        elif kind in (b"i", b"e") and len(self._messages) < _MAX_MESSAGES:
            self._messages.append(body.decode("utf-8", "replace"))
        elif kind == b"r":
            return self._outcome(body)
        else:
            raise OutOfReach(_UNEXPECTED)
        return None

    def _outcome(self, body: bytes) -> Outcome:
        result = int(body) if body.isdigit() and len(body) <= 3 and body == b"%d" % int(body) else None
        if result == PAM_SERVICE_ERR:
            raise Misconfigured("the service rejects its configuration (see its log, or run 'pam-totp policy')")
        if result == PAM_AUTHINFO_UNAVAIL:
            raise OutOfReach("the service cannot use its store (see its log)")
        if result == PAM_AUTH_ERR and not self.has_answered:
            raise NotAdmitted(
                "this account may not ask about that user (list it under [clients] in /etc/pam_totp.toml)"
            )
        verdict = None if result is None else _VERDICTS.get(result)
        if verdict is None or (verdict is Verdict.ACCEPTED and not self.has_answered):
            raise OutOfReach(_UNEXPECTED)
        return Outcome(verdict, tuple(self._messages))

    def closed(self) -> Exception:
        """Return the error for a connection that the service closed. The caller may retry if the code was not sent."""
        if self.has_answered:
            return OutOfReach("the service closed the connection before the result; the code may be used up")
        return _BusyError("the service closed every connection, as it does at its limit (see its log)")

    def too_late(self) -> Exception:
        """Return the error for a service that did not answer before the deadline."""
        consequence = "; the code may be used up" if self.has_answered else ""
        return OutOfReach(f"the service did not answer in time{consequence} (see its log)")


def _run(dialogue: _Dialogue, channel: socket.socket, path: str, deadline: float) -> Outcome:
    channel.settimeout(_remaining(deadline))
    _connect(channel, path)
    outcome = None
    while outcome is None:
        try:
            channel.settimeout(_remaining(deadline))
            if dialogue.next is not None:
                channel.send(dialogue.next.data, socket.MSG_NOSIGNAL)
            channel.settimeout(_remaining(deadline))
            packet = channel.recv(MAX_PACKET + 1)
        except TimeoutError:
            raise dialogue.too_late() from None
        except OSError:
            raise dialogue.closed() from None
        outcome = dialogue.receive(packet)
    return outcome


async def _arun(
    dialogue: _Dialogue, channel: socket.socket, path: str, loop: AbstractEventLoop, deadline: float
) -> Outcome:
    from asyncio import timeout_at

    _connect(channel, path)
    outcome = None
    try:
        async with timeout_at(deadline):
            while outcome is None:
                try:
                    if dialogue.next is not None:
                        await _asend(dialogue.next, channel, loop)
                    packet = await loop.sock_recv(channel, MAX_PACKET + 1)
                except OSError:
                    raise dialogue.closed() from None
                outcome = dialogue.receive(packet)
    except TimeoutError:
        raise dialogue.too_late() from None
    return outcome


async def _asend(packet: _Packet, channel: socket.socket, loop: AbstractEventLoop) -> None:
    """Send the packet. `loop.sock_sendall` cannot suppress SIGPIPE."""
    from asyncio import Event

    while True:
        try:
            channel.send(packet.data, socket.MSG_NOSIGNAL)
            return
        except BlockingIOError:
            ready = Event()
            loop.add_writer(channel, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_writer(channel)


def _connect(channel: socket.socket, path: str) -> None:
    """Connect at once. Linux reports EAGAIN, even with a timeout, if the listener's queue is full (unix(7))."""
    try:
        channel.connect(path)
    except BlockingIOError:
        raise _BusyError("the service accepts no connection (see its log)") from None
    except OSError as e:
        hint = " (start 'pam-totp serve')" if isinstance(e, FileNotFoundError | ConnectionRefusedError) else ""
        raise OutOfReach(f"{path}: {(e.strerror or str(e)).lower()}{hint}") from None


def _remaining(deadline: float) -> float:
    """Return the seconds to the deadline, at least 1 ms: a timeout of 0 would make the socket non-blocking."""
    return max(deadline - time.monotonic(), 0.001)


def _pause() -> float:
    """Return the seconds until the next attempt. The seconds differ, so that callers do not retry all at once."""
    return random.uniform(_RETRY_PAUSE, 2 * _RETRY_PAUSE)


def _request(user: str, code: str | bytes, service: str, rhost: str | None) -> _Request | Exception | None:
    """Return the packets, or an error for the caller to raise, or None if no account or token can have such values.

    The error is returned, because this function's frame has the code.
    """
    for name, value, types, expected in (
        ("user", user, str, "str"),
        ("code", code, str | bytes, "str or bytes"),
        ("service", service, str, "str"),
        ("rhost", rhost, str | None, "str or None"),
    ):
        if not isinstance(value, types):
            return TypeError(f"{name} must be {expected}, not {type(value).__name__}")
    if not service or "\0" in service:
        return ValueError("service must have at least one character, and no NUL")
    hello, answer = _hello(user, service, rhost), _answer(code)
    return None if hello is None or answer is None else _Request(hello, answer)


def _answer(code: str | bytes) -> _Packet | None:
    """Return the packet with the code, or None if no token can have such a code."""
    try:
        answer = code.encode("utf-8", "surrogateescape") if isinstance(code, str) else code
    except UnicodeEncodeError:
        return None
    return None if len(answer) > MAX_ANSWER or b"\0" in answer else _Packet(b"A" + answer)


def _hello(user: str, service: str, rhost: str | None) -> _Packet | None:
    """Return the first packet, or None if the user name is empty, a field cannot be sent, or the packet is too long.

    `grace_period=0` makes the service check the code, even in the user's grace period.
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
