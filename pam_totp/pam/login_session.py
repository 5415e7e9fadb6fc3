"""One login over one channel: hello, dialogue, result. The service, the helper and `module` drive the login.

Rules:
1. A session never waits. The session yields each wait, and the driver carries out the wait.
2. Every error ends the login without a result, or with the result of an error. The relay then denies.
3. An unexpected exception is a bug. The log shows only the type, file and line of the exception, because the text
   could contain a secret.
4. A session wipes its answers when it ends.
5. A session uses a site file only if its only writers are root and this process's account.
6. The log shows a missing answer, as after Ctrl-C, if the program ends or the time limit passes during a prompt.
"""

from __future__ import annotations

import os
import select
import stat
import time

from pam_totp.core.answer import wipe
from pam_totp.core.lean import TYPE_CHECKING, partial, suppress
from pam_totp.core.settings import SITE_FILE, SettingsError, Site, parse_site
from pam_totp.operations import audit_log
from pam_totp.operations.conversation import Pause, Typed, Waits
from pam_totp.operations.dialogue import Dialogue
from pam_totp.operations.verifier import Result, UseStore
from pam_totp.pam.protocol import (
    HELLO_WAIT,
    MAX_PACKET,
    PAM_AUTH_ERR,
    PAM_AUTHINFO_UNAVAIL,
    PAM_CONV_ERR,
    PAM_IGNORE,
    PAM_SERVICE_ERR,
    PAM_SILENT,
    PAM_SUCCESS,
    PERSON_WAIT,
    PROTOCOL_VERSION,
    TURN_WAIT,
    Gone,
    Hello,
    NoMessage,
    ProtocolError,
    parse_answer,
    parse_hello,
    receive,
    send,
)
from pam_totp.store import StoreError
from pam_totp.store.file import LOCK_WAIT

if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import TypeAlias

MEANWHILE = 0.01  # seconds: longer than the work while the user types
MAX_SITE_FILE = 256 * 1024  # bytes
RESULTS = {
    Result.ACCEPTED: PAM_SUCCESS,
    Result.REFUSED: PAM_AUTH_ERR,
    Result.IGNORED: PAM_IGNORE,
    Result.UNAVAILABLE: PAM_AUTHINFO_UNAVAIL,
    Result.NO_ANSWER: PAM_CONV_ERR,
}


def read_site(path: str = SITE_FILE) -> Site:
    """Return the content of the site file; `Site.NONE` if the file does not exist.

    Raise SettingsError unless the file is valid, readable, and writable by trusted accounts only.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return Site.NONE
    except OSError as e:
        raise SettingsError(f"{path}: {(e.strerror or str(e)).lower()}") from e
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            owners = f"root or uid {os.geteuid()}"
            raise SettingsError(f"{path}: must be a regular file of {owners}, and writable by its owner only")
        text = b""
        while len(text) <= MAX_SITE_FILE and (part := os.read(file, MAX_SITE_FILE + 1)):
            text += part
        if len(text) > MAX_SITE_FILE:
            raise SettingsError(f"{path}: must be at most {MAX_SITE_FILE} bytes")
        return parse_site(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: must be UTF-8") from None
    except OSError as e:
        raise SettingsError(f"{path}: {(e.strerror or str(e)).lower()}") from e
    finally:
        os.close(file)


class Receive:
    """A wait of at most `seconds` for a packet, with `meanwhile` to run. The reply is the packet, in its own buffer."""

    def __init__(self, seconds: float, meanwhile: UseStore | None = None) -> None:
        self.seconds, self.meanwhile = seconds, meanwhile


class LookUp:
    """A request to call `job`, which looks up accounts.

    The reply is the result. The driver raises exceptions of `job` in the session.
    """

    def __init__(self, job: Callable[[], object]) -> None:
        self.job = job


Send: TypeAlias = "Callable[..., None]"  # arguments: a message's type and body
# The result without a dialogue is a PAM result, or None if the service is full. The result of a LookUp is one of these.
Begin: TypeAlias = "Callable[[Hello], Dialogue | LookUp | int | None]"


class Session:
    """One login. `begin` may raise SettingsError or StoreError.

    `names_rhost` is True if the client is trusted to name the remote host.
    """

    def __init__(self, send: Send, log: audit_log.Sink, begin: Begin, *, names_rhost: bool = True) -> None:
        self._send, self._log, self._begin, self._names_rhost = send, log, begin, names_rhost
        self._answers: list[bytearray] = []
        self._is_silent = self._is_unanswered = False
        self._hello: Hello | None = None

    def run(self) -> Waits[None]:
        """Serve the login. Yield Receive, LookUp, UseStore and Pause."""
        try:
            hello = self._hello = parse_hello((yield Receive(HELLO_WAIT)))
            result = yield from self._result(hello)
            if result is None:
                self._send(b"f")
            else:
                self._send(b"r", b"%d" % result)
        except ProtocolError as e:
            if not (self._is_unanswered and isinstance(e, Gone)):  # the log has the missing answer (rule 6)
                self._log_error(str(e))
        except Exception as e:  # a bug (rule 3): deny, and log its file and line
            self._log_error(place_of_bug(e))
        finally:
            for answer in self._answers:
                wipe(answer)

    def _result(self, hello: Hello) -> Waits[int | None]:
        if hello.version != PROTOCOL_VERSION:
            return PAM_SERVICE_ERR
        self._is_silent = bool(hello.flags & PAM_SILENT)
        try:
            begun = self._begin(hello)
            dialogue: Dialogue | int | None = (yield begun) if isinstance(begun, LookUp) else begun
        except (SettingsError, StoreError) as e:
            self._log_error(str(e))
            return PAM_SERVICE_ERR if isinstance(e, SettingsError) else PAM_AUTHINFO_UNAVAIL
        if not isinstance(dialogue, Dialogue):
            return dialogue
        return RESULTS[(yield from dialogue.run(self))]

    def _log_error(self, problem: str) -> None:
        hello = self._hello
        if hello is None:
            audit_log.write(self._log, "?", "error", problem=problem)
        else:
            rhost = hello.rhost if self._names_rhost else None
            audit_log.write(self._log, hello.service, "error", user=hello.user, problem=problem, rhost=rhost)

    def ask(self, prompt: str, *, echo: bool, meanwhile: UseStore | None) -> Waits[Typed | None]:
        self._send(b"P" if echo else b"p", _encoded(prompt))
        try:
            packet = yield Receive(PERSON_WAIT, meanwhile)
        except (Gone, NoMessage):
            self._is_unanswered = True
            return None
        return self._answer(packet)

    def first_pass(self) -> Waits[Typed | None]:
        self._send(b"g")
        return self._answer((yield Receive(TURN_WAIT)))

    def show(self, text: str, *, error: bool) -> None:
        if not self._is_silent and not self._is_unanswered:
            self._send(b"e" if error else b"i", _encoded(text))

    def hand_on(self, password: memoryview) -> None:
        self._send(b"s", password)

    def _answer(self, packet: bytearray) -> bytearray | None:
        answer = parse_answer(packet)
        if answer is not None:
            self._answers.append(answer)
        return answer


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace").replace(b"\0", b"")[: MAX_PACKET - 1]


def place_of_bug(bug: BaseException) -> str:
    """Return the type of an exception, and the file and line that raised it."""
    place = bug.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else "?"
    return f"{type(bug).__name__} at {where}"


def drive(session: Session, receive: Callable[[float], bytearray]) -> None:
    """Drive a session in this thread. `receive` returns the next packet within a number of seconds."""
    waits, received = session.run(), time.monotonic()
    reply: object = None
    error: Exception | None = None
    with suppress(StopIteration):
        while True:
            wait = waits.send(reply) if error is None else waits.throw(error)
            reply = error = None
            try:
                if isinstance(wait, Receive):
                    begun = time.monotonic()
                    if wait.meanwhile is not None:
                        wait.meanwhile.job(0.0)
                    reply = receive(wait.seconds)
                    received = time.monotonic()
                    if wait.meanwhile is not None:  # the delay of a refusal must hide the duration of this work
                        received = max(received, begun + MEANWHILE)
                elif isinstance(wait, Pause):
                    time.sleep(max(0.0, received + wait.seconds - time.monotonic()))
                else:
                    reply = wait.job(LOCK_WAIT) if isinstance(wait, UseStore) else wait.job()
            except Exception as e:
                error = e


def drive_over(channel: socket, log: audit_log.Sink, begin: Begin) -> None:
    """Serve one login over `channel` in this thread."""
    buffer = bytearray(MAX_PACKET + 1)

    def wait_and_receive(seconds: float) -> bytearray:
        select.select([channel], [], [], seconds)
        packet = receive(channel, buffer)
        if packet is None:
            raise NoMessage(seconds)
        return packet

    drive(Session(partial(send, channel), log, begin), wait_and_receive)
