"""A person at a real browser."""

from __future__ import annotations

import itertools
import subprocess
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pam_totp.core.oath import hotp
from pam_totp.core.secretfile import unbase32
from tests.web.served import Served

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium
    from playwright.sync_api import Page

_ADDRESSES = itertools.count(1)


class Person:
    """One browser of their own: a context with its cookies, and one page. Call `close` at the end."""

    def __init__(self, chromium: Chromium, served: Served, **context: Any) -> None:
        self.served = served
        self.address = f"198.51.100.{next(_ADDRESSES)}"
        self._context = chromium.new_context(
            ignore_https_errors=True, base_url=served.url, extra_http_headers={"X-Person": self.address}, **context
        )
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(10_000)  # milliseconds
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self._context.on("request", lambda request: self.requests.append(request.url))

    def close(self) -> None:
        self._context.close()

    @property
    def context(self) -> Any:
        return self._context

    @property
    def heading(self) -> str:
        return self.page.locator("h1").inner_text()

    @property
    def notice(self) -> str:
        return self.page.locator(".notice").inner_text()

    @property
    def error(self) -> str:
        return self.page.locator(".error").inner_text()

    def fill(self, **labels: str) -> None:
        for label, text in labels.items():
            self.page.get_by_label(label.replace("_", " "), exact=True).fill(text)

    def press(self, button: str) -> None:
        """Press a button or follow a link, and wait for the page behind it."""
        both = self.page.get_by_role("button", name=button, exact=True)
        target = both.or_(self.page.get_by_role("link", name=button, exact=True))
        with self.page.expect_navigation():
            target.click()

    def sign_in(self, user: str = "alice", code: str | None = None, at: str = "") -> None:
        """With the password, and with `code` where one is given; `at` another portal than the one that is served."""
        self.page.goto(f"{at}/sign-in")
        self.fill(User_name=user, Password=self.served.password)
        self.press("Go on")
        if code is not None:
            self.page.get_by_label("One-time code").fill(code)
            self.press("Sign in")

    def add_phone(self, picture: Path) -> Phone:
        """As far as the QR code, by way of `picture`; the page waits for the first code then."""
        self.press("Add a phone")
        self.press("Show the QR code")
        seen = self.scan(picture)
        assert (seen["kind"], seen["label"], seen["digits"]) == ("totp", "/portal.example.org:alice", "6")
        assert self.page.locator(".key code").inner_text().replace(" ", "") == seen["secret"]
        return Phone(seen["secret"])

    def scan(self, picture: Path) -> dict[str, str]:
        """What a phone reads from the QR code on the screen."""
        self.page.locator(".qr").screenshot(path=picture)
        command = [
            "zbarimg",
            "--quiet",
            "--raw",
            "-Sdisable",
            "-Sqrcode.enable",
            picture,
        ]  # it sees bar codes in some keys
        read = subprocess.run(command, capture_output=True, text=True, check=True)
        uri = urllib.parse.urlsplit(read.stdout.strip())
        return {"label": urllib.parse.unquote(uri.path), "kind": uri.netloc} | dict(urllib.parse.parse_qsl(uri.query))


class Phone:
    """An authenticator app: codes by the real clock, each but once.

    `first` is the step at the moment of scanning; a code is good for a step before and after its own, so that those of
    `first` and the next one can be used one after the other without waiting.
    """

    def __init__(self, secret: str) -> None:
        self._key = unbase32(secret)
        self._step = int(time.time()) // 30

    def code(self) -> str:
        code = hotp(self._key, self._step)
        self._step += 1
        return code


People = Callable[..., Person]  # one more, with Chromium's options for their browser
