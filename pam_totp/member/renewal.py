"""The renewal of a member's certificate in the service: a thread that checks the certificate once an hour.

Rules:
1. The service and its logins do not depend on the thread.
2. The thread logs an error at each attempt, with the number of remaining days if this number is known.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

from pam_totp.core.settings import SettingsError
from pam_totp.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pam_totp.core.settings import MemberSettings

FIRST_LOOK = 60.0  # seconds after the start, at most: many hosts can start at the same time
INTERVAL = 3600.0  # seconds between two checks
SERVICE = "serve"  # the service name of the log lines


def watch(settings: Callable[[], MemberSettings | None], log: Callable[..., None]) -> None:
    """Start the thread. `settings` returns the settings of the site file, or None on a host that is not a member."""
    threading.Thread(target=_watch, args=(settings, log), daemon=True).start()


def _watch(settings: Callable[[], MemberSettings | None], log: Callable[..., None]) -> None:
    time.sleep(random.uniform(0, FIRST_LOOK))
    while True:
        look(settings, log, int(time.time()))
        time.sleep(INTERVAL)


def look(settings: Callable[[], MemberSettings | None], log: Callable[..., None], now: int) -> None:
    """Renew the certificate if it is due at `now` (Unix seconds)."""
    left: int | None = None
    try:
        member = settings()
        if member is None:
            return
        from pam_totp.member.joining import DAY, renew, validity  # imported here because most hosts are no members

        found = validity(member.certificate)
        if not found.is_due(now):
            return
        left = max(0, (found.end - now) // DAY)
        renewed = renew(member)
        log("changed", what="member-renew", days=(renewed.end - now) // DAY)
    except SettingsError:
        return  # every login logs this error
    except StoreError as e:
        days = "" if left is None else f"; its certificate expires in {left} days"
        log("error", problem=f"member: the certificate was not renewed: {e}{days}")
    except Exception as e:  # the thread must survive a bug, and the text can contain a secret
        log("error", problem=f"member: the certificate was not renewed: {type(e).__name__}")
