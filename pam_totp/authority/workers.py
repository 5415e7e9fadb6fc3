"""The threads of an authority.

Rules:
1. There is a fixed number of threads. A request fails if it gets no thread within TURN seconds, or if WAITING requests,
   or MEMBER_WAITING of its member, are pending. Otherwise one member could block the others.
2. Each member has at most half of the threads. Otherwise one member could use all threads.
3. One thread at a time decides for a user. Otherwise the answers for one user would block several threads.
4. A request that has a thread is completed even if the member closes the connection.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

TURN = 4.0  # seconds
WAITING = 4000  # requests
MEMBER_WAITING = 250  # requests of one member: as many as threads of its service can wait for a reply

R = TypeVar("R")


class Busy(Exception):
    """The error for a request that got no thread in time."""


class Workers:
    """A fixed number of threads that serve members."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, "decide")
        self._free = _Turns(threads)
        self._members, self._users = _Turns(max(1, threads // 2)), _Turns(1)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: Counter[Hashable] = Counter()  # by member: the number of its tasks

    async def run(self, work: Callable[[], R], *, member: Hashable, user: Hashable = None) -> R:
        """Call `work` in a thread, and return its result. Raise Busy."""
        if len(self._tasks) >= WAITING:
            raise Busy(f"{WAITING} requests wait")
        if self._waiting[member] >= MEMBER_WAITING:
            raise Busy(f"{MEMBER_WAITING} requests of this member wait")
        self._waiting[member] += 1
        task = asyncio.get_running_loop().create_task(self._run(work, member, user))
        self._tasks.add(task)
        task.add_done_callback(partial(self._done, member))
        return await asyncio.shield(task)

    def _done(self, member: Hashable, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._waiting[member] -= 1
        if not self._waiting[member]:
            del self._waiting[member]

    async def _run(self, work: Callable[[], R], member: Hashable, user: Hashable) -> R:
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(TURN):
                    await stack.enter_async_context(self._members.turn(member))
                    if user is not None:
                        await stack.enter_async_context(self._users.turn(user))
                    await stack.enter_async_context(self._free.turn(None))
            except TimeoutError:
                raise Busy(f"no thread was free within {TURN:g} s") from None
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def finish(self, seconds: float) -> None:
        """Wait at most `seconds` for the requests that have begun, and end the threads."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Turns:
    """At most `width` holders of each key at a time. Only keys with holders or waiters use memory."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._keys: dict[Hashable, tuple[asyncio.Semaphore, int]] = {}  # with the number of holders and waiters

    @asynccontextmanager
    async def turn(self, key: Hashable) -> AsyncIterator[None]:
        semaphore, count = self._keys.get(key, (asyncio.Semaphore(self._width), 0))
        self._keys[key] = semaphore, count + 1
        try:
            async with semaphore:
                yield
        finally:
            semaphore, count = self._keys.pop(key)
            if count > 1:
                self._keys[key] = semaphore, count - 1
