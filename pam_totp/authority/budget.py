"""The budget of refused answers of each member.

Rules:
1. A member may send BURST refused answers, and then RATE a second. Beyond that, users of this member need two codes in
   a row (law 8). A stolen member cannot guess codes in a row, and honest users can still log in.
2. Every refused answer is counted after its decision, so the budget depends only on facts that the member already has.
   A stolen member could learn which users are enrolled, and which unused codes are right, if some reasons of refusals
   were exempt. Codes in a row give back the refusals of their login while the budget is used up. Otherwise a busy
   member would need codes in a row until few of its users log in.
3. Answers that were decided at the same time may exceed the budget. The count is at most MOST, so that honest users of
   a member can log in with one code again soon after a flood.
4. Each process of each authority has its own budgets, in memory.
"""

from __future__ import annotations

import threading

BURST = 20  # refused answers
MOST = 140  # refused answers: a minute at RATE above BURST
RATE = 2.0  # refused answers a second
ALARM = 60.0  # seconds between two alarms about one member


class Budgets:
    """The budgets of all members, by name. `now` is in monotonic seconds."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._spent: dict[str, tuple[float, float]] = {}  # name -> refused answers, and the time of this count
        self._alarms: dict[str, float] = {}

    def is_used_up(self, member: str, now: float) -> bool:
        """Return True if the member has sent too many refused answers."""
        with self._mutex:
            return self._spent_at(member, now) >= BURST

    def count(self, member: str, now: float) -> None:
        """Count a refused answer."""
        with self._mutex:
            self._spent[member] = min(self._spent_at(member, now) + 1, MOST), now

    def give_back(self, member: str, count: int, now: float) -> None:
        """Subtract `count` refused answers."""
        with self._mutex:
            self._spent[member] = max(0.0, self._spent_at(member, now) - count), now

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
