"""Logins with pam_totp and other modules. Each round has one login with each module, in random order.

A new process, `client.c`, makes each login through libpam.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pam_totp.core.oath import hotp, totp
from pam_totp.core.secretfile import base32
from pam_totp.core.slots import decode, encode
from tests.support.site import KEY, MODULE, Site, fob, phone

USER = "root"
DIALOGUE = "lower bound: a dialogue without a decision"
SAME_CALLS = "lower bound: the same system calls in C"
NOTHING, FLOOR = "nothing", "same-calls"  # names of the sockets for DIALOGUE and SAME_CALLS
MANY_USERS = 100_000
PYTHON_MODULES = ("/lib/security/pam_python.so", "/usr/lib/security/pam_python.so")
EMPTY_MODULE = """
def pam_sm_authenticate(pamh, flags, argv):
    return pamh.PAM_SUCCESS

def pam_sm_setcred(pamh, flags, argv):
    return pamh.PAM_SUCCESS
"""


@dataclass(frozen=True)
class Case:
    """A line of a stack, and a function that returns the next right answer. The measured time excludes calls of
    `answer`."""

    name: str
    line: str
    answer: Callable[[], str]


def counting(key: bytes = KEY, first: int = 0) -> Callable[[], str]:
    counter = iter(range(first, 1 << 40))
    return lambda: hotp(key, next(counter))


def cases(folder: Path, site: Site, crowd: Site | None) -> Iterator[Case]:
    """Yield the cases of each module, with their files below `folder`. `crowd` is the site with 100,000 users."""
    yield Case("pam_permit", "pam_permit.so", lambda: "")
    yield Case(DIALOGUE, f"{MODULE} socket={folder / NOTHING} nodelay", lambda: "123456")
    yield Case(SAME_CALLS, f"{MODULE} socket={folder / FLOOR} nodelay", lambda: "123456")
    yield from pam_totp(site, crowd)
    yield from google_authenticator(folder)
    yield from oath(folder, many=crowd is not None)
    for module in PYTHON_MODULES:
        if os.path.exists(module):
            script = folder / "empty.py"
            script.write_text(EMPTY_MODULE)
            yield Case("pam_python, empty module", f"{module} {script}", lambda: "")
            break


def pam_totp(site: Site, crowd: Site | None) -> Iterator[Case]:
    arguments = f"store={site.store} socket={site.socket} nodelay"
    site.enrol(fob(), user=USER)
    yield Case("pam_totp, HOTP, socket", f"{MODULE} {arguments}", counting())

    token = phone()
    site.enrol(token, user="totp")
    file, stored = site.path("totp"), decode(site.path("totp").read_bytes())
    used = encode(1, stored.document, stored.size) + encode(2, stored.document, stored.size)

    def fresh_step() -> str:
        with open(file, "r+b") as opened:  # reset the record in place, because each step is accepted only once
            opened.write(used)
        return totp(token.secret, int(time.time()))

    yield Case("pam_totp, TOTP, socket", f"{MODULE} {arguments} user=totp", fresh_step)
    site.enrol(fob(), user="spawned")
    yield Case("pam_totp, HOTP, spawn", f"{MODULE} store={site.store} socket=none nodelay user=spawned", counting())
    if crowd is None:
        return
    crowd.enrol(fob(), user=USER)
    yield Case("pam_totp, 100,000 users", f"{MODULE} store={crowd.store} socket={crowd.socket} nodelay", counting())


def google_authenticator(folder: Path) -> Iterator[Case]:
    module = "pam_google_authenticator.so"
    following = counting(first=1)

    def fresh(kind: str, options: str) -> Path:
        secret = folder / f"ga-{kind}"
        secret.write_text(f'{base32(KEY)}\n{options}" WINDOW_SIZE 17\n')
        secret.chmod(0o600)
        return secret

    def fresh_step() -> str:
        fresh("TOTP", '" DISALLOW_REUSE\n" TOTP_AUTH\n')  # DISALLOW_REUSE: refuse a replay, as pam_totp does
        return totp(KEY, int(time.time()))

    for kind, options, answer in (("HOTP", '" HOTP_COUNTER 1\n', following), ("TOTP", "", fresh_step)):
        line = f"{module} secret={fresh(kind, options)} user=root"
        yield Case(f"google_authenticator, {kind}", line, answer)


def oath(folder: Path, *, many: bool) -> Iterator[Case]:
    for name, users in (("pam_oath, 1 user", 1), ("pam_oath, 100,000 users", MANY_USERS))[: 1 + many]:
        path = folder / f"users.oath.{users}"
        with open(path, "w", encoding="ascii") as file:
            for i in range(users - 1):
                file.write(f"HOTP\tuser{i}\t-\t{i:040x}\n")
            file.write(f"HOTP\t{USER}\t-\t{KEY.hex()}\n")
        path.chmod(0o600)
        yield Case(name, f"pam_oath.so usersfile={path} window=10", counting())


class Times(NamedTuple):
    """The times of a login in seconds: the whole login minus the pause, and the part from the answer to the result."""

    whole: float
    decision: float


def race(client: Path, chosen: list[Case], rounds: int, pause_ms: int) -> dict[str, list[Times]]:
    """Return the times of all logins by case name. `/etc/pam.d` must be private. Raise RuntimeError on a refusal.

    `client` is the program of `client.c`, which waits for `pause_ms` before it answers.
    """
    for i, case in enumerate(chosen):
        Path(f"/etc/pam.d/bench{i}").write_text(f"auth required {case.line}\n")
    times: dict[str, list[Times]] = {case.name: [] for case in chosen}
    for _ in range(rounds):
        for i in random.sample(range(len(chosen)), len(chosen)):
            case = chosen[i]
            command = [str(client), f"bench{i}", USER, case.answer(), str(pause_ms)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{case.name}: the login was refused: {done.stderr.strip()}")
            times[case.name].append(Times(*(int(number) / 1e9 for number in done.stdout.split())))
    return times
