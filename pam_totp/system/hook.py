"""The runner, which passes the changes of one process to the program of the site (`operations.on_change`).

Rules:
1. The program is the absolute path `on_change` in `[hooks]` of the site file. Only root can write to this path.
2. The program gets one JSON object on standard input, a clean environment, and at most TIME_LIMIT seconds.
3. One program runs at a time. The first BURST changes, and then PER_MINUTE changes a minute, start the program once
   each. All further changes are in one summary, after QUIET seconds without a change, or after MAX_WAIT seconds.
4. The log has a line if the program fails. The runner does not start the program again for the same change.
5. The runner drops root's privileges: it becomes the owner of the default store. The runner gets the kernel's overflow
   ids if the default store is missing or belongs to root.
6. The runner ends when the process has ended and the program has received all its changes.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import time
from collections import Counter, deque
from contextlib import suppress
from typing import Any

from pam_totp.core.settings import DEFAULT_STORE, SITE_FILE, SettingsError, Site, table_of
from pam_totp.operations import audit_log
from pam_totp.operations.on_change import COUNT_BYTES
from pam_totp.pam.login_session import read_site
from pam_totp.pam.privileges import become_nobody, become_owner_of
from pam_totp.system.trust import distrust

KEY = "on_change"
TIME_LIMIT = 10.0  # seconds
BURST, PER_MINUTE = 20, 20  # changes
QUIET, MAX_WAIT = 1.0, 60.0  # seconds
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
SUMMARY = "summary"  # `what` of a summary
_MAX_MESSAGE = 64 * 1024  # bytes
_SHOWN = ("what", "user", "token", "by")

Change = dict[str, Any]


class HookError(Exception):
    """The error for a program that was not started, or failed. The text is the reason."""


def program(site: Site) -> str | None:
    """Return the path of the site's program, or None if it is not set. Raise SettingsError if `[hooks]` is invalid."""
    if site.hooks is None:
        return None
    path = table_of(site.hooks, "hooks", [KEY]).get(KEY)
    if path is None:
        return None
    if type(path) is not str or not path.startswith("/") or "\0" in path:
        raise SettingsError(f"{SITE_FILE}: hooks.{KEY}: must be an absolute path")
    return path


def defect(path: str) -> str | None:
    """Return the reason why the program cannot be started, or None."""
    if (reason := distrust(path)) is not None:
        return reason
    if not os.path.isfile(path):
        return f"{path}: must be a regular file"
    return None if os.access(path, os.X_OK) else f"{path}: must be executable"


class Changes:
    """The changes that the program has not received yet. Times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self._single: deque[Change] = deque()
        self._allowed, self._counted_at = float(BURST), now
        self._others: Counter[str] = Counter()
        self._last: Change = {}
        self._authors: set[str | None] = set()
        self._first_at = self._last_at = now

    def add(self, change: Change, now: float) -> None:
        """Add a change: by itself, or to the summary if there were too many changes."""
        self._allowed = min(BURST, self._allowed + (now - self._counted_at) * PER_MINUTE / 60)
        self._counted_at, self._last = now, change
        if self._allowed >= 1 and not self._others:
            self._allowed -= 1
            self._single.append(change)
            return
        self._first_at, self._last_at = self._first_at if self._others else now, now
        self._others[change["what"]] += change["changes"]
        self._authors.add(change["by"])

    def add_uncounted(self, number: int, now: float) -> None:
        """Add `number` changes without details. The caller must have added a change before."""
        if number:
            self._first_at = self._first_at if self._others else now
            self._others["other"] += number

    def wait(self, now: float) -> float | None:
        """Return the seconds until the next change is due: 0 if a change is due, None if all changes were passed on."""
        if self._single:
            return 0.0
        if not self._others:
            return None
        return max(0.0, min(self._last_at + QUIET, self._first_at + MAX_WAIT) - now)

    def next(self) -> Change:
        """Return the change or the summary that is due, and remove it."""
        if self._single:
            return self._single.popleft()
        counts, self._others = self._others, Counter()
        authors, self._authors = self._authors, set()
        only = next(iter(authors)) if len(authors) == 1 else None
        single = {"what": SUMMARY, "user": None, "token": None, "by": only, "changes": sum(counts.values())}
        return {**self._last, **single, "details": dict(counts)}


def change_of(message: bytes) -> Change:
    """Return the change in a message of `operations.on_change`, in the form for the program."""
    given = json.loads(message)
    fields: dict[str, Any] = given["fields"]
    shown = {name: fields.pop(name, None) for name in _SHOWN}
    at = fields.pop("at", given["now"])
    where = {"service": given["service"], "host": os.uname().nodename}
    return {**shown, "at": at, **where, "changes": fields.pop("omitted", 1), "details": fields}


class Program:
    """A program that runs. The caller calls `result` when the program has ended, or at `end` (monotonic seconds)."""

    def __init__(self, path: str, change: Change) -> None:
        """Start the program. Raise OSError."""
        reading, writing = os.pipe()
        with open(reading, "rb") as stdin:
            with open(writing, "wb") as pipe:
                pipe.write(f"{json.dumps(change)}\n".encode())  # at most a few KiB, which the pipe holds
            null = subprocess.DEVNULL
            self._process = subprocess.Popen(
                [path], stdin=stdin, stdout=null, stderr=null, env=ENVIRONMENT, cwd="/", start_new_session=True
            )
        self.end = time.monotonic() + TIME_LIMIT
        self.pidfd = os.pidfd_open(self._process.pid)
        self.path = path

    def result(self) -> str | None:
        """Kill the program if it still runs, and wait for its end. Return the reason if the program failed, or None."""
        is_late = not select.select([self.pidfd], [], [], 0)[0]
        if is_late:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        os.close(self.pidfd)
        if is_late:
            return f"{self.path}: killed after {TIME_LIMIT:g} s"
        if status < 0:
            return f"{self.path}: ended by signal {-status}"
        return f"{self.path}: exit status {status}" if status else None


class Runner:
    """The loop over the changes from `channel`. `memory` is the descriptor of the file that counts further changes."""

    def __init__(self, channel: socket.socket, memory: int, site_file: str = SITE_FILE) -> None:
        self._channel, self._memory, self._site_file = channel, memory, site_file
        self._changes = Changes(time.monotonic())
        self._running: Program | None = None
        self._is_open = True
        self._uncounted = 0

    def run(self) -> None:
        """Pass all changes to the program, until the process at the other end has ended."""
        while self._is_open or self._running is not None or self._wait() is not None:
            self._turn()

    def _wait(self) -> float | None:
        """Return the seconds until the next change is due, or None. All changes are due after the process has ended."""
        now = time.monotonic()
        if not self._is_open:
            self._count_others(now)
        wait = self._changes.wait(now)
        return wait if wait is None or self._is_open else 0.0

    def _turn(self) -> None:
        wait = self._wait() if self._running is None else self._running.end - time.monotonic()
        if self._running is None and wait == 0:
            self._receive_all()
            self._start()
            return
        watched = [self._channel.fileno()] if self._is_open else []
        if self._running is not None:
            watched.append(self._running.pidfd)
        ready, _, _ = select.select(watched, [], [], None if wait is None else max(0.0, wait))
        if self._is_open and self._channel.fileno() in ready:
            self._receive_all()
        program = self._running
        if program is not None and (program.pidfd in ready or time.monotonic() >= program.end):
            self._running = None
            self._report(program.result())

    def _receive_all(self) -> None:
        while self._is_open:
            try:
                message = self._channel.recv(_MAX_MESSAGE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if message:
                self._changes.add(change_of(message), time.monotonic())
            else:
                self._is_open = False

    def _start(self) -> None:
        """Start the program for the next change. Log an error if it cannot be started."""
        self._count_others(time.monotonic())
        change = self._changes.next()
        try:
            path = program(read_site(self._site_file))
            if path is None:
                return
            if (reason := defect(path)) is not None:
                raise HookError(reason)
            self._running = Program(path, change)
        except (HookError, SettingsError) as e:
            self._report(str(e))
        except OSError as e:
            self._report(f"{path}: {(e.strerror or str(e)).lower()}")

    def _count_others(self, now: float) -> None:
        total = int.from_bytes(os.pread(self._memory, COUNT_BYTES, 0), "big")
        self._changes.add_uncounted(total - self._uncounted, now)
        self._uncounted = total

    def _report(self, problem: str | None) -> None:
        if problem is not None:
            audit_log.write(audit_log.to_syslog, audit_log.ON_CHANGE, "error", problem=problem)


def _drop_rights() -> None:
    """As root, also if only the real uid is that of root, become the owner of the default store (rule 5)."""
    if os.getuid() == 0:
        os.seteuid(0)
        os.setegid(0)
    with suppress(FileNotFoundError):  # the site has no default store
        become_owner_of(DEFAULT_STORE)
    become_nobody()


def main() -> None:
    """Serve the parent process. Descriptor 0 is the channel, and 1 the memfd that counts further changes."""
    os.umask(0o077)
    os.chdir("/")
    os.closerange(3, 1 << 16)
    try:
        _drop_rights()
        with socket.socket(fileno=0) as channel:
            Runner(channel, 1).run()
    except Exception as e:  # standard error is closed
        problem = f"the program receives no more changes: {e}"
        audit_log.write(audit_log.to_syslog, audit_log.ON_CHANGE, "error", problem=problem)
