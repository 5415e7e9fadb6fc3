"""Verification: decide whether one answer is accepted, and compute the record after it.

Rules (docs/architecture.md numbers all laws of verification):
1. A counter or step is accepted at most once. The next accepted counter or step must be higher.
2. A wrong code changes only the counts of failures and refusals, and the time of the last decrease.
3. The decision depends only on the arguments of `verify`, except `ahead`.
4. The record remains unchanged after a malformed answer, after a ticket, and after any answer for a user without a
   confirmed token.
5. Every other answer changes the record. Otherwise a full disk or the response time would show the reason of a refusal.
6. Single codes of one dialogue may be codes in a row together (law 5). The first two codes are used up if a third code
   is needed. A repeated answer is refused at once, and is not a failure. Codes in a row cancel the dialogue's failures.
7. Codes in a row, a recovery code or a temporary code lower the count of failures to a limit. One code never lowers the
   count (law 8).
"""

from __future__ import annotations

from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.fields import Value
from pam_totp.core.lean import TYPE_CHECKING, Enum
from pam_totp.core.oath import Ahead, find_numbers
from pam_totp.core.policy import Policy
from pam_totp.core.record import MAX_DRIFT, TIME_LIMIT, HotpToken, TemporaryCode, Ticket, Token, TotpToken, UserRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Set
    from typing import ClassVar

REPLAYS = 10  # counters or steps: the number of used codes that are recognised as replays


class Outcome(Enum):
    """The outcome of an answer. The value is its name in the log."""

    CODE = "code"
    CONSECUTIVE = "row"
    RECOVERY = "recovery"
    TEMPORARY = "temporary"
    TICKET = "ticket"
    WRONG = "wrong"
    REPLAYED = "replayed"
    CONSECUTIVE_NEEDED = "codes-in-a-row-needed"
    REPEATED = "repeated"
    LOCKED = "locked"
    MALFORMED = "malformed"
    NOT_ENROLLED = "not-enrolled"

    @property
    def accepted(self) -> bool:
        """Return True if the user may pass."""
        return self in _ACCEPTED

    @property
    def is_long_code(self) -> bool:
        """Return True if a code of 80 bits was accepted: a recovery code or a temporary code."""
        return self in (Outcome.RECOVERY, Outcome.TEMPORARY)


_ACCEPTED = {Outcome.CODE, Outcome.CONSECUTIVE, Outcome.RECOVERY, Outcome.TEMPORARY}


class Tickets(Enum):
    """The users whose enrolment tickets are valid in a dialogue."""

    NONE = "none"
    UNENROLLED = "unenrolled"
    EVERYBODY = "everybody"


class NextCode(Value):
    """The code that completes the codes in a row of a dialogue: the token's name, and the counter or step."""

    token: str
    moving_factor: int


class Decision(Value):
    """The outcome of one answer, and the record after it.

    `token` is the name of the token that shows the codes, or None. `refused_before` counts the answers that were
    refused between the previous success and this dialogue. `next_code` is set if the two codes of the dialogue are
    consecutive, and a third code is needed.

    `distance` is set if a code of `token` was accepted. For HOTP, `distance` is the number of skipped counters before
    the first code. For TOTP, `distance` is the token's clock at the last code minus this host's clock, in steps.
    `distance` is None for a third code of HOTP, because the first two codes have used up the skipped counters.
    """

    outcome: Outcome
    record: UserRecord
    token: str | None = None
    refused_before: int = 0
    next_code: NextCode | None = None
    distance: int | None = None

    def followed_by(self, record: UserRecord) -> Decision:
        """Return the same decision with `record` as the record after it."""
        return self._replace(record=record)


class Earlier(Value):
    """The refused answers that precede an answer in its dialogue.

    `answers` are the answers to the prompts of this dialogue. `failures` is the number of failures that these answers
    added, and `counted` the record's number of failures after that. `refused` is the number of refusals that these
    answers and a first pass added. `next_code` is the code that completes the codes in a row.
    """

    answers: tuple[Answer, ...] = ()
    failures: int = 0
    counted: int = 0
    refused: int = 0
    next_code: NextCode | None = None

    NONE: ClassVar[Earlier]

    def followed_by(self, answer: Answer, decision: Decision, *, prompted: bool) -> Earlier:
        """Return the refused answers with `answer` added, and with the counts after `decision`.

        `prompted` is False for a first pass, whose code cannot begin codes in a row.
        """
        recorded = decision.outcome not in (Outcome.MALFORMED, Outcome.NOT_ENROLLED, Outcome.TICKET)
        failed = prompted and decision.outcome is Outcome.WRONG and answer.recovery_code is None
        return Earlier(
            answers=(*self.answers, answer) if prompted else self.answers,
            failures=self.failures + failed,
            counted=decision.record.failures if failed else self.counted,
            refused=self.refused + recorded,
            next_code=decision.next_code,
        )

    def own(self, failures: int) -> int:
        """Return the number of this dialogue's failures that codes in a row cancel.

        `failures` is the user's current number of failures. Return 0 if another login or time has lowered this number
        since the answers.
        """
        return self.failures if failures >= self.counted else 0

    def code(self, lengths: Set[int]) -> tuple[int, ...]:
        """Return the code of the only answer, with a number of digits in `lengths`.

        Return an empty tuple unless there is exactly one answer, and that answer is a single code.
        """
        found = self.answers[0].numbers(lengths) if len(self.answers) == 1 else None
        return found[1] if found is not None and len(found[1]) == 1 else ()


Earlier.NONE = Earlier()


TYPING_TIME = 60  # seconds: users answer most prompts within this time


def work_out_ahead(tokens: Iterable[Token], now: int, policy: Policy) -> Ahead:
    """Return the codes of `tokens` that may be accepted at `now` (Unix seconds) and during `TYPING_TIME`."""
    ahead = Ahead()
    for token in tokens:
        begins, ends = (acceptable(token, 1, at, policy) for at in (now, now + TYPING_TIME))
        ahead.work_out(token.secret, range(begins.start, ends.stop), token.digits, token.algorithm)
    return ahead


def verify(
    record: UserRecord,
    answer: Answer,
    now: int,
    policy: Policy,
    *,
    earlier: Earlier = Earlier.NONE,
    ahead: Ahead | None = None,
    fewest: int = 1,
    tickets: Tickets = Tickets.NONE,
) -> Decision:
    """Decide on `answer` at `now` (Unix seconds). `earlier` are the refused answers of the same dialogue.

    The user's ticket has the outcome TICKET if the ticket is valid and `tickets` allows its use. This outcome is not
    accepted: the user must confirm the token.

    At least `fewest` codes in a row are needed, regardless of the count of failures. Codes in `ahead` are not computed
    again. These codes cannot change the decision, because a code depends only on its key and counter.

    The caller must store the record of the decision before the user may pass. Raise ValueError only if `now` is outside
    0 to `TIME_LIMIT` - 1.
    """
    if not 0 <= now < TIME_LIMIT:
        raise ValueError("the time must be 0 to TIME_LIMIT - 1")
    if record.ticket is not None and takes_ticket(record, tickets) and is_ticket(record, answer, now):
        return Decision(outcome=Outcome.TICKET, record=record, token=record.ticket.token)
    if not record.enrolled:
        return Decision(outcome=Outcome.NOT_ENROLLED, record=record)

    found = answer.numbers(record.code_lengths)
    if found is None and answer.recovery_code is None:
        return Decision(outcome=Outcome.MALFORMED, record=record)
    if answer in earlier.answers:
        return Decision(outcome=Outcome.REPEATED, record=record.refused_uncounted())

    refused_before = max(record.refused - earlier.refused, 0)
    if answer.recovery_code is not None and record.salt is not None:
        digest = recovery_digest(record.salt, answer.recovery_code)
        if digest in record.recovery:
            after = record.recovered(digest, policy.most_failures_kept, now)
            return Decision(outcome=Outcome.RECOVERY, record=after, refused_before=refused_before)
    if _is_long_code(record.temporary, answer, now):
        after = record.passed_temporarily(policy.most_failures_kept, now)
        return Decision(outcome=Outcome.TEMPORARY, record=after, refused_before=refused_before)
    if found is None:
        return Decision(outcome=Outcome.WRONG, record=record.refused_uncounted())  # law 11: too long to be guessed
    digits, codes = found

    # Law 8: failures decrease with time, but a lock remains, because it depends on the stored count.
    if policy.locks(record.failures):
        return Decision(outcome=Outcome.LOCKED, record=record.refused_uncounted())

    failures, _ = record.failures_now(now)
    candidates = [t for t in record.tokens if t.active and t.digits == digits]
    for token in candidates:
        if earlier.next_code is not None and _ends_consecutive(token, codes, earlier.next_code, now, policy):
            after = record.accepted(token, token.next_factor, 1, now, ends_consecutive=True)
            after = after.lowered(policy.most_failures_kept, now, own=earlier.own(failures))
            outcome = Outcome.CONSECUTIVE
            distance = None if isinstance(token, HotpToken) else _distance(token, token.next_factor, 1, now)
            return Decision(
                outcome=outcome, record=after, token=token.name, refused_before=refused_before, distance=distance
            )
    before = earlier.code({digits})
    pair = (*before, *codes) if before and len(codes) == 1 else ()
    # Law 5: for codes in a row across answers, the failure that the first of these codes added is subtracted.
    for row, counted in ((pair, failures - earlier.own(failures)), (codes, failures)):
        for token in candidates if row else ():
            first = _find(token, row, acceptable(token, len(row), now, policy), ahead)
            if first is None:
                continue
            if len(row) < max(policy.codes_needed(counted), 2 if token.row_needed else 1, fewest):
                outcome = Outcome.CONSECUTIVE_NEEDED
                if row is codes:
                    return Decision(outcome=outcome, record=record.refused_uncounted(), token=token.name)
                # Law 5: the third prompt confirms the pair. Use the pair up: a second try would let an attacker guess
                # three codes in parts.
                after = record.refused_and_used_up(token, first, len(row))
                following = NextCode(token=token.name, moving_factor=first + len(row))
                return Decision(outcome=outcome, record=after, token=token.name, next_code=following)
            outcome = Outcome.CODE if len(row) == 1 else Outcome.CONSECUTIVE
            after = record.accepted(token, first, len(row), now)
            if outcome is Outcome.CONSECUTIVE:  # law 5: the same user caused the dialogue's failures
                after = after.lowered(policy.most_failures_kept, now, own=earlier.own(failures))
            distance = _distance(token, first, len(row), now)
            return Decision(
                outcome=outcome, record=after, token=token.name, refused_before=refused_before, distance=distance
            )
    for token in candidates:
        if _find(token, codes, _used(token)) is not None:
            return Decision(outcome=Outcome.REPLAYED, record=record.refused_uncounted(), token=token.name)
    return Decision(outcome=Outcome.WRONG, record=record.refused_as_wrong(now))


def takes_ticket(record: UserRecord, tickets: Tickets) -> bool:
    """Return True if a ticket of the user of `record` is valid in a dialogue with `tickets`."""
    return tickets is Tickets.EVERYBODY or (tickets is Tickets.UNENROLLED and not record.enrolled)


def is_ticket(record: UserRecord, answer: Answer, now: int) -> bool:
    """Return True if `answer` is the user's ticket, and the ticket is valid at `now` (Unix seconds)."""
    return record.invited_token is not None and _is_long_code(record.ticket, answer, now)


def _is_long_code(long_code: Ticket | TemporaryCode | None, answer: Answer, now: int) -> bool:
    """Return True if `answer` is the ticket or temporary code `long_code`, and `long_code` is valid at `now`."""
    if long_code is None or answer.recovery_code is None or now >= long_code.ends:
        return False
    return recovery_digest(long_code.salt, answer.recovery_code) == long_code.digest


def _distance(token: Token, first: int, count: int, now: int) -> int:
    """Return `Decision.distance` for `count` codes from moving factor `first`."""
    if isinstance(token, HotpToken):
        return first - token.counter
    assert isinstance(token, TotpToken)
    return first + count - 1 - now // token.period


def _ends_consecutive(token: Token, codes: tuple[int, ...], expected: NextCode, now: int, policy: Policy) -> bool:
    """Return True if `codes` is the expected code of `token`, and no later code was used meanwhile (law 5)."""
    factor = expected.moving_factor
    return (
        (token.name, token.next_factor, len(codes)) == (expected.token, factor, 1)
        and factor in acceptable(token, 3, now, policy, used_up=2)
        and _find(token, codes, range(factor, factor + 1)) is not None
    )


def acceptable(token: Token, count: int, now: int, policy: Policy, *, used_up: int = 0) -> range:
    """Return the counters or steps at which the first of `count` codes is accepted at `now` (laws 4 to 6).

    Return the range of the code after the first `used_up` codes if these codes are used up already.
    """
    if isinstance(token, HotpToken):
        reach = policy.look_ahead
        if count > 1 and policy.resync_window > 0:
            reach = policy.resync_window
        return range(token.counter, token.counter + reach + 1)  # RFC 4226 §7.4
    assert isinstance(token, TotpToken)
    reach = policy.window if count == 1 else max(policy.window, policy.resync_steps)
    return steps_around(token, count - used_up, now, reach)


def steps_around(token: TotpToken, count: int, now: int, reach: int) -> range:
    """Return the steps at which the first of `count` codes is accepted at `now` (Unix seconds).

    The last code must be within `reach` steps of the token's clock (RFC 6238 §5.2, §6). The first code must be later
    than the last used step. The drift stays within `MAX_DRIFT`.
    """
    first = now // token.period - (count - 1)
    slowest, fastest = max(token.drift - reach, -MAX_DRIFT), min(token.drift + reach, MAX_DRIFT)
    return range(max(first + slowest, token.next_factor), first + fastest + 1)


def _used(token: Token) -> range:
    """Return the last `REPLAYS` counters or steps before the next factor. Their codes are replays (law 8)."""
    if isinstance(token, HotpToken):
        return range(token.counter - REPLAYS, token.counter)
    assert isinstance(token, TotpToken)
    return range(0) if token.last_step is None else range(token.last_step - REPLAYS + 1, token.last_step + 1)


def _find(token: Token, codes: tuple[int, ...], within: range, ahead: Ahead | None = None) -> int | None:
    return find_numbers(token.secret, codes, within, token.digits, token.algorithm, ahead=ahead)
