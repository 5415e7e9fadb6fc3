"""verify: what one answer is worth, and the record after it.

The law:
1. A counter or step is accepted at most once, and both only go up.
2. A wrong code moves nothing but the failure count.
3. What is accepted is decided by the record, the answer, the time and the policy; nothing is remembered elsewhere.
4. A malformed answer, and any from a user who is not enrolled, leaves the record as it was. Every other answer changes
   it, so that all refusals cost the same write, and no full disk or stopwatch tells one from another.
"""

from __future__ import annotations

import enum

from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.fields import Value
from pam_totp.core.oath import find
from pam_totp.core.policy import Policy
from pam_totp.core.record import MAX_DRIFT, TIME_LIMIT, HotpToken, Token, TotpToken, UserRecord

REPLAYS = 10  # counters or steps: how far back a code is known again as used


class Outcome(enum.Enum):
    """What became of an answer; the value is the word for it in the log."""

    CODE = "code"
    ROW = "row"
    RECOVERY = "recovery"
    WRONG = "wrong"
    REPLAYED = "replayed"
    ROW_NEEDED = "codes-in-a-row-needed"
    LOCKED = "locked"
    MALFORMED = "malformed"
    NOT_ENROLLED = "not-enrolled"

    @property
    def accepted(self) -> bool:
        return self in _ACCEPTED


_ACCEPTED = {Outcome.CODE, Outcome.ROW, Outcome.RECOVERY}


class Decision(Value):
    """An outcome and the record after it; the name of the token whose code it was, where there is one; and how many
    answers were refused since the success before this one."""

    outcome: Outcome
    record: UserRecord
    token: str | None = None
    refused_before: int = 0

    def followed_by(self, record: UserRecord) -> Decision:
        """The same decision, with what else it led to in the record."""
        return self._replace(record=record)


def verify(record: UserRecord, answer: Answer, now: int, policy: Policy) -> Decision:
    """Decide on `answer` at `now` (Unix seconds).

    Returns a Decision; its record must be stored before anybody is let in. Raises ValueError only for a clock
    before 1970 or beyond `TIME_LIMIT`.
    """
    if not 0 <= now < TIME_LIMIT:
        raise ValueError("the clock is out of range")
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
        return Decision(outcome=Outcome.WRONG, record=record.refused_uncounted())  # 80 bits need no count

    # A lock does not wear off: it goes by the count as it was stored, not as it has fallen since.
    if policy.locks(record.failures):
        return Decision(outcome=Outcome.LOCKED, record=record.refused_uncounted())

    candidates = [t for t in record.tokens if t.active and t.digits == len(codes[0])]
    for token in candidates:
        first = _find(token, codes, acceptable(token, len(codes), now, policy))
        if first is None:
            continue
        failures, _ = record.failures_now(now)
        if len(codes) < policy.codes_needed(failures):
            return Decision(outcome=Outcome.ROW_NEEDED, record=record.refused_uncounted(), token=token.name)
        outcome = Outcome.CODE if len(codes) == 1 else Outcome.ROW
        after = record.accepted(token, first, len(codes), now)
        return Decision(outcome=outcome, record=after, token=token.name, refused_before=record.refused)
    for token in candidates:
        if _find(token, codes, _used(token)) is not None:
            return Decision(outcome=Outcome.REPLAYED, record=record.refused_uncounted(), token=token.name)
    return Decision(outcome=Outcome.WRONG, record=record.refused_as_wrong(now))


def acceptable(token: Token, count: int, now: int, policy: Policy) -> range:
    """The counters or steps at which the first of `count` codes may stand."""
    if isinstance(token, HotpToken):
        reach = policy.look_ahead
        if count > 1 and policy.resync_window > 0:
            reach = policy.resync_window
        return range(token.counter, token.counter + reach + 1)  # RFC 4226 §7.4
    assert isinstance(token, TotpToken)
    reach = policy.window if count == 1 else max(policy.window, policy.resync_steps)
    return steps_around(token, count, now, reach)


def steps_around(token: TotpToken, count: int, now: int, reach: int) -> range:
    """The steps at which the first of `count` codes may stand for the last to be within `reach` of the token's clock
    (RFC 6238 §5.2, §6), and all of them to be later than any used before. No drift grows beyond `MAX_DRIFT`."""
    first = now // token.period - (count - 1)
    slowest, fastest = max(token.drift - reach, -MAX_DRIFT), min(token.drift + reach, MAX_DRIFT)
    unused = 0 if token.last_step is None else token.last_step + 1
    return range(max(first + slowest, unused), first + fastest + 1)


def _used(token: Token) -> range:
    """The last counters or steps that can no longer be accepted."""
    if isinstance(token, HotpToken):
        return range(token.counter - REPLAYS, token.counter)
    assert isinstance(token, TotpToken)
    return range(0) if token.last_step is None else range(token.last_step - REPLAYS + 1, token.last_step + 1)


def _find(token: Token, codes: tuple[str, ...], within: range) -> int | None:
    return find(token.secret, codes, within, token.digits, token.algorithm)
