"""Where a process comes from: its ancestors, their terminals, and when they started (/proc, proc(5)).

The law: a second login is one whose own service process started after the change, on no terminal of the first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# The processes that a login through a service leaves above the shell. OpenSSH 9.8 has split sshd in two.
_PROGRAMS = {"sshd": ("sshd", "sshd-session"), "sudo": ("sudo",), "su": ("su",), "login": ("login",)}
_FREE_FOR_ROOT = ("sudo", "su")


@dataclass(frozen=True, slots=True)
class Process:
    """One process: its short name, its terminal's device number (0: none), its start in ticks since boot."""

    pid: int
    name: str
    parent: int
    terminal: int
    started: int


def ancestors(pid: int | None = None) -> Iterator[Process]:
    """The process itself, its parent, and so on."""
    current = os.getpid() if pid is None else pid
    while current > 0:
        try:
            with open(f"/proc/{current}/stat", encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            return
        name, _, rest = text.partition("(")[2].rpartition(")")
        fields = rest.split()  # state is field 3 of proc(5)
        found = Process(current, name, int(fields[1]), int(fields[4]), int(fields[19]))
        yield found
        current = found.parent


def terminals(pid: int | None = None) -> set[int]:
    """The terminals of a process and of its ancestors: sudo may have put one of its own between."""
    return {p.terminal for p in ancestors(pid)} - {0}


def now_ticks() -> int:
    """The time in ticks since boot."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def not_a_second_login(service: str, began: int, first: Sequence[int], pid: int | None = None) -> str | None:
    """Why this process does not come from another login through `service` since `began`; None where it does."""
    if terminals(pid) & set(first):
        return "this is the terminal that the change was made from; log in from another one"
    programs = _PROGRAMS.get(service)
    if programs is None or any(_by_login(p, service, programs, began) for p in ancestors(pid)):
        return None
    return f"this did not come by a login through {service} since the change; log in anew, then confirm"


def _by_login(process: Process, service: str, programs: Sequence[str], began: int) -> bool:
    """Whether a process is that service's, started since then; root is asked for nothing by sudo and su."""
    if process.started < began or process.name not in programs:
        return False
    try:
        return service not in _FREE_FOR_ROOT or os.stat(f"/proc/{process.parent}").st_uid != 0
    except OSError:
        return False
