"""Template filters: a time, the kind of a token, the state of a token."""

from __future__ import annotations

import time

from flask import Flask
from markupsafe import Markup

from pam_totp.core.record import HotpToken, Token, TotpToken
from pam_totp.web.portal import current_portal

MINUTE, HOUR, DAY = 60, 3600, 86_400  # seconds
RECENT_DAYS = 31  # the age up to which a page shows the age instead of the date


def add_to(app: Flask) -> None:
    app.add_template_filter(time_ago)
    app.add_template_filter(token_kind)
    app.add_template_filter(token_state)


def time_ago(seconds: int | None) -> str | Markup:
    """Format Unix seconds as the time since then, or after RECENT_DAYS or if it lies ahead, as a UTC time.

    The time to the minute is in the attributes of the element, for machines and as a tooltip.
    """
    if seconds is None:
        return "never"
    moment = time.gmtime(seconds)
    for_machines, exact = time.strftime("%Y-%m-%dT%H:%MZ", moment), time.strftime("%Y-%m-%d %H:%M UTC", moment)
    text = _ago(current_portal().config.now() - seconds) or exact
    return Markup('<time datetime="{}" title="{}">{}</time>').format(for_machines, exact, text)


def duration(seconds: int) -> str:
    """Return a duration for a user, in the largest unit of which it has at least two. Round up."""
    unit, name = next(
        (u, n) for u, n in ((HOUR, "hour"), (MINUTE, "minute"), (1, "second")) if seconds >= 2 * u or u == 1
    )
    count = -(-seconds // unit)
    return f"1 {name}" if count == 1 else f"{count} {name}s"


def _ago(age: int) -> str | None:
    if 0 <= age < MINUTE:
        return "less than a minute ago"
    for unit, length, limit in ((DAY, "day", RECENT_DAYS * DAY), (HOUR, "hour", DAY), (MINUTE, "minute", HOUR)):
        if unit <= age < limit:
            count = age // unit
            return f"1 {length} ago" if count == 1 else f"{count} {length}s ago"
    return None


def token_kind(token: Token) -> str:
    """Return the kind of a token in a user's words. A serial number is on a key fob; phone apps have none."""
    if isinstance(token, TotpToken):
        device = "phone app" if token.serial is None else "key fob"
        return f"{device}: a new code every {token.period} seconds"
    return "key fob: a new code at every press of the button"


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
