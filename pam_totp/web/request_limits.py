"""The limits on the portal's requests, by network and by account.

Rules:
- Guesses of a password are limited for each network, for each account and network, and for each account.
- An attempt counts against all of its limits at once. A refused attempt does not count.
- The store counts wrong codes of each user, from any address. The limits on codes protect the server. They count each
  user separately, and only requests after the password, so that other users cannot use them up.
- Right answers count too, because the portal applies a limit before it checks the answer.
- A sign-in counts if its form is valid, so that every request in these tables costs a check of a password.
- A network of the smallest size from which the account has signed in has separate limits.
- An account counts under exactly the name in its passwd entry. A name without an account counts under exactly its own
  text, because a count shared with another spelling would show the spelling of an account.
- Unknown names have the same limits as accounts, in separate tables, so that these names cannot displace the count of
  an account.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from math import ceil

from flask import request
from werkzeug.exceptions import TooManyRequests

from pam_totp.core import address as addresses
from pam_totp.operations import audit_log
from pam_totp.web.forms import SignInForm
from pam_totp.web.headers import WITHOUT_USER
from pam_totp.web.limits import DAY, HOUR, MINUTE, Budget
from pam_totp.web.portal import SERVICE, current_portal, name_for_log
from pam_totp.web.session_cookie import current_session
from pam_totp.web.sessions import Step

Charge = tuple[Budget, str]

SIGN_IN = "signin.sign_in"
LARGER = (1, 2, 4)  # factors of the limit of one address, for the networks of core.address.PREFIXES
PAGES = 10  # factor of `per_address`: requests for pages
CHANGES = 20  # a minute from one address
# The POST requests that take a password or a code. The values are the step of the session that a request needs (None:
# any), and its limit in a minute from one address (None: `per_address`).
LIMITS: dict[str, tuple[Step | None, int | None]] = {
    SIGN_IN: (None, None),
    "signin.code": (Step.PASSWORD, None),
    "guided.start": (Step.SIGNED_IN, CHANGES),
    "guided.lost_phone": (Step.PASSWORD, CHANGES),
    "guided.scan": (Step.ENROLLING, None),
    "tokens.scan": (Step.SIGNED_IN, None),
    "tokens.add_token": (Step.SIGNED_IN, CHANGES),
    "tokens.next_code": (Step.SIGNED_IN, CHANGES),
    "tokens.resync": (Step.SIGNED_IN, CHANGES),
    "tokens.remove": (Step.SIGNED_IN, CHANGES),
    "tokens.recovery": (Step.SIGNED_IN, CHANGES),
    "desk.change": (Step.SIGNED_IN, CHANGES),
}
PAGE, ATTEMPT = "pages", "attempts"  # tables
_IN_NETWORK, _ACCOUNT, _MADE_UP = "account in network", "account", "made-up "
TABLES = (PAGE, ATTEMPT, _IN_NETWORK, _ACCOUNT, _MADE_UP + _IN_NETWORK, _MADE_UP + _ACCOUNT)
# Passwords for one account from one network. The limits of an hour and a day are for slow guesses.
OF_ONE_NETWORK = (
    Budget(_IN_NETWORK, ((10, MINUTE), (40, HOUR), (60, DAY))),
    Budget(_IN_NETWORK, ((15, MINUTE), (50, HOUR), (70, DAY))),
    Budget(_IN_NETWORK, ((20, MINUTE), (60, HOUR), (80, DAY))),
)
# Passwords for one account from all networks from which it has not signed in. One network cannot use up this budget.
OF_UNKNOWN_NETWORKS = Budget(_ACCOUNT, ((100, HOUR), (300, DAY)))


def refuse_too_many_requests() -> None:
    """Raise TooManyRequests if the client's networks request too many pages.

    Requests for files, and of monitors, do not count.
    """
    if request.endpoint not in WITHOUT_USER:
        _refuse_unless(_of_networks(PAGE, "", PAGES * current_portal().config.per_address))


def refuse_too_many_attempts() -> None:
    """Raise TooManyRequests if a form with a password or a code is sent too often."""
    endpoint = request.endpoint or ""
    if request.method != "POST" or endpoint not in LIMITS:
        return
    step, limit = LIMITS[endpoint]
    limit = limit or current_portal().config.per_address
    if endpoint == SIGN_IN:
        if (form := SignInForm()).validate():  # otherwise, the page reports the errors, and the password is not checked
            _refuse_password(current_portal().config.passwd_name(form.user.data), limit)
    # The page does not check the code at another step.
    elif (state := current_session().state).step is step and state.user is not None:
        _refuse_unless(_of_networks(ATTEMPT, f"{endpoint} {state.user}", limit, sizes=_sizes(state.user)))


def _refuse_password(user: str, limit: int) -> None:
    """Count an attempt to sign `user` in or raise TooManyRequests. Log a refusal."""
    sizes = _sizes(user)
    charges = chain(_of_networks(ATTEMPT, SIGN_IN, limit, sizes=sizes), _of_account(user, sizes=sizes))
    _refuse_unless(charges, user)


def _sizes(user: str) -> int:
    """Return the number of the client's networks with a limit: 1 if `user` has signed in from the smallest."""
    return 1 if current_portal().limits.has_signed_in(user, _networks()[0]) else len(LARGER)


def _refuse_unless(charges: Iterator[Charge], user: str | None = None) -> None:
    """Count the request, or raise TooManyRequests with the time to wait. Log a refusal only if `user` is given: lines
    about other requests could flood the log.
    """
    limits, listed = current_portal().limits, list(charges)
    if limits.admit(listed):
        return
    if user is not None:
        sink = current_portal().config.sink
        name = name_for_log(user)
        audit_log.write(sink, SERVICE, "refused", user=name, reason="too-many-attempts", rhost=request.remote_addr)
    raise TooManyRequests(retry_after=max(1, ceil(limits.wait(listed))))


def remember_network(user: str) -> None:
    """Store that `user`, the name in the passwd entry, has signed in from the request's network."""
    current_portal().limits.remember(user, _networks()[0])


def _networks() -> tuple[str, ...]:
    """Return the networks of the client, from the smallest to the largest."""
    address = addresses.parse(request.remote_addr or "")
    return ("no address",) * len(LARGER) if address is None else addresses.networks(address)


def _of_networks(table: str, what: str, limit: int, *, sizes: int = len(LARGER)) -> Iterator[Charge]:
    """Yield the budgets for `what` of the client's `sizes` smallest networks. `limit` is for one address a minute."""
    for size, (network, times) in list(enumerate(zip(_networks(), LARGER, strict=True)))[:sizes]:
        yield Budget(table, ((limit * times, MINUTE),)), f"{what} {size} {network}"


def _of_account(user: str, *, sizes: int) -> Iterator[Charge]:
    """Yield the budgets of an attempt to sign `user` in from the client's `sizes` smallest networks."""
    kind = "" if current_portal().config.is_account(user) else _MADE_UP
    for size, (budget, network) in list(enumerate(zip(OF_ONE_NETWORK, _networks(), strict=True)))[:sizes]:
        yield replace(budget, table=kind + budget.table), f"{size} {network} {user}"
    if sizes == len(LARGER):
        yield replace(OF_UNKNOWN_NETWORKS, table=kind + OF_UNKNOWN_NETWORKS.table), user
