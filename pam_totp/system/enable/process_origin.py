"""The login from which this process comes, found by the terminals and start times of its ancestors (proc(5)).

Rule: a login is a second login if its service process started after the change, and its terminal differs from that
of the first login.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# For each service, the programs that start the user's shell. Since OpenSSH 9.8, a connection runs in sshd-session.
_PROGRAMS = {"sshd": ("sshd", "sshd-session"), "sudo": ("sudo",), "su": ("su",), "login": ("login",)}


@dataclass(frozen=True, slots=True)
class Process:
    """A process: its short name, the device number of its terminal (0: none), and its start in ticks since boot."""

    pid: int
    name: str
    parent: int
    terminal: int
    started: int


def ancestors() -> Iterator[Process]:
    """Yield this process, its parent, and all further ancestors in order."""
    current = os.getpid()
    while current > 0:
        try:
            with open(f"/proc/{current}/stat", encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            return
        name, _, rest = text.partition("(")[2].rpartition(")")
        fields = rest.split()  # fields[0] is the state, field 3 of /proc/PID/stat
        process = Process(current, name, int(fields[1]), int(fields[4]), int(fields[19]))
        yield process
        current = process.parent


def terminal() -> int:
    """Return the device number of the user's terminal, or 0. Ignore a terminal that sudo has created."""
    processes = list(ancestors())
    start = next((i for i, process in enumerate(processes) if process.name == "sudo"), 0)
    while processes[start].name == "sudo" and start + 1 < len(processes) and processes[start + 1].name == "sudo":
        start += 1
    return next((process.terminal for process in processes[start:] if process.terminal != 0), 0)


def now_ticks() -> int:
    """Return the time since boot in ticks."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def why_not_second_login(service: str, began: int, first: int, environment: Mapping[str, str]) -> str | None:
    """Return the reason why this process cannot confirm a change of `service`, or None if it can.

    `began` is the time of the change in ticks since boot. `first` is the terminal of the first login, or 0.
    """
    if first != 0 and terminal() == first:
        return "cannot confirm: the change was made on this terminal (log in on another terminal, then confirm)"
    programs = _PROGRAMS.get(service)
    logins = [p for p in ancestors() if programs is not None and p.name in programs and p.started >= began]
    if programs is not None and not logins:
        remedy = f"log in through {service}, and confirm inside that login"
        return f"cannot confirm: a login through {service} after the change is required ({remedy})"
    is_root = service == "sudo" and environment.get("SUDO_UID", "0") == "0"
    if is_root or (service == "su" and all(_real_uid(p.pid) == 0 for p in logins)):
        return f"cannot confirm as root: {service} asks only other users for a code (confirm as another user)"
    return None


def _real_uid(pid: int) -> int:
    """Return the real uid of a process, or 0 (root) if it cannot be read."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Uid:"))
    except (OSError, StopIteration):
        return 0
