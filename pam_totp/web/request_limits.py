"""The limits on the portal's requests: how many, from which networks, for which account.

Rules:
- Guesses of a password are limited for each network, for each account and network, and for each account.
- The store counts wrong codes of each user, from any address. The limits on codes protect the server.
- Right answers count too, because a limit is applied before the answer is checked.
- A sign-in counts if its form is valid, so that every request in these tables costs a check of a password.
- A smallest network that has signed the account in shares no limit with its neighbours.
- Names without an account have the limits of an account, in tables of their own. Made-up names therefore displace no
  count of an account.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flask import abort, request

from pam_totp.core import address as addresses
from pam_totp.operations import audit_log
from pam_totp.web.forms import SignInForm
from pam_totp.web.limits import DAY, HOUR, MINUTE, Budget
from pam_totp.web.portal import SERVICE, current_portal, name_for_log

Charge = tuple[Budget, str]

SIGN_IN = "signin.sign_in"
LARGER = (1, 2, 4)  # times the limit of one address, for the networks of core.address.PREFIXES
PAGES = 10  # times `per_address`: requests of pages
CHANGES = 20  # a minute from one address
# The POST requests that take a password or a code, and their limit in a minute from one address (None: `per_address`).
LIMITS = {
    SIGN_IN: None,
    "signin.code": None,
    "tokens.scan": None,
    "tokens.add_token": CHANGES,
    "tokens.resync": CHANGES,
    "tokens.remove": CHANGES,
    "tokens.recovery": CHANGES,
}
PAGE, ATTEMPT = "pages", "attempts"  # tables
_IN_NETWORK, _ACCOUNT, _MADE_UP = "account in network", "account", "made-up "
TABLES = (PAGE, ATTEMPT, _IN_NETWORK, _ACCOUNT, _MADE_UP + _IN_NETWORK, _MADE_UP + _ACCOUNT)
# Passwords for one account from one network. The hours and days limit a patient attacker.
OF_ONE_NETWORK = (
    Budget(_IN_NETWORK, ((10, MINUTE), (40, HOUR), (60, DAY))),
    Budget(_IN_NETWORK, ((15, MINUTE), (50, HOUR), (70, DAY))),
    Budget(_IN_NETWORK, ((20, MINUTE), (60, HOUR), (80, DAY))),
)
# Passwords for one account from all networks that have not signed it in. One network cannot use up this budget.
OF_UNKNOWN_NETWORKS = Budget(_ACCOUNT, ((100, HOUR), (300, DAY)))


def refuse_too_many_requests() -> None:
    """Abort with status 429 if the client's networks request too many pages. Files are not counted."""
    if request.endpoint != "static":
        _refuse_unless(_of_networks(PAGE, "", PAGES * current_portal().config.per_address))


def refuse_too_many_attempts() -> None:
    """Abort with status 429 if a form with a password or a code is sent too often."""
    endpoint = request.endpoint or ""
    if request.method != "POST" or endpoint not in LIMITS:
        return
    limit = LIMITS[endpoint] or current_portal().config.per_address
    if endpoint != SIGN_IN:
        _refuse_unless(_of_networks(ATTEMPT, endpoint, limit))
    elif (form := SignInForm()).validate():  # otherwise, the page reports the errors, and checks no password
        user = current_portal().config.passwd_name(form.user.data)
        is_known = current_portal().limits.has_signed_in(user.casefold(), _networks()[0])
        _refuse_unless(_of_networks(ATTEMPT, endpoint, limit, sizes=1 if is_known else len(LARGER)))
        _refuse_unless(_of_account(user, is_known=is_known), user)


def _refuse_unless(charges: Iterator[Charge], user: str | None = None) -> None:
    """Count the request, or abort. Log a refusal for `user`; requests without a user are too many for the log."""
    if current_portal().limits.admit(charges):
        return
    if user is not None:
        sink = current_portal().config.sink
        name = name_for_log(user)
        audit_log.write(sink, SERVICE, "refused", user=name, reason="too-many-attempts", rhost=request.remote_addr)
    abort(429)


def remember_network(user: str) -> None:
    """Note that the request's network has signed `user` in."""
    current_portal().limits.remember(user.casefold(), _networks()[0])


def _networks() -> tuple[str, ...]:
    """Return the networks of the client, from the smallest to the largest."""
    address = addresses.parse(request.remote_addr or "")
    return ("no address",) * len(LARGER) if address is None else addresses.networks(address)


def _of_networks(table: str, what: str, limit: int, *, sizes: int = len(LARGER)) -> Iterator[Charge]:
    """Yield the budgets of the client's smallest networks for `what`, if one address has `limit` requests a minute."""
    for size, (network, times) in list(enumerate(zip(_networks(), LARGER, strict=True)))[:sizes]:
        yield Budget(table, ((limit * times, MINUTE),)), f"{what} {size} {network}"


def _of_account(user: str, *, is_known: bool) -> Iterator[Charge]:
    """Yield the budgets of an attempt to sign `user` in. `is_known`: the smallest network has signed the user in."""
    networks, account, config = _networks(), user.casefold(), current_portal().config
    kind = "" if config.is_account(user) else _MADE_UP
    for size, (budget, network) in enumerate(zip(OF_ONE_NETWORK, networks, strict=True)):
        yield replace(budget, table=kind + budget.table), f"{size} {network} {account}"
        if is_known:
            return
    yield replace(OF_UNKNOWN_NETWORKS, table=kind + OF_UNKNOWN_NETWORKS.table), account
