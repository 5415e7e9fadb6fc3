"""Tests of `decide`: it stores a decision before it returns, and an answer causes the same writes for every user."""

from __future__ import annotations

from typing import Any

import pytest

from pam_totp.core import oath, verify
from pam_totp.core.answer import Answer
from pam_totp.core.policy import Policy
from pam_totp.core.record import UserRecord
from pam_totp.core.verify import Decision, Earlier, Outcome
from pam_totp.operations.authenticate import decide
from pam_totp.store import StoreError
from tests.core.stores import NOW, Memory, code
from tests.support.site import fob

ALICE = UserRecord(user="alice", tokens=(fob(),))
UNPROVED = UserRecord(user="bob", tokens=(fob(confirmed=False),))


def outcome(store: Memory, user: str, answer: bytes | Answer) -> Outcome:
    parsed = Answer.parse(answer) if isinstance(answer, bytes) else answer
    return decide(store, user, parsed, Policy(), lambda: NOW).outcome


def test_an_accepted_answer_is_stored_before_it_is_returned() -> None:
    store = Memory(ALICE)
    assert outcome(store, "alice", code(0)) is Outcome.CODE
    assert store.writes == 1
    assert outcome(store, "alice", code(0)) is Outcome.REPLAYED


@pytest.mark.parametrize("user", ["alice", "bob", "carol"])
@pytest.mark.parametrize(
    ("answer", "writes"),
    [
        (b"000000", 1),
        (b"000000 000000", 1),
        (b"ZZZZ-ZZZZ-ZZZZ-ZZZZ", 1),
        (b"password", 0),
        (b"12345", 0),
        (b"", 0),
        (b"\b\n\r\177INCORRECT", 0),
    ],
)
def test_every_user_costs_the_same_writes_and_meets_the_same_full_disk(user: str, answer: bytes, writes: int) -> None:
    """alice has a confirmed token, bob has an unconfirmed token, and carol has no record."""
    store = Memory(ALICE, UNPROVED)
    assert not outcome(store, user, answer).accepted
    assert store.writes == writes
    full = Memory(ALICE, UNPROVED, full=True)
    if writes:
        with pytest.raises(StoreError):
            outcome(full, user, answer)
    else:
        assert not outcome(full, user, answer).accepted


@pytest.mark.parametrize("answer", [b"000000", b"1234567", b"00000000", b"000000 111111", b"0000000 1111111"])
@pytest.mark.parametrize("first", [None, b"222222"])
def test_every_user_costs_the_same_search(first: bytes | None, answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the computed codes for alice, for bob with an unconfirmed token, and for carol without a record."""
    searched = list[int]()

    def find(*arguments: Any, **named: Any) -> int | None:
        searched.append(len(arguments[2]))
        return oath.find_numbers(*arguments, **named)

    monkeypatch.setattr(verify, "find_numbers", find)
    earlier = Earlier.NONE
    if first is not None:
        refused = Decision(outcome=Outcome.WRONG, record=UNPROVED)
        earlier = earlier.followed_by(Answer.parse(first), refused, prompted=True)
    costs = []
    for user in ("alice", "bob", "carol"):
        store = Memory(ALICE, UNPROVED)
        decide(store, user, Answer.parse(answer), Policy(), lambda: NOW, earlier=earlier)
        costs.append(list(searched))
        searched.clear()
    assert costs[0] == costs[1] == costs[2] != []


@pytest.mark.parametrize("user", ["alice", "bob", "carol"])
def test_a_recovery_code_after_a_password_is_malformed_for_every_user(user: str) -> None:
    store = Memory(ALICE, UNPROVED)
    assert not outcome(store, user, Answer.parse_behind_password(b"passwordZZZZZZZZZZZZZZZZ")).accepted
    assert store.writes == 0


def test_a_right_code_on_a_full_disk_is_not_accepted() -> None:
    store = Memory(ALICE, full=True)
    with pytest.raises(StoreError):
        outcome(store, "alice", code(0))
    assert store.read("alice") == ALICE


@pytest.mark.parametrize("password", [b"1", b"12", b"1234"])
def test_a_code_after_a_numeric_password_is_recorded_as_used(password: bytes) -> None:
    """A password of 1 or 2 digits and a code of 6 digits are together as long as a code of 7 or 8 digits."""
    store = Memory(ALICE)
    answer = Answer.parse_behind_password(password + code(0))
    assert outcome(store, "alice", answer) is Outcome.CODE
    assert store.writes == 1
    assert outcome(store, "alice", answer) is Outcome.REPLAYED
    assert outcome(store, "alice", Answer.parse_behind_password(password + b"000000")) is Outcome.WRONG
    assert store.read("alice").failures == 1
