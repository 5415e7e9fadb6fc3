"""Public: the request of the current thread or task.

django-otp calls `verify_token` without the request. The device needs the request to log the user's address, and to show
the service's messages to the user.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.contrib import messages

from pam_totp.core.address import parse

_request: ContextVar[Any] = ContextVar("pam_totp_request", default=None)


class RequestMiddleware:
    """A middleware that stores the request while its view runs, and while the view generates a streaming response."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        if self._is_async:
            return self._respond(request)
        before = _request.set(request)
        try:
            return _remembering(request, self._get_response(request))
        finally:
            _request.reset(before)

    async def _respond(self, request: Any) -> Any:
        before = _request.set(request)
        try:
            return _remembering(request, await self._get_response(request))
        finally:
            _request.reset(before)


def _remembering(request: Any, response: Any) -> Any:
    """Return the response. Store the request while the view generates the parts of a streaming response."""
    is_file = getattr(response, "file_to_stream", None) is not None  # its parts run no code of the view
    if getattr(response, "streaming", False) and not is_file:
        parts = response.streaming_content
        response.streaming_content = (_async_parts if response.is_async else _parts)(request, parts)
    return response


def _parts(request: Any, parts: Iterable[bytes]) -> Iterator[bytes]:
    iterator = iter(parts)
    while True:
        before = _request.set(request)  # for each part, because the server's code runs between two parts
        try:
            part = next(iterator)
        except StopIteration:
            return
        finally:
            _request.reset(before)
        yield part


async def _async_parts(request: Any, parts: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    iterator = aiter(parts)
    while True:
        before = _request.set(request)
        try:
            part = await anext(iterator)
        except StopAsyncIteration:
            return
        finally:
            _request.reset(before)
        yield part


def current_request() -> Any:
    """Return the request that this thread or task serves, or None: outside of a request, or without the middleware."""
    return _request.get()


def tell(level: int, *texts: str) -> None:
    """Show `texts` to the user of the current request, as messages of `level`.

    Do nothing if there is no request, or if the project does not use django.contrib.messages.
    """
    request = current_request()
    for text in texts if request is not None else ():
        messages.add_message(request, level, text, fail_silently=True)


def address_of(request: Any) -> str | None:
    """Return the client's address, Django's REMOTE_ADDR, or None if REMOTE_ADDR is empty, as on a Unix socket.

    The address is canonical, so that the log has one spelling for one client.
    """
    text = getattr(request, "META", {}).get("REMOTE_ADDR") or None
    address = None if text is None else parse(text)
    return text if address is None else str(address)
