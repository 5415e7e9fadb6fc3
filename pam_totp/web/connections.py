"""The connections of the portal's server, and held responses, which wait without a thread.

Rules:
- The application computes a response at once, and calls `delays.hold` to delay the response. The server's thread is
  free during the delay. One thread wakes all held responses.
- A held response occupies only its connection. The client cannot shorten the delay, even by a disconnection.
- A connection has `REQUEST_TIMEOUT` seconds from its start to its first complete request, and from each response to the
  next request. The server closes the connection that has waited longest if many connections wait for a request.
  Therefore, slow clients cannot block other clients.
- A client that does not read its responses occupies one descriptor, and little memory. A connection has few requests at
  once, and a response keeps no file open.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from waitress.channel import HTTPChannel  # needs the extra `web`
from waitress.parser import HTTPRequestParser
from waitress.task import ErrorTask, WSGITask

from pam_totp.core import address as addresses
from pam_totp.web import proxy_headers, url_path
from pam_totp.web.delays import HOLD
from pam_totp.web.headers import HEADERS, NO_STORE

if TYPE_CHECKING:
    from pam_totp.core.address import Address

SIGN_IN = "/sign-in"  # the path of the form with the password
REQUEST_TIMEOUT = 20.0  # seconds; the client must also read the previous response in this time
WAITING = 0.9  # the share of all connections that may wait for a request
MAX_AT_ONCE = 4  # requests of one connection that the client sent before it read the responses


class Timer:
    """A timer that calls functions at given times (monotonic seconds), in one thread."""

    def __init__(self) -> None:
        self._ready = threading.Condition()
        self._order = itertools.count()  # the order of calls with equal times
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        threading.Thread(target=self._run, daemon=True, name="held responses").start()

    def call_at(self, at: float, function: Callable[[], None]) -> None:
        with self._ready:
            heapq.heappush(self._calls, (at, next(self._order), function))
            self._ready.notify()

    def _run(self) -> None:
        while True:
            with self._ready:
                while not self._calls or self._calls[0][0] > time.monotonic():
                    self._ready.wait(self._calls[0][0] - time.monotonic() if self._calls else None)
                _, _, function = heapq.heappop(self._calls)
            function()


class _Held(BaseException):
    """The signal to hold a complete response. It is a BaseException, because waitress handles every Exception."""


class _Task(WSGITask):  # type: ignore[misc]
    """A request. A thread computes the response, and a thread sends a held response later."""

    def __init__(self, channel: Channel, request: Any) -> None:
        super().__init__(channel, request)
        self.send_at: float | None = None  # monotonic seconds, if the response is held
        self.body = b""

    def get_environment(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environment()
        environ[HOLD] = self._hold
        environ.pop("wsgi.file_wrapper", None)  # a wrapped file would be open until the client has read it
        return environ

    def _hold(self, seconds: float) -> None:
        if seconds > 0:
            self.send_at = time.monotonic() + seconds

    def execute(self) -> None:
        if (held := self.channel.take_held()) is not None:
            self._send(held)
            return
        super().execute()
        if self.send_at is not None:
            self.channel.keep(self)
            raise _Held

    def write(self, data: bytes) -> None:
        if self.send_at is None:
            super().write(data)
        else:
            self.body += data
            self.content_bytes_written += len(data)

    def _send(self, held: _Task) -> None:
        response: Any = held
        self.status, self.response_headers = response.status, response.response_headers
        self.content_length, self.complete = len(held.body), True
        self.write(held.body)


class _ErrorTask(ErrorTask):  # type: ignore[misc]
    """The response to an invalid HTTP request."""

    def execute(self) -> None:
        self.response_headers += [*HEADERS.items(), ("Cache-Control", NO_STORE)]
        super().execute()


class _IgnoredRequest(HTTPRequestParser):  # type: ignore[misc]
    """The data that a client sends after its last request."""

    def received(self, data: bytes) -> int:
        return len(data)


class Channel(HTTPChannel):  # type: ignore[misc]
    """A connection, with at most one held response."""

    task_class = _Task
    error_task_class = _ErrorTask
    timer: Timer  # set by `channel_class`
    proxy: Address | None  # set by `channel_class`
    path: str  # set by `channel_class`
    _held: _Task | None = None

    def __init__(self, server: Any, *args: Any, **named: Any) -> None:
        self.waits_since = time.monotonic()
        super().__init__(server, *args, **named)
        waiting = [each for each in server.active_channels.values() if not each.requests and not each.will_close]
        if len(waiting) > WAITING * self.adj.connection_limit:
            min(waiting, key=lambda each: each.waits_since).will_close = True

    def parser_class(self, adjustments: Any) -> Any:
        """Return the parser for the next request. waitress calls this method under the lock of the requests."""
        if len(self.requests) < MAX_AT_ONCE:
            return HTTPRequestParser(adjustments)
        self.requests[-1].headers["CONNECTION"] = "close"  # not served yet: another request precedes it
        return _IgnoredRequest(adjustments)

    def write_soon(self, data: Any) -> int:
        self.waits_since = time.monotonic()  # set before waitress removes the request from `requests`
        return int(super().write_soon(data))

    def readable(self) -> bool:
        """Return True if the server may read a request. waitress asks each connection at least once a second."""
        if not self.requests and time.monotonic() - self.waits_since > REQUEST_TIMEOUT:
            self.will_close = True
        return bool(super().readable())

    @property
    def checks_password(self) -> bool:
        """Return True if the current request signs a user in, and its response is not held yet."""
        if self._held is not None or not self.requests:
            return False
        request = self.requests[0]
        return request.error is None and request.command == "POST" and self._path_of(request) == SIGN_IN

    def _path_of(self, request: Any) -> str:
        """Return the path of a request as Flask sees it. waitress and Flask accept more slashes at its beginning."""
        return "/" + url_path.inside("/" + str(request.path).lstrip("/"), self.path).lstrip("/")

    @property
    def network(self) -> str:
        """Return the largest network of the current request's client (`core.address.networks`), or ""."""
        forwarded = self.requests[0].headers.get("X_FORWARDED_FOR") if self.requests else None
        address = proxy_headers.client(addresses.parse(self.addr[0]), forwarded, self.proxy)
        return "" if address is None else addresses.networks(address)[-1]

    def keep(self, task: _Task) -> None:
        """Keep the response of `task` until `take_held` returns it."""
        self._held = task

    def take_held(self) -> _Task | None:
        held, self._held = self._held, None
        return held

    def service(self) -> None:
        try:
            super().service()
        except _Held:
            # Set the timer only now, because another thread may serve this connection as soon as it is in the queue.
            assert self._held is not None
            assert self._held.send_at is not None
            self.timer.call_at(self._held.send_at, partial(self.server.add_task, self))


def channel_class(proxy: str | None, path: str = "") -> type[Channel]:
    """Return the class of a server's connections, which share one timer.

    `proxy` is the address of a proxy that reports the client's address, or None. `path` is the path of the portal.
    """
    return type("Channel", (Channel,), {"timer": Timer(), "proxy": proxy and addresses.parse(proxy), "path": path})
