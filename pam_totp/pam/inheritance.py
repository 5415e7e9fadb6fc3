"""The state that a helper inherits from the caller of a setuid program such as su, and its reset.

Rules:
1. As root, the helper resets this state before it imports the rest of the package. Otherwise the caller could stop or
   slow down a helper that holds a lock, and other logins of the same user would wait.
2. The relay resets signals, environment, descriptors, folder, session, I/O priority and cgroup (`spawn` and `release`
   in relay.c). Timers and the parent-death signal are not inherited.
3. The login continues if one reset fails, for example in a container.
"""

from __future__ import annotations

import os
import resource

from pam_totp.core.lean import TYPE_CHECKING, suppress

if TYPE_CHECKING:
    from collections.abc import Callable

MIN_DESCRIPTORS = 1024
TIMER_SLACK = 50_000  # nanoseconds: the kernel's default
CGROUP = "/pam_totp.helpers"  # the relay's HELPERS

_UNLIMITED = ("AS", "CPU", "DATA", "FSIZE", "NPROC", "RSS", "RTTIME", "SIGPENDING", "STACK")
_LIMITS = {**dict.fromkeys(_UNLIMITED, resource.RLIM_INFINITY), "NOFILE": MIN_DESCRIPTORS, "CORE": 0}
_RESETS: tuple[Callable[[], object], ...] = (
    lambda: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0)),
    lambda: os.setpriority(os.PRIO_PROCESS, 0, 0),
    lambda: os.sched_setaffinity(0, os.sched_getaffinity(1)),  # the administrator's value for all processes
    lambda: _write("/proc/self/oom_score_adj", 0),
    lambda: _write("/proc/self/timerslack_ns", TIMER_SLACK),
)


def reset_inherited_state() -> None:
    """As root, reset ids, limits, priorities, processors and timer slack. Otherwise, do nothing."""
    if os.geteuid() != 0:
        return
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)  # the caller of su could send signals to a process with the caller's real uid
    for name, value in _LIMITS.items():
        _set_limit(getattr(resource, f"RLIMIT_{name}"), value)
    for reset in _RESETS:
        with suppress(OSError):
            reset()


def _set_limit(limit: int, value: int) -> None:
    """Set the soft and the hard limit. Without CAP_SYS_RESOURCE, the old hard limit is the maximum."""
    _, hard = resource.getrlimit(limit)
    for possible in (value, hard):
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (possible, possible))
            break


def _write(path: str, value: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, b"%d" % value)
    finally:
        os.close(file)


def callers_cgroup() -> str | None:
    """Return the path of this process's cgroup, or None if the relay has moved this process to the cgroup for
    helpers."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        path = next((line.removeprefix("0::").strip() for line in file if line.startswith("0::")), "unknown")
    return None if path.endswith(CGROUP) else path
