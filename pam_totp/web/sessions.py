"""Who is at the other end: sessions on the server's side.

The law:
- the browser holds a random name for a session and nothing else; the server keeps that name's digest;
- every step (password, code, sign-out) begins a new session and ends the one before: a name that was stolen, or
  planted, before a step is worth nothing after it;
- a session ends when it was idle or old; those of a user end together when their tokens change;
- strangers cannot fill the memory, nor push out anybody who gave a password.

They live in memory: half-enrolled keys never reach a disk, one process serves the portal, and a restart costs people
no more than a sign-in.
"""

from __future__ import annotations

import enum
import hashlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pam_totp.core.record import Token

NAME_BYTES = 32
PENDING_LASTS = 600.0  # seconds to scan a QR code and enter the first code
MOST_STRANGERS, MOST_KNOWN = 10_000, 5_000


class Step(enum.Enum):
    """How far a person has come. The value is (idle, in all): seconds until the session ends."""

    STRANGER = (3600.0, 3600.0)
    PASSWORD = (300.0, 300.0)  # as long as PAM waits for a code
    SIGNED_IN = (900.0, 3600.0)


@dataclass(frozen=True, slots=True)
class Pending:
    """A token that was shown and is not confirmed yet."""

    token: Token
    until: float


@dataclass(frozen=True, slots=True)
class Session:
    """One session as it was when a request began. Times are those of the sessions' clock, in seconds.

    `by_code` says that a code was given; without, it counts as signed in only while the user has no second factor.
    `values` are the web framework's (the CSRF token, notices).
    """

    step: Step = Step.STRANGER
    user: str | None = None
    by_code: bool = False
    begun: float = 0.0
    seen: float = 0.0
    pending: Pending | None = field(default=None, repr=False)
    recovery: tuple[str, ...] = field(default=(), repr=False)
    values: dict[str, object] = field(default_factory=dict, repr=False)

    def over(self, now: float) -> bool:
        idle, in_all = self.step.value
        return now - self.seen > idle or now - self.begun > in_all


class Sessions:
    """All sessions of one process; any thread may call anything."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._strangers: OrderedDict[bytes, Session] = OrderedDict()  # least lately seen first
        self._known: OrderedDict[bytes, Session] = OrderedDict()

    def get(self, name: str) -> Session | None:
        """The session of that name, which was seen now; None where there is none (any more)."""
        key = _key(name)
        with self._lock:
            return self._seen(key)

    def begin(self, session: Session, instead_of: str | None = None) -> str:
        """Start a session, and end the one of the name `instead_of`. Returns the name of the new one."""
        name = secrets.token_urlsafe(NAME_BYTES)
        now = self._clock()
        with self._lock:
            if instead_of is not None:
                self._forget(_key(instead_of))
            pool, most = self._pool(session)
            self._sweep(pool, now)
            if len(pool) >= most:
                pool.popitem(last=False)
            pool[_key(name)] = replace(session, begun=now, seen=now)
        return name

    def change(self, name: str, change: Callable[[Session], Session]) -> Session | None:
        """Replace a session by what `change` makes of it, in one piece; step and user stay. Returns the one before,
        or None where it has ended: then nothing was changed."""
        key = _key(name)
        with self._lock:
            before = self._seen(key)
            if before is not None:
                after = change(before)
                pool, _ = self._pool(before)
                pool[key] = replace(before, pending=after.pending, recovery=after.recovery, values=after.values)
            return before

    def end(self, name: str) -> None:
        with self._lock:
            self._forget(_key(name))

    def end_all_of(self, user: str, but: str | None = None) -> None:
        """End every session of `user`, but for the one of the name `but`."""
        spared = None if but is None else _key(but)
        with self._lock:
            for key in [k for k, s in self._known.items() if s.user == user and k != spared]:
                del self._known[key]

    def take_pending(self, name: str) -> Pending | None:
        """The token that waits for its first code, which no other request gets then."""
        before = self.change(name, lambda session: replace(session, pending=None))
        if before is None or before.pending is None or before.pending.until < self._clock():
            return None
        return before.pending

    def pending(self, token: Token) -> Pending:
        return Pending(token, self._clock() + PENDING_LASTS)

    def waiting(self, session: Session) -> Token | None:
        """The token that waits for its first code, where that has not expired."""
        pending = session.pending
        return None if pending is None or pending.until < self._clock() else pending.token

    def _seen(self, key: bytes) -> Session | None:
        """The session, at the young end of its pool. The lock is held."""
        now = self._clock()
        for pool in (self._known, self._strangers):
            session = pool.pop(key, None)
            if session is not None and not session.over(now):
                seen = pool[key] = replace(session, seen=now)
                return seen
        return None

    def _pool(self, session: Session) -> tuple[OrderedDict[bytes, Session], int]:
        known = session.step is not Step.STRANGER
        return (self._known, MOST_KNOWN) if known else (self._strangers, MOST_STRANGERS)

    def _sweep(self, pool: OrderedDict[bytes, Session], now: float) -> None:
        while pool and next(iter(pool.values())).over(now):
            pool.popitem(last=False)

    def _forget(self, key: bytes) -> None:
        self._known.pop(key, None)
        self._strangers.pop(key, None)


def _key(name: str) -> bytes:
    """A look-up by digest takes as long whatever part of a name was guessed, and a look into the memory gives none."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
