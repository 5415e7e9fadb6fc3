"""Tests of `follow`, of the decoy for users without a record, of the log line, and of the remarks for the user."""

from __future__ import annotations

from typing import Any

import pytest

from pam_totp.core.answer import Answer
from pam_totp.core.policy import Policy
from pam_totp.core.record import UserRecord
from pam_totp.core.verify import Decision, Outcome
from pam_totp.operations.authenticate import decide, log, remarks
from tests.core.stores import Memory, code
from tests.support.site import fob


def answered(store: Memory, answer: bytes, **more: Any) -> Decision:
    return decide(store, "alice", Answer.parse(answer), Policy(), lambda: 1000, **more)


def enrolled() -> Memory:
    return Memory(UserRecord(user="alice", tokens=(fob(),)))


NOT_ENROLLED = ((), (UserRecord(user="alice"),), (UserRecord(user="alice", tokens=(fob(confirmed=False),)),))


@pytest.mark.parametrize("records", NOT_ENROLLED)
def test_an_answer_for_an_unenrolled_user_costs_the_same_work(records: tuple[UserRecord, ...]) -> None:
    store = Memory(*records)
    assert answered(store, b"123456").outcome is Outcome.NOT_ENROLLED
    assert store.updates == ["decoy"], "one lock and one write"
    assert tuple(store.records.values()) == records


@pytest.mark.parametrize("records", [*NOT_ENROLLED, (UserRecord(user="alice", tokens=(fob(),)),)])
def test_an_answer_that_no_user_can_have_costs_no_work(records: tuple[UserRecord, ...]) -> None:
    store = Memory(*records)
    assert not answered(store, b"not a code").outcome.accepted
    assert store.updates == []


def test_an_answer_in_another_users_form_costs_every_user_the_same_work() -> None:
    store = enrolled()
    before = store.read("alice")
    assert answered(store, b"12345678").outcome is Outcome.MALFORMED, "the user's codes have six digits"
    assert store.updates == ["decoy"], "one lock and one write"
    assert store.read("alice") == before


def test_the_follow_up_is_part_of_the_same_change() -> None:
    store = enrolled()
    decision = answered(
        store, code(0), follow=lambda decided, now: decided.record.with_recovery("00" * 16, ("ab" * 32,))
    )
    assert decision.outcome is Outcome.CODE
    assert store.updates == ["changed"]
    assert store.read("alice") == decision.record
    assert decision.record.recovery == ("ab" * 32,)


def test_a_refusal_has_no_follow_up() -> None:
    store = enrolled()
    assert answered(store, b"000000", follow=lambda *_: pytest.fail("follow was called")).outcome is Outcome.WRONG


def test_if_the_follow_up_fails_the_code_is_not_used_up() -> None:
    store = enrolled()
    before = store.read("alice")

    def fails(decision: Decision, now: int) -> UserRecord:
        raise LookupError

    with pytest.raises(LookupError):
        answered(store, code(0), follow=fails)
    assert store.read("alice") is before


def test_codes_after_a_password_have_the_lengths_of_the_users_tokens() -> None:
    answer = Answer.parse_behind_password(b"password00" + code(0))
    store = enrolled()
    assert decide(store, "alice", answer, Policy(), lambda: 0).outcome is Outcome.CODE
    eight = UserRecord(user="alice", tokens=(fob(), fob(name="eight", secret=b"x" * 20, digits=8)))
    assert decide(Memory(eight), "alice", answer, Policy(), lambda: 0).outcome is Outcome.WRONG


def test_the_log_line_and_remarks_follow_from_the_decision_alone() -> None:
    lines: list[str] = []
    record = UserRecord(user="alice", tokens=(fob(),), refused=2)
    accepted = Decision(outcome=Outcome.CODE, record=record, token="fob", refused_before=2)
    refused = Decision(outcome=Outcome.REPLAYED, record=record, token="fob")
    recovered = Decision(outcome=Outcome.RECOVERY, record=record)
    for decision in (accepted, refused, recovered):
        log(lambda _, line: lines.append(line), "web", "alice", decision, "192.0.2.7")
    assert lines == [
        "pam_totp(web:auth): accepted user=alice by=code token=fob created=0 next=0 refused_before=2 rhost=192.0.2.7",
        "pam_totp(web:auth): refused user=alice reason=replayed token=fob created=0 next=0 rhost=192.0.2.7",
        "pam_totp(web:auth): accepted user=alice by=recovery recovery_left=0 rhost=192.0.2.7",
    ]
    assert remarks(accepted) == ["2 answers were refused since the last login"]
    assert remarks(recovered) == ["recovery code used, 0 left"]
