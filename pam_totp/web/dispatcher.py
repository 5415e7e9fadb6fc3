"""The threads of the portal's server: a few check passwords, and all others serve pages.

Rules:
- A check of a password may wait for other checks. Requests for pages never wait for checks.
- The large networks of clients (core.address) take turns. Therefore, many requests from one network delay a sign-in
  from another network by at most one turn.
- A request waits in a queue, without a thread. The number of connections limits the queue.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any, Generic, Protocol, TypeVar

from waitress.task import ThreadedTaskDispatcher  # needs the extra `web`

from pam_totp.system.passwords import SLOTS

PASSWORD_THREADS = 2 * SLOTS  # SLOTS threads that check passwords, and as many that read a request or the store


class Task(Protocol):
    """A connection with a request. `network` is the large network of the client."""

    @property
    def network(self) -> str: ...

    @property
    def checks_password(self) -> bool: ...


T = TypeVar("T", bound=Task)


class Turns(Generic[T]):
    """A queue in which networks take turns. It has the methods of a deque that waitress calls under a lock."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()
        self._length = 0

    def append(self, task: T) -> None:
        self._lines.setdefault(task.network, deque()).append(task)
        self._length += 1

    def popleft(self) -> T:
        """Remove and return the first task of the next network."""
        network, line = self._lines.popitem(last=False)
        task = line.popleft()
        if line:
            self._lines[network] = line
        self._length -= 1
        return task

    def __len__(self) -> int:
        return self._length


class Dispatcher:
    """Two groups of threads, with one queue each. waitress calls the methods."""

    def __init__(self, threads: int) -> None:
        self._pages, self._passwords = ThreadedTaskDispatcher(), ThreadedTaskDispatcher()
        self._passwords.queue = Turns()
        self._pages.set_thread_count(threads - PASSWORD_THREADS)
        self._passwords.set_thread_count(PASSWORD_THREADS)

    def add_task(self, task: Task) -> None:
        (self._passwords if task.checks_password else self._pages).add_task(task)

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> Any:
        """End all threads after their current requests."""
        ended = [group.shutdown(cancel_pending, timeout) for group in (self._pages, self._passwords)]
        return all(ended)
