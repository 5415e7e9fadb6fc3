"""The audit log of an administrator's changes: one line for each change, with the account that made it.

Rules:
1. `by` is the account of the real uid, or of SUDO_UID if the real uid is root. Other accounts could set SUDO_UID to any
   value.
2. `login` is the account that logged in (/proc/self/loginuid), if it differs from `by`. Only root can change the login
   uid, so `login` names the account that ran su or forged SUDO_UID.
3. A command logs an export of keys before it shows the keys, and a change when the change is durable. The command does
   not log a change that was rolled back.
4. The command keeps the change if the log fails, and prints a warning with the reason.
5. Each line contains its time, because a log daemon may write a time without the year.
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
MAX_LINES = 5000  # lines of one command: by default, journald drops lines above 10,000 in 30 seconds
FAULTS = {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS, signal.SIGTRAP}
_LOGIN_UID = "/proc/self/loginuid"
_NO_UID = (1 << 32) - 1  # the login uid of a process that belongs to no login: (uid_t) -1

Fields = Mapping[str, str | int | None]


def caller() -> tuple[int, int]:
    """Return the uids for `by` and `login`. The process must call this function before it changes its uid."""
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
    """The audit log of one command. Create the object before the process changes its uid."""

    def __init__(self) -> None:
        self._by, self._login = caller()
        self._has_warned = False
        self._lines = self._omitted = 0
        self.store = DEFAULT_STORE  # the store that the command changes; a line names any other store than this default

    @cached_property
    def caller(self) -> str:
        """Return the name of the account with the uid `by_uid`."""
        return _name(self._by)

    @property
    def by_uid(self) -> int:
        """Return the uid of the account that runs the command, or of the caller of sudo if root runs the command."""
        return self._by

    def origin(self) -> Fields:
        """Return the fields `store` and `login`, for lines that other modules write about this command."""
        return {"store": None if self.store == DEFAULT_STORE else self.store, "login": self._who["login"]}

    def look_up(self) -> None:
        """Look up the caller's names. The command calls this method before a change: the name service may block."""
        _ = self._who

    @cached_property
    def _who(self) -> Fields:
        return {"by": self.caller, "login": None if self._login == self._by else _name(self._login)}

    def changed(self, what: str, user: str | int | None = None, **fields: str | int | None) -> None:
        """Log a durable change. Only count the change for `finish` after MAX_LINES lines."""
        if self._lines < MAX_LINES:
            self._lines += 1
            self._write("changed", user, {"what": what, **fields})
        else:
            self._omitted += 1

    def finish(self, what: str, **fields: str | int | None) -> None:
        """Log the number of omitted changes, if there are any."""
        omitted, self._omitted = self._omitted, 0
        if omitted:
            self._write("changed", None, {"what": what, "omitted": omitted, **fields})

    def failed(self, problem: str) -> None:
        """Log an error that prevented a change."""
        self._write("error", None, {"problem": problem})

    def revealed(self, what: str, user: str | int | None, **fields: str | int | None) -> None:
        """Log that the command will show or export a key. The command must call this method before it shows the key."""
        self._write("revealed", user, {"what": what, **fields})

    def changed_many(self, what: str, changes: Iterable[Fields], *, more: int = 0, **common: str | int | None) -> None:
        """Log `changes`, count `more` omitted changes, and call `finish`."""
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
    """Delay signals until the end of the `with` block, so that every change gets its line.

    These signals include those of the terminal (Ctrl-C, Ctrl-\\, Ctrl-Z), and of timers and limits that a caller set.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - FAULTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
