"""The budget of wrong answers of each member.

Rules:
1. A member may send BURST wrong answers, and then RATE a second. Beyond that, one code of this member is not enough,
   but two in a row are (law 8): a stolen member cannot guess, and its honest users are not locked out.
2. Only wrong answers are counted, after their decision. Answers that were decided at the same time may exceed the
   budget. They are paid back from later seconds.
3. Each process of each authority has its own budgets, in memory.
"""

from __future__ import annotations

import threading

BURST = 20  # wrong answers
RATE = 2.0  # wrong answers a second
ALARM = 60.0  # seconds between two alarms about one member


class Budgets:
    """The budgets of all members, by name. `now` are monotonic seconds."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._spent: dict[str, tuple[float, float]] = {}  # name -> wrong answers, and when they were counted
        self._alarms: dict[str, float] = {}

    def is_used_up(self, member: str, now: float) -> bool:
        """Return True if the member has sent too many wrong answers."""
        with self._mutex:
            return self._spent_at(member, now) >= BURST

    def count(self, member: str, now: float) -> None:
        """Count a wrong answer."""
        with self._mutex:
            self._spent[member] = self._spent_at(member, now) + 1, now

    def is_alarm_due(self, member: str, now: float) -> bool:
        """Return True at most once in ALARM seconds for a member."""
        with self._mutex:
            last = self._alarms.get(member)
            if last is not None and now < last + ALARM:
                return False
            self._alarms[member] = now
            return True

    def _spent_at(self, member: str, now: float) -> float:
        spent, at = self._spent.get(member, (0.0, now))
        return max(0.0, spent - RATE * (now - at))
