"""An action before one of the calls of a function: the death of the process, or an error."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any


def nth(function: Callable[..., Any], number: int, action: Callable[[], object]) -> Callable[..., Any]:
    """Return a wrapper of `function` that calls `action` before call number `number` (from 1)."""
    remaining = [number]

    def called(*arguments: Any, **named: Any) -> Any:
        remaining[0] -= 1
        if remaining[0] == 0:
            action()
        return function(*arguments, **named)

    return called


def killed(work: Callable[[], object], call: str, number: int) -> bool:
    """Return True if `work`, in a child process, reaches call `number` of `os.<call>`, where the child kills itself."""
    pid = os.fork()
    if pid == 0:
        try:
            setattr(os, call, nth(getattr(os, call), number, _die))
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
