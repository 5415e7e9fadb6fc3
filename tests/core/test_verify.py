"""Tests of verification, by an example for each law in docs/architecture.md."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.oath import hotp
from pam_totp.core.policy import Policy
from pam_totp.core.record import DAY, TIME_LIMIT, HotpToken, Token, TotpToken, UserRecord
from pam_totp.core.verify import Decision, Earlier, NextCode, Outcome, verify
from pam_totp.operations.enroll import verify_first_code
from tests.support.site import KEY, fob, phone

NOW = 1_700_000_010  # Unix seconds: the start of a step of 30 s
STEP = NOW // 30
LAST = 2**64 - 1
SALT = "00" * 16
RECOVERY = "0123456789ABCDEF"


def codes_of(token: Token, first: int, count: int = 1) -> bytes:
    """Return `count` codes in a row of `token`, from counter or step `first`."""
    row = [hotp(token.secret, first + i, token.digits, token.algorithm) for i in range(count)]
    return " ".join(row).encode()


class Alice:
    """A user with a record, a clock and a policy. `says` verifies an answer and returns its outcome."""

    def __init__(self, *tokens: Token, now: int = NOW, policy: Policy | None = None, **fields: Any) -> None:
        self.record = UserRecord(user="alice", tokens=tokens, **fields)
        self.now = now
        self.policy = policy or Policy()
        self.token: str | None = None  # the token of the last decision
        self.refused_before = 0
        self.next_code: NextCode | None = None
        self.decision: Decision

    def says(self, answer: bytes, earlier: Earlier = Earlier.NONE) -> Outcome:
        decision = verify(self.record, Answer.parse(answer), self.now, self.policy, earlier=earlier)
        self.record, self.token = decision.record, decision.token
        self.refused_before, self.next_code = decision.refused_before, decision.next_code
        self.decision = decision
        return decision.outcome

    def converses(self, *answers: bytes) -> list[Outcome]:
        """Start a dialogue with `answers`, and return the outcomes. `continues` continues the dialogue."""
        self.earlier = Earlier.NONE
        return self.continues(*answers)

    def continues(self, *answers: bytes) -> list[Outcome]:
        outcomes = list[Outcome]()
        for answer in answers:
            outcomes.append(self.says(answer, self.earlier))
            self.earlier = self.earlier.followed_by(Answer.parse(answer), self.decision, prompted=True)
        return outcomes

    def presses(self, first: int, count: int = 1) -> Outcome:
        """Answer with `count` codes in a row of the first token, from counter or step `first`. Return the outcome."""
        return self.says(codes_of(self.record.tokens[0], first, count))

    def guesses_wrong(self, times: int) -> None:
        for _ in range(times):
            assert self.says(WRONG) is Outcome.WRONG

    @property
    def counter(self) -> int:
        token = self.record.tokens[0]
        assert isinstance(token, HotpToken)
        return token.counter

    @property
    def phone(self) -> TotpToken:
        token = self.record.tokens[0]
        assert isinstance(token, TotpToken)
        return token


def _never_right() -> bytes:
    """Return a wrong code: the tokens `fob()` and `phone()` do not show it at any counter or time of these tests."""
    shown = {hotp(KEY, c) for c in range(3000)} | {hotp(phone().secret, STEP + s) for s in range(-5000, 5000)}
    shown |= {hotp(phone().secret, s) for s in range(100)}
    return next(f"{n:06}" for n in itertools.count() if f"{n:06}" not in shown).encode()


WRONG = _never_right()


# ---- law 5: codes in a row across the answers of one dialogue


def test_two_codes_in_two_answers_resynchronise_a_token() -> None:
    alice = Alice(fob(7))
    assert alice.converses(codes_of(fob(), 47), codes_of(fob(), 48)) == [Outcome.WRONG, Outcome.CONSECUTIVE]
    assert (alice.counter, alice.record.failures, alice.record.refused) == (49, 0, 0)
    assert alice.presses(49) is Outcome.CODE, "the next code is accepted"


def test_two_codes_in_two_dialogues_are_not_codes_in_a_row() -> None:
    alice = Alice(fob())
    assert [alice.presses(40), alice.presses(41)] == [Outcome.WRONG, Outcome.WRONG]


def test_a_late_phone_is_resynchronised_by_two_answers() -> None:
    alice = Alice(phone(), policy=Policy(resync_steps=10))
    assert alice.converses(codes_of(phone(), STEP - 6), codes_of(phone(), STEP - 5))[-1] is Outcome.CONSECUTIVE
    assert alice.phone.drift == -5


@pytest.mark.parametrize(
    ("failures", "needed"),
    [(3, 1), (4, 2), (5, 2), (18, 2), (19, 2), (20, 3)],
)
def test_the_first_codes_own_failure_does_not_require_a_third_code(failures: int, needed: int) -> None:
    """Two codes are enough after 19 failures: the dialogue itself adds the twentieth failure."""
    alice = Alice(fob(), failures=failures, failures_at=NOW)
    outcomes = alice.converses(codes_of(fob(), 40), codes_of(fob(), 41))
    assert outcomes == [Outcome.WRONG, Outcome.CONSECUTIVE if needed < 3 else Outcome.CONSECUTIVE_NEEDED]
    assert (alice.next_code is not None) is (needed == 3)


def test_a_third_answer_completes_three_codes_in_a_row() -> None:
    alice = Alice(fob(), failures=20, failures_at=NOW)
    answers = [codes_of(fob(), counter) for counter in (40, 41, 42)]
    assert alice.converses(*answers) == [Outcome.WRONG, Outcome.CONSECUTIVE_NEEDED, Outcome.CONSECUTIVE]
    assert (alice.counter, alice.record.failures) == (43, 5)


def test_a_third_code_is_needed_only_after_two_codes_in_a_row() -> None:
    for answers in (
        [codes_of(fob(), 40), codes_of(fob(), 42)],
        [codes_of(fob(), 0), codes_of(fob(), 3)],
        [codes_of(fob(), 40, 2), codes_of(fob(), 42)],
        [WRONG, codes_of(fob(), 0, 2)],
    ):
        alice = Alice(fob(), failures=20, failures_at=NOW)
        alice.converses(*answers)
        assert alice.next_code is None, answers


def test_a_pair_that_the_third_prompt_confirms_is_used_up() -> None:
    """An attacker could otherwise find first the pair, and then the third code, by two short searches."""
    alice = Alice(fob(), failures=20, failures_at=NOW)
    pair = [codes_of(fob(), counter) for counter in (40, 41)]
    assert alice.converses(*pair, WRONG) == [Outcome.WRONG, Outcome.CONSECUTIVE_NEEDED, Outcome.WRONG]
    assert (alice.counter, alice.record.failures, alice.record.refused) == (42, 22, 3)
    assert alice.converses(*pair) == [Outcome.REPLAYED, Outcome.REPLAYED]
    assert alice.next_code is None
    assert alice.presses(40, 3) is Outcome.REPLAYED
    late = Alice(phone(), failures=20, failures_at=NOW)
    assert late.converses(codes_of(phone(), STEP - 1), codes_of(phone(), STEP))[-1] is Outcome.CONSECUTIVE_NEEDED
    assert (late.phone.last_step, late.phone.drift, late.phone.last_used) == (STEP, 0, None)


def test_only_the_very_next_code_of_that_dialogue_completes_a_row() -> None:
    pair = [codes_of(fob(), counter) for counter in (40, 41)]
    for third in (codes_of(fob(), 43), codes_of(fob(), 42, 2), codes_of(phone(), 42)):
        alice = Alice(fob(), phone(), failures=20, failures_at=NOW)
        assert not alice.converses(*pair, third)[-1].accepted
    alice = Alice(fob(), failures=20, failures_at=NOW)
    alice.converses(*pair)
    assert alice.presses(42) is Outcome.CONSECUTIVE_NEEDED, "in another dialogue"
    assert alice.presses(42, 3) is Outcome.CONSECUTIVE
    alice.record = alice.record.unlocked()
    assert alice.continues(codes_of(fob(), 45)) == [Outcome.CODE], "an ordinary code, after the counter has advanced"
    alice = Alice(fob(), failures=20, failures_at=NOW)
    alice.converses(*pair)
    alice.record = UserRecord(user="alice", tokens=(fob(secret=b"x" * 20),), failures=20, failures_at=NOW)
    assert alice.continues(codes_of(alice.record.tokens[0], 42)) == [Outcome.WRONG], "the token was replaced"


@pytest.mark.parametrize(("late", "outcome"), [(0, Outcome.CONSECUTIVE), (2, Outcome.CONSECUTIVE), (3, Outcome.WRONG)])
def test_a_third_answer_of_a_phone_must_be_in_time_and_sets_the_drift(late: int, outcome: Outcome) -> None:
    alice = Alice(phone(), failures=20, failures_at=NOW)
    alice.converses(codes_of(phone(), STEP - 1), codes_of(phone(), STEP))
    alice.now += 30 * late
    assert alice.continues(codes_of(phone(), STEP + 1)) == [outcome]
    assert (alice.phone.drift, alice.record.failures) == ((1 - late, 5) if outcome.accepted else (0, 21))


def test_after_a_wrong_code_the_next_right_one_is_enough() -> None:
    alice = Alice(fob())
    assert alice.converses(WRONG, codes_of(fob(), 0)) == [Outcome.WRONG, Outcome.CODE]
    assert (alice.record.failures, alice.refused_before) == (1, 0), "the user has seen that refusal"


@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (4, 4), (5, 5), (18, 5)])
def test_codes_in_a_row_remove_the_dialogues_own_failures(before: int, after: int) -> None:
    """Only the failures of this dialogue are removed; the failures that an attacker added remain."""
    since: dict[str, Any] = {"failures": before, "failures_at": NOW - 5} if before else {}
    for second in (codes_of(fob(), 41), codes_of(fob(), 41, 2)):
        alice = Alice(fob(), **since)
        assert alice.converses(codes_of(fob(), 40), second) == [Outcome.WRONG, Outcome.CONSECUTIVE]
        assert (alice.record.failures, alice.record.failures_at) == (after, NOW - 5 if before else NOW)
    alice = Alice(fob(), **since)
    alice.guesses_wrong(1)
    alice.presses(0, 2)
    assert alice.record.failures == min(before + 1, 5), "failures of other dialogues remain"


def test_three_codes_in_a_row_remove_the_failure_of_their_first_code() -> None:
    alice = Alice(fob(), failures=20, failures_at=NOW - 16 * DAY)
    alice.guesses_wrong(16)
    alice.converses(*(codes_of(fob(), counter) for counter in (40, 41, 42)))
    assert (alice.counter, alice.record.failures) == (43, 5)
    policy = Policy(lock_after=30)
    alice = Alice(fob(), failures=20, failures_at=NOW, policy=policy)
    alice.converses(codes_of(fob(), 40), codes_of(fob(), 41))
    alice.now += 18 * DAY
    alice.record = alice.record._replace(failures_at=NOW)
    assert alice.continues(codes_of(fob(), 42)) == [Outcome.CONSECUTIVE]
    assert alice.record.failures == 3, "21 failures, less one a day, which might have removed the dialogue's own"


def test_one_code_or_a_recovery_code_removes_no_failure() -> None:
    alice = Alice(fob(), salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))
    assert alice.converses(WRONG, codes_of(fob(), 0))[-1] is Outcome.CODE
    assert alice.converses(WRONG, RECOVERY.encode())[-1] is Outcome.RECOVERY
    assert alice.record.failures == 2


def test_a_success_reports_only_refusals_of_other_dialogues() -> None:
    alice = Alice(fob())
    alice.guesses_wrong(2)
    alice.converses(WRONG, codes_of(fob(), 0))
    assert alice.refused_before == 2


@pytest.mark.parametrize("again", [WRONG, WRONG[:3] + b" " + WRONG[3:], b"ZZZZ-ZZZZ-ZZZZ-ZZZZ", WRONG + WRONG])
def test_a_repeated_answer_is_not_verified_and_not_counted(again: bytes) -> None:
    alice = Alice(fob())
    first = again.replace(b" ", b"").lower()
    outcomes = alice.converses(first, again)
    assert outcomes == [Outcome.WRONG, Outcome.REPEATED]
    assert alice.record.failures == (0 if b"Z" in again else 1)
    assert alice.record.refused == 2, "the same write as for any refusal"
    right = Alice(fob(), failures=5, failures_at=NOW)
    assert right.converses(codes_of(fob(), 0), codes_of(fob(), 0))[-1] is Outcome.REPEATED


def test_two_different_wrong_answers_are_two_failures() -> None:
    alice = Alice(fob())
    assert alice.converses(WRONG, codes_of(fob(), 2000)) == [Outcome.WRONG, Outcome.WRONG]
    assert alice.record.failures == 2


def test_a_recovery_code_is_accepted_as_the_second_answer() -> None:
    alice = Alice(fob(), salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))
    assert alice.converses(codes_of(fob(), 40), RECOVERY.encode()) == [Outcome.WRONG, Outcome.RECOVERY]


def test_a_lock_depends_on_the_stored_count_for_codes_in_a_row_too() -> None:
    alice = Alice(fob(), failures=2, failures_at=NOW, policy=Policy(lock_after=3))
    assert alice.converses(codes_of(fob(), 40), codes_of(fob(), 41)) == [Outcome.WRONG, Outcome.LOCKED]


def test_where_two_codes_are_needed_anyway_a_lone_code_is_refused() -> None:
    """An authority requires two codes in a row from a member that has sent too many wrong answers."""
    token = fob(0)

    def decides(answer: bytes, **options: Any) -> Decision:
        return verify(UserRecord(user="alice", tokens=(token,)), Answer.parse(answer), NOW, Policy(), **options)

    lone = decides(codes_of(token, 0), fewest=2)
    assert lone.outcome is Outcome.CONSECUTIVE_NEEDED
    assert (lone.record.failures, lone.record.tokens) == (0, (token,))
    assert decides(codes_of(token, 0, 2), fewest=2).outcome is Outcome.CONSECUTIVE
    earlier = Earlier.NONE.followed_by(Answer.parse(codes_of(token, 0)), lone, prompted=True)
    assert decides(codes_of(token, 1), fewest=2, earlier=earlier).outcome is Outcome.CONSECUTIVE
    assert decides(b"000000", fewest=2).outcome is Outcome.WRONG
    assert decides(codes_of(token, 0), fewest=1).outcome is Outcome.CODE


def test_a_first_pass_is_not_the_first_of_codes_in_a_row() -> None:
    first = Answer.parse(codes_of(fob(), 40))
    decision = Decision(outcome=Outcome.WRONG, record=UserRecord(user="alice"))
    earlier = Earlier.NONE.followed_by(first, decision, prompted=False)
    assert (earlier.answers, earlier.failures, earlier.refused) == ((), 0, 1)


# ---- law 1: a code is accepted once, and counters never decrease


def test_a_code_is_accepted_once() -> None:
    alice = Alice(fob())
    assert alice.presses(0) is Outcome.CODE
    assert alice.presses(0) is Outcome.REPLAYED
    assert alice.presses(1) is Outcome.CODE
    assert alice.counter == 2


@pytest.mark.parametrize("kind", ["hotp", "totp"])
def test_of_the_codes_a_b_a_the_second_a_is_refused(kind: str) -> None:
    alice = Alice(fob() if kind == "hotp" else phone())
    first = 0 if kind == "hotp" else STEP
    assert alice.presses(first) is Outcome.CODE
    assert alice.presses(first + 1) is Outcome.CODE
    assert alice.presses(first) is Outcome.REPLAYED


def test_skipped_codes_are_used_up() -> None:
    alice = Alice(fob())
    assert alice.presses(7) is Outcome.CODE
    for skipped in range(7):
        assert alice.presses(skipped) is Outcome.REPLAYED
    assert alice.presses(8) is Outcome.CODE


def test_steps_only_increase() -> None:
    alice = Alice(phone())
    assert alice.presses(STEP + 1) is Outcome.CODE
    assert alice.presses(STEP) is Outcome.REPLAYED
    assert alice.presses(STEP - 1) is Outcome.REPLAYED
    assert alice.phone.last_step == STEP + 1


def test_a_clock_that_is_set_back_makes_no_used_code_valid_again() -> None:
    alice = Alice(phone())
    assert alice.presses(STEP) is Outcome.CODE
    alice.now -= 60
    assert alice.presses(STEP) is Outcome.REPLAYED
    assert alice.presses(STEP - 2) is Outcome.REPLAYED
    alice.now += 90
    assert alice.presses(STEP + 1) is Outcome.CODE


def test_all_codes_in_a_row_are_used_up() -> None:
    alice = Alice(fob())
    assert alice.presses(5, 3) is Outcome.CONSECUTIVE
    assert alice.counter == 8
    for used in range(8):
        assert alice.presses(used) is Outcome.REPLAYED
    assert alice.presses(6, 2) is Outcome.REPLAYED
    assert alice.presses(7, 2) is Outcome.REPLAYED, "codes in a row must all be unused"


def test_the_code_that_confirmed_the_enrolment_is_used_up() -> None:
    for token, first in [(fob(confirmed=False), 0), (phone(confirmed=False), STEP)]:
        for count in (1, 2):
            confirmed = verify_first_code(token, Answer.parse(codes_of(token, first, count)), NOW)
            assert confirmed is not None
            assert confirmed.confirmed
            alice = Alice(confirmed)
            for used in range(count):
                assert alice.presses(first + used) is Outcome.REPLAYED
            alice.now += 30 * count
            assert alice.presses(first + count + 1) is Outcome.CODE


def test_a_wrong_code_does_not_confirm_an_enrolment() -> None:
    for token in (fob(confirmed=False), phone(confirmed=False)):
        for answer in (WRONG, b"", b"12345", codes_of(token, 5000), codes_of(token, STEP + 5000), RECOVERY.encode()):
            assert verify_first_code(token, Answer.parse(answer), NOW) is None


# ---- law 3: well-formed answers


@pytest.mark.parametrize("digits", [6, 7, 8])
def test_one_two_and_three_codes_of_every_length_are_accepted(digits: int) -> None:
    alice = Alice(fob(digits=digits))
    assert alice.presses(0) is Outcome.CODE
    assert alice.presses(1, 2) is Outcome.CONSECUTIVE
    assert alice.presses(3, 3) is Outcome.CONSECUTIVE
    assert alice.says(codes_of(alice.record.tokens[0], 6, 4)) is Outcome.MALFORMED
    assert alice.counter == 6


@pytest.mark.parametrize(
    "answer",
    [
        *(
            b"",
            b" ",
            b"12345",
            b"1234567",
            b"12345678",
            b"123456789012345678901234",
            b"+755224",
        ),
        *(b"755224\b", b"755224\0", b"755224\x80", b"7_55224", b"75522l", b"\b\n\r\177INCORRECT", b"1" * 600),
        "75522Ⅳ".encode(),
    ],
)
def test_a_malformed_answer_is_refused_and_leaves_no_trace(answer: bytes) -> None:
    alice = Alice(fob(), failures=3, failures_at=0, refused=7, salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))
    before = alice.record
    assert alice.says(answer) is Outcome.MALFORMED
    assert alice.record == before
    assert alice.token is None


def test_the_digits_of_an_inactive_token_do_not_make_an_answer_valid() -> None:
    eight = fob(digits=8, enabled=False)
    assert Alice(phone(), eight).says(codes_of(eight, 0)) is Outcome.MALFORMED
    unproved = fob(digits=8, confirmed=False)
    assert Alice(phone(), unproved).says(codes_of(unproved, 0)) is Outcome.MALFORMED


# ---- law 4: HOTP, one code


def test_a_code_is_accepted_from_the_counter_to_the_end_of_look_ahead() -> None:
    for look_ahead in (0, 1, 10, 100):
        policy = Policy(look_ahead=look_ahead)
        assert Alice(fob(50), policy=policy).presses(50 + look_ahead) is Outcome.CODE
        assert Alice(fob(50), policy=policy).presses(51 + look_ahead) is Outcome.WRONG
        assert Alice(fob(50), policy=policy).presses(49) is Outcome.REPLAYED


def test_wrong_codes_do_not_move_the_counter() -> None:
    alice = Alice(fob(5))
    alice.guesses_wrong(3)
    assert alice.presses(16) is Outcome.WRONG, "the counter is one beyond the look-ahead"
    assert alice.counter == 5
    assert alice.presses(5) is Outcome.CODE


def test_counter_0_and_the_last_counter_are_accepted() -> None:
    assert Alice(fob(0)).presses(0) is Outcome.CODE
    alice = Alice(fob(LAST))
    assert alice.presses(LAST) is Outcome.CODE
    assert alice.counter == LAST + 1
    assert alice.presses(LAST) is Outcome.REPLAYED
    assert alice.presses(0) is Outcome.WRONG, "an exhausted token does not restart at counter 0"
    assert alice.says(codes_of(fob(), 0, 2)) is Outcome.WRONG


def test_codes_in_a_row_past_the_last_counter_are_refused() -> None:
    last = hotp(KEY, LAST)
    alice = Alice(fob(LAST - 1))
    assert alice.says(f"{last} {hotp(KEY, 0)}".encode()) is Outcome.WRONG
    assert alice.presses(LAST - 1, 2) is Outcome.CONSECUTIVE
    assert alice.counter == LAST + 1


# ---- law 5: codes in a row


def test_a_token_40_presses_ahead_is_accepted_with_two_codes_in_a_row() -> None:
    alice = Alice(fob())
    assert alice.presses(40) is Outcome.WRONG
    assert alice.presses(41, 2) is Outcome.CONSECUTIVE
    assert alice.counter == 43
    assert alice.presses(43) is Outcome.CODE, "the codes in a row have moved the counter"
    assert alice.presses(43) is Outcome.REPLAYED


def test_codes_in_a_row_are_accepted_within_the_resync_window() -> None:
    for window in (1, 20, 1000):
        policy = Policy(resync_window=window)
        assert Alice(fob(50), policy=policy).presses(50 + window, 2) is Outcome.CONSECUTIVE
        assert Alice(fob(50), policy=policy).presses(51 + window, 2) is Outcome.WRONG
        assert Alice(fob(50), policy=policy).presses(50 + window, 3) is Outcome.CONSECUTIVE
    assert Alice(fob(50)).presses(49, 2) is Outcome.REPLAYED


def test_with_resync_off_codes_in_a_row_reach_as_far_as_one_code() -> None:
    policy = Policy(resync_window=0)
    assert Alice(fob(), policy=policy).presses(10, 2) is Outcome.CONSECUTIVE
    assert Alice(fob(), policy=policy).presses(11, 2) is Outcome.WRONG


@pytest.mark.parametrize("order", [(1, 0), (0, 0), (0, 2), (0, 1, 0), (0, 1, 1), (0, 2, 1), (2, 1, 0), (0, 1, 3)])
def test_codes_that_are_not_in_a_row_are_refused(order: tuple[int, ...]) -> None:
    alice = Alice(fob())
    answer = " ".join(hotp(KEY, c) for c in order).encode()
    assert alice.says(answer) is Outcome.WRONG
    assert alice.counter == 0


def test_codes_of_two_tokens_are_not_codes_in_a_row() -> None:
    alice = Alice(fob(), phone())
    assert alice.says(codes_of(fob(), 0) + codes_of(phone(), STEP)) is Outcome.WRONG


def test_attempts_are_independent() -> None:
    """Two codes in a row in separate dialogues are verified as single codes."""
    alice = Alice(fob())
    assert alice.presses(40) is Outcome.WRONG
    assert alice.presses(41) is Outcome.WRONG
    assert alice.counter == 0


# ---- law 6: TOTP


@pytest.mark.parametrize("window", [0, 1, 2, 10])
def test_steps_within_the_window_are_accepted_and_no_others(window: int) -> None:
    for off in range(-window - 3, window + 4):
        alice = Alice(phone(), policy=Policy(window=window))
        expected = Outcome.CODE if abs(off) <= window else Outcome.WRONG
        assert alice.presses(STEP + off) is expected, off
        assert alice.phone.drift == 0


@pytest.mark.parametrize("drift", [-1000, -3, 3, 1000])
def test_drift_moves_the_window_and_one_code_does_not_move_the_drift(drift: int) -> None:
    for off in (-2, -1, 0, 1, 2):
        alice = Alice(phone(drift=drift))
        assert alice.presses(STEP + drift + off) is (Outcome.CODE if abs(off) <= 1 else Outcome.WRONG)
        assert alice.phone.drift == drift
    assert Alice(phone(drift=drift)).presses(STEP) is Outcome.WRONG


@pytest.mark.parametrize(("window", "resync_steps"), [(1, 0), (1, 5), (3, 2), (0, 0), (0, 2880)])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("drift", [0, -7])
def test_the_last_step_of_codes_in_a_row_is_in_range_and_sets_the_drift(
    window: int, resync_steps: int, count: int, drift: int
) -> None:
    reach = max(window, resync_steps)
    policy = Policy(window=window, resync_steps=resync_steps)
    for off in {-reach - 1, -reach, 0, reach, reach + 1}:
        last = STEP + drift + off
        alice = Alice(phone(drift=drift), policy=policy)
        if abs(off) <= reach:
            assert alice.presses(last - count + 1, count) is Outcome.CONSECUTIVE
            assert alice.phone.drift == last - STEP == drift + off
            assert alice.phone.last_step == last
        else:
            assert alice.presses(last - count + 1, count) is Outcome.WRONG
            assert alice.phone.drift == drift


def test_all_steps_of_codes_in_a_row_are_after_the_last_used_step() -> None:
    assert Alice(phone(last_step=STEP - 1)).presses(STEP - 1, 2) is Outcome.REPLAYED
    assert Alice(phone(last_step=STEP - 2)).presses(STEP - 1, 2) is Outcome.CONSECUTIVE


def test_after_codes_in_a_row_the_next_step_is_accepted_by_the_new_drift() -> None:
    alice = Alice(phone(), policy=Policy(resync_steps=40))
    assert alice.presses(STEP + 20, 2) is Outcome.CONSECUTIVE
    assert alice.phone.drift == 21
    alice.now += 30
    assert alice.presses(STEP + 22) is Outcome.CODE
    assert alice.presses(STEP + 1) is Outcome.WRONG


def test_time_0_and_step_0_are_valid() -> None:
    alice = Alice(phone(), now=0)
    assert alice.presses(0) is Outcome.CODE
    assert alice.phone.last_step == 0
    assert alice.phone.last_used == 0
    assert alice.presses(0) is Outcome.REPLAYED
    assert alice.presses(1) is Outcome.CODE


def test_a_drift_to_before_1970_finds_nothing_and_raises_nothing() -> None:
    alice = Alice(phone(drift=-100), now=59)
    assert alice.presses(0) is Outcome.WRONG
    assert alice.presses(1, 2) is Outcome.WRONG


@pytest.mark.parametrize("now", [2**31 - 1, 2**31, 2**32, 2**33, TIME_LIMIT - 1])
def test_late_times_are_valid(now: int) -> None:
    alice = Alice(phone(), now=now)
    assert alice.presses(now // 30) is Outcome.CODE
    assert alice.phone.last_used == now


@pytest.mark.parametrize("now", [-1, TIME_LIMIT, -(2**63), 2**63])
def test_every_clock_value_is_handled(now: int) -> None:
    with pytest.raises(ValueError, match="the time must be"):
        verify(Alice(phone()).record, Answer.parse(b"123456"), now, Policy())


@pytest.mark.parametrize("period", [1, 30, 60, 86_400])
def test_the_period_is_the_length_of_a_step(period: int) -> None:
    for off, expected in [(-2, Outcome.WRONG), (-1, Outcome.CODE), (0, Outcome.CODE), (1, Outcome.CODE)]:
        assert Alice(phone(period=period)).presses(NOW // period + off) is expected


def test_the_window_of_a_60_second_step_is_one_step_each_way() -> None:
    """The tests of google-authenticator-libpam require the same window."""
    for step in range(9_997, 10_004):
        alice = Alice(phone(period=60), now=10_000 * 60)
        assert alice.presses(step).accepted == (9_999 <= step <= 10_001)


def test_the_drift_of_the_widest_clock_stays_within_its_bounds() -> None:
    for drift in (-(2**31), 2**31):
        alice = Alice(phone(drift=drift), now=2**40, policy=Policy(window=10, resync_steps=2880))
        middle = 2**40 // 30 + drift
        assert alice.presses(middle + (5 if drift > 0 else -5), 2) is Outcome.WRONG
        assert alice.presses(middle - 1, 2) is Outcome.CONSECUTIVE
        assert alice.phone.drift == drift


# ---- law 7: several tokens


def test_every_active_token_is_checked_and_only_the_matching_token_moves() -> None:
    tokens = (fob(), phone(), fob(name="spare", secret=b"x" * 20, digits=8))
    for number, first in enumerate((0, STEP, 0)):
        alice = Alice(*tokens)
        assert alice.says(codes_of(tokens[number], first)) is Outcome.CODE
        assert alice.token == tokens[number].name
        moved = [old != new for old, new in zip(tokens, alice.record.tokens, strict=True)]
        assert moved == [i == number for i in range(3)]


def test_a_disabled_or_unconfirmed_token_is_not_checked() -> None:
    for fields in ({"enabled": False}, {"confirmed": False}):
        alice = Alice(phone(), fob(**fields))
        assert alice.says(codes_of(fob(), 0)) is Outcome.WRONG
        assert alice.says(codes_of(fob(), 0, 2)) is Outcome.WRONG


def test_a_replay_is_accepted_if_it_is_the_next_code_of_another_token() -> None:
    shown = {hotp(KEY, c): c for c in range(2000)}
    twice = next(s for s in itertools.count() if hotp(phone().secret, s) in shown)
    counter = shown[hotp(phone().secret, twice)]
    alice = Alice(phone(last_step=twice), fob(counter), now=twice * 30)
    assert alice.says(codes_of(fob(), counter)) is Outcome.CODE
    assert alice.token == "fob"


# ---- law 8: guessing


def test_a_replay_is_refused_and_not_counted() -> None:
    alice = Alice(fob(20))
    for used in range(10, 20):
        assert alice.presses(used) is Outcome.REPLAYED
    assert alice.record.failures == 0
    assert alice.record.refused == 10
    assert alice.presses(9) is Outcome.WRONG, "only the last ten codes are recognised as replays"
    assert alice.record.failures == 1


def test_a_replay_is_recognised_within_the_last_ten_steps() -> None:
    for back, expected in [(0, Outcome.REPLAYED), (9, Outcome.REPLAYED), (10, Outcome.WRONG)]:
        alice = Alice(phone(last_step=STEP + 3))
        assert alice.presses(STEP + 3 - back) is expected
        assert alice.record.failures == (expected is Outcome.WRONG)


def test_an_unused_time_token_has_no_replays() -> None:
    alice = Alice(phone())
    assert alice.presses(STEP - 5) is Outcome.WRONG


def test_wrong_answers_are_counted_per_user_and_with_their_time() -> None:
    alice = Alice(fob(), phone())
    alice.guesses_wrong(1)
    assert (alice.record.failures, alice.record.failures_at, alice.record.refused) == (1, NOW, 1)
    alice.now += 5
    assert alice.says(WRONG + WRONG) is Outcome.WRONG
    assert (alice.record.failures, alice.record.failures_at, alice.record.refused) == (2, NOW, 2)


def test_from_5_failures_two_codes_in_a_row_are_required() -> None:
    alice = Alice(fob())
    alice.guesses_wrong(4)
    assert alice.presses(0) is Outcome.CODE
    alice.guesses_wrong(1)
    for _ in range(3):
        assert alice.presses(1) is Outcome.CONSECUTIVE_NEEDED
    assert alice.counter == 1, "a refusal does not use up the code"
    assert alice.record.failures == 5, "a right code is not counted as a failure"
    assert alice.presses(1, 2) is Outcome.CONSECUTIVE
    assert alice.record.failures == 5, "only time lowers the count below five"
    assert alice.presses(3) is Outcome.CONSECUTIVE_NEEDED
    alice.now += DAY
    assert alice.presses(3) is Outcome.CODE


def test_from_20_failures_three_codes_in_a_row_are_required() -> None:
    alice = Alice(fob())
    alice.guesses_wrong(19)
    assert Alice(fob(), failures=19, failures_at=NOW).presses(0, 2) is Outcome.CONSECUTIVE
    alice.guesses_wrong(1)
    assert alice.presses(0) is Outcome.CONSECUTIVE_NEEDED
    assert alice.presses(0, 2) is Outcome.CONSECUTIVE_NEEDED
    alice.guesses_wrong(1000)
    assert alice.presses(0, 3) is Outcome.CONSECUTIVE, "three codes in a row are accepted"
    assert alice.record.failures == 5
    assert alice.presses(3, 2) is Outcome.CONSECUTIVE, "two codes are enough again"


def test_a_time_token_then_takes_two_or_three_steps() -> None:
    alice = Alice(phone(), failures=5, failures_at=NOW)
    assert alice.presses(STEP) is Outcome.CONSECUTIVE_NEEDED
    alice.now += 30
    assert alice.presses(STEP, 2) is Outcome.CONSECUTIVE
    alice = Alice(phone(), failures=20, failures_at=NOW)
    assert alice.presses(STEP - 1, 2) is Outcome.CONSECUTIVE_NEEDED
    assert alice.presses(STEP - 2, 3) is Outcome.CONSECUTIVE


@pytest.mark.parametrize(
    ("failures", "lock_after", "kept"),
    [(0, 0, 0), (3, 0, 3), (5, 0, 5), (19, 0, 5), (10**6, 0, 5), (3, 4, 3), (19, 20, 5), (29, 30, 5)],
)
def test_accepted_codes_leave_at_most_five_failures(failures: int, lock_after: int, kept: int) -> None:
    digest = recovery_digest(SALT, RECOVERY)
    since: dict[str, Any] = {"failures": failures, "failures_at": NOW if failures else None}
    alice = Alice(fob(), policy=Policy(lock_after=lock_after), salt=SALT, recovery=(digest,), **since)
    if failures < 5:
        assert alice.presses(0) is Outcome.CODE
        assert alice.record.failures == failures, "a single code removes no failure"
    row = Alice(fob(), policy=alice.policy, **since)
    assert row.presses(1, 3) is Outcome.CONSECUTIVE
    assert alice.says(RECOVERY.encode()) is Outcome.RECOVERY
    for after in (row, alice):
        assert (after.record.failures, after.record.failures_at) == (kept, NOW if failures else None)
        assert after.record.failures_now(NOW + DAY)[0] == max(kept - 1, 0)


@pytest.mark.parametrize(("lock_after", "kept"), [(1, 0), (2, 1), (4, 3), (5, 4), (6, 5), (20, 5)])
def test_a_recovery_code_ends_a_lock_and_the_next_failures_lock_again(lock_after: int, kept: int) -> None:
    digest, policy = recovery_digest(SALT, RECOVERY), Policy(lock_after=lock_after)
    alice = Alice(fob(), policy=policy, salt=SALT, recovery=(digest,))
    alice.guesses_wrong(lock_after)
    assert alice.presses(0, 3) is Outcome.LOCKED
    assert alice.says(RECOVERY.encode()) is Outcome.RECOVERY
    assert alice.record.failures == kept
    assert alice.presses(0, 2) is Outcome.CONSECUTIVE
    alice.guesses_wrong(lock_after - kept)
    assert alice.presses(2, 2) is Outcome.LOCKED


def test_time_during_a_lock_counts_once_a_recovery_code_ends_it() -> None:
    """A lock does not expire, but the count decreases with time."""
    digest = recovery_digest(SALT, RECOVERY)
    alice = Alice(fob(), policy=Policy(lock_after=3), salt=SALT, recovery=(digest,), failures=3, failures_at=NOW)
    alice.now += 2 * DAY
    assert alice.presses(0) is Outcome.LOCKED
    assert alice.says(RECOVERY.encode()) is Outcome.RECOVERY
    assert (alice.record.failures, alice.record.failures_at) == (1, NOW + 2 * DAY)


def test_failures_that_remain_after_a_login_are_reported_once() -> None:
    alice = Alice(fob())
    alice.guesses_wrong(7)
    assert alice.presses(0, 2) is Outcome.CONSECUTIVE
    assert (alice.refused_before, alice.record.failures) == (7, 5)
    assert alice.presses(2, 2) is Outcome.CONSECUTIVE
    assert alice.refused_before == 0, "no answer was refused since"


def test_a_clock_set_back_or_forward_gives_no_further_guesses() -> None:
    """A clock that oscillates by ten days lowers the count by at most one for each day up to the highest time."""
    alice = Alice(fob())
    guesses = 0
    for _ in range(20):
        for now in (NOW + 10 * DAY, NOW):
            alice.now = now
            while alice.record.failures_now(now)[0] < 5:
                alice.guesses_wrong(1)
                guesses += 1
            assert alice.presses(alice.counter, 2) is Outcome.CONSECUTIVE, "the owner is accepted at any time"
    assert guesses == 5
    alice = Alice(fob())
    for guesses in range(30):  # the first failure is counted before the clock is set forward
        alice.now = NOW + (guesses % 2) * 10 * DAY
        if alice.record.failures_now(alice.now)[0] >= 5:
            break
        alice.guesses_wrong(1)
    assert guesses <= 15


def test_the_count_decreases_by_one_a_day() -> None:
    alice = Alice(fob(), failures=6, failures_at=NOW)
    alice.now += DAY - 1
    assert alice.presses(0) is Outcome.CONSECUTIVE_NEEDED
    alice.now += 1
    assert alice.presses(0) is Outcome.CONSECUTIVE_NEEDED
    alice.now += DAY
    assert alice.presses(0) is Outcome.CODE, "a single code is enough at four failures"
    assert (alice.record.failures, alice.record.failures_at) == (4, NOW + 2 * DAY)


def test_the_count_decreases_even_with_a_failure_every_day() -> None:
    alice = Alice(fob(), failures=8, failures_at=NOW)
    for _ in range(30):
        alice.now += DAY + 7200
        alice.guesses_wrong(1)
    assert alice.record.failures < 8 - 1
    alice = Alice(fob(), failures=8, failures_at=NOW)
    for _ in range(10):
        alice.now += DAY
        alice.guesses_wrong(1)
    assert alice.record.failures == 8, "each day, one failure is added and one expires"


def test_guesses_count_although_the_owner_logs_in_meanwhile() -> None:
    """Single codes of the user do not clear the failures that an attacker causes."""
    alice = Alice(fob())
    counter = 0
    for _ in range(5):
        alice.guesses_wrong(1)
        if alice.record.failures < 5:
            assert alice.presses(counter) is Outcome.CODE
            counter += 1
    assert alice.presses(counter) is Outcome.CONSECUTIVE_NEEDED


def test_a_locked_account_needs_a_recovery_code_or_the_admin() -> None:
    digest = recovery_digest(SALT, RECOVERY)
    alice = Alice(fob(), policy=Policy(lock_after=3), salt=SALT, recovery=(digest,))
    alice.guesses_wrong(2)
    assert alice.presses(0) is Outcome.CODE
    alice.guesses_wrong(1)
    before = alice.record
    for answer in (codes_of(fob(), 1), codes_of(fob(), 1, 2), codes_of(fob(), 1, 3), codes_of(fob(), 0), WRONG):
        assert alice.says(answer) is Outcome.LOCKED
    assert alice.record == before._replace(refused=before.refused + 5), "a lock changes only the count of refusals"
    alice.now += 365 * DAY
    assert alice.presses(1) is Outcome.LOCKED, "a lock does not expire with time"
    assert Alice(*before.tokens, policy=Policy(lock_after=3)).presses(1) is Outcome.CODE
    assert alice.says(RECOVERY.encode()) is Outcome.RECOVERY
    assert alice.presses(1) is Outcome.CODE
    alice.guesses_wrong(3)
    assert alice.presses(2) is Outcome.LOCKED
    alice.record = alice.record.unlocked()
    assert (alice.record.failures, alice.record.failures_at) == (0, None)
    assert alice.presses(2) is Outcome.CODE


def test_locking_is_off_by_default() -> None:
    alice = Alice(fob(), failures=10**6, failures_at=NOW)
    assert alice.presses(0, 3) is Outcome.CONSECUTIVE


def test_a_success_reports_how_many_answers_were_refused() -> None:
    alice = Alice(fob(5), salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))
    alice.guesses_wrong(2)
    assert alice.presses(4) is Outcome.REPLAYED
    assert alice.says(b"ZZZZ-ZZZZ-ZZZZ-ZZZZ") is Outcome.WRONG
    assert alice.says(b"nonsense") is Outcome.MALFORMED
    assert alice.refused_before == 0
    assert alice.presses(5) is Outcome.CODE
    assert alice.refused_before == 4
    assert alice.presses(6) is Outcome.CODE
    assert alice.refused_before == 0


# ---- law 10: enrolled


@pytest.mark.parametrize("tokens", [(), (fob(confirmed=False),), (fob(confirmed=False), phone(confirmed=False))])
def test_without_a_confirmed_token_a_user_is_not_enrolled(tokens: tuple[Token, ...]) -> None:
    alice = Alice(*tokens, salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),), refused=3)
    before = alice.record
    for answer in (codes_of(fob(), 0), codes_of(phone(), STEP, 2), RECOVERY.encode(), b"", WRONG):
        assert alice.says(answer) is Outcome.NOT_ENROLLED
        assert alice.record == before


def test_a_user_with_only_disabled_tokens_is_enrolled_and_refused() -> None:
    alice = Alice(fob(enabled=False), salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))
    assert alice.presses(0) is Outcome.MALFORMED
    assert alice.says(RECOVERY.encode()) is Outcome.RECOVERY


# ---- law 11: recovery codes


def test_recovery_codes_are_accepted_once_each() -> None:
    other = "ZZZZZZZZZZZZZZZZ"
    digests = tuple(recovery_digest(SALT, c) for c in (RECOVERY, other))
    alice = Alice(fob(), salt=SALT, recovery=digests, failures=30, failures_at=NOW)
    assert alice.says(b"0123-4567-89ab-cdef") is Outcome.RECOVERY
    assert (alice.record.failures, alice.record.recovery) == (5, digests[1:])
    assert alice.says(RECOVERY.encode()) is Outcome.WRONG
    assert alice.says(b"zzzzzzzzzzzzzzzz") is Outcome.RECOVERY
    assert alice.record.recovery == ()
    assert alice.says(other.encode()) is Outcome.WRONG


def test_a_wrong_recovery_code_is_refused_and_never_counted() -> None:
    for recovery in ((), (recovery_digest(SALT, RECOVERY),)):
        alice = Alice(fob(), salt=SALT, recovery=recovery)
        assert alice.says(b"ZZZZZZZZZZZZZZZZ") is Outcome.WRONG
        assert (alice.record.failures, alice.record.refused) == (0, 1)
    alice = Alice(fob())
    assert alice.says(b"ZZZZZZZZZZZZZZZZ") is Outcome.WRONG
    assert (alice.record.failures, alice.record.refused) == (0, 1)


def test_sixteen_digits_are_tried_as_a_recovery_code_then_as_two_codes() -> None:
    digits = "1234567812345678"
    alice = Alice(fob(digits=8), salt=SALT, recovery=(recovery_digest(SALT, digits),))
    assert alice.says(digits.encode()) is Outcome.RECOVERY
    assert alice.says(digits.encode()) is Outcome.WRONG
    assert alice.record.failures == 1, "the second answer is read as two wrong codes"
    assert alice.presses(0, 2) is Outcome.CONSECUTIVE


def test_a_recovery_code_is_valid_only_with_its_salt() -> None:
    alice = Alice(fob(), salt="11" * 16, recovery=(recovery_digest(SALT, RECOVERY),))
    assert alice.says(RECOVERY.encode()) is Outcome.WRONG


# ---- the repr of a Decision


def test_a_decision_shows_no_secret_and_can_take_another_record() -> None:
    decision = verify(Alice(fob()).record, Answer.parse(codes_of(fob(), 0)), NOW, Policy())
    assert repr(decision) == "<Decision>"
    other = decision.followed_by(Alice(fob(7)).record)
    assert (other.outcome, other.token) == (decision.outcome, decision.token)
    assert other.record == Alice(fob(7)).record
    accepted = {Outcome.CODE, Outcome.CONSECUTIVE, Outcome.RECOVERY, Outcome.TEMPORARY}
    assert {o for o in Outcome if o.accepted} == accepted


# ---- law 8: after a restored backup


def test_a_token_of_a_restored_backup_accepts_only_codes_in_a_row() -> None:
    alice = Alice(fob(5).with_row_needed(), phone())
    assert alice.presses(5) is Outcome.CONSECUTIVE_NEEDED
    assert (alice.counter, alice.record.failures, alice.record.refused, alice.token) == (5, 0, 1, "fob")
    assert alice.says(codes_of(phone(), STEP)) is Outcome.CODE, "another token is not affected"
    assert alice.record.tokens[0].row_needed
    assert alice.presses(5, 2) is Outcome.CONSECUTIVE
    assert not alice.record.tokens[0].row_needed
    assert alice.presses(7) is Outcome.CODE, "the first accepted codes in a row clear `row_needed`"


def test_codes_in_a_row_in_two_answers_end_the_need_for_codes_in_a_row() -> None:
    alice = Alice(phone().with_row_needed())
    codes = [codes_of(phone(), STEP - 1), codes_of(phone(), STEP)]
    assert alice.converses(*codes) == [Outcome.CONSECUTIVE_NEEDED, Outcome.CONSECUTIVE]
    assert not alice.record.tokens[0].row_needed


def test_three_codes_are_still_needed_from_20_failures_on() -> None:
    alice = Alice(fob(5).with_row_needed(), failures=20, failures_at=NOW)
    assert alice.presses(5, 2) is Outcome.CONSECUTIVE_NEEDED
    assert alice.record.tokens[0].row_needed
    assert alice.presses(5, 3) is Outcome.CONSECUTIVE
    assert not alice.record.tokens[0].row_needed


def test_a_wrong_code_is_counted_while_codes_in_a_row_are_needed() -> None:
    alice = Alice(fob(5).with_row_needed())
    alice.guesses_wrong(2)
    assert alice.record.failures == 2
    assert alice.record.tokens[0].row_needed


def test_codes_in_a_row_do_not_remove_a_failure_twice() -> None:
    """Simultaneous dialogues would otherwise lower the count to 0, and one code would be enough (law 8)."""
    alice = Alice(fob(), failures=14, failures_at=NOW)
    earlier = []
    for number in range(5):
        slip = f"00000{number}".encode()
        assert alice.says(slip) is Outcome.WRONG
        earlier.append(Earlier.NONE.followed_by(Answer.parse(slip), alice.decision, prompted=True))
    assert alice.record.failures == 19
    assert alice.presses(0, 2) is Outcome.CONSECUTIVE
    for dialogue in earlier:
        assert alice.says(codes_of(alice.record.tokens[0], alice.counter, 2), dialogue) is Outcome.CONSECUTIVE
        assert alice.record.failures == 5


def test_an_accepted_code_tells_the_counters_that_were_skipped() -> None:
    alice = Alice(fob(5))
    for counter, skipped in ((5, 0), (9, 3), (19, 9)):
        assert alice.says(codes_of(fob(), counter)) is Outcome.CODE
        assert alice.decision.distance == skipped
    assert alice.says(codes_of(fob(), 120, 2)) is Outcome.CONSECUTIVE
    assert alice.decision.distance == 100


@pytest.mark.parametrize("drift", [-1, 0, 1])
def test_an_accepted_code_tells_how_far_the_clock_is_off(drift: int) -> None:
    alice = Alice(phone())
    assert alice.says(codes_of(phone(), STEP + drift)) is Outcome.CODE
    assert alice.decision.distance == drift


def test_a_row_across_answers_tells_the_distance_of_its_first_code() -> None:
    alice = Alice(fob(5))
    assert alice.converses(codes_of(fob(), 105), codes_of(fob(), 106)) == [Outcome.WRONG, Outcome.CONSECUTIVE]
    assert alice.decision.distance == 100
    alice = Alice(fob(5), failures=20, failures_at=NOW)
    assert alice.converses(*(codes_of(fob(), 7 + i) for i in range(3)))[-1] is Outcome.CONSECUTIVE
    assert alice.decision.distance is None, "the pair before the third code has moved the counter"
    alice = Alice(phone(), failures=20, failures_at=NOW)
    alice.policy = Policy(window=3)
    assert alice.converses(*(codes_of(phone(), STEP - 1 + i) for i in range(3)))[-1] is Outcome.CONSECUTIVE
    assert alice.decision.distance == 1


def test_an_answer_without_an_accepted_code_tells_no_distance() -> None:
    alice = Alice(fob(5), salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))
    for answer in (b"000000", codes_of(fob(), 4), RECOVERY.encode()):
        alice.says(answer)
        assert alice.decision.distance is None
