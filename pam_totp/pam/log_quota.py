"""What accounts that ask for themselves may have logged: so much a minute, and no more.

The law: root's logins and the listed clients' are logged whatever others do; of the rest, what goes beyond is left out,
and that it is left out is said. A log daemon that is flooded drops lines of its own choice, and guesses among them.
"""

from __future__ import annotations

import syslog
import threading
import time
from collections import Counter

from pam_totp.operations import audit_log

LINES_OF_ONE = 100  # a minute: far more than a person's logins
LINES_OF_ALL = 1000  # a minute: one person may have thousands of accounts (subuid(5))
_MINUTE = 60.0  # seconds


class BoundedLog:
    """Passes lines on to `log`, within bounds for each uid."""

    def __init__(self, log: audit_log.Sink) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._ends = 0.0
        self._lines: Counter[int] = Counter()
        self._total = 0

    def of(self, uid: int) -> audit_log.Sink:
        """The sink for what `uid` asks."""
        return lambda priority, line: self._write(uid, priority, line)

    def _write(self, uid: int, priority: int, line: str) -> None:
        with self._lock:
            now = time.monotonic()
            if now >= self._ends:
                self._ends, self._total = now + _MINUTE, 0
                self._lines.clear()
            self._lines[uid] += 1
            over, who = self._lines[uid] - LINES_OF_ONE, f"uid {uid}"
            if over <= 0:
                self._total += 1
                over, who = self._total - LINES_OF_ALL, "accounts that ask for themselves"
        if over <= 0:
            self._log(priority, line)
        elif over == 1:
            self._log(syslog.LOG_ERR, audit_log.line("serve", "error", problem=f"too much to log of {who} in a minute"))
