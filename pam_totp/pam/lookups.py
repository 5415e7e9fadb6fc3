"""Lookups of accounts that are not in /etc/passwd: they run in threads, because a name service can be slow.

Rules:
1. Other accounts cannot delay lookups for root, which have separate threads.
2. The other accounts share a pool. Each account has at most MAX_FOR_ONE threads of the pool at once. The account's
   other lookups wait in order.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from functools import partial

from pam_totp.pam.login_quota import ROOT
from pam_totp.pam.login_session import LookUp
from pam_totp.pam.loop import Loop, Pool, ResultHandler

MAX_FOR_ROOT = 256  # threads
MAX_FOR_OTHERS = 32  # threads for all other accounts
MAX_FOR_ONE = 4  # threads of MAX_FOR_OTHERS, for one account


class Lookups:
    """The lookups of the logins in `loop`. The constructor raises RuntimeError if no thread can be started."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._for_root, self._for_others = Pool(MAX_FOR_ROOT), Pool(MAX_FOR_OTHERS)
        self._running: Counter[int] = Counter()  # by uid
        self._waiting: dict[int, deque[Callable[[], None]]] = {}  # by uid

    def look_up(self, uid: int, wait: LookUp, on_result: ResultHandler) -> None:
        """Carry out `wait` for `uid`, and pass the result to `on_result`."""
        if uid == ROOT:
            self._loop.run_in_thread(self._for_root, wait.job, on_result)
        else:
            begin = partial(self._begin, uid, wait.job, on_result)
            if self._running[uid] < MAX_FOR_ONE:
                begin()
            else:
                self._waiting.setdefault(uid, deque()).append(begin)

    def _begin(self, uid: int, job: Callable[[], object], on_result: ResultHandler) -> None:
        self._running[uid] += 1
        self._loop.run_in_thread(self._for_others, job, partial(self._end, uid, on_result))

    def _end(self, uid: int, on_result: ResultHandler, result: object, error: Exception | None) -> None:
        self._running[uid] -= 1
        waiting = self._waiting.get(uid)
        if waiting:
            waiting.popleft()()
        else:
            self._waiting.pop(uid, None)
            if not self._running[uid]:
                del self._running[uid]
        on_result(result, error)
