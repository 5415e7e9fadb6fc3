"""The audit log of an administrator's changes: one line for each change, with the account that made it.

Rules:
1. `by` is the account of the real uid. Only if that is root, SUDO_UID counts: sudo sets it, but any other account could
   set the variable to any value.
2. `login` is the account that logged in (/proc/self/loginuid), if it differs from `by`. Only root can change it, so it
   shows the account behind su, and contradicts a forged SUDO_UID.
3. Keys that leave the store are logged before they are shown. A change is logged when it is durable. A change that was
   rolled back is not logged.
4. A failure of the log undoes no change. The command prints a warning that names it.
5. A line has its own time, because the lines of a log daemon may have no year.
"""

from __future__ import annotations

import os
import pwd
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

from pam_totp.core.settings import DEFAULT_STORE
from pam_totp.operations import audit_log

SERVICE = "pam-totp"  # the service name of every command in the audit log
MAX_LINES = 5000  # lines of one command: journald drops lines from 10,000 in 30 seconds on, by default
FAULTS = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP}
_LOGIN_UID = "/proc/self/loginuid"
_NO_UID = (1 << 32) - 1  # the kernel's value for "no login", which is no valid uid

Fields = Mapping[str, str | int | None]


def caller() -> tuple[int, int]:
    """Return the uids for `by` and `login`. Call this before the process changes its uid."""
    uid = os.getuid()
    if uid == 0:
        uid = _uid(os.environ.get("SUDO_UID", ""), uid)
    try:
        with open(_LOGIN_UID, encoding="ascii") as file:
            login = _uid(file.read(), uid)
    except OSError:
        login = uid
    return uid, login


def _uid(text: str, default: int) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(_NO_UID))):
        return default
    return int(text) if int(text) < _NO_UID else default


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


class Audit:
    """The lines of one command. The caller is the account that runs this process when the object is created."""

    def __init__(self) -> None:
        self._by, self._login = caller()
        self._has_warned = False
        self._lines = self._omitted = 0
        self.store = DEFAULT_STORE  # the store that the command changes; a line has it only if it is another

    @cached_property
    def caller(self) -> str:
        """The account that runs the command."""
        return _name(self._by)

    def look_up(self) -> None:
        """Ask the name service for the caller. Call this before a change, because the name service may block."""
        _ = self._who

    @cached_property
    def _who(self) -> Fields:
        return {"by": self.caller, "login": None if self._login == self._by else _name(self._login)}

    def changed(self, what: str, user: str | int | None = None, **fields: str | int | None) -> None:
        """Log a change that is durable. After MAX_LINES, only count it for `finish`."""
        if self._lines < MAX_LINES:
            self._lines += 1
            self._write("changed", user, {"what": what, **fields})
        else:
            self._omitted += 1

    def finish(self, what: str, **fields: str | int | None) -> None:
        """Log the number of changes without a line, if there are any."""
        omitted, self._omitted = self._omitted, 0
        if omitted:
            self._write("changed", None, {"what": what, "omitted": omitted, **fields})

    def failed(self, problem: str) -> None:
        """Log an error that leaves a change undone."""
        self._write("error", None, {"problem": problem})

    def revealed(self, what: str, user: str | int | None, **fields: str | int | None) -> None:
        """Log that a key is shown or exported. Call this before it happens."""
        self._write("revealed", user, {"what": what, **fields})

    def changed_many(self, what: str, changes: Iterable[Fields], *, more: int = 0, **common: str | int | None) -> None:
        """Log changes, count `more` changes without a line, and finish."""
        for fields in changes:
            self.changed(what, **{**fields, **common})
        self._omitted += more
        self.finish(what, **common)

    def _write(self, verb: str, user: str | int | None, fields: Fields) -> None:
        where = {"store": None if self.store == DEFAULT_STORE else self.store, "at": int(time.time())}
        audit_log.write(audit_log.to_syslog, SERVICE, verb, user=user, **fields, **where, **self._who)
        fault = None if self._has_warned else audit_log.fault()
        if fault is not None:
            self._has_warned = True
            what = f"{audit_log.DEVICE}: {(fault.strerror or str(fault)).lower()}"
            print(f"pam-totp: warning: not in the audit log: {what} (start the log daemon)", file=sys.stderr)


@contextmanager
def signals_held() -> Iterator[None]:
    """Delay signals until the end of the block, so that no change remains without its line.

    This includes the signals of the terminal (Ctrl-C, Ctrl-\\, Ctrl-Z), and of timers and limits that a caller set.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - FAULTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
