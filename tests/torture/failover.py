"""Processes that log in during the loss of a primary, and the checks of the accepted logins.

Rules:
- All processes offer the same codes of the same users. A process offers the next code of a user after any process
  received a result for the last code. Each code thus reaches several servers.
- A process offers a code again if the database was out of reach, although that login might have used the code up.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.oath import hotp
from pam_totp.core.policy import Policy
from pam_totp.core.record import HotpToken, UserRecord
from pam_totp.operations.authenticate import decide
from pam_totp.store import LockBusy, StoreError, clock_of
from pam_totp.store.postgres import PostgresStore
from tests.support.site import KEY, fob, phone

SALT, RECOVERY = "5a" * 16, "0123456789ABCDEF"
PHONE = phone(period=86_400)  # steps end at midnight UTC only, so the code of the current step stays valid
USERS = [f"user{n}" for n in range(8)]
POLICY = Policy(look_ahead=100)


class Accepted(NamedTuple):
    """An accepted login. `at` is the monotonic time in seconds."""

    user: str
    counter: int
    at: float


def enrol(store: PostgresStore, user: str = "alice") -> None:
    record = UserRecord(user=user, tokens=(fob(), PHONE), salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))
    store.update(user, lambda _: (record, None), create=True)


def log_in(store: PostgresStore, answer: str, user: str = "alice") -> str:
    """Log in. Return the outcome, `busy` if the record is locked, or `unavailable` if the database is out of reach."""
    try:
        clock = clock_of(store, lambda: int(time.time()))
        return decide(store, user, Answer.parse(answer.encode()), POLICY, clock).outcome.value
    except StoreError as e:
        return "busy" if isinstance(e, LockBusy) else "unavailable"


class Crowd:
    """Processes that log in for all users until `stop`, each with one of the URLs. Each process calls `begin` first."""

    def __init__(self, urls: Sequence[str], begin: Callable[[], None] = lambda: None, wait: float = 1.0) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="pam_totp-crowd-"))
        self._next = mmap.mmap(-1, 8 * len(USERS))  # the next counter of each user, shared by all processes
        self._children = []
        for number, url in enumerate(urls):
            child = os.fork()
            if child == 0:
                try:
                    begin()
                    self._work(PostgresStore(url, wait=wait), number)
                finally:
                    os._exit(1)
            self._children.append(child)

    def _work(self, store: PostgresStore, number: int) -> None:
        with open(self._folder / str(number), "w", buffering=1) as lines:
            while not (self._folder / "stop").exists():
                for place, user in enumerate(USERS):
                    counter = self._counter(place)
                    word = log_in(store, hotp(KEY, counter), user)
                    lines.write(f"{user} {counter} {word} {time.monotonic():.3f}\n")
                    if word not in ("unavailable", "busy"):
                        self._next[8 * place : 8 * place + 8] = struct.pack("q", max(counter + 1, self._counter(place)))
        os._exit(0)

    def _counter(self, place: int) -> int:
        return int(struct.unpack_from("q", self._next, 8 * place)[0])

    def _lines(self) -> list[list[str]]:
        paths = sorted(self._folder.glob("[0-9]"))
        return [words for path in paths for line in path.read_text().splitlines() if len(words := line.split()) == 4]

    def accepted(self) -> list[Accepted]:
        """Return the accepted logins so far, in the order of their processes."""
        return [Accepted(user, int(counter), float(at)) for user, counter, word, at in self._lines() if word == "code"]

    def refused(self) -> int:
        """Return the number of logins while the database was out of reach."""
        return sum(word == "unavailable" for _, _, word, _ in self._lines())

    def gap(self) -> float:
        """Return the longest time without an accepted login, in seconds."""
        times = sorted(login.at for login in self.accepted())
        return max((after - before for before, after in pairwise(times)), default=0.0)

    def stop(self) -> None:
        (self._folder / "stop").touch()
        for child in self._children:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        self._children.clear()

    def remove(self) -> None:
        for child in self._children:
            with suppress(ProcessLookupError):
                os.kill(child, 9)
            os.waitpid(child, 0)
        shutil.rmtree(self._folder)


def check(store: PostgresStore, accepted: Sequence[Accepted]) -> None:
    """Check that no code was accepted twice, counters only increased, and used codes are refused."""
    used = Counter((login.user, login.counter) for login in accepted)
    assert max(used.values()) == 1, "a code was accepted twice"
    for user in USERS:
        last = max((counter for name, counter in used if name == user), default=-1)
        token = store.read(user).tokens[0]
        assert isinstance(token, HotpToken)
        assert token.counter > last, f"the counter of {user} decreased"
    again = Counter(log_in(store, hotp(KEY, counter), user) for user, counter in used)
    assert again.keys() <= {"replayed", "wrong", "codes-in-a-row-needed"}, again
