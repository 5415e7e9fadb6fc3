"""A login before it counts: a stack in a private folder, the real libpam, a person at the prompts.

The law: a rehearsal changes nothing but what a login changes (a code is used up, an answer is counted); modules run in
a child, with the ids that the service would have; a stack has proved itself when a real login got in, and neither the
same code again, nor a blank, nor no answer did, with the same password.
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

from pam_totp.system.libpam import PROMPTS, Converse, LibpamError, Login
from pam_totp.system.machine import Machine
from pam_totp.system.pamd.stack import StackError

STYLES = {1: "prompt", 2: "prompt, echoed", 3: "error", 4: "information"}
TRIES = 3  # at the login that has to get in
# These ask with real uid 0; the others (sudo, su, screen lockers …) are started by whoever wants to log in.
_AS_ROOT = ("sshd", "login", "remote")
_SILENT = ("sudo", "sudo-i")  # these ask modules to say nothing (PAM_SILENT)
_NOBODY = 65534
_INCLUDE = re.compile(r"^([ \t]*(?:@include|-?\w+[ \t]+(?:include|substack))[ \t]+)([^/ \t\n][^ \t\n]*)", re.M | re.I)


class RehearsalError(Exception):
    """The rehearsal did not go as it has to; the text says how."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What libpam said at the end: results by name; `account` is None where it was not asked."""

    authenticate: str
    account: str | None

    @property
    def got_in(self) -> bool:
        return self.authenticate == "success" and self.account == "success"

    def __str__(self) -> str:
        return self.authenticate if self.account is None else f"{self.authenticate}, account {self.account}"


@contextmanager
def private(machine: Machine, service: str) -> Iterator[str]:
    """A folder with the service file and all that it includes, as they are on `machine`; gone again afterwards.

    Includes become absolute: Linux-PAM 1.5 looks for them in /etc/pam.d even under pam_start_confdir.
    Raises StackError where a file is missing.
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
                raise StackError(f"{name}: is not there")
            new = {m[2] for m in _INCLUDE.finditer(text)} - names
            names |= new
            waiting += sorted(new)
            with open(os.path.join(folder, name), "w", encoding="utf-8", errors="surrogateescape") as file:
                file.write(_INCLUDE.sub(lambda m: f"{m[1]}{folder}/{m[2]}", text))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def attempt(service: str, user: str, converse: Converse, folder: str | None) -> Outcome:
    """One login as the service does it: authenticate, then account. Raises LibpamError."""
    items = {"tty": "ssh" if service == "sshd" else _terminal(), "ruser": os.environ.get("SUDO_USER") or "root"}
    if service in _AS_ROOT:
        del items["ruser"]
    with Login(service, user, converse, folder=folder, items={k: v for k, v in items.items() if v}) as login:
        authenticated = login.authenticate()
        return Outcome(authenticated, login.account() if authenticated == "success" else None)


def prove(service: str, user: str, person: Converse, folder: str, say: Callable[[str], None]) -> None:
    """Let a person log in, then check that the same answers without a good code are refused. Raises RehearsalError."""
    for left in reversed(range(TRIES)):
        given: list[bytes] = []
        outcome = attempt(service, user, _noting(person, given), folder)
        if outcome.got_in:
            break
        say(f"refused ({outcome})" + ("; once more" if left else ""))
    else:
        what_to_do = f"has {user} a token ('pam-totp list {user}')? --for-user says who else is to log in"
        raise RehearsalError(f"{user} could not log in to {service}: {outcome}; {what_to_do}")
    say(f"{user} got in")
    if not given:
        raise RehearsalError(f"{service} lets {user} in without asking for anything")
    for what, last in (("the same code again", given[-1]), ("a blank code", b""), ("no answer", None)):
        outcome = attempt(service, user, _script([*given[:-1], last]), folder)
        if outcome.got_in:
            raise RehearsalError(f"{service} lets {user} in with {what}")
        say(f"{what}: refused, as it has to be")
    if service not in _SILENT:
        say(f"(the next login of {user} will tell of refused answers: these)")


def in_child(service: str, work: Callable[[], None]) -> None:
    """Run `work` in a child that has the ids of a host of `service`. What it raises is raised from here, as a
    RehearsalError with its text; that the child died is one too."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _report(writing, service, work)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if not said:
        raise RehearsalError(f"the rehearsal died (wait status {status}); a module may have crashed")
    problem = json.loads(said)["problem"]
    if problem == "interrupted":
        raise KeyboardInterrupt
    if problem is not None:
        raise RehearsalError(problem)


def _report(writing: int, service: str, work: Callable[[], None]) -> None:
    problem: str | None = None
    try:
        if os.geteuid() == 0 and service not in _AS_ROOT:
            os.setresuid(int(os.environ.get("SUDO_UID") or _NOBODY), 0, 0)
        work()
    except (RehearsalError, StackError, LibpamError, OSError) as e:
        problem = str(e)
    except KeyboardInterrupt:
        problem = "interrupted"
    except BaseException as e:
        problem = f"{type(e).__name__} in the rehearsal"
    sys.stdout.flush()
    os.write(writing, json.dumps({"problem": problem}).encode())
    os._exit(0)


def _noting(person: Converse, given: list[bytes]) -> Converse:
    """The person's answers, noted down for the logins that are to fail."""

    def converse(style: int, text: str) -> bytes | None:
        answer = person(style, text)
        if style in PROMPTS and answer is not None:
            given.append(answer)
        return answer

    return converse


def _script(answers: Sequence[bytes | None]) -> Converse:
    left = iter(answers)
    return lambda style, text: next(left, None) if style in PROMPTS else None


def _terminal() -> str:
    try:
        return os.ttyname(0)
    except OSError:
        return ""
