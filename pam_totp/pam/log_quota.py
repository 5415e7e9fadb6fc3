"""The limit on log lines a minute for accounts that may authenticate only themselves.

Rules:
1. The service logs every line for root and for listed clients.
2. Every other account has a limit, and these accounts have a limit together. The service drops lines above a limit.
3. The service logs one line for each limit that is reached.
4. The limits protect the log daemon: in a flood of lines, the daemon could drop lines about wrong codes.
"""

from __future__ import annotations

import syslog
import threading
import time
from collections import Counter

from pam_totp.operations import audit_log

MAX_LINES = 100  # lines a minute for one account: far more than a user's logins cause
MAX_TOTAL_LINES = 1000  # lines a minute for all accounts together: a user can own thousands of uids (subuid(5))
_MINUTE = 60.0  # seconds


class LogQuota:
    """A writer of lines to `log`, with a limit for each uid and a limit for all uids together."""

    def __init__(self, log: audit_log.Sink) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._ends = 0.0
        self._lines: Counter[int] = Counter()
        self._total = 0

    def of(self, uid: int) -> audit_log.Sink:
        """Return the sink for the logins of `uid`."""
        return lambda priority, line: self._write(uid, priority, line)

    def _write(self, uid: int, priority: int, line: str) -> None:
        with self._lock:
            now = time.monotonic()
            if now >= self._ends:
                self._ends, self._total = now + _MINUTE, 0
                self._lines.clear()
            self._lines[uid] += 1
            over, who = self._lines[uid] - MAX_LINES, f"uid {uid}"
            if over <= 0:
                self._total += 1
                over, who = self._total - MAX_TOTAL_LINES, "all accounts that ask about themselves"
        if over <= 0:
            self._log(priority, line)
        elif over == 1:
            problem = f"further log lines of {who} dropped: limit for this minute reached"
            self._log(syslog.LOG_ERR, audit_log.line("serve", "error", problem=problem))
