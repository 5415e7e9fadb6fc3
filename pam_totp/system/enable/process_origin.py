"""Where a process comes from: its ancestors, their terminals, and when they started (/proc, proc(5)).

The law: a second login is one whose own service process started after the change, on no terminal of the first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# The processes that a login through a service leaves above the shell. OpenSSH 9.8 has split sshd in two.
_PROGRAMS = {"sshd": ("sshd", "sshd-session"), "sudo": ("sudo",), "su": ("su",), "login": ("login",)}


@dataclass(frozen=True, slots=True)
class Process:
    """One process: its short name, its terminal's device number (0: none), its start in ticks since boot."""

    pid: int
    name: str
    parent: int
    terminal: int
    started: int


def ancestors() -> Iterator[Process]:
    """This process, its parent, and so on."""
    current = os.getpid()
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


def terminal() -> int:
    """The terminal that a person sits at, or 0. What is below sudo may have one that sudo made."""
    found = list(ancestors())
    start = next((i for i, process in enumerate(found) if process.name == "sudo"), 0)
    while found[start].name == "sudo" and start + 1 < len(found) and found[start + 1].name == "sudo":
        start += 1
    return next((process.terminal for process in found[start:] if process.terminal != 0), 0)


def now_ticks() -> int:
    """The time in ticks since boot."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def not_a_second_login(service: str, began: int, first: int, environment: Mapping[str, str]) -> str | None:
    """Why this process does not come from another login through `service` since `began`; None where it does."""
    if first != 0 and terminal() == first:
        return "this is the terminal that the change was made from; log in from another one"
    programs = _PROGRAMS.get(service)
    logins = [p for p in ancestors() if programs is not None and p.name in programs and p.started >= began]
    if programs is not None and not logins:
        return f"this did not come by a login through {service} since the change; log in anew, then confirm"
    by_root = service == "sudo" and environment.get("SUDO_UID", "0") == "0"
    if by_root or (service == "su" and all(_real_uid(p.pid) == 0 for p in logins)):
        return f"{service} asks root for nothing; log in as somebody else, then confirm"
    return None


def _real_uid(pid: int) -> int:
    """Who started a process, if it is setuid; root where it cannot be told."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Uid:"))
    except (OSError, StopIteration):
        return 0
