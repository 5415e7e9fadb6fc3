"""Template filters: a time, the kind of a token, the state of a token."""

from __future__ import annotations

import time

from flask import Flask
from markupsafe import Markup

from pam_totp.core.record import HotpToken, Token, TotpToken


def add_to(app: Flask) -> None:
    app.add_template_filter(utc_time)
    app.add_template_filter(token_kind)
    app.add_template_filter(token_state)


def utc_time(seconds: int | None) -> str | Markup:
    """Format Unix seconds as a UTC time, to the minute."""
    if seconds is None:
        return "never"
    moment = time.gmtime(seconds)
    for_machines, for_people = time.strftime("%Y-%m-%dT%H:%MZ", moment), time.strftime("%Y-%m-%d %H:%M UTC", moment)
    return Markup('<time datetime="{}">{}</time>').format(for_machines, for_people)


def token_kind(token: Token) -> str:
    if isinstance(token, TotpToken):
        return f"a new code every {token.period} seconds"
    return "a new code at every press of the button"


def token_state(token: Token) -> str:
    """Return a description of the token's state."""
    if not token.confirmed:
        return "not active yet: enter two codes to activate it"
    if not token.enabled:
        return "disabled by an administrator"
    if isinstance(token, HotpToken):
        return "in step at its last code" if token.last_used is not None else "in step when it was issued"
    assert isinstance(token, TotpToken)
    if token.drift == 0:
        return "in step"
    direction = "ahead" if token.drift > 0 else "behind"
    return f"in step: its clock is {abs(token.drift) * token.period} seconds {direction}, which is corrected"
