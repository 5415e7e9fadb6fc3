"""The audit log: one line a decision, to authpriv; docs/log.md says what it may hold.

    pam_totp(sshd:auth): refused user=alice reason=replayed token=fob rhost=192.0.2.7

The law: never a code, a password or a key; every field is escaped, so that no name can forge a line or another field.
"""

from __future__ import annotations

import json
import re
import sys
import syslog
from collections.abc import Callable

Sink = Callable[[int, str], None]

NAME = "pam_totp"
MAX_FIELD = 255  # characters: so that no name can push the rest of the line over a log daemon's limit
_PLAIN = re.compile(r"[A-Za-z0-9._@%+:/-]+")
_FORM = {ord(c): f"\\u{ord(c):04x}" for c in "=()\x7f"}
_VERBS = {
    "accepted": syslog.LOG_INFO,
    "ignored": syslog.LOG_INFO,
    "refused": syslog.LOG_NOTICE,
    "error": syslog.LOG_ERR,
    "debug": syslog.LOG_DEBUG,
}


def to_syslog(priority: int, line: str) -> None:
    """The system's log, under the name of pam_totp whichever program this is. `%` and the like mean nothing there."""
    syslog.openlog(NAME, syslog.LOG_PID, syslog.LOG_AUTHPRIV)
    syslog.syslog(syslog.LOG_AUTHPRIV | priority, line)


def to_stderr(priority: int, line: str) -> None:
    """Standard error, for a service that is watched in a terminal."""
    sys.stderr.write(f"{line}\n")  # in one piece: several processes may share it


def line(service: str, verb: str, **fields: str | int | None) -> str:
    """The text of one line; fields that are None are left out."""
    said = " ".join(f"{name}={escaped(str(value))}" for name, value in fields.items() if value is not None)
    return f"{NAME}({escaped(service)}:auth): {verb} {said}"


def write(sink: Sink, service: str, verb: str, **fields: str | int | None) -> None:
    """Say what was decided: `verb` is accepted, ignored, refused, error or debug."""
    sink(_VERBS[verb], line(service, verb, **fields))


def escaped(text: str) -> str:
    """As it is where it is one plain word, else in double quotes as JSON writes it, in printable ASCII and without what
    gives a line its form, so that grep needs no parser. What is too long ends in an ellipsis."""
    if len(text) > MAX_FIELD:
        text = text[:MAX_FIELD] + "…"
    return text if _PLAIN.fullmatch(text) else json.dumps(text).translate(_FORM)
