"""The order in which logins use the store, and the thread in which each use runs.

Rules:
1. The uses of one record run one after the other. The askers of a record take turns, so that an asker with many answers
   cannot delay the other askers. The uses of one asker keep their order.
2. A use that cannot begin within `LOCK_WAIT` fails. The failure reveals no verdict, because it precedes the decision.
3. A use runs in the loop's thread only if no delay is expected. A long search, the wait for a lock, and the use of a
   database or an authority run in a thread of the pool. The use of a disk also runs there after a slow use, and after
   any wait for the disk if other logins are due.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from functools import partial
from typing import NamedTuple

from pam_totp.operations.verifier import UseStore
from pam_totp.pam.loop import Loop, Pool, ResultHandler, outcome
from pam_totp.store import LockBusy
from pam_totp.store.file import LOCK_WAIT

MAX_SEARCHES = 2  # long searches at once; more would delay the loop, because a search uses the processor
MEMORY = 5e-5  # seconds: a use that waits longer waits for a disk
SLOW_DISK = 0.005  # seconds: after a use that waited longer, uses run in threads even if no other login waits


class Use(NamedTuple):
    """One use of the store, which may wait until `deadline` (monotonic seconds)."""

    wait: UseStore
    on_result: ResultHandler
    deadline: float


class _Uses:
    """The uses of one record: the current use, and the waiting uses of each asker. The next asker is first."""

    def __init__(self, first: Use) -> None:
        self.current = first
        self._waiting: dict[object, deque[Use]] = {}

    def add(self, asker: object, use: Use) -> None:
        self._waiting.setdefault(asker, deque()).append(use)

    def advance(self) -> bool:
        """Make the next use the current use. Return True if there was a next use."""
        if not self._waiting:
            return False
        asker = next(iter(self._waiting))
        uses = self._waiting.pop(asker)
        self.current = uses.popleft()
        if uses:
            self._waiting[asker] = uses  # behind the other askers
        return True


class SearchTurns:
    """The turns of long searches, `limit` at once. A thread begins its turn before it acquires a lock, and ends this
    turn before a write. A second attempt, after a busy lock, has no turn: otherwise a held lock would delay other
    searches."""

    def __init__(self, limit: int) -> None:
        self._free = threading.BoundedSemaphore(limit)
        self._own = threading.local()

    def begin(self, seconds: float) -> bool:
        """Wait for a turn, at most `seconds`. Return True if the turn has begun."""
        self._own.has_turn = self._free.acquire(timeout=max(seconds, 0.0))
        return bool(self._own.has_turn)

    def end(self) -> None:
        """End the turn of the calling thread, if the thread has a turn."""
        if getattr(self._own, "has_turn", False):
            self._own.has_turn = False
            self._free.release()


class StoreQueue:
    """The uses of the store by logins in `loop`, with threads of `pool`. A search must call `search_turns.end`."""

    def __init__(self, loop: Loop, pool: Pool) -> None:
        self._loop, self._pool = loop, pool
        self.search_turns = SearchTurns(MAX_SEARCHES)
        self._records: dict[object, _Uses] = {}
        self._waited = 0.0  # seconds: the wait of the last use, usually for the disk

    def use(self, asker: object, wait: UseStore, on_result: ResultHandler) -> None:
        """Use the store for `asker`, and pass the result to `on_result`."""
        record = wait.record or wait
        use = Use(wait, on_result, time.monotonic() + LOCK_WAIT)
        if record in self._records:
            self._records[record].add(asker, use)
        else:
            self._records[record] = _Uses(use)
            self._begin(record)

    def _begin(self, record: object) -> None:
        """Begin the current use of a record."""
        use = self._records[record].current
        wait, on_result = use.wait, partial(self._end, record)
        if wait.is_slow:
            self._loop.run_in_thread(self._pool, partial(self._searched, use), on_result)
        elif wait.is_remote:
            self._loop.run_in_thread(self._pool, partial(wait.job, 0.0), on_result)
        elif self._waited > SLOW_DISK or (self._waited > MEMORY and (self._loop.is_busy or len(self._records) > 1)):
            self._loop.run_in_thread(self._pool, partial(self._measured, wait), on_result)
        else:
            on_result(*outcome(partial(self._measured, wait)))

    def _searched(self, use: Use) -> object:
        if not self.search_turns.begin(use.deadline - time.monotonic()):
            raise LockBusy(f"no search within {LOCK_WAIT:g} s: searches for other answers are running")
        try:
            return use.wait.job(0.0)
        finally:
            self.search_turns.end()

    def _measured(self, wait: UseStore) -> object:
        begun = time.monotonic() - time.thread_time()
        try:
            return wait.job(0.0)
        finally:
            self._waited = time.monotonic() - time.thread_time() - begun

    def _end(self, record: object, result: object, error: Exception | None) -> None:
        """Pass on the result of the current use, and begin the next use. Wait in a thread if the lock is held."""
        uses = self._records[record]
        wait, on_result, deadline = uses.current
        if isinstance(error, LockBusy):
            left = round(deadline - time.monotonic(), 1)
            if left > 0:
                self._loop.run_in_thread(self._pool, partial(wait.job, left), partial(self._end, record))
                return
        self._advance(record)
        on_result(result, error)

    def _advance(self, record: object) -> None:
        """Begin the next use of a record. Let each use fail whose deadline has passed."""
        uses = self._records[record]
        while uses.advance():
            if time.monotonic() < uses.current.deadline:
                self._loop.call_next(partial(self._begin, record))
                return
            busy = LockBusy(f"no decision within {LOCK_WAIT:g} s: other answers for this user were checked first")
            self._loop.call_next(partial(uses.current.on_result, None, busy))
        del self._records[record]
