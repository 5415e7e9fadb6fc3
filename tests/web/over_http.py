"""The portal's own server on a loopback port, and a browser that speaks HTTP to it."""

from __future__ import annotations

import html
import http.client
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlencode

from flask import Flask

from pam_totp.web import server
from pam_totp.web.server import Address
from tests.support.site import PATIENCE


@contextmanager
def served(app: Flask, proxy: str | None = "127.0.0.1", listen: str = "127.0.0.1", path: str = "") -> Iterator[int]:
    """Serve `app` in this process, like `pam-totp portal`. Yield the port. `path` is the path of the portal."""
    running = server.create(app, Address(listen, 0), proxy=proxy, path=path)

    def run() -> None:
        with suppress(OSError):  # raised when the test closes the server's sockets
            running.run()

    threading.Thread(target=run, daemon=True).start()
    yield int(running.effective_port)
    running.close()


class HttpBrowser:
    """A browser behind a TLS proxy: one connection, one cookie, and the address `address`."""

    def __init__(self, port: int, address: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self._headers = {"Host": "portal.example", "X-Forwarded-Proto": "https", "X-Forwarded-For": address}

    def ask(self, method: str, path: str, fields: dict[str, str] | None = None) -> tuple[int, str]:
        """Send one request. Return the status and the page."""
        self.send(method, path, fields)
        return self.answer()

    def answer(self) -> tuple[int, str]:
        """Wait for the response to the sent request. Return the status and the page."""
        answer = self._connection.getresponse()
        text = answer.read().decode()
        cookie = answer.getheader("Set-Cookie")
        if cookie is not None:
            self._headers["Cookie"] = cookie.partition(";")[0]
        return answer.status, text

    def another(self, port: int, address: str) -> HttpBrowser:
        """Return a browser at another address with the same cookie."""
        browser = HttpBrowser(port, address)
        browser._headers = self._headers | browser._headers
        return browser

    def send(self, method: str, path: str, fields: dict[str, str] | None) -> None:
        """Send one request, without waiting for the response."""
        body = None if fields is None else urlencode(fields)
        headers = self._headers | ({} if body is None else {"Content-Type": "application/x-www-form-urlencoded"})
        self._connection.request(method, path, body, headers)

    def post(self, path: str, **fields: str) -> None:
        """Load a form and send it, without waiting for the response."""
        self.send("POST", path, self.form(path) | fields)

    def sign_in(self, user: str, password: str) -> int:
        """Load the form, send it, and return the status of the response."""
        return self.ask("POST", "/sign-in", self.form("/sign-in") | {"user": user, "password": password})[0]

    def form(self, path: str) -> dict[str, str]:
        """Load a page, and return the hidden field of its form."""
        status, page = self.ask("GET", path)
        token = re.search(r'name="csrf_token"[^>]* value="([^"]*)"', page)
        assert token, (status, page)
        return {"csrf_token": html.unescape(token[1])}

    def close(self) -> None:
        self._connection.close()
