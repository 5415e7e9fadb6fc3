"""The health of a member's authorities, which are asked all at once, for `pam-totp doctor`.

Rules:
1. Each authority is asked over a separate connection. All answers together take at most `wait` seconds.
2. The check changes no record. Logins use other connections.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from pam_totp.member.connection import Connection
from pam_totp.member.errors import UNAUTHORIZED, Failed, failure
from pam_totp.member.wire import HEALTH_PATH, Failure, Health, WireError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

OK = 200  # HTTP status


class Seen(NamedTuple):
    """The answer of one authority.

    `problem` is None if the authority decides for this host. `is_unknown` is True if this member is unknown or revoked.
    `seconds` is the time of an answer on a kept connection. `ahead` is the clock of this host minus that of the
    database, in seconds.
    """

    authority: str
    problem: str | None = None
    is_unknown: bool = False
    store: str | None = None
    seconds: float = 0.0
    ahead: float = 0.0
    member: str | None = None


def look(authorities: Sequence[str], context: ssl.SSLContext, wait: float) -> list[Seen]:
    """Return the answer of each authority within `wait` seconds."""
    deadline = time.monotonic() + wait
    found = {authority: Seen(authority, "no answer in time") for authority in authorities}

    def ask(authority: str) -> None:
        try:
            found[authority] = _ask(authority, context, deadline)
        except (OSError, Failed) as e:
            found[authority] = Seen(authority, str(failure(e)))
        except WireError:
            found[authority] = Seen(authority, "the reply must be a valid message")

    threads = [threading.Thread(target=ask, args=(authority,), daemon=True) for authority in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()  # each wait in the thread ends at the deadline
    return list(found.values())


def _ask(authority: str, context: ssl.SSLContext, deadline: float) -> Seen:
    connection = Connection(authority, context, deadline)
    try:
        status, content = connection.ask("GET", HEALTH_PATH, None, deadline)
        if status == UNAUTHORIZED:
            return Seen(authority, _reason(status, content), is_unknown=True)
        if status != OK:
            return Seen(authority, _reason(status, content))
        if not connection.is_usable:
            raise Failed("connection closed")
        before, begun = time.time(), time.monotonic()
        status, content = connection.ask("GET", HEALTH_PATH, None, deadline)
        seconds = time.monotonic() - begun
        if status != OK:
            return Seen(authority, _reason(status, content))
    finally:
        connection.close()
    health = Health.from_json(content)
    ahead = before + seconds / 2 - (health.time + 0.5)  # whole seconds are sent
    return Seen(authority, None, store=health.store, seconds=seconds, ahead=ahead, member=health.member)


def _reason(status: int, content: bytes) -> str:
    try:
        return Failure.from_json(content).error
    except WireError:
        return f"status {status}"
