"""Template filters: a time, the kind and the state of a token, the outcome of a login, a change by the desk."""

from __future__ import annotations

import time

from flask import Flask
from markupsafe import Markup

from pam_totp.core.record import HotpToken, RecentLogin, Token, TotpToken
from pam_totp.operations import recent_logins
from pam_totp.operations.desk import RecentChange, recent_changes
from pam_totp.web.portal import current_portal
from pam_totp.web.texts import gettext, ngettext

MINUTE, HOUR, DAY = 60, 3600, 86_400  # seconds
RECENT_DAYS = 31  # the age up to which a page shows the age instead of the date


def add_to(app: Flask) -> None:
    app.add_template_filter(time_ago)
    app.add_template_filter(token_kind)
    app.add_template_filter(token_state)
    app.add_template_filter(login_outcome)
    app.add_template_filter(recent_changes)
    app.add_template_filter(change_text)


def time_ago(seconds: int | None) -> str | Markup:
    """Return the time since `seconds` (Unix), or "never" for None.

    A future time, or a time more than RECENT_DAYS days ago, becomes a UTC time.

    The time to the minute is in the attributes of the element, for machines and as a tooltip. The script of the page
    shows this time in the browser's time zone.
    """
    if seconds is None:
        return gettext("never")
    moment = time.gmtime(seconds)
    for_machines, exact = time.strftime("%Y-%m-%dT%H:%MZ", moment), time.strftime("%Y-%m-%d %H:%M UTC", moment)
    text = _ago(current_portal().config.now() - seconds) or exact
    return Markup('<time datetime="{}" title="{}">{}</time>').format(for_machines, exact, text)


def duration(seconds: int) -> str:
    """Return `seconds` as text for a user: in hours or minutes from 2 on, otherwise in seconds. Round up."""
    if seconds >= 2 * HOUR:
        return ngettext("%(num)d hour", "%(num)d hours", -(-seconds // HOUR))
    if seconds >= 2 * MINUTE:
        return ngettext("%(num)d minute", "%(num)d minutes", -(-seconds // MINUTE))
    return ngettext("%(num)d second", "%(num)d seconds", seconds)


def _ago(age: int) -> str | None:
    if 0 <= age < MINUTE:
        return gettext("less than a minute ago")
    if MINUTE <= age < HOUR:
        return ngettext("%(num)d minute ago", "%(num)d minutes ago", age // MINUTE)
    if HOUR <= age < DAY:
        return ngettext("%(num)d hour ago", "%(num)d hours ago", age // HOUR)
    if DAY <= age < RECENT_DAYS * DAY:
        return ngettext("%(num)d day ago", "%(num)d days ago", age // DAY)
    return None


def token_kind(token: Token) -> str:
    """Return the kind of a token in a user's words. A serial number is on a key fob; phone apps have none."""
    if isinstance(token, TotpToken):
        if token.serial is None:
            return gettext("phone app: a new code every %(seconds)d seconds", seconds=token.period)
        return gettext("key fob: a new code every %(seconds)d seconds", seconds=token.period)
    return gettext("key fob: a new code at every press of the button")


def token_state(token: Token) -> str:
    """Return a description of the token's state."""
    if not token.confirmed and token.serial is None:
        return gettext("not active yet: your ticket activates it")
    if not token.confirmed:
        return gettext("not active yet: enter two codes to activate it")
    if not token.enabled:
        return gettext("disabled by an administrator")
    if isinstance(token, HotpToken):
        if token.last_used is not None:
            return gettext("in step at its last code")
        return gettext("in step when it was issued")
    assert isinstance(token, TotpToken)
    if token.drift == 0:
        return gettext("in step")
    seconds = abs(token.drift) * token.period
    if token.drift > 0:
        return gettext("in step: its clock is %(seconds)d seconds ahead, which is corrected", seconds=seconds)
    return gettext("in step: its clock is %(seconds)d seconds behind, which is corrected", seconds=seconds)


def login_outcome(login: RecentLogin) -> str:
    """Return the outcome of a recent login in a user's words."""
    return gettext(recent_logins.words(login))


def change_text(change: RecentChange) -> str:
    """Return a sentence about a change that a desk member made."""
    values = {"by": change.by, "token": change.token}
    sentences = {
        ("unlock", False): gettext("%(by)s cleared the count of wrong answers.", **values),
        ("temporary-code", False): gettext("%(by)s created a temporary code.", **values),
        ("invite", True): gettext("%(by)s created a ticket for the new token %(token)s.", **values),
        ("disable-token", False): gettext("%(by)s disabled all tokens, and ended the recovery codes.", **values),
        ("disable-token", True): gettext("%(by)s disabled the token %(token)s.", **values),
        ("enable-token", False): gettext("%(by)s enabled all tokens.", **values),
        ("enable-token", True): gettext("%(by)s enabled the token %(token)s.", **values),
        ("assign", False): gettext("%(by)s assigned a key fob.", **values),
        ("replace", False): gettext("%(by)s replaced a key fob by another.", **values),
    }
    other = gettext("%(by)s made another change.", **values)
    return sentences.get((change.what, change.token is not None), other)
