"""An event loop in one thread, and pools of threads for jobs that may block.

Rules:
1. One thread calls all handlers, one after the other: handlers need no lock, but must return quickly.
2. A job runs in a thread of a pool. The loop's thread then handles the result of the job.
3. A hung job cannot delay the end of the process, because the threads of a pool are daemon threads.
"""

from __future__ import annotations

import heapq
import itertools
import os
import queue
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial

MAX_IDLE = 8  # threads
_MANY = select.EPOLLIN | select.EPOLLEXCLUSIVE  # a connection wakes one worker process
_ONCE = select.EPOLLIN | select.EPOLLONESHOT

Handler = Callable[[], object]
ResultHandler = Callable[[object, Exception | None], None]  # arguments: the result of a job, its exception


class Pool:
    """A pool of at most `limit` threads. A thread ends after a job if `MAX_IDLE` other threads are idle."""

    def __init__(self, limit: int) -> None:
        """Start the first thread. Raise RuntimeError if the thread cannot be started."""
        self._limit = limit
        self._jobs: queue.SimpleQueue[Handler] = queue.SimpleQueue()
        self._lock = threading.Lock()  # protects `_threads` and `_idle`
        self._threads = 0
        self._idle = 0  # threads without a job; negative if jobs wait for a thread
        self._start()

    def submit(self, job: Handler) -> None:
        with self._lock:
            self._idle -= 1
            if self._idle < 0 and self._threads < self._limit:
                with suppress(RuntimeError):  # the thread limit is reached: the job waits for an existing thread
                    self._start()
        self._jobs.put(job)

    def _start(self) -> None:
        threading.Thread(target=self._work, daemon=True).start()
        self._threads += 1
        self._idle += 1

    def _work(self) -> None:
        while True:
            self._jobs.get()()
            with self._lock:
                if self._idle >= MAX_IDLE:
                    self._threads -= 1
                    return
                self._idle += 1


class Loop:
    """An event loop that calls handlers of descriptors, timers and results until `stop`."""

    def __init__(self, log_bug: Callable[[Exception], None]) -> None:
        """Create a loop, which passes each exception of a handler to `log_bug`."""
        self._log_bug = log_bug
        self.poll_time = 0.0  # monotonic seconds: the end of the last poll for readable descriptors
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}  # by descriptor
        self._due: deque[Handler] = deque()
        self._timers: list[tuple[float, int, Handler]] = []  # a heap; the number keeps timers of the same time in order
        self._number = itertools.count()
        self._is_stopped = False
        self._wake = open(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), "r+b", buffering=0)  # noqa: SIM115
        self.watch(self._wake.fileno(), partial(os.eventfd_read, self._wake.fileno()), always=True)

    @property
    def is_busy(self) -> bool:
        """Return True if other handlers are due."""
        return bool(self._due)

    def watch(self, descriptor: int, handler: Handler, *, always: bool = False) -> None:
        """Call `handler` the next time that `descriptor` is readable, or every time if `always` is True."""
        if descriptor in self._handlers:
            self._epoll.modify(descriptor, _ONCE)
        else:
            self._epoll.register(descriptor, _MANY if always else _ONCE)
        self._handlers[descriptor] = handler

    def unwatch(self, descriptor: int) -> None:
        """Stop watching `descriptor`. The caller must do this before it closes the descriptor."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def call_next(self, handler: Handler) -> None:
        """Call `handler` after all handlers that are due."""
        self._due.append(handler)

    def call_later(self, seconds: float, handler: Handler) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._number), handler))

    def call_from_thread(self, handler: Handler) -> None:
        """Do the same as `call_next`, from any thread. All other methods are for the loop's thread only."""
        self._due.append(handler)
        os.eventfd_write(self._wake.fileno(), 1)

    def run_in_thread(self, pool: Pool, job: Callable[[], object], on_result: ResultHandler) -> None:
        """Run `job` in a thread of `pool`, then call `on_result` in the loop's thread."""
        pool.submit(lambda: self.call_from_thread(partial(on_result, *outcome(job))))

    def stop(self) -> None:
        """Let `run` return after the current handler."""
        self._is_stopped = True

    def run(self) -> None:
        """Call handlers until `stop`. Poll before each round, so that queued handlers delay no packet or timer."""
        while not self._is_stopped:
            self._wait()
            for _ in range(len(self._due)):
                if self._is_stopped:
                    break
                try:
                    self._due.popleft()()
                except Exception as e:
                    self._log_bug(e)

    def _wait(self) -> None:
        """Wait for a descriptor or a timer, and append the handlers that are due to `_due`."""
        seconds = self._seconds()
        if seconds == 0.0 and not self._due:
            self._wait_exactly()
        ready = self._epoll.poll(seconds)
        self.poll_time = time.monotonic()
        self._due.extend(self._handlers[descriptor] for descriptor, _ in ready)
        while self._timers and self._timers[0][0] <= self.poll_time:
            self._due.append(heapq.heappop(self._timers)[2])

    def _wait_exactly(self) -> None:
        """Wait for a descriptor or the next timer, which is due in less than a millisecond.

        Use select(2), because `epoll.poll` rounds the timeout to milliseconds.
        """
        with suppress(ValueError):  # select(2) takes only descriptors below 1024: otherwise, the loop polls
            select.select([self._epoll], [], [], max(0.0, self._timers[0][0] - time.monotonic()))

    def _seconds(self) -> float | None:
        """Return the time to wait by epoll: whole milliseconds, rounded down, or None if there is no timer.

        epoll rounds up to milliseconds, and the end of a longer wait would show the duration of the work before the
        delay.
        """
        if self._due:
            return 0.0
        if not self._timers:
            return None
        milliseconds = int(1000 * (self._timers[0][0] - time.monotonic()))
        return max(0.0, milliseconds - 0.5) / 1000  # epoll rounds this up to `milliseconds`


def outcome(job: Callable[[], object]) -> tuple[object, Exception | None]:
    """Return the result of `job` and None, or None and the exception that `job` raised."""
    try:
        return job(), None
    except Exception as e:
        return None, e
