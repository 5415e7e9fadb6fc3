"""Questions to the authorities, over kept connections that the threads of this process share.

Rules:
1. A question is repeated only with the same id, so the authorities together decide on it once.
2. The next authority gets the same question if an authority gives no answer within `patience` seconds. The first
   authority follows the last, until `answer` seconds have passed.
3. An authority that gave no answer is asked last for some seconds. Each further attempt without an answer doubles this
   time, up to a limit.
4. New files of the credentials, for example after a renewal, end all kept connections.
5. A process does not use the connections of its parent process.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pam_totp.member import connection as connections
from pam_totp.member.connection import Closed, Connection
from pam_totp.member.credentials import Credentials
from pam_totp.member.errors import FORBIDDEN, UNAUTHORIZED, Failed, NotAllowed, OutOfReach, failure
from pam_totp.member.wire import Failure, Message, WireError

if TYPE_CHECKING:
    import ssl

    from pam_totp.core.settings import MemberSettings
    from pam_totp.member.credentials import Version

M = TypeVar("M", bound=Message)

OK, SERVER_ERROR = 200, 500  # HTTP statuses: success, and the lowest status of an error that may be temporary
MAX_IDLE = 4  # kept connections to one authority
MAX_IDLE_TIME = 240.0  # seconds: an authority closes idle connections after 300 s
FIRST_AVOIDANCE, LONGEST_AVOIDANCE = 10.0, 300.0  # seconds in which an authority that failed is asked last
FIRST_PAUSE = 0.1  # seconds before all authorities are asked again; the next pause is twice as long


class _Request(NamedTuple):
    method: str
    path: str
    body: bytes | None


class _Avoided(NamedTuple):
    """An authority that failed: the monotonic time until which it is asked last, and the length of that time."""

    until: float
    seconds: float


class Client:
    """A client of the authorities of one site. Any thread may call its methods."""

    def __init__(self, settings: MemberSettings) -> None:
        self._settings = settings
        self._credentials = Credentials.of(settings)
        self._lock = threading.Lock()  # protects the fields below
        self._version: Version | None = None  # of the credentials in `_context`
        self._context: ssl.SSLContext | None = None
        self._idle: dict[str, list[Connection]] = {}  # authority -> kept connections, in the order of their last use
        self._avoided: dict[str, _Avoided] = {}

    def ask(self, method: str, path: str, question: Message | None, reply: type[M]) -> tuple[M, str]:
        """Return the reply, and the authority that gave it. Raise NotAllowed, OutOfReach, or another StoreError."""
        settings, request = self._settings, _Request(method, path, None if question is None else question.to_json())
        end = time.monotonic() + settings.answer
        problems: dict[str, Failed] = {}  # the first problem of each authority
        pause = FIRST_PAUSE
        while True:
            for authority in self._order():
                deadline = min(end, time.monotonic() + settings.patience)
                try:
                    found = self._ask_one(authority, request, reply, deadline)
                except Failed as e:
                    self._avoid(authority)
                    problems.setdefault(authority, e)
                else:
                    with self._lock:
                        self._avoided.pop(authority, None)
                    return found, authority
                if time.monotonic() >= end:
                    break
            is_hopeless = all(e.is_lasting for e in problems.values())
            if is_hopeless or time.monotonic() + pause >= end:
                reasons = "; ".join(f"{authority}: {e}" for authority, e in problems.items())
                raise OutOfReach(f"no authority answered: {reasons}")
            time.sleep(pause)
            pause *= 2

    def _order(self) -> list[str]:
        """Return the authorities in the order of the settings. Those that failed a short time ago are last."""
        now = time.monotonic()
        with self._lock:
            until = {a: self._avoided[a].until for a in self._settings.authorities if a in self._avoided}
        return sorted(self._settings.authorities, key=lambda a: until.get(a, 0.0) > now)

    def _avoid(self, authority: str) -> None:
        """Ask an authority last for some time, and close its other connections, which have probably failed too."""
        with self._lock:
            for connection in self._idle.pop(authority, []):
                connection.close()
            last = self._avoided.get(authority)
            if last is not None and last.until > time.monotonic():
                return
            seconds = FIRST_AVOIDANCE if last is None else min(2 * last.seconds, LONGEST_AVOIDANCE)
            self._avoided[authority] = _Avoided(time.monotonic() + seconds, seconds)

    def _ask_one(self, authority: str, request: _Request, reply: type[M], deadline: float) -> M:
        """Return the reply of one authority. Raise Failed, NotAllowed, or StoreError."""
        version = self._credentials.version()
        status, content = self._exchange(authority, request, deadline)
        if status == UNAUTHORIZED and self._credentials.version() != version:  # renewed by another process
            status, content = self._exchange(authority, request, deadline)
        if status in (UNAUTHORIZED, FORBIDDEN):
            raise NotAllowed(status, authority)
        if status != OK:
            raise Failed(reason(status, content), is_lasting=status < SERVER_ERROR)
        try:
            return reply.from_json(content)
        except WireError:
            raise Failed("the reply must be a valid message") from None

    def _exchange(self, authority: str, request: _Request, deadline: float) -> tuple[int, bytes]:
        """Send the request, and return status and body. Repeat the request if a kept connection was closed."""
        kept = self._kept(authority)
        while True:
            connection = kept
            try:
                if connection is None:
                    connection = self._connected(authority, deadline)
                result = connection.ask(request.method, request.path, request.body, deadline)
            except (OSError, Failed) as e:
                if connection is not None:
                    connection.close()
                if kept is None or not isinstance(e, Closed):
                    raise failure(e) from None
                kept = None
            else:
                self._keep(authority, connection)
                return result

    def _connected(self, authority: str, deadline: float) -> Connection:
        context = self._current_context()
        return Connection(authority, context, min(deadline, time.monotonic() + self._settings.connect))

    def _current_context(self) -> ssl.SSLContext:
        """Return the TLS context. Read the credentials and end all kept connections if the files are new."""
        version = self._credentials.version()
        with self._lock:
            if self._context is None or self._version != version:
                self._context, self._version = self._credentials.context(), version
                for idle in self._idle.values():
                    while idle:
                        idle.pop().close()
            return self._context

    def _kept(self, authority: str) -> Connection | None:
        """Return a kept connection that is open, or None."""
        self._current_context()
        while True:
            with self._lock:
                idle = self._idle.get(authority)
                if not idle:
                    return None
                connection = idle.pop()
            if time.monotonic() - connection.last_used < MAX_IDLE_TIME and connection.is_open:
                return connection
            connection.close()

    def _keep(self, authority: str, connection: Connection) -> None:
        with self._lock:
            idle = self._idle.setdefault(authority, [])
            if connection.is_usable and connection.context is self._context and len(idle) < MAX_IDLE:
                idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close the kept connections."""
        with self._lock:
            for idle in self._idle.values():
                while idle:
                    idle.pop().close()


def reason(status: int, content: bytes) -> str:
    """Return the reason in a reply with an error status."""
    try:
        return f"status {status}: {Failure.from_json(content).error}"
    except WireError:
        return f"status {status}"


_clients: dict[MemberSettings, Client] = {}
_clients_lock = threading.Lock()
_process = os.getpid()


def client_of(settings: MemberSettings) -> Client:
    """Return the client of this process for `settings`. Drop the clients of older settings."""
    global _process, _clients_lock
    if _process != os.getpid():  # a child: another thread of the parent might have held the lock
        _process, _clients_lock = os.getpid(), threading.Lock()
        _clients.clear()
        connections.names = connections.Names()
    with _clients_lock:
        found = _clients.get(settings)
        if found is None:
            for client in _clients.values():
                client.close()
            _clients.clear()
            found = _clients[settings] = Client(settings)
        return found
