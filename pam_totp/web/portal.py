"""The configuration and the shared objects of a portal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, cast
from urllib.parse import urlsplit

import flask
import werkzeug

from pam_totp.core import fields
from pam_totp.core.fields import require
from pam_totp.core.policy import Policy
from pam_totp.formats.otpauth import check_issuer
from pam_totp.operations import audit_log
from pam_totp.operations.desk import Accounts, DeskSettings
from pam_totp.operations.self_service import Factors
from pam_totp.pam.names import passwd_name
from pam_totp.store import Store
from pam_totp.system.desk_accounts import HostAccounts
from pam_totp.system.passwords import is_account
from pam_totp.system.portal_table import Appearance
from pam_totp.web import host_header, url_path
from pam_totp.web.limits import Limits
from pam_totp.web.second_factor import SecondFactor
from pam_totp.web.sessions import Sessions

SERVICE = "pam_totp-portal"  # the name of the PAM service for passwords, and of the portal in the site file and the log

UNKNOWN = "?"  # the log shows this text in quotes


class FirstToken(StrEnum):
    """The proof with which users add their first token themselves. OFF: an administrator adds the token.

    Tickets are also accepted with PASSWORD. The accepted ticket of a user with tokens replaces these tokens.
    """

    OFF = "off"
    TICKET = "ticket"
    PASSWORD = "password"


@dataclass(frozen=True, slots=True)
class App:
    """A phone app that the site recommends, and the address of its page."""

    name: str
    url: str

    @classmethod
    def parse(cls, text: str) -> App:
        """Return the app in `text`, NAME=URL. Raise ValueError."""
        name, _, url = (part.strip() for part in text.partition("="))
        require(fields.text, name, "the name of the app", ValueError)
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname or not url.isascii() or not url.isprintable() or " " in url:
            raise ValueError("--app must be NAME=URL, and the URL must be https://HOST/... in ASCII without spaces")
        return cls(name, url)


class Passwords(Protocol):
    """The interface for checking the first factor, a password."""

    def verify(self, user: str, password: str, delay: Callable[[float], None]) -> bool:
        """Return True if the password is right. Delay a refusal by a call of `delay`. Raise TooManyChecks."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The configuration of a portal.

    store: the tokens. With None, the service at `socket` checks codes, and the portal omits the pages for tokens. path:
    the path of the portal in URLs, in any spelling; an empty text means the whole host name. hosts: the valid host
    names of the portal, in any spelling; an empty tuple means any name. issuer: the name of this site in phone apps.
    appearance: the name, logo, colours and help of the site on each page. apps: the apps that the guided enrolment
    recommends. tls: True if a proxy in front of the portal terminates TLS. first_token: the proof with which users add
    their first token. rate_limits: False turns the limits off, for tests. desk: the group of the desk members, or None
    if the site has no desk. accounts: the host's accounts and groups. per_address: the maximum number of sign-ins a
    minute from one address. The other limits are in `request_limits`. now: returns Unix seconds. clock: returns
    monotonic seconds, for the sessions and the limits.
    """

    store: Store | None = None
    socket: str | None = None
    passwords: Passwords
    policy: Policy = field(default_factory=Policy)
    issuer: str = "pam_totp"
    appearance: Appearance = field(default_factory=Appearance)
    apps: tuple[App, ...] = ()
    tls: bool = True
    hosts: tuple[str, ...] = ()
    path: str = ""
    first_token: FirstToken = FirstToken.TICKET
    rate_limits: bool = True
    per_address: int = 60
    sink: audit_log.Sink = audit_log.to_syslog
    now: Callable[[], int] = lambda: int(time.time())
    clock: Callable[[], float] = time.monotonic
    passwd_name: Callable[[str], str] = passwd_name
    is_account: Callable[[str], bool] = is_account
    desk: DeskSettings | None = None
    accounts: Accounts = field(default_factory=HostAccounts)

    def __post_init__(self) -> None:
        """Convert the path and the host names to one spelling. Raise ValueError if these or the issuer are invalid."""
        object.__setattr__(self, "path", url_path.canonical(self.path))
        object.__setattr__(self, "hosts", tuple(map(host_header.canonical, self.hosts)))
        check_issuer(self.issuer)


@dataclass(frozen=True)
class Portal:
    """The objects that all pages share. `own_factors` is None if the portal has no store."""

    config: Config
    second_factor: SecondFactor
    sessions: Sessions
    limits: Limits
    own_factors: Factors | None

    @property
    def has_store(self) -> bool:
        return self.own_factors is not None

    def begins_with_ticket(self, user: str) -> bool:
        """Return True if the user has a ticket, or could get a first token by a ticket only."""
        if self.own_factors is None or self.config.first_token is not FirstToken.TICKET:
            return False
        record = self.own_factors.of(user)
        # A token with a serial number can also be confirmed without a ticket.
        return record.ticket is not None or all(token.serial is None for token in record.tokens)

    @property
    def factors(self) -> Factors:
        """Return the tokens in the store, for pages that require a store. Raise RuntimeError without a store."""
        if self.own_factors is None:
            raise RuntimeError("this page requires a store: the portal has no store")
        return self.own_factors


def current_portal() -> Portal:
    """Return the portal that serves the current request."""
    return cast(Portal, flask.current_app.extensions["pam_totp"])


def name_for_log(user: str) -> str:
    """Return `user`, or `UNKNOWN` if the account does not exist, because the text may be a password in the wrong
    field."""
    return user if current_portal().config.is_account(user) else UNKNOWN


def redirect_to(endpoint: str, form: str | None = None) -> werkzeug.Response:
    """Return a redirect to a page of the portal, or to its form with the id `form`.

    The browser sends a GET, also after a POST (RFC 9110 §15.4.4).
    """
    return flask.redirect(flask.url_for(endpoint, form=form), code=303)
