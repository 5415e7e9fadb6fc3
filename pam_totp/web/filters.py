"""How pages write things: times, kinds of token, whether one is in step."""

from __future__ import annotations

import time

from flask import Flask
from markupsafe import Markup

from pam_totp.core.record import HotpToken, Token, TotpToken


def add_to(app: Flask) -> None:
    app.add_template_filter(when)
    app.add_template_filter(kind)
    app.add_template_filter(in_step)


def when(seconds: int | None) -> str | Markup:
    """A time in UTC, to the minute."""
    if seconds is None:
        return "never"
    moment = time.gmtime(seconds)
    machine, person = time.strftime("%Y-%m-%dT%H:%MZ", moment), time.strftime("%Y-%m-%d %H:%M UTC", moment)
    return Markup('<time datetime="{}">{}</time>').format(machine, person)


def kind(token: Token) -> str:
    if isinstance(token, TotpToken):
        return f"by time, a new code every {token.period} seconds"
    return "by button, a new code at every press"


def in_step(token: Token) -> str:
    """What is known of a token's step without a code."""
    if not token.confirmed:
        return "not in use yet: enter two codes to begin"
    if not token.enabled:
        return "switched off by an administrator"
    if isinstance(token, HotpToken):
        return "in step, as of its last code" if token.last_used is not None else "in step, as it was handed out"
    assert isinstance(token, TotpToken)
    if token.drift == 0:
        return "in step"
    fast = "ahead" if token.drift > 0 else "behind"
    return f"in step; its clock is {abs(token.drift) * token.period} seconds {fast}, which is allowed for"
