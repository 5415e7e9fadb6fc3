"""The portal in this process, with a person who fills in its forms."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flask import Flask
from werkzeug.test import Client, TestResponse

from pam_totp.core.oath import hotp
from pam_totp.core.record import HotpToken
from pam_totp.core.secretfile import unbase32
from pam_totp.store.file import FileStore
from pam_totp.web.app import create_app
from pam_totp.web.portal import Config
from tests.site import KEY, Site

PASSWORD = "correct horse"
ORIGIN = "https://portal.example"


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at

    def forward(self, seconds: float) -> None:
        self.at += seconds


@dataclass
class OnePassword:
    """A first factor that is the same for everybody, and remembers who asked."""

    asked: list[str] = field(default_factory=list)

    def right(self, user: str, password: str) -> bool:
        self.asked.append(user)
        return password == PASSWORD


class Portal:
    """One portal over the store of `site`. `now` is the wall clock, `clock` the sessions'."""

    def __init__(self, site: Site, **config: Any) -> None:
        self.site = site
        self.clock = Clock()
        self.wall = Clock()
        self.wall.at = float(int(time.time()))
        self.passwords = OnePassword()
        self.log: list[str] = []
        given: dict[str, Any] = {
            "store": FileStore(str(site.store)),
            "passwords": self.passwords,
            "issuer": "portal.example",
            "limited": False,
            "sink": lambda _, line: self.log.append(line),
            "now": lambda: int(self.wall()),
            "clock": self.clock,
            "passwd_name": lambda name: name,
        }
        self.app: Flask = create_app(Config(**given | config))

    def browser(self) -> Browser:
        return Browser(self.app)

    def signed_in(self, user: str = "alice", code: str | None = None) -> Browser:
        """A browser that came through as many steps as there are."""
        browser = self.browser()
        page = browser.sign_in(user)
        if code is not None:
            assert page.heading == "Your code"
            page = browser.send(proof=code)
        assert page.heading == "Your tokens", page.text
        return browser


class Page:
    """What came back."""

    def __init__(self, response: TestResponse) -> None:
        self.response = response
        self.status = response.status_code
        self.html = response.get_data(as_text=True)

    @property
    def heading(self) -> str:
        found = re.search(r"<h1>(.*?)</h1>", self.html, re.S)
        return html.unescape(found[1]) if found else ""

    @property
    def text(self) -> str:
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", self.html)).split())

    @property
    def error(self) -> str:
        found = re.search(r'class="error"[^>]*>(.*?)<', self.html, re.S)
        return html.unescape(found[1]) if found else ""

    @property
    def notice(self) -> str:
        found = re.search(r'class="notice"[^>]*>(.*?)</div>', self.html, re.S)
        return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", found[1]).split())) if found else ""

    @property
    def csrf(self) -> str:
        found = re.search(r'name="csrf_token"[^>]* value="([^"]*)"', self.html)
        assert found, self.text
        return found[1]

    @property
    def action(self) -> str:
        """Where the page's own form goes (the first one is to sign out)."""
        actions = [a for a in re.findall(r'<form method="post" action="([^"]*)"', self.html) if a != "/sign-out"]
        return html.unescape(actions[0])


class Browser:
    """Cookies, the page at hand, and its form."""

    def __init__(self, app: Flask) -> None:
        self.client: Client = app.test_client()
        self.page: Page | None = None

    def open(self, path: str, **more: Any) -> Page:
        self.page = Page(self.client.get(path, base_url=ORIGIN, follow_redirects=True, **more))
        return self.page

    def post(self, path: str, fields: dict[str, str], *, follow: bool = True, **more: Any) -> Page:
        self.page = Page(self.client.post(path, data=fields, base_url=ORIGIN, follow_redirects=follow, **more))
        return self.page

    def send(self, **fields: str) -> Page:
        """Fill in the form of the page at hand and send it."""
        assert self.page is not None
        return self.post(self.page.action, {"csrf_token": self.page.csrf, **fields})

    def sign_in(self, user: str = "alice", password: str = PASSWORD) -> Page:
        self.open("/sign-in")
        return self.send(user=user, password=password)

    @property
    def cookie(self) -> str:
        """The name of the session."""
        found = self.client.get_cookie("__Host-pam_totp", domain="portal.example")
        assert found is not None
        return found.value

    def use_cookie(self, value: str) -> None:
        self.client.set_cookie("__Host-pam_totp", value, domain="portal.example", secure=True)


def shown_key(page: Page) -> bytes:
    """The key that the enrolment page writes out."""
    found = re.search(r"<code>([A-Z2-7 ]+)</code>", page.html)
    assert found
    return unbase32(found[1].replace(" ", ""))


def app_code(key: bytes, now: Callable[[], float], later: int = 0) -> str:
    """What an app with that key shows, `later` steps from now."""
    return hotp(key, int(now()) // 30 + later)


def enrolled(portal: Portal, user: str = "alice", **fields: Any) -> HotpToken:
    """A fob in that user's record."""
    token = HotpToken(**{"name": "fob", "secret": KEY, "created": 0, "counter": 0} | fields)
    portal.site.enrol(token, user=user)
    return token
