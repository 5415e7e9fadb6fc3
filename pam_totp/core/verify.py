"""Verification: decide whether one answer is accepted, and compute the record after it.

Rules (docs/architecture.md numbers all laws of verification):
1. A counter or step is accepted at most once, and both only go up.
2. A wrong code changes only the counts of failures and refusals.
3. The decision depends only on the record, the answer, the time and the policy.
4. A malformed answer leaves the record unchanged, and so does every answer for a user without a confirmed token.
5. Every answer to which rule 4 does not apply changes the record. Otherwise a full disk or the response time would show
   the reason of a refusal.
"""

from __future__ import annotations

import enum

from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.fields import Value
from pam_totp.core.oath import find
from pam_totp.core.policy import Policy
from pam_totp.core.record import MAX_DRIFT, TIME_LIMIT, HotpToken, Token, TotpToken, UserRecord

REPLAYS = 10  # counters or steps: how far back a used code is recognised as a replay


class Outcome(enum.Enum):
    """The outcome of an answer. The value is its name in the log."""

    CODE = "code"
    CONSECUTIVE = "row"
    RECOVERY = "recovery"
    WRONG = "wrong"
    REPLAYED = "replayed"
    CONSECUTIVE_NEEDED = "codes-in-a-row-needed"
    LOCKED = "locked"
    MALFORMED = "malformed"
    NOT_ENROLLED = "not-enrolled"

    @property
    def accepted(self) -> bool:
        """Return True if the user may pass."""
        return self in _ACCEPTED


_ACCEPTED = {Outcome.CODE, Outcome.CONSECUTIVE, Outcome.RECOVERY}


class Decision(Value):
    """The outcome of one answer, and the record after it.

    `token` is the name of the token that shows the codes, None if there is none. `refused_before` counts the answers
    that were refused between the previous success and this one.
    """

    outcome: Outcome
    record: UserRecord
    token: str | None = None
    refused_before: int = 0

    def followed_by(self, record: UserRecord) -> Decision:
        """Return the same decision with `record` as the record after it."""
        return self._replace(record=record)


def verify(record: UserRecord, answer: Answer, now: int, policy: Policy) -> Decision:
    """Decide on `answer` at `now` (Unix seconds).

    The caller must store the record of the decision before the user may pass. Raise ValueError only if `now` is
    negative or not below `TIME_LIMIT`.
    """
    if not 0 <= now < TIME_LIMIT:
        raise ValueError("the time must be at least 0 and below TIME_LIMIT")
    if not record.enrolled:
        return Decision(outcome=Outcome.NOT_ENROLLED, record=record)

    if answer.recovery_code is not None and record.salt is not None:
        digest = recovery_digest(record.salt, answer.recovery_code)
        if digest in record.recovery:
            return Decision(outcome=Outcome.RECOVERY, record=record.recovered(digest), refused_before=record.refused)

    codes = answer.codes(record.code_lengths)
    if codes is None:
        if answer.recovery_code is None:
            return Decision(outcome=Outcome.MALFORMED, record=record)
        return Decision(outcome=Outcome.WRONG, record=record.refused_uncounted())  # law 11: too long to be guessed

    # Law 8: failures decrease with time, but a lock stays, because it depends on the stored count.
    if policy.locks(record.failures):
        return Decision(outcome=Outcome.LOCKED, record=record.refused_uncounted())

    candidates = [t for t in record.tokens if t.active and t.digits == len(codes[0])]
    for token in candidates:
        first = _find(token, codes, acceptable(token, len(codes), now, policy))
        if first is None:
            continue
        failures, _ = record.failures_now(now)
        if len(codes) < policy.codes_needed(failures):
            return Decision(outcome=Outcome.CONSECUTIVE_NEEDED, record=record.refused_uncounted(), token=token.name)
        outcome = Outcome.CODE if len(codes) == 1 else Outcome.CONSECUTIVE
        after = record.accepted(token, first, len(codes), now)
        return Decision(outcome=outcome, record=after, token=token.name, refused_before=record.refused)
    for token in candidates:
        if _find(token, codes, _used(token)) is not None:
            return Decision(outcome=Outcome.REPLAYED, record=record.refused_uncounted(), token=token.name)
    return Decision(outcome=Outcome.WRONG, record=record.refused_as_wrong(now))


def acceptable(token: Token, count: int, now: int, policy: Policy) -> range:
    """Return the counters or steps at which the first of `count` codes is accepted (laws 4 to 6)."""
    if isinstance(token, HotpToken):
        reach = policy.look_ahead
        if count > 1 and policy.resync_window > 0:
            reach = policy.resync_window
        return range(token.counter, token.counter + reach + 1)  # RFC 4226 §7.4
    assert isinstance(token, TotpToken)
    reach = policy.window if count == 1 else max(policy.window, policy.resync_steps)
    return steps_around(token, count, now, reach)


def steps_around(token: TotpToken, count: int, now: int, reach: int) -> range:
    """Return the steps at which the first of `count` codes is accepted.

    The last code must be within `reach` steps of the token's clock (RFC 6238 §5.2, §6). The first code must be later
    than the last used step. The drift stays within `MAX_DRIFT`.
    """
    first = now // token.period - (count - 1)
    slowest, fastest = max(token.drift - reach, -MAX_DRIFT), min(token.drift + reach, MAX_DRIFT)
    unused = 0 if token.last_step is None else token.last_step + 1
    return range(max(first + slowest, unused), first + fastest + 1)


def _used(token: Token) -> range:
    """Return the last `REPLAYS` counters or steps before the next acceptable one: their codes are replays (law 8)."""
    if isinstance(token, HotpToken):
        return range(token.counter - REPLAYS, token.counter)
    assert isinstance(token, TotpToken)
    return range(0) if token.last_step is None else range(token.last_step - REPLAYS + 1, token.last_step + 1)


def _find(token: Token, codes: tuple[str, ...], within: range) -> int | None:
    return find(token.secret, codes, within, token.digits, token.algorithm)
