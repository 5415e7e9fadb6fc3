"""The portal in this process, and a browser without scripts that fills in the portal's forms."""

from __future__ import annotations

import html
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from jinja2.bccache import Bucket, BytecodeCache
from werkzeug.test import TestResponse

from pam_totp.core.oath import hotp
from pam_totp.core.record import HotpToken
from pam_totp.core.secretfile import unbase32
from pam_totp.store.file import FileStore
from pam_totp.web.app import create_app
from pam_totp.web.portal import Config, FirstToken
from tests.support.site import KEY, Site

PASSWORD = "correct horse"
ORIGIN = "https://portal.example"
REFUSAL = "Refused. Try the next code. If that is refused too, enter two codes in a row in one answer, or three."


class Clock:
    """A clock that the test sets. `at` is in seconds."""

    def __init__(self) -> None:
        self.at = 1_000_000.0

    def __call__(self) -> float:
        return self.at

    def advance(self, seconds: float) -> None:
        self.at += seconds


@dataclass
class FixedPassword:
    """A fake first factor with the same password for all users. `users` lists the user of each checked password."""

    users: list[str] = field(default_factory=list)

    def verify(self, user: str, password: str, delay: Callable[[float], None]) -> bool:
        self.users.append(user)
        return password == PASSWORD


class _Templates(BytecodeCache):
    """The compiled templates of all portals in this process. Their compilation takes longer than most tests."""

    def __init__(self) -> None:
        self._compiled: dict[tuple[str, str], Any] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = self._compiled.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._compiled[bucket.key, bucket.checksum] = bucket.code


_TEMPLATES = _Templates()


def make_app(config: Config) -> Flask:
    """Return the portal's app, with the templates that an earlier app compiled."""
    app = create_app(config)
    app.jinja_env.bytecode_cache = _TEMPLATES
    return app


class Portal:
    """The portal, with the store of `site`. `wall` is the wall clock; `clock` is the clock of the sessions."""

    def __init__(self, site: Site, **config: Any) -> None:
        self.site = site
        self.clock = Clock()
        self.wall = Clock()
        self.wall.at = float(int(time.time()))
        self.passwords = FixedPassword()
        self.log: list[str] = []
        defaults: dict[str, Any] = {
            "store": FileStore(str(site.store)),
            "passwords": self.passwords,
            "issuer": "portal.example",
            "rate_limits": False,
            "first_token": FirstToken.PASSWORD,
            "sink": lambda _, line: self.log.append(line),
            "now": lambda: int(self.wall()),
            "clock": self.clock,
            "passwd_name": lambda name: name,
            "is_account": lambda _: True,
        }
        self.app = make_app(Config(**defaults | config))

    def browser(self, address: str = "127.0.0.1") -> Browser:
        return Browser(self.app, address)

    def signed_in(self, user: str = "alice", code: str | None = None) -> Browser:
        """Return a browser after a sign-in with the password and, if given, the code."""
        browser = self.browser()
        page = browser.sign_in(user)
        if code is not None:
            assert page.heading == "Your code"
            page = browser.send(proof=code)
        assert page.heading == "Your tokens", page.text
        return browser


class Page:
    """A response of the portal."""

    def __init__(self, response: TestResponse) -> None:
        self.response = response
        self.status = response.status_code
        self.html = response.get_data(as_text=True)

    @property
    def heading(self) -> str:
        match = re.search(r"<h1>(.*?)</h1>", self.html, re.S)
        return html.unescape(match[1]) if match else ""

    @property
    def text(self) -> str:
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", self.html)).split())

    @property
    def error(self) -> str:
        match = re.search(r'class="error"[^>]*>(.*?)<', self.html, re.S)
        return html.unescape(match[1]) if match else ""

    @property
    def notice(self) -> str:
        match = re.search(r'class="notice"[^>]*>(.*?)</div>', self.html, re.S)
        return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", match[1]).split())) if match else ""

    @property
    def csrf(self) -> str:
        match = re.search(r'name="csrf_token"[^>]* value="([^"]*)"', self.html)
        assert match, self.text
        return match[1]

    @property
    def action(self) -> str:
        """Return the path of the page's main form: the first form that does not sign out."""
        actions = [
            a for a in re.findall(r'<form method="post" action="([^"]*)"', self.html) if not a.endswith("/sign-out")
        ]
        return html.unescape(actions[0])


class Browser:
    """A browser with cookies, at `address`. `page` is the current page."""

    def __init__(self, app: Flask, address: str = "127.0.0.1") -> None:
        self.client: FlaskClient = app.test_client()
        self.client.environ_base["REMOTE_ADDR"] = address
        self.page: Page | None = None

    def open(self, path: str, **options: Any) -> Page:
        self.page = Page(self.client.get(path, base_url=ORIGIN, follow_redirects=True, **options))
        return self.page

    def post(self, path: str, fields: dict[str, str], *, follow: bool = True, **options: Any) -> Page:
        self.page = Page(self.client.post(path, data=fields, base_url=ORIGIN, follow_redirects=follow, **options))
        return self.page

    def send(self, **fields: str) -> Page:
        """Fill in the form of the current page, send it, and return the next page."""
        assert self.page is not None
        return self.post(self.page.action, {"csrf_token": self.page.csrf, **fields})

    def sign_in(self, user: str = "alice", password: str = PASSWORD) -> Page:
        self.open("/sign-in")
        return self.send(user=user, password=password)

    @property
    def cookie(self) -> str:
        """Return the session id from the browser's cookie."""
        cookie = self.client.get_cookie("__Host-pam_totp", domain="portal.example")
        assert cookie is not None
        return cookie.value

    def use_cookie(self, value: str) -> None:
        self.client.set_cookie("__Host-pam_totp", value, domain="portal.example", secure=True)


def key_on_page(page: Page) -> bytes:
    """Return the key that the enrolment page shows as text."""
    match = re.search(r"<code>([A-Z2-7 ]+)</code>", page.html)
    assert match
    return unbase32(match[1].replace(" ", ""))


def code_of_app(key: bytes, now: Callable[[], float], later: int = 0) -> str:
    """Return the code that a phone app with `key` shows, `later` steps of 30 s after `now()`."""
    return hotp(key, int(now()) // 30 + later)


def enroll_fob(portal: Portal, user: str = "alice", **fields: Any) -> HotpToken:
    """Enrol a key fob for `user`, and return its token. `fields` override the default fields of the token."""
    given: dict[str, Any] = {"name": "fob", "secret": KEY, "created": 0, "counter": 0} | fields
    token = HotpToken(**given)
    portal.site.enrol(token, user=user)
    return token
