"""The audit log: one line for each decision and each change. docs/log.md describes the fields.

    pam_totp(sshd:auth): refused user=alice reason=replayed token=fob rhost=192.0.2.7
    pam_totp(pam-totp:auth): changed user=alice what=remove token=fob by=bob

Rules:
1. A line never contains a code, a password or a key.
2. Every field is escaped, so that no user name can forge a line or another field.
3. A field shows at most the first MAX_FIELD characters of its value, because a log daemon truncates long lines.
4. Lines have the facility authpriv and the name pam_totp. The verb sets the priority. A missing answer has
   the priority info.
5. The program of the site (`on_change`) gets every line about a change, and no other lines.
"""

from __future__ import annotations

import sys
import syslog

from pam_totp.core.lean import TYPE_CHECKING, encode_basestring_ascii, suppress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from pam_totp.core.record import Token

Sink: TypeAlias = "Callable[[int, str], None]"

NAME = "pam_totp"
DEVICE = "/dev/log"  # the socket of the log daemon, as in syslog(3)
MAX_FIELD = 255  # characters
ON_CHANGE = "on_change"  # the service name of lines about the program of the site
NO_ANSWER = "no-answer"  # the reason if the user gave no answer, for example by Ctrl-C
_PLAIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@%+:/-"
_SYNTAX = {ord(c): f"\\u{ord(c):04x}" for c in "=()\x7f"}
_PRIORITIES = {
    "accepted": syslog.LOG_INFO,
    "ignored": syslog.LOG_INFO,
    "refused": syslog.LOG_NOTICE,
    "presented": syslog.LOG_NOTICE,
    "changed": syslog.LOG_NOTICE,
    "revealed": syslog.LOG_NOTICE,
    "viewed": syslog.LOG_INFO,
    "denied": syslog.LOG_NOTICE,
    "error": syslog.LOG_ERR,
    "debug": syslog.LOG_DEBUG,
}


def to_syslog(priority: int, line: str) -> None:
    """Write `line` to syslog, under the name pam_totp in every program. A `%` in `line` is logged unchanged."""
    syslog.openlog(NAME, syslog.LOG_PID, syslog.LOG_AUTHPRIV)
    syslog.syslog(syslog.LOG_AUTHPRIV | priority, line)


def to_stderr(priority: int, line: str) -> None:
    """Write `line` to standard error, for a service that runs in a terminal."""
    sys.stderr.write(f"{line}\n")  # one write, because several processes can share standard error


def fault() -> OSError | None:
    """Return the error of a connection to the log daemon, or None. syslog(3) hides this error."""
    import socket  # imported here because logins do not need it

    error = None
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):  # syslog(3) tries both
        with socket.socket(socket.AF_UNIX, kind) as client:
            try:
                client.connect(DEVICE)
            except OSError as e:
                error = e
            else:
                return None
    return error


def of_token(token: Token) -> dict[str, str | int | None]:
    """Return the fields that identify a token, and `next`: its lowest counter or step that is not used up.

    `created` distinguishes successive tokens of the same name. `pam-totp restored` reads these fields.
    """
    return {"token": token.name, "created": token.created, "next": token.next_factor}


def line(service: str, verb: str, /, **fields: str | int | None) -> str:
    """Return the text of one line. Omit the fields that are None."""
    text = " ".join(f"{name}={escaped(str(value))}" for name, value in fields.items() if value is not None)
    return f"{NAME}({escaped(service)}:auth): {verb} {text}"


def write(sink: Sink, service: str, verb: str, /, **fields: str | int | None) -> None:
    """Log one line. `verb` is a key of _PRIORITIES."""
    priority = syslog.LOG_INFO if fields.get("reason") == NO_ANSWER else _PRIORITIES[verb]
    sink(priority, line(service, verb, **fields))
    if verb == "changed":
        tell(service, fields)


def tell(service: str, fields: Mapping[str, str | int | None]) -> None:
    """Send a change to the program of the site. Log an error instead of raising it, because the change is complete."""
    try:
        from pam_totp.operations import on_change  # imported here because most logins change nothing

        on_change.tell(service, fields)
    except Exception as e:  # any error, for example of an import during an upgrade
        with suppress(Exception):
            write(to_syslog, ON_CHANGE, "error", problem=f"the program was not started: {e}")


def escaped(text: str) -> str:
    """Return `text`, in double quotes unless it is one plain word.

    Quoted text is a JSON string in printable ASCII, with `=`, `(` and `)` as escapes: grep can then find fields without
    a parser. An ellipsis replaces the end of text that has more than MAX_FIELD characters.
    """
    if len(text) > MAX_FIELD:
        text = text[:MAX_FIELD] + "…"
    return text if text and not text.strip(_PLAIN) else encode_basestring_ascii(text).translate(_SYNTAX)
