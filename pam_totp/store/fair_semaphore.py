"""A semaphore that serves its waiters in the order of their requests.

Rules:
- The time to wait depends only on the queue at the time of the request.
- `threading.Semaphore` guarantees no order: a new request can overtake all waiters. With 200 requests at once, some
  waiters timed out.
"""

from __future__ import annotations

import threading
from collections import deque


class FairSemaphore:
    """A semaphore with `permits` permits, which any thread may acquire. Release each acquired permit once."""

    def __init__(self, permits: int) -> None:
        self._lock = threading.Lock()
        self._free = permits
        self._queue: deque[threading.Event] = deque()

    def acquire(self, timeout: float) -> bool:
        """Wait for a permit for at most `timeout` seconds. Return True if the caller now has a permit."""
        with self._lock:
            if self._free > 0:  # the queue is empty, because release() passes a permit to the first waiter
                self._free -= 1
                return True
            granted = threading.Event()
            self._queue.append(granted)
        if granted.wait(timeout):
            return True
        with self._lock:
            if granted.is_set():  # release() granted the permit after the timeout
                return True
            self._queue.remove(granted)
            return False

    def release(self) -> None:
        """Pass the permit to the first waiter, or free it if no thread waits."""
        with self._lock:
            if self._queue:
                self._queue.popleft().set()
            else:
                self._free += 1

    @property
    def waiting(self) -> int:
        """Return the number of requests in the queue."""
        with self._lock:
            return len(self._queue)
