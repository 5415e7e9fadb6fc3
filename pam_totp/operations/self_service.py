"""Changes that users make to their own second factor.

Rules:
- An enrolled user needs a code to add or remove a token, or to replace the recovery codes. One update of the record
  uses up the code and makes the change.
- The first code from a new token confirms the token, and is used up.
- A user without a token can add the first token only if the site allows it (`first_token`). The exceptions are a token
  that an administrator assigned, which the user confirms by two codes in a row, and a token with a ticket.
- A ticket, a recovery code or a temporary code begins the guided enrolment. The last step of the enrolment is one
  update. It uses up that code, confirms the new token, removes the lost tokens, and replaces the recovery codes.
- Users cannot remove their last active token, because they would lock themselves out.
- The audit log names the user, the address and the token of every change.
- A change that fails has a `Reason` for programs. The text of a `Problem` is for the user only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pam_totp.core.answer import Answer
from pam_totp.core.fields import MAX_TEXT
from pam_totp.core.policy import Policy
from pam_totp.core.record import MAX_TOKENS, NEW_RECOVERY_CODES, Token, UserRecord
from pam_totp.core.serials import serial_key
from pam_totp.core.verify import Decision, Earlier, Outcome, Tickets, is_ticket, verify
from pam_totp.operations import audit_log
from pam_totp.operations.authenticate import REFUSED, Origin, decide, log, refusal_delay
from pam_totp.operations.enroll import clock_error, new_recovery_codes, verify_first_code
from pam_totp.operations.resync import NotConsecutive, TokenChanged, is_last_accepted, resynchronise
from pam_totp.operations.tickets import codes_needed, redeem_ticket, shows_key
from pam_totp.store import NotThere, SerialTaken, Store, clock_of

# Counters ahead, or steps before and after. Two guessed codes match once in 25 million requests, and a match gives no
# access.
RESYNC_REACH = 20_000

Change = Callable[[UserRecord], UserRecord]


class Reason(StrEnum):
    """The reason of a change that failed."""

    REFUSED = "refused"
    INVALID_CODE = "invalid-code"
    CLOCK = "clock"
    TICKET_ENDED = "ticket-ended"
    NOT_CONSECUTIVE = "not-consecutive"
    CODES_NEEDED = "codes-needed"
    NO_TOKEN_WAITING = "no-token-waiting"
    TOKEN_GONE = "token-gone"
    TOKEN_CHANGED = "token-changed"
    CODES_OVERTAKEN = "codes-overtaken"
    NOT_ENROLLED = "not-enrolled"
    FIRST_TOKEN = "first-token"
    LAST_TOKEN = "last-token"
    TOO_MANY_TOKENS = "too-many-tokens"
    NAME_IN_USE = "name-in-use"
    TOKEN_KNOWN = "token-known"
    SERIAL_TAKEN = "serial-taken"
    INVALID_NAME = "invalid-name"
    INVALID_KEY = "invalid-key"


TEXTS = {
    Reason.REFUSED: REFUSED,
    Reason.INVALID_CODE: "Wrong code. Enter a code from the new token.",
    Reason.CLOCK: "The clock of your phone is wrong. Let the phone set its time by itself. Then enter the next code.",
    Reason.TICKET_ENDED: "This ticket was used or replaced, or has expired. Ask your administrator for a new ticket.",
    Reason.NOT_CONSECUTIVE: "Wrong codes. Enter two codes in a row from this token.",
    Reason.CODES_NEEDED: "Enter two codes in a row: press the button, enter the code, and do both again.",
    Reason.NO_TOKEN_WAITING: "You have no unconfirmed token with this serial number. Ask your administrator.",
    Reason.TOKEN_GONE: "This token no longer exists.",
    Reason.TOKEN_CHANGED: "This token was changed meanwhile. Check your list of tokens.",
    Reason.CODES_OVERTAKEN: "This token was used or changed meanwhile. Try again with new codes.",
    Reason.NOT_ENROLLED: "Add a token first.",
    Reason.FIRST_TOKEN: "An administrator must add your first token.",
    Reason.LAST_TOKEN: "This is your only token in use. Add another token first.",
    Reason.TOO_MANY_TOKENS: f"You have {MAX_TOKENS} tokens, which is the maximum. Remove a token first.",
    Reason.NAME_IN_USE: "You already have a token of that name.",
    Reason.TOKEN_KNOWN: "You already have this token.",
    Reason.SERIAL_TAKEN: "Another user has a token with this serial number. Ask your administrator.",
    Reason.INVALID_NAME: f"This field must have 1 to {MAX_TEXT} printable characters.",
    Reason.INVALID_KEY: "The key must be 112 to 1024 bits in Base32 or hexadecimal."
    " Compare it with the key of the token.",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """The reason of a change that failed, and the form field that it concerns.

    With the reason CLOCK, `minutes` is the error of the phone's clock, negative if the clock is behind.
    """

    field: str
    reason: Reason
    minutes: int = 0

    @property
    def text(self) -> str:
        """The text for the user, in English."""
        return TEXTS[self.reason]


class Unfit(Exception):
    """The error for a change that is not possible with the current record."""

    def __init__(self, field: str, reason: Reason, minutes: int = 0) -> None:
        super().__init__(reason)
        self.problem = Problem(field, reason, minutes)


@dataclass(frozen=True, slots=True)
class Asking:
    """A request: the user, the user's address, and a code as proof (empty if the user has no token yet)."""

    user: str
    rhost: str | None = None
    proof: bytes = b""


class Factors:
    """Changes to the second factors in `store`. A change that fails returns a `Problem`.

    Every method may raise StoreError. `now` returns Unix seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        policy: Policy,
        service: str,
        sink: audit_log.Sink,
        now: Callable[[], int],
        first_token: bool = False,
        tickets: bool = False,
    ) -> None:
        self._store = store
        self._policy = policy
        self._service = service
        self._sink = sink
        self._now = clock_of(store, now)
        self._first_token = first_token
        self._tickets = Tickets.EVERYBODY if tickets else Tickets.NONE

    @property
    def takes_tickets(self) -> bool:
        return self._tickets is Tickets.EVERYBODY

    def may_add(self, record: UserRecord) -> bool:
        """Return True if the user may add a token that an administrator did not assign."""
        return record.enrolled or self._first_token

    def locks(self, record: UserRecord) -> bool:
        """Return True if the user's failures lock the user."""
        return self._policy.locks(record.failures)

    def of(self, user: str) -> UserRecord:
        """Return the user's record, or an empty record if the user has no record."""
        try:
            return self._store.read(user)
        except NotThere:
            return UserRecord(user=user)

    def answer(self, asking: Asking, earlier: Earlier = Earlier.NONE) -> tuple[Decision, Earlier]:
        """Decide on the code of a sign-in, log the decision, and delay a refusal.

        `earlier` are the refused answers before this code. Return the decision, and the refused answers before the next
        answer. As at a login (law 5), two answers can be codes in a row. Three answers can be codes in a row if three
        codes are needed. A ticket has the outcome TICKET: its owner is not signed in, and begins the guided enrolment.
        """
        begun, answer = time.monotonic(), Answer.parse(asking.proof)
        decision = decide(
            self._store,
            asking.user,
            answer,
            self._policy,
            self._now,
            earlier=earlier,
            tickets=self._tickets,
            origin=self._origin(asking),
        )
        log(self._sink, self._service, asking.user, decision, asking.rhost)
        if decision.outcome.accepted or decision.outcome is Outcome.TICKET:
            return decision, Earlier.NONE
        self._hold_back(begun)
        is_last = bool(earlier.answers) and decision.next_code is None
        return decision, Earlier.NONE if is_last else earlier.followed_by(answer, decision, prompted=True)

    def may_begin(self, asking: Asking) -> Outcome | None:
        """Return the outcome of a ticket or code that may begin the guided enrolment, or None. Use up no code.

        A refusal has the same delay, and is counted and logged, as at a sign-in.
        """
        begun, answer = time.monotonic(), Answer.parse(asking.proof)
        found = verify(self.of(asking.user), answer, self._now(), self._policy, tickets=self._tickets)
        if found.outcome.accepted:
            return found.outcome  # the last step of the enrolment uses up the code, and logs its use
        decision = decide(
            self._store,
            asking.user,
            answer,
            self._policy,
            self._now,
            verify=_verify_without_use,
            tickets=self._tickets,
            origin=self._origin(asking),
        )
        if decision.outcome.accepted:
            return decision.outcome  # the code was created after the first check
        log(self._sink, self._service, asking.user, decision, asking.rhost)
        if decision.outcome is Outcome.TICKET:
            return decision.outcome
        self._hold_back(begun)
        return None

    def invited_token(self, asking: Asking) -> Token | None:
        """Return the token that the ticket in `asking.proof` confirms, or None if the ticket is no longer valid."""
        record = self.of(asking.user)
        return record.invited_token if is_ticket(record, Answer.parse(asking.proof), self._now()) else None

    def redeem(self, asking: Asking, first: bytes) -> list[str] | Problem:
        """Confirm the token of the ticket in `asking.proof` by its first codes. Return the new recovery codes.

        The same change uses up the ticket, and removes all tokens that were confirmed before. Of two browsers with one
        ticket, only one succeeds.
        """
        ticket, answer = Answer.parse(asking.proof), Answer.parse(first)

        def change(record: UserRecord) -> tuple[UserRecord, tuple[Token, list[str], list[Token]]]:
            now, token = self._now(), record.invited_token
            if token is None or not is_ticket(record, ticket, now):
                raise Unfit("code", Reason.TICKET_ENDED)
            done = redeem_ticket(record, ticket, answer, now, self._policy)
            if done is None:
                raise _wrong_first_code(token, answer, now, codes_needed(token), "code")
            after, confirmed, shown = done
            after = after.with_recent(self._origin(asking).enrolment(now))
            names = {t.name for t in after.tokens}
            return after, (confirmed, shown, [t for t in record.tokens if t.name not in names])

        try:
            confirmed, shown, removed = self._store.update(asking.user, change)
        except Unfit as e:
            return e.problem
        except NotThere:
            return Problem("code", Reason.TICKET_ENDED)
        self._note(asking, "accepted", by=Outcome.TICKET.value, **audit_log.of_token(confirmed))
        self._note_change(asking, "enroll", confirmed)
        self._note_replacement(asking, removed)
        return shown

    def set_up(self, asking: Asking, token: Token, first: bytes, lost: Collection[str] = ()) -> list[str] | Problem:
        """Enrol a new token in place of the `lost` tokens by its first code. Return the new recovery codes."""
        answer, now = Answer.parse(first), self._now()
        confirmed = verify_first_code(token, answer, now)
        if confirmed is None:
            return _wrong_first_code(token, answer, now, 1, "code").problem
        shown, removed, added = list[str](), list[Token](), [confirmed]

        def with_it(record: UserRecord) -> UserRecord:
            removed[:] = [t for t in record.tokens if t.confirmed and t.name in lost]
            if len(removed) < len(lost):
                raise Unfit("code", Reason.TOKEN_CHANGED)
            for old in removed:
                record = record.without_token(old.name)
            added[:] = [confirmed.renamed(free_name(record, confirmed.name))]
            if (reason := conflict(record, added[0])) is not None:
                raise Unfit("code", reason)
            record, shown[:] = new_recovery_codes(record.with_token(added[0]), NEW_RECOVERY_CODES)
            return record

        problem = self._change(asking, with_it, "enroll", added)
        if problem is not None:
            return problem
        self._note_replacement(asking, removed)
        return shown

    def add(self, asking: Asking, token: Token, first: bytes, *, field: str = "code", codes: int = 1) -> Problem | None:
        """Enrol a new token by its first code, or by two codes in a row if its counter is unknown. Return the problem
        or None.
        """
        answer, now = Answer.parse(first), self._now()
        confirmed = verify_first_code(token, answer, now, codes_needed=codes)
        if confirmed is None:
            return _wrong_first_code(token, answer, now, codes, field).problem

        def with_it(record: UserRecord) -> UserRecord:
            if (reason := conflict(record, confirmed)) is not None:
                raise Unfit("name", reason)
            return record.with_token(confirmed)

        return self._change(asking, with_it, "enroll", [confirmed])

    def claim(self, asking: Asking, serial: str, codes: bytes) -> Token | Problem:
        """Confirm the token that an administrator assigned to the user, by two codes in a row. Return the token.

        `serial` is the serial number of the token.
        """
        waiting = [t for t in self.of(asking.user).tokens if t.serial is not None and not t.confirmed]
        candidates = [t for t in waiting if serial_key(t.serial or "") == serial_key(serial)]
        if not candidates:
            return Problem("serial", Reason.NO_TOKEN_WAITING)
        begun, answer = time.monotonic(), Answer.parse(codes)
        confirmed = verify_first_code(candidates[0], answer, self._now(), codes_needed=2)
        if confirmed is None or self._policy.locks(self.of(asking.user).failures):
            self._refuse_claim(asking, candidates[0], answer)
            self._hold_back(begun)
            return Problem("codes", Reason.NOT_CONSECUTIVE)

        def in_use(record: UserRecord) -> UserRecord:
            found = record.token(confirmed.name)
            if found != candidates[0] or found is None:
                raise Unfit("serial", Reason.TOKEN_CHANGED)
            return record.with_changed(found, confirmed)

        return self._change(asking, in_use, "confirm", [confirmed], is_assigned=True) or confirmed

    def _refuse_claim(self, asking: Asking, token: Token, answer: Answer) -> None:
        """Log a refused claim of a token. Count the claim as a failure if the answer has codes in a row."""
        is_row = len(answer.codes({token.digits}) or ()) > 1

        def refused(record: UserRecord) -> tuple[UserRecord, str]:
            if self._policy.locks(record.failures):
                return record.refused_uncounted(), "locked"
            if not is_row:
                return record.refused_uncounted(), "malformed"
            return record.refused_as_wrong(self._now()), "not-in-a-row"

        reason = self._store.update(asking.user, refused)
        self._note(asking, "refused", reason=reason, token=token.name)

    def _hold_back(self, begun: float) -> None:
        """Sleep until the delay of a refusal has passed since `begun` (monotonic seconds)."""
        time.sleep(max(0.0, begun + refusal_delay(self._policy) - time.monotonic()))

    def resync(self, asking: Asking, name: str, typed: bytes) -> Problem | None:
        """Resynchronise a token by codes in a row. Return the problem or None."""
        tokens = [t for t in self.of(asking.user).tokens if t.name == name and t.active]
        codes = Answer.parse(typed).codes({t.digits for t in tokens})
        if not tokens:
            return Problem("codes", Reason.TOKEN_GONE)
        if codes is None or len(codes) < 2:
            return Problem("codes", Reason.CODES_NEEDED)
        begun = time.monotonic()
        try:
            token = resynchronise(
                self._store,
                asking.user,
                tokens,
                codes,
                reach=RESYNC_REACH,
                policy=self._policy,
                now=self._now,
                progress=lambda _: _silently,
            )
        except (NotConsecutive, TokenChanged, NotThere) as why:
            now = self.of(asking.user).token(name)
            if now is not None and is_last_accepted(now, codes):
                return None  # the form was sent twice: the first request has resynchronised the token
            if not isinstance(why, NotConsecutive):
                return Problem("codes", Reason.CODES_OVERTAKEN)
            self._note(asking, "refused", reason="not-in-a-row", token=name)
            self._hold_back(begun)
            return Problem("codes", Reason.NOT_CONSECUTIVE)
        self._note_change(asking, "resync", token)
        return None

    def recovery(self, asking: Asking) -> list[str] | Problem:
        """Replace the recovery codes. Return the new codes, which are shown only once."""
        shown: list[str] = []

        def with_new(record: UserRecord) -> UserRecord:
            if not record.enrolled:
                raise Unfit("proof", Reason.NOT_ENROLLED)
            after, codes = new_recovery_codes(record, NEW_RECOVERY_CODES)
            shown[:] = codes
            return after

        return self._change(asking, with_new, "recovery", []) or shown

    def rename(self, asking: Asking, name: str, new: str) -> Problem | None:
        """Rename a token without a code, because a rename changes only a label. Return the problem or None."""

        def renamed(record: UserRecord) -> tuple[UserRecord, Token]:
            token = _named(record, name, "name")
            if new != name and record.token(new) is not None:
                raise Unfit("name", Reason.NAME_IN_USE)
            try:
                return record.with_changed(token, token.renamed(new)), token
            except ValueError:
                raise Unfit("name", Reason.INVALID_NAME) from None

        try:
            token = self._store.update(asking.user, renamed)
        except Unfit as e:
            return e.problem
        except NotThere:
            return Problem("name", Reason.TOKEN_GONE)
        self._note_change(asking, "rename", token, to=new)
        return None

    def remove(self, asking: Asking, name: str) -> Problem | None:
        """Remove a token. Return the problem or None."""
        removed: list[Token] = []

        def without(record: UserRecord) -> UserRecord:
            token = _named(record, name, "proof")
            if is_last(record, token):
                raise Unfit("proof", Reason.LAST_TOKEN)
            removed[:] = [token]
            return record.without_token(name)

        return self._change(asking, without, "remove", removed)

    def _change(
        self, asking: Asking, change: Change, what: str, tokens: list[Token], *, is_assigned: bool = False
    ) -> Problem | None:
        """Apply `change`, and return the problem or None. Require a code if the user is enrolled at the time of the
        update.

        `tokens` has the token for the log, at the latest after the call of `change`. `is_assigned` is True if the
        change confirms a token that an administrator assigned.
        """
        begun = time.monotonic()
        try:
            if self._unproved(asking.user, change, is_assigned):
                self._note_change(asking, what, *tokens)
                return None
            decision = decide(
                self._store,
                asking.user,
                Answer.parse(asking.proof),
                self._policy,
                self._now,
                follow=lambda decision, _: change(decision.record),
                origin=self._origin(asking),
            )
        except Unfit as e:
            return e.problem
        except SerialTaken:
            return Problem("serial", Reason.SERIAL_TAKEN)
        log(self._sink, self._service, asking.user, decision, asking.rhost)
        if not decision.outcome.accepted:
            self._hold_back(begun)
            return Problem("proof", Reason.REFUSED)
        self._note_change(asking, what, *tokens)
        return None

    def _unproved(self, user: str, change: Change, is_assigned: bool) -> bool:
        """Apply `change` if the user is not enrolled. Return True if `change` was applied."""

        def unless_enrolled(record: UserRecord) -> tuple[UserRecord, bool]:
            if record.enrolled:
                return record, False
            if not (is_assigned or self.may_add(record)):
                raise Unfit("proof", Reason.FIRST_TOKEN)
            return change(record), True

        return self._store.update(user, unless_enrolled, create=True)

    def _origin(self, asking: Asking) -> Origin:
        return Origin(service=self._service, rhost=asking.rhost)

    def _note_replacement(self, asking: Asking, removed: list[Token]) -> None:
        """Log the end of the guided enrolment, after the line about the new token."""
        for token in removed:
            self._note_change(asking, "remove", token)
        self._note_change(asking, "recovery")

    def _note_change(self, asking: Asking, what: str, *tokens: Token, to: str | None = None) -> None:
        fields = audit_log.of_token(tokens[0]) if tokens else {}
        self._note(asking, "changed", what=what, **fields, to=to, at=self._now(), by=asking.user)

    def _note(self, asking: Asking, verb: str, **fields: str | int | None) -> None:
        audit_log.write(self._sink, self._service, verb, user=asking.user, **fields, rhost=asking.rhost)


def _verify_without_use(record: UserRecord, *arguments: Any, **more: Any) -> Decision:
    """Do the same as `verify`, but leave an accepted code usable."""
    decision = verify(record, *arguments, **more)
    return decision.followed_by(record) if decision.outcome.accepted else decision


def _wrong_first_code(token: Token, answer: Answer, now: int, codes: int, field: str) -> Unfit:
    """Return the problem of a wrong first code. The problem has the error of the phone's clock if the key was shown."""
    if codes > 1:
        return Unfit(field, Reason.NOT_CONSECUTIVE)
    error = clock_error(token, answer, now) if shows_key(token) else None
    if error is None:
        return Unfit(field, Reason.INVALID_CODE)
    return Unfit(field, Reason.CLOCK, round(error / 60))


def free_name(record: UserRecord, name: str) -> str:
    """Return `name`, followed by a number if the record has a token of that name."""
    names = {t.name for t in record.tokens}
    return next(n for n in (name, *(f"{name} {i}" for i in range(2, MAX_TOKENS + 2))) if n not in names)


def is_last(record: UserRecord, token: Token) -> bool:
    """Return True if `token` is the only active token."""
    return token.active and sum(t.active for t in record.tokens) == 1


def conflict(record: UserRecord, token: Token) -> Reason | None:
    """Return the reason that prevents the addition of the token to the record, or None."""
    if len(record.tokens) >= MAX_TOKENS:
        return Reason.TOO_MANY_TOKENS
    if record.token(token.name) is not None:
        return Reason.NAME_IN_USE
    if any(t.secret == token.secret for t in record.tokens):
        return Reason.TOKEN_KNOWN
    return None


def _named(record: UserRecord, name: str, field: str) -> Token:
    token = record.token(name)
    if token is None:
        raise Unfit(field, Reason.TOKEN_GONE)
    return token


def _silently(done: int, total: int) -> None:
    """Report no progress."""
