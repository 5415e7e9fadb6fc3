"""A user with a real browser."""

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
    """A user with one page in a separate browser context, which has its own cookies. Call `close` at the end."""

    def __init__(self, chromium: Chromium, served: Served, **context: Any) -> None:
        self.served = served
        self.address = f"198.18.{next(_ADDRESSES)}.1"  # a network for each user, because the portal limits networks
        self._context = chromium.new_context(
            ignore_https_errors=True, base_url=served.url, extra_http_headers={"X-Person": self.address}, **context
        )
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(10_000)  # milliseconds
        self.console_messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda line: self.console_messages.append(f"{line.type}: {line.text}"))
        self.page.on("pageerror", lambda error: self.console_messages.append(str(error)))
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

    def wait_for_focus(self, label: str) -> None:
        """Wait until the field `label` has the focus. A browser sets the focus some time after the page is loaded."""
        field = self.page.get_by_label(label, exact=True)
        field.and_(self.page.locator(":focus")).wait_for()

    def type_as_key_fob(self, label: str, code: str) -> None:
        """Type a code and Return into the field `label`, like a key fob that types codes. Wait for the next page."""
        self.wait_for_focus(label)
        self.page.keyboard.type(code)
        with self.page.expect_navigation():
            self.page.keyboard.press("Enter")

    def press(self, button: str) -> None:
        """Press a button or follow a link, and wait for the next page."""
        as_button = self.page.get_by_role("button", name=button, exact=True)
        target = as_button.or_(self.page.get_by_role("link", name=button, exact=True))
        with self.page.expect_navigation():
            target.click()

    def sign_in(self, user: str = "alice", code: str | None = None, at: str = "") -> None:
        """Sign in with the password and, if given, the code. `at` is the URL of another portal."""
        self.page.goto(f"{at}/sign-in")
        self.fill(User_name=user, Password=self.served.password)
        self.press("Continue")
        if code is not None:
            self.page.get_by_label("One-time code").fill(code)
            self.press("Sign in")

    def add_phone(self, picture: Path) -> Phone:
        """Start to add a phone, up to the page that asks for a code. Return a phone with the key of the QR code."""
        self.press("Add a phone")
        self.press("Show the QR code")
        uri = self.scan(picture)
        assert (uri["kind"], uri["label"], uri["digits"]) == ("totp", "/portal.example.org:alice", "6")
        assert self.page.locator(".key code").inner_text().replace(" ", "") == uri["secret"]
        return Phone(uri["secret"])

    def scan(self, picture: Path) -> dict[str, str]:
        """Save a screenshot of the QR code as `picture`. Return the parts of the URI in the QR code."""
        self.page.locator(".qr").screenshot(path=picture)
        # Read only QR codes: zbar also reads parts of some QR codes as bar codes.
        command: list[str | Path] = ["zbarimg", "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", picture]
        read = subprocess.run(command, capture_output=True, text=True, check=True)
        uri = urllib.parse.urlsplit(read.stdout.strip())
        return {"label": urllib.parse.unquote(uri.path), "kind": uri.netloc} | dict(urllib.parse.parse_qsl(uri.query))


class Phone:
    """A phone app that starts at the current step of the real clock, and returns each code once.

    The portal accepts a code one step early or late, so a test can enter the first two codes without a wait.
    """

    def __init__(self, secret: str) -> None:
        self._key = unbase32(secret)
        self._step = int(time.time()) // 30

    def code(self) -> str:
        code = hotp(self._key, self._step)
        self._step += 1
        return code


People = Callable[..., Person]  # opens a browser for a user; the arguments are options of the browser context
