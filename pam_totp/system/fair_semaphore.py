"""A few places, had in the order in which they were asked for.

The law: nobody who comes later is served sooner, so that a wait is as long as the line and no longer. A semaphore of
the standard library promises no order: whoever comes at the right moment passes all who wait, and of two hundred at
once some waited too long.
"""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """`places` places; any thread may ask. Give back what was taken, once."""

    def __init__(self, places: int) -> None:
        self._lock = threading.Lock()
        self._free = places
        self._waiting: deque[threading.Event] = deque()

    def take(self, timeout: float) -> bool:
        """Wait for a place for at most `timeout` seconds; False where none came free for us."""
        with self._lock:
            if self._free > 0:  # nobody waits then: who waits is given a place before it is free
                self._free -= 1
                return True
            mine = threading.Event()
            self._waiting.append(mine)
        if mine.wait(timeout):
            return True
        with self._lock:
            if mine.is_set():  # just now
                return True
            self._waiting.remove(mine)
            return False

    def give_back(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        with self._lock:
            return len(self._waiting)
