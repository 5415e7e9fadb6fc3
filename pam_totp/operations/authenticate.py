"""Authentication: decide on one answer of one user, record the decision, log it.

Rules (docs/architecture.md numbers all laws of verification):
1. `decide` decides on the answers at a login, in the portal and in `pam-totp verify`.
2. The decision is durable before `decide` returns. A change that an accepted answer permits is part of the same update.
3. For a well-formed answer, `decide` holds one lock, searches for the codes and writes one file, for every user name,
   enrolled or unknown. `decide` writes no file for a malformed answer.
4. The caller logs each answer in one line. The user sees the same text for every refusal.
5. The delay of a refusal depends only on the policy.
"""

from __future__ import annotations

import os

from pam_totp.core.answer import CODE_LENGTHS, Answer
from pam_totp.core.fields import Value
from pam_totp.core.lean import TYPE_CHECKING
from pam_totp.core.oath import Ahead
from pam_totp.core.policy import Policy
from pam_totp.core.record import (
    MAX_ORIGIN,
    MAX_TOKENS,
    NEW_SECRET,
    UNKNOWN_USER,
    HotpToken,
    UserRecord,
    recent_entry,
)
from pam_totp.core.verify import Decision, Earlier, Outcome, Tickets, verify
from pam_totp.operations import audit_log
from pam_totp.store import NotThere, Store, read_or_unknown

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

REFUSED = "Refused. Try the next code. If that is refused too, enter two codes in a row in one answer, or three."
REFUSAL_DELAY = 0.1  # seconds: longer than one login takes on a healthy disk
_CANDIDATE_TIME = 1e-5  # seconds: several times the search time for one counter or step of one token

# The record for unknown users, so that the response time does not show which users are unknown.
DECOY = UserRecord(
    user="decoy",
    tokens=tuple(
        HotpToken(name=f"{digits} digits", secret=os.urandom(NEW_SECRET), digits=digits, created=0)
        for digits in sorted(CODE_LENGTHS)
    ),
)

Follow: TypeAlias = "Callable[[Decision, int], UserRecord]"  # (decision, now in Unix seconds) -> the record to store
Verify: TypeAlias = "Callable[..., Decision]"  # `verify`, or a function that waits before it calls `verify`


class Origin(Value):
    """The origin of a login: the service, and the address or name of the remote host, or None for a local login."""

    service: str
    rhost: str | None = None

    def entry(self, outcome: Outcome, at: int) -> str:
        """Return the entry of `UserRecord.recent` for a login with `outcome` at `at` (Unix seconds)."""
        return self._entry(at, outcome.value, accepted=outcome.accepted)

    def enrolment(self, at: int) -> str:
        """Return the entry for a login that was accepted after a ticket and a first code at `at` (Unix seconds)."""
        return self._entry(at, Outcome.TICKET.value, accepted=True)

    def _entry(self, at: int, outcome: str, *, accepted: bool) -> str:
        rhost = None if not self.rhost else _short(self.rhost)
        return recent_entry(at, accepted, outcome, _short(self.service or "?"), rhost)


def decide(
    store: Store,
    user: str,
    answer: Answer,
    policy: Policy,
    now: Callable[[], int],
    *,
    follow: Follow | None = None,
    earlier: Earlier = Earlier.NONE,
    ahead: Ahead | None = None,
    verify: Verify = verify,
    tickets: Tickets = Tickets.NONE,
    origin: Origin | None = None,
) -> Decision:
    """Verify `answer` against the record of `user`, and return the decision once it is durable.

    `now` returns Unix seconds. `earlier` are the refused answers of the same dialogue. Codes in `ahead` are not
    computed again. `follow` computes the record to store after an accepted answer. The record is unchanged if `follow`
    raises an exception. The record keeps the decision among its recent logins if `origin` is given. Raise StoreError if
    the store cannot be reached.
    """
    if not answer.is_well_formed:  # law 2: the code must be refused, because no record is written
        record = read_or_unknown(store, user)
        return Decision(outcome=Outcome.MALFORMED if record.enrolled else Outcome.NOT_ENROLLED, record=record)

    def change(record: UserRecord) -> tuple[UserRecord, Decision]:
        at = now()
        decision = verify(record, answer, at, policy, earlier=earlier, ahead=ahead, tickets=tickets)
        if decision.outcome in (Outcome.NOT_ENROLLED, Outcome.MALFORMED, Outcome.TICKET):
            search_decoy()
        elif origin is not None:
            decision = decision.followed_by(decision.record.with_recent(origin.entry(decision.outcome, at)))
        if follow is not None and decision.outcome.accepted:
            decision = decision.followed_by(follow(decision, at))
        return decision.record, decision

    def search_decoy() -> None:
        verify(DECOY, answer, now(), policy, earlier=earlier, ahead=ahead)

    # Law 12: for every user, hold one lock, search once and write once. Otherwise the wait of many logins for the lock
    # of one name would show whether the name is enrolled.
    try:
        return store.update(user, change, decoy=True)
    except NotThere:
        store.update_decoy(user, search_decoy)
        return Decision(outcome=Outcome.NOT_ENROLLED, record=UNKNOWN_USER)


def refusal_delay(policy: Policy) -> float:
    """Return the time between an answer and its refusal, in seconds.

    This time hides the number of a user's tokens, because it is longer than the search through `MAX_TOKENS` tokens.
    """
    reach = max(policy.look_ahead, policy.resync_window, 2 * policy.window, 2 * policy.resync_steps)
    return max(REFUSAL_DELAY, MAX_TOKENS * reach * _CANDIDATE_TIME)


def log(sink: audit_log.Sink, service: str, user: str, decision: Decision, rhost: str | None = None) -> None:
    """Log `decision` in one line."""
    verb, fields = facts(decision)
    audit_log.write(sink, service, verb, user=user, **fields, rhost=rhost)


def facts(decision: Decision) -> tuple[str, dict[str, str | int | None]]:
    """Return the verb and the fields of the line about `decision`."""
    fields: dict[str, str | int | None] = {"token": decision.token}
    token = None if decision.token is None else decision.record.token(decision.token)
    if token is not None:  # it is None after an answer that permitted the token's removal
        fields = audit_log.of_token(token)
    if decision.outcome is Outcome.TICKET:
        return "presented", {"what": decision.outcome.value} | fields
    if not decision.outcome.accepted:
        return "refused", {"reason": decision.outcome.value} | fields
    if token is not None and decision.distance is not None:  # small numbers, which reveal no code
        fields["ahead" if isinstance(token, HotpToken) else "drift"] = decision.distance
    fields |= {"recovery_left": recovery_left(decision), "refused_before": decision.refused_before or None}
    return "accepted", {"by": decision.outcome.value} | fields


def remarks(decision: Decision) -> list[str]:
    """Return the messages for the user after an accepted answer."""
    found = ["temporary code used"] if decision.outcome is Outcome.TEMPORARY else []
    left = recovery_left(decision)
    if left is not None:
        found.append(f"recovery code used, {left} left")
    refused = decision.refused_before
    if refused:
        answers = "1 answer was" if refused == 1 else f"{refused} answers were"
        found.append(f"{answers} refused since the last login")
    return found


def _short(text: str) -> str:
    """Return `text` with at most MAX_ORIGIN printable characters, without spaces and semicolons, for a recent login."""
    text = text[:MAX_ORIGIN]
    if text.isprintable() and " " not in text and ";" not in text:
        return text
    return "".join(c if c.isprintable() and c not in " ;" else "?" for c in text)


def recovery_left(decision: Decision) -> int | None:
    """Return the number of remaining recovery codes if a recovery code was accepted, otherwise None."""
    return len(decision.record.recovery) if decision.outcome is Outcome.RECOVERY else None
