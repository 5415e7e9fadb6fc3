"""Rehearsals of logins: the real libpam runs a stack from a private folder, before that stack is installed.

Rules:
- A rehearsal has the same effects as a login: pam_totp uses up a right code, and counts a wrong answer.
- The PAM modules run in a child process, with the user ids that the service has at a login.
- A stack passes if it accepts a user's answers, then refuses the same answers with a used, blank or missing code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from pam_totp.core.settings import SITE_FILE, SettingsError
from pam_totp.pam.login_session import read_site
from pam_totp.system.libpam import PROMPTS, Converse, LibpamError, Login
from pam_totp.system.machine import Machine
from pam_totp.system.pamd.stack import StackError

STYLES = {1: "prompt", 2: "prompt, echoed", 3: "error", 4: "information"}
NEXT_CODE = "use the next code, which a phone app shows within a minute, and a key fob with a button at the next press"
_AFTER_KEY = {"SSH_AUTH_INFO_0": "publickey"}  # the PAM environment in which sshd names a successful method
TRIES = 3  # logins: the rehearsal fails if all of them are refused
# These services run as root. Other services (sudo, su, screen lockers) keep the real uid of the calling user.
_AS_ROOT = ("sshd", "login", "remote")
_SILENT = ("sudo", "sudo-i")  # these services tell modules to print no messages (PAM_SILENT)
_NOBODY = 65534  # uid
_INCLUDE = re.compile(r"^([ \t]*(?:@include|-?\w+[ \t]+(?:include|substack))[ \t]+)([^/ \t\n][^ \t\n]*)", re.M | re.I)


class RehearsalError(Exception):
    """The rehearsal failed. The message gives the reason."""


class _End(StrEnum):
    """The result that the child process reports."""

    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The names of libpam's results for a login. `account` is None if the authentication failed."""

    authenticate: str
    account: str | None

    @property
    def is_success(self) -> bool:
        return self.authenticate == "success" and self.account == "success"

    def __str__(self) -> str:
        return self.authenticate if self.account is None else f"{self.authenticate}, account {self.account}"


@contextmanager
def private_copy(machine: Machine, service: str) -> Iterator[str]:
    """Copy the files of `service` and `other`, and the files that they include by name, to a temporary folder.

    Yield the folder, then delete it.

    Included names become absolute paths: Linux-PAM 1.5 always searches /etc/pam.d for names, even with
    pam_start_confdir.
    Raise StackError if a file is missing, except for `other`.
    """
    folder = tempfile.mkdtemp(prefix="pam-totp-rehearsal-")
    try:
        waiting, names = [service, "other"], {service, "other"}
        while waiting:
            name = waiting.pop()
            text = machine.service(name)
            if text is None:
                if name == "other":
                    continue
                raise StackError(f"{name}: not found")
            new = {m[2] for m in _INCLUDE.finditer(text)} - names
            names |= new
            waiting += sorted(new)
            with open(os.path.join(folder, name), "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(_INCLUDE.sub(lambda m: f"{m[1]}{folder}/{m[2]}", text))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def attempt(service: str, user: str, converse: Converse, folder: str | None, *, after_key: bool = False) -> Outcome:
    """Log `user` in once, as `service` does: authenticate, then check the account. Return the outcome.

    `after_key` is True for a login in which sshd has already checked a key. Raise LibpamError.
    """
    items = {"tty": "ssh" if service == "sshd" else _terminal(), "ruser": os.environ.get("SUDO_USER") or "root"}
    if service in _AS_ROOT:
        del items["ruser"]
    given = {name: value for name, value in items.items() if value}
    environment = _AFTER_KEY if after_key else {}
    with Login(service, user, converse, folder=folder, items=given, environment=environment) as login:
        authenticated = login.authenticate()
        return Outcome(authenticated, login.account() if authenticated == "success" else None)


def prove(
    service: str, user: str, converse: Converse, folder: str, show: Callable[[str], None], *, after_key: bool = False
) -> None:
    """Let `user` log in, then check that the stack refuses these answers without a valid code. Raise RehearsalError."""
    for remaining in reversed(range(TRIES)):
        answers: list[bytes] = []
        outcome = attempt(service, user, _recording(converse, answers), folder, after_key=after_key)
        if outcome.is_success:
            break
        show(f"refused: {outcome}" + (f" (check the password, and {NEXT_CODE})" if remaining else ""))
    else:
        place = " on an authority" if _is_member() else ""
        remedy = (
            f"check the password and the code, and by 'pam-totp list {user}'{place} that {user} has a token; "
            "--for-user names another user"
        )
        raise RehearsalError(f"{user} could not log in to {service}: {outcome} ({remedy})")
    show(f"{user} logged in")
    if not answers:
        raise RehearsalError(f"{service} lets {user} in without a prompt")
    for what, last in (("the same code again", answers[-1]), ("a blank code", b""), ("no answer", None)):
        outcome = attempt(service, user, _replaying([*answers[:-1], last]), folder, after_key=after_key)
        if outcome.is_success:
            raise RehearsalError(f"{service} lets {user} in with {what}")
        show(f"{what}: refused, as required")
    if service not in _SILENT:
        show(f"(the next login of {user} will report refused answers: they are from this rehearsal)")


def _is_member() -> bool:
    """Return True if authorities decide on the logins of this host."""
    try:
        return read_site(SITE_FILE).member is not None
    except SettingsError:
        return False


def in_child(service: str, work: Callable[[], None]) -> None:
    """Run `work` in a child process that has the user ids of `service`.

    Raise RehearsalError with the message of the exception in `work`, or if the child crashed.
    """
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_and_report(writing, service, work)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        report = pipe.read()
    _, status = os.waitpid(child, 0)
    if not report:
        remedy = f"check the other PAM modules of {service}"
        raise RehearsalError(
            f"the rehearsal crashed: its process ended without a result, wait status {status} ({remedy})"
        )
    end, message = json.loads(report)
    if end == _End.INTERRUPTED:
        raise KeyboardInterrupt
    if end != _End.DONE:
        raise RehearsalError(message)


def _run_and_report(writing: int, service: str, work: Callable[[], None]) -> None:
    end, message = _End.FAILED, ""
    try:
        if os.geteuid() == 0 and service not in _AS_ROOT:
            os.setresuid(int(os.environ.get("SUDO_UID") or _NOBODY), 0, 0)
        work()
        end = _End.DONE
    except (RehearsalError, StackError, LibpamError, OSError) as e:
        message = str(e)
    except KeyboardInterrupt:
        end = _End.INTERRUPTED
    except BaseException as e:
        message = f"the rehearsal failed: {type(e).__name__}"
    sys.stdout.flush()
    os.write(writing, json.dumps((end, message)).encode())
    os._exit(0)


def _recording(converse: Converse, answers: list[bytes]) -> Converse:
    """Return a callback that calls `converse` and appends each answer to `answers`."""

    def record(style: int, text: str) -> bytes | None:
        answer = converse(style, text)
        if style in PROMPTS and answer is not None:
            answers.append(answer)
        return answer

    return record


def _replaying(answers: Sequence[bytes | None]) -> Converse:
    """Return a callback that answers the prompts with `answers`, in order."""
    remaining = iter(answers)
    return lambda style, text: next(remaining, None) if style in PROMPTS else None


def _terminal() -> str:
    try:
        return os.ttyname(0)
    except OSError:
        return ""
