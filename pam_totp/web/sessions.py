"""The sessions: the state of each browser.

Rules:
- Before sign-in, only the browser stores its session, signed: the CSRF token of its forms, and the time of the start.
  Therefore, requests of other clients cannot displace a form.
- From the password on, a browser holds only a random session id. The server stores a digest of the id.
- The password and the code each start a new session on the server, which replaces the previous session there. A
  sign-out ends the session. An id that was stolen or planted before a step gives no access after the step.
- A session expires after its idle limit or its total limit. Its user can prolong the total limit `MAX_PROLONGED` times
  by the idle limit (WCAG 2.2, 2.2.1). All other sessions of a user end when that user adds or removes a token, or
  creates recovery codes.
- A new token belongs to the form that shows its key, and a first code to the form of the second code. Therefore, a
  second tab cannot replace them.
- The number of sessions on the server is limited. A user has such a session only after the right password.

Sessions are in memory, so that the portal never writes the key of a pending token to a disk. One process must therefore
serve the whole portal, and every user must sign in again after a restart.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pam_totp.core.record import Token
from pam_totp.core.verify import Earlier
from pam_totp.operations.desk import Handed

V = TypeVar("V")

ID_BYTES = 32
FORM_BYTES = 12
PENDING_LASTS = 600.0  # seconds to scan a QR code and enter the first code
MAX_FORMS = 8  # new tokens, and first codes, of one session; the oldest is dropped
MAX_PROLONGED = 10  # times for each session
MAX_SESSIONS = 5_000
CSRF_TOKEN = "csrf_token"  # the name of the only value of a session before sign-in; Flask-WTF reads it


@enum.unique  # two steps with the same limits would be one step
class Step(enum.Enum):
    """The step of a sign-in that a browser has reached. The values are the limits (idle, total), in seconds."""

    ANONYMOUS = (3600.0, 3600.0)
    PASSWORD = (300.0, 300.0)  # the password was right; a PAM prompt has the same limit
    ENROLLING = (900.0, 1800.0)  # the guided enrolment: the user may get a token, but is not signed in by a code
    SIGNED_IN = (900.0, 3600.0)


@dataclass(frozen=True, slots=True)
class PendingToken:
    """A token that the user has seen, and must confirm. `expires_at` is in seconds of the sessions' clock."""

    token: Token
    expires_at: float


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A guided enrolment. `proof` is the ticket, or the code of 80 bits, or empty for a first token by the password.

    `token` is the new token, which replaces the tokens with the names `lost`. `token` is None if the ticket names it.
    `first_code` is the first of two codes in a row.
    """

    proof: str = field(default="", repr=False)
    token: Token | None = field(default=None, repr=False)
    lost: tuple[str, ...] = ()
    first_code: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Session:
    """The state of one session at the start of a request. Times are in seconds of the sessions' clock.

    `by_code` is True if the user gave a code. Otherwise, the session is valid only until the user has a token. `values`
    belong to the web framework (the CSRF token, notices). `earlier` are the refused answers of this sign-in (law 5 in
    docs/architecture.md). `to_hand_over` is the temporary code or the ticket that a desk member must still hand over.
    """

    step: Step = Step.ANONYMOUS
    user: str | None = None
    by_code: bool = False
    created_at: float = 0.0
    last_seen: float = 0.0
    prolonged: int = 0  # times
    pending: dict[str, PendingToken] = field(default_factory=dict, repr=False)  # by form
    recovery_codes: tuple[str, ...] = field(default=(), repr=False)
    earlier: Earlier = field(default=Earlier.NONE, repr=False)
    first_codes: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)  # form -> its fields
    enrolment: Enrolment | None = field(default=None, repr=False)
    to_hand_over: Handed | None = field(default=None, repr=False)
    values: dict[str, object] = field(default_factory=dict, repr=False)

    def is_expired(self, now: float) -> bool:
        return self.seconds_left(now) < 0

    def seconds_left(self, now: float) -> float:
        """Return the seconds until the session expires if no other request arrives."""
        max_idle, max_total = self.step.value
        return min(self.last_seen + max_idle, self.created_at + max_total + self.prolonged * max_idle) - now

    def prolong(self, now: float) -> Session:
        """Return the session with a later total limit if this limit ends earlier than the idle limit from `now`.

        The total limit increases by the idle limit, at most MAX_PROLONGED times.
        """
        max_idle, _ = self.step.value
        is_late = self.created_at + self.step.value[1] + self.prolonged * max_idle < now + max_idle
        return replace(self, prolonged=min(self.prolonged + is_late, MAX_PROLONGED))


class Sessions:
    """All sessions of one process. Any thread may call any method."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(32)  # signs the sessions that browsers keep
        self._lock = threading.Lock()
        self._sessions: OrderedDict[bytes, Session] = OrderedDict()  # the least recently used session is first

    def get(self, session_id: str) -> Session | None:
        """Return the session, and set `last_seen`. Return None for an unknown or expired session."""
        if is_signed(session_id):
            return self._read_signed(session_id)
        digest = _digest(session_id)
        with self._lock:
            return self._touch(digest)

    def create(self, session: Session, instead_of: str | None = None) -> str:
        """Start a session, and end the session with the id `instead_of`. Return the new id."""
        now = self._clock()
        with self._lock:
            if instead_of is not None:
                self._sessions.pop(_digest(instead_of), None)
            if session.step is Step.ANONYMOUS:
                return self._sign(f"{session.values.get(CSRF_TOKEN, '')}.{int(now)}")
            session_id = secrets.token_urlsafe(ID_BYTES)
            self._delete_expired(now)
            if len(self._sessions) >= MAX_SESSIONS:
                self._sessions.popitem(last=False)
            self._sessions[_digest(session_id)] = replace(session, created_at=now, last_seen=now)
        return session_id

    def _sign(self, text: str) -> str:
        return f"{text}.{hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()}"

    def _read_signed(self, signed: str) -> Session | None:
        """Return the session before sign-in that this process signed, or None if it has expired or is forged."""
        text, _, _ = signed.rpartition(".")
        if not (signed.isascii() and hmac.compare_digest(self._sign(text), signed)):
            return None
        token, _, created = text.rpartition(".")
        values: dict[str, object] = {CSRF_TOKEN: token} if token else {}
        session = Session(created_at=float(created), last_seen=float(created), values=values)
        return None if session.is_expired(self._clock()) else session

    def change(self, session_id: str, change: Callable[[Session], Session]) -> Session | None:
        """Replace a session on the server by the result of `change`, atomically. The step and the user remain
        unchanged.

        Return the session before the change, or None if the session has ended.
        """
        digest = _digest(session_id)
        with self._lock:
            before = self._touch(digest)
            if before is not None:
                after = change(before)
                self._sessions[digest] = replace(
                    before,
                    pending=after.pending,
                    recovery_codes=after.recovery_codes,
                    values=after.values,
                    prolonged=after.prolonged,
                    earlier=after.earlier,
                    first_codes=after.first_codes,
                    enrolment=after.enrolment,
                    to_hand_over=after.to_hand_over,
                )
            return before

    def prolong(self, session_id: str) -> float:
        """Prolong the session and its pending tokens. Return the remaining seconds, or 0 if the session has ended."""
        now = self._clock()

        def prolong(session: Session) -> Session:
            pending = {
                form: replace(p, expires_at=now + PENDING_LASTS)
                for form, p in session.pending.items()
                if p.expires_at >= now
            }
            return replace(session.prolong(now), pending=pending)

        self.change(session_id, prolong)
        session = self.get(session_id)
        return 0.0 if session is None else self.seconds_left(session)

    def seconds_left(self, session: Session, *, form: str | None = None) -> float:
        """Return the seconds until the session or the pending token of `form` expires: the shorter time."""
        left = session.seconds_left(self._clock())
        if form is not None and form in session.pending:
            left = min(left, session.pending[form].expires_at - self._clock())
        return max(0.0, left)

    def end(self, session_id: str) -> None:
        with self._lock:
            self._sessions.pop(_digest(session_id), None)

    def end_all_of(self, user: str, except_id: str | None = None) -> None:
        """End every session of `user`, except the session with the id `except_id`."""
        kept = None if except_id is None else _digest(except_id)
        with self._lock:
            for digest in [d for d, s in self._sessions.items() if s.user == user and d != kept]:
                del self._sessions[digest]

    def new_pending(self, token: Token) -> PendingToken:
        return PendingToken(token, self._clock() + PENDING_LASTS)

    def pending_token(self, session: Session, form: str) -> Token | None:
        """Return the token of `form` that waits for its first code, or None if it is missing or has expired."""
        pending = session.pending.get(form)
        return None if pending is None or pending.expires_at < self._clock() else pending.token

    def take_pending(self, session_id: str, form: str) -> Token | None:
        """Remove and return the token of `form` that waits for its first code. Only one request gets the token."""
        before = self.change(session_id, lambda session: replace(session, pending=without(session.pending, form)))
        return None if before is None else self.pending_token(before, form)

    def _touch(self, digest: bytes) -> Session | None:
        """Set `last_seen`, move the session to the end, and return the session, or None if it has ended.

        The caller holds the lock.
        """
        now = self._clock()
        session = self._sessions.pop(digest, None)
        if session is None or session.is_expired(now):
            return None
        touched = self._sessions[digest] = replace(session, last_seen=now)
        return touched

    def _delete_expired(self, now: float) -> None:
        while self._sessions and next(iter(self._sessions.values())).is_expired(now):
            self._sessions.popitem(last=False)


def new_form() -> str:
    """Return the id of a new form. The id is valid in one session only."""
    return secrets.token_urlsafe(FORM_BYTES)


def having(forms: dict[str, V], form: str, value: V) -> dict[str, V]:
    """Return `forms` with the value of `form`, and at most MAX_FORMS entries, the newest."""
    kept = {**without(forms, form), form: value}
    return dict(list(kept.items())[-MAX_FORMS:])


def without(forms: dict[str, V], form: str) -> dict[str, V]:
    """Return `forms` without `form`."""
    return {name: value for name, value in forms.items() if name != form}


def is_signed(session_id: str) -> bool:
    """Return True if `session_id` is a signed session before sign-in, which only the browser stores."""
    return "." in session_id


def _digest(session_id: str) -> bytes:
    """Return the digest that identifies a session.

    The digest protects the ids from timing attacks, and from a reader of the memory.
    """
    return hashlib.sha256(session_id.encode("utf-8", "surrogateescape")).digest()
