"""Grace: for a while after a code, a login of the same user to the same service from the same address needs none.

The law:
- only a fresh code grants it, and nothing extends it;
- the address is a numeric remote one: a local login has none, and a host's name is what some name server says;
- it is void when the clock went back, when the tokens changed (`record` sees to that), and where the user is locked.
"""

from __future__ import annotations

import socket

from pam_totp.core.policy import Policy
from pam_totp.core.record import MAX_GRACE, Grace, UserRecord
from pam_totp.core.settings import MAX_GRACE_PERIOD

_LONGEST_SERVICE = 64  # characters: a name that a service file could have


def place(service: str, rhost: str | None) -> tuple[str, str] | None:
    """What grace is kept under: the service, and the address in its one spelling; None where there can be no grace."""
    if rhost is None or not (service.isascii() and service.isprintable() and 0 < len(service) <= _LONGEST_SERVICE):
        return None
    if service != service.strip():
        return None
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            return service, socket.inet_ntop(family, socket.inet_pton(family, rhost))
        except (OSError, ValueError):  # not an address of this family; a NUL in it
            continue
    return None


def holds(record: UserRecord, at: tuple[str, str], now: int, period: int, policy: Policy) -> bool:
    """Whether a login at `at` (see `place`) and `now` (Unix seconds) may do without a code. `period` is in seconds."""
    if policy.locks(record.failures) or any(t.last_used is not None and t.last_used > now for t in record.tokens):
        return False
    return any((g.service, g.rhost) == at and g.granted <= now < g.granted + period for g in record.grace)


def granted(record: UserRecord, at: tuple[str, str], now: int) -> UserRecord:
    """The record after a fresh code at `at`: what no policy could still honour is dropped, and so are the oldest."""
    others = (g for g in record.grace if (g.service, g.rhost) != at and g.granted <= now < g.granted + MAX_GRACE_PERIOD)
    newest = sorted((*others, Grace(service=at[0], rhost=at[1], granted=now)), key=lambda g: g.granted)
    return record.with_grace(tuple(newest[-MAX_GRACE:]))
