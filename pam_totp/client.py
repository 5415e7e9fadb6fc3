"""For other applications: ask the service on this host whether a user's code is right.

    from pam_totp import client

    if client.verify("alice", "755224", service="web"):
        ...

The account that asks must be listed in /etc/pam_totp.toml, under the service's name that it uses:

    [clients]
    www-data = "web"

The law:
- only an outcome that is true lets anybody in; whatever goes wrong raises, and an exception denies;
- a code is sent at most once: nothing is tried again after it has left;
- nothing here needs a privilege, a package or a thread; any number of threads may ask at once.
"""

from __future__ import annotations

import enum
import random
import socket
import time
from dataclasses import dataclass

from pam_totp.core.answer import MAX_ANSWER
from pam_totp.pam.pam_handle import (
    MAX_PACKET,
    PAM_AUTH_ERR,
    PAM_AUTHINFO_UNAVAIL,
    PAM_IGNORE,
    PAM_SERVICE_ERR,
    PAM_SUCCESS,
    PROTOCOL_VERSION,
)

DEFAULT_SOCKET = "/run/pam_totp/socket"
DEFAULT_TIMEOUT = 15.0  # seconds: the store's lock is waited for 5, and a busy machine has slack
_PAUSE = 0.02  # seconds between two tries for a place, where the service is full
_MOST_MESSAGES = 16


class ClientError(Exception):
    """The question could not be answered; the text says why and what to do. Nobody may be let in."""


class OutOfReach(ClientError):
    """No service there, or it did not answer in time, or its store is out of reach."""


class NotAdmitted(ClientError):
    """The service does not take this question from this account: see `[clients]` in /etc/pam_totp.toml."""


class Misconfigured(ClientError):
    """The service refuses its own configuration; its log says what is wrong."""


class Verdict(enum.Enum):
    """What the service made of an answer."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    NOT_ENROLLED = "not-enrolled"  # only where the site's policy says `nullok`; anywhere else it is REFUSED

    def __bool__(self) -> bool:
        return self is Verdict.ACCEPTED


@dataclass(frozen=True, slots=True)
class Outcome:
    """True where the code was accepted, and only then. `messages` are for the person, in the order they came:
    how many answers were refused since the last success, how many recovery codes are left, what to do next."""

    verdict: Verdict
    messages: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        return bool(self.verdict)

    def __bool__(self) -> bool:
        return self.accepted


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
    """Ask whether `code` (one code, two or three in a row, or a recovery code) is good for `user`; that uses it up.

    `service` is the name under which the site file lists this account; `rhost`, the person's address, is for the log
    (of a listed account; of others it is left out).
    `path` is the service's socket; `timeout` (seconds) is for all of it. Names and codes that nobody can have are
    refused. Raises OutOfReach, NotAdmitted or Misconfigured.
    """
    if not service or "\0" in service:
        raise ValueError("a service needs a name")
    try:
        answer = code.encode("utf-8", "surrogateescape") if isinstance(code, str) else code
        hello = _hello(user, service, rhost)
    except UnicodeEncodeError:
        return _REFUSED
    if hello is None or len(answer) > MAX_ANSWER or b"\0" in answer:
        return _REFUSED
    deadline = time.monotonic() + timeout
    while True:
        with _connected(path, deadline) as channel:
            asking = _Asking(channel, deadline)
            try:
                return asking.run(hello, answer)
            except _Closed:
                if asking.answered:
                    raise OutOfReach(f"{path}: closed before a result; the code may be used up") from None
        # Full: it closes before it asks, so that nothing was given away.
        if time.monotonic() + 2 * _PAUSE > deadline:
            raise OutOfReach(f"{path}: takes no question now; see the service's log") from None
        time.sleep(random.uniform(_PAUSE, 2 * _PAUSE))


class _Closed(Exception):
    """The service hung up."""


class _Asking:
    """One dialogue over one connection."""

    def __init__(self, channel: socket.socket, deadline: float) -> None:
        self._channel = channel
        self._deadline = deadline
        self.answered = False

    def run(self, hello: bytes, answer: bytes) -> Outcome:
        self._send(hello)
        messages: list[str] = []
        while True:
            packet = self._receive()
            kind, body = packet[:1], packet[1:]
            if kind in (b"p", b"P"):
                self._send(b"N" if self.answered else b"A" + answer)
                self.answered = True
            elif kind == b"g":
                self._send(b"N")
            elif kind in (b"i", b"e") and len(messages) < _MOST_MESSAGES:
                messages.append(body.decode("utf-8", "replace"))
            elif kind == b"r":
                return self._outcome(body, tuple(messages))
            else:
                raise OutOfReach("the service does not speak as agreed; is it of another version?")

    def _outcome(self, body: bytes, messages: tuple[str, ...]) -> Outcome:
        result = int(body) if body.isdigit() and len(body) <= 3 and body == b"%d" % int(body) else None
        if result == PAM_SERVICE_ERR:
            raise Misconfigured("the service refuses its configuration; see its log ('pam-totp policy' checks it)")
        if result == PAM_AUTHINFO_UNAVAIL:
            raise OutOfReach("the service cannot reach its store; see its log")
        if result == PAM_AUTH_ERR and not self.answered:
            raise NotAdmitted("this account may not ask that; list it under [clients] in /etc/pam_totp.toml")
        verdict = None if result is None else _VERDICTS.get(result)
        if verdict is None or (verdict is Verdict.ACCEPTED and not self.answered):
            raise OutOfReach("the service does not speak as agreed; is it of another version?")
        return Outcome(verdict, messages)

    def _send(self, packet: bytes) -> None:
        try:
            self._channel.settimeout(_left(self._deadline))
            self._channel.send(packet, socket.MSG_NOSIGNAL)
        except TimeoutError:
            raise OutOfReach("the service did not listen in time") from None
        except OSError:
            raise _Closed from None

    def _receive(self) -> bytes:
        try:
            self._channel.settimeout(_left(self._deadline))
            packet = self._channel.recv(MAX_PACKET + 1)
        except TimeoutError:
            used = "; the code may be used up" if self.answered else ""
            raise OutOfReach(f"the service did not answer in time{used}") from None
        except OSError:
            raise _Closed from None
        if not packet:
            raise _Closed
        return packet


def _connected(path: str, deadline: float) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        channel.settimeout(_left(deadline))
        channel.connect(path)
    except OSError as e:
        channel.close()
        hint = "is 'pam-totp serve' running?" if isinstance(e, FileNotFoundError | ConnectionRefusedError) else ""
        raise OutOfReach(f"{path}: {e.strerror or e}{'; ' if hint else ''}{hint}") from None
    return channel


def _left(deadline: float) -> float:
    """Seconds; a socket takes 0 for never waiting at all, and then says something else than that it timed out."""
    return max(deadline - time.monotonic(), 0.001)


def _hello(user: str, service: str, rhost: str | None) -> bytes | None:
    """The first message; None where no user can be called that. An accepted answer is to be this one, not an earlier
    one that grace still stands for."""
    fields = [f"version={PROTOCOL_VERSION}", f"service={service}", f"user={user}", "flags=0", "arg=grace_period=0"]
    if rhost:
        fields.append(f"rhost={rhost}")
    if not user or any("\0" in field for field in fields):
        return None
    packet = b"H" + "\0".join(fields).encode("utf-8", "surrogateescape")
    return packet if len(packet) <= MAX_PACKET else None
