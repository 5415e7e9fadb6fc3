"""What one portal is made of, and how its pages come by it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, cast

import flask
import werkzeug

from pam_totp.core.policy import Policy
from pam_totp.operations import audit_log
from pam_totp.operations.self_service import Factors
from pam_totp.pam.module import passwd_name
from pam_totp.store import Store
from pam_totp.web.second_factor import SecondStep
from pam_totp.web.sessions import Sessions

SERVICE = "pam_totp-portal"  # the PAM service of the password, the site file's name for the policy, and the log's


class Passwords(Protocol):
    """Checks the first factor."""

    def right(self, user: str, password: str) -> bool:
        """Whether that is the user's password. Raises Busy."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """What a portal is made of. `hosts` are the names that it may be called by; none: any. Without a store, `socket` is
    where the service looks at codes, and nobody's tokens can be seen or changed. `per_address`: sign-ins a minute."""

    store: Store | None = None
    socket: str | None = None
    passwords: Passwords
    policy: Policy = field(default_factory=Policy)
    issuer: str = "pam_totp"
    tls: bool = True
    hosts: tuple[str, ...] = ()
    first_token: bool = True
    limited: bool = True
    per_address: int = 60
    sink: audit_log.Sink = audit_log.to_syslog
    now: Callable[[], int] = lambda: int(time.time())
    clock: Callable[[], float] = time.monotonic
    passwd_name: Callable[[str], str] = passwd_name


@dataclass(frozen=True)
class Portal:
    """What the pages share."""

    config: Config
    second: SecondStep
    sessions: Sessions
    own: Factors | None

    @property
    def factors(self) -> Factors:
        """The tokens in the store; for pages that are not there without one."""
        if self.own is None:
            raise RuntimeError("a page that needs the store was served without one")
        return self.own


def portal() -> Portal:
    """The portal that serves the request at hand."""
    return cast(Portal, flask.current_app.extensions["pam_totp"])


def to(endpoint: str) -> werkzeug.Response:
    """A redirect to a page of ours; a POST becomes a GET (RFC 9110 §15.4.4)."""
    return flask.redirect(flask.url_for(endpoint), code=303)
