"""The audit log: one line a decision, to authpriv.

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

_PLAIN = re.compile(r"[A-Za-z0-9._@%+:/-]+")
_VERBS = {
    "accepted": syslog.LOG_INFO,
    "ignored": syslog.LOG_INFO,
    "refused": syslog.LOG_NOTICE,
    "error": syslog.LOG_ERR,
}


def to_syslog(priority: int, line: str) -> None:
    """The system's log. `%` and the like mean nothing there."""
    syslog.syslog(syslog.LOG_AUTHPRIV | priority, line)


def to_stderr(priority: int, line: str) -> None:
    """Standard error, for a service that is watched in a terminal."""
    print(line, file=sys.stderr, flush=True)


def line(service: str, verb: str, **fields: str | int | None) -> str:
    """The text of one line; fields that are None are left out."""
    said = " ".join(f"{name}={escaped(str(value))}" for name, value in fields.items() if value is not None)
    return f"pam_totp({escaped(service)}:auth): {verb} {said}"


def write(sink: Sink, service: str, verb: str, **fields: str | int | None) -> None:
    """Say what was decided: `verb` is accepted, ignored, refused or error."""
    sink(_VERBS[verb], line(service, verb, **fields))


def escaped(text: str) -> str:
    """As it is where it is one plain word, else in double quotes as JSON writes it, in ASCII."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
