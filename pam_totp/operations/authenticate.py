"""One answer of one user: decided, recorded, logged. PAM, the command line and the portal all come through here.

The law:
- what was decided is durable before `decide` returns, and whatever follows from it is part of the same change;
- an answer costs the same work at the disk whoever it is for: none where it could be nobody's, else one file written;
- the log gets one line for each answer, the person the same words for every refusal.
"""

from __future__ import annotations

from collections.abc import Callable

from pam_totp.core.answer import Answer
from pam_totp.core.policy import Policy
from pam_totp.core.record import MAX_TOKENS, UserRecord
from pam_totp.core.verify import Decision, Outcome, verify
from pam_totp.operations import audit_log
from pam_totp.store import NotThere, Store

REFUSED = "refused; if the code was right, enter two codes in a row, or three"
REFUSAL_TAKES = 0.1  # seconds after the answer, at least: longer than any disk that is in order takes
_LOOK_TAKES = 1e-5  # seconds for one counter or step of one token: several times what it does
_NOBODY = UserRecord(user="nobody")

Follow = Callable[[Decision, int], UserRecord]  # what was decided, now -> the record to keep


def decide(
    store: Store,
    user: str,
    answer: Answer,
    policy: Policy,
    now: Callable[[], int],
    *,
    follow: Follow | None = None,
) -> Decision:
    """Verify `answer` against the record of `user`, and return what was decided once it is durable.

    `follow` makes the record of an accepted answer; where it raises, nothing was changed and the code is as good as
    before. Raises StoreError.
    """
    if not answer.is_well_formed:
        return verify(_known(store, user), answer, now(), policy)

    def change(record: UserRecord) -> tuple[UserRecord, Decision]:
        at = now()
        decision = verify(record, answer, at, policy)
        if follow is not None and decision.outcome.accepted:
            decision = decision.followed_by(follow(decision, at))
        return decision.record, decision

    try:
        decision = store.update(user, change)
    except NotThere:
        decision = Decision(outcome=Outcome.NOT_ENROLLED, record=_NOBODY)
    if decision.outcome in (Outcome.NOT_ENROLLED, Outcome.MALFORMED):  # to others it would have been an answer
        store.update_nobody(user)
    return decision


def refusal_takes(policy: Policy) -> float:
    """How long after the answer a refusal is said, in seconds: longer than looking through all the tokens that a user
    can have takes, so that its time does not tell how many there are."""
    reach = max(policy.look_ahead, policy.resync_window, 2 * policy.window, 2 * policy.resync_steps)
    return max(REFUSAL_TAKES, MAX_TOKENS * reach * _LOOK_TAKES)


def log(sink: audit_log.Sink, service: str, user: str, decision: Decision, rhost: str | None = None) -> None:
    """One line about `decision`."""
    reason = decision.outcome.value
    if not decision.outcome.accepted:
        audit_log.write(sink, service, "refused", user=user, reason=reason, token=decision.token, rhost=rhost)
        return
    audit_log.write(
        sink,
        service,
        "accepted",
        user=user,
        by=reason,
        token=decision.token,
        recovery_left=_recovery_left(decision),
        refused_before=decision.refused_before or None,
        rhost=rhost,
    )


def remarks(decision: Decision) -> list[str]:
    """What the person is told after a success."""
    found = []
    left = _recovery_left(decision)
    if left is not None:
        found.append(f"recovery code used, {left} left")
    refused = decision.refused_before
    if refused:
        what = "1 answer was" if refused == 1 else f"{refused} answers were"
        found.append(f"{what} refused since the last login")
    return found


def _recovery_left(decision: Decision) -> int | None:
    return len(decision.record.recovery) if decision.outcome is Outcome.RECOVERY else None


def _known(store: Store, user: str) -> UserRecord:
    try:
        return store.read(user)
    except NotThere:
        return _NOBODY
