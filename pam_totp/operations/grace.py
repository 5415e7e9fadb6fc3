"""Grace: for some time after a code, the same user needs no code for the same service from the same address.

Rules:
1. Only a code grants grace. A login by grace does not extend the grace.
2. The address must be numeric, and identify a remote host. A local login has no address, a host name depends on a name
   server, and any host can have a loopback, link-local or unspecified address. Addresses are compared as values.
3. Grace is void after the clock was set back, after the tokens changed (`core.record` removes the grace), and while the
   user is locked.
"""

from __future__ import annotations

from pam_totp.core.address import is_remote, parse
from pam_totp.core.policy import Policy
from pam_totp.core.record import KEPT_GRACE, MAX_GRACE_SERVICE, Grace, UserRecord
from pam_totp.core.settings import MAX_GRACE_PERIOD


def origin(service: str, rhost: str | None) -> tuple[str, str] | None:
    """Return the service and the canonical address of a login, or None if grace is impossible."""
    if rhost is None or not 0 < len(service) <= MAX_GRACE_SERVICE:
        return None
    if not (service.isascii() and service.isprintable() and service == service.strip()) or set(service) & set('"\\'):
        return None
    address = parse(rhost)
    return (service, str(address)) if address is not None and is_remote(address) else None


def holds(record: UserRecord, origin: tuple[str, str], now: int, period: int, policy: Policy) -> bool:
    """Return True if a login from `origin` at `now` (Unix seconds) needs no code. `period` is in seconds."""
    if policy.locks(record.failures) or any(t.last_used is not None and t.last_used > now for t in record.tokens):
        return False
    return any((g.service, g.rhost) == origin and g.granted <= now < g.granted + period for g in record.grace)


def granted(record: UserRecord, origin: tuple[str, str], now: int) -> UserRecord:
    """Return the record with grace for `origin` from `now` (Unix seconds) on.

    Drop expired entries, and keep at most KEPT_GRACE entries.
    """
    unexpired = (g for g in record.grace if g.granted <= now < g.granted + MAX_GRACE_PERIOD)
    others = (g for g in unexpired if (g.service, g.rhost) != origin)
    service, rhost = origin
    newest = sorted((*others, Grace(service=service, rhost=rhost, granted=now)), key=lambda g: g.granted)
    return record.with_grace(tuple(newest[-KEPT_GRACE:]))
