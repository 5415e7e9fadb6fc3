"""Tests of the number of writes per answer.

The number is the same for every user, so a full disk does not reveal whether a user is enrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.policy import Policy
from pam_totp.core.record import UserRecord
from pam_totp.operations.authenticate import decide
from pam_totp.store import NotThere
from tests.support.site import codes, fob, phone

if TYPE_CHECKING:
    from pam_totp.store import R

SALT = "00" * 16
RECOVERY = "0123456789ABCDEF"
USERS = {
    "one-token": UserRecord(user="one-token", tokens=(fob(),)),
    "eight-digits": UserRecord(user="eight-digits", tokens=(fob(digits=8),)),
    "two-tokens": UserRecord(user="two-tokens", tokens=(fob(), phone(digits=7))),
    "recovery": UserRecord(
        user="recovery", tokens=(fob(),), salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),), failures=0
    ),
    "disabled": UserRecord(user="disabled", tokens=(fob(enabled=False),)),
    "unconfirmed": UserRecord(user="unconfirmed", tokens=(fob(confirmed=False),)),
    "many-failures": UserRecord(user="many-failures", tokens=(fob(),), failures=30, failures_at=0),
}
ANSWERS = ["000000", codes(0), codes(0, 2), "0000000", "00000000", RECOVERY, "ZZZZ-ZZZZ-ZZZZ-ZZZZ", "x", "", "12345"]


class Counting:
    """A store with one record. `writes` counts the writes to the store."""

    def __init__(self, record: UserRecord | None) -> None:
        self._record = record
        self.writes = 0

    def read(self, user: str) -> UserRecord:
        if self._record is None:
            raise NotThere
        return self._record

    def update(
        self,
        user: str,
        change: Callable[[UserRecord], tuple[UserRecord | None, R]],
        *,
        create: bool = False,
        decoy: bool = False,
    ) -> R:
        after, result = change(self.read(user))
        self.writes += decoy or after != self._record
        return result

    def update_decoy(self, user: str, search: Callable[[], object]) -> None:
        search()
        self.writes += 1

    def users(self) -> Iterator[str]:
        raise NotImplementedError

    def owner_of_serial(self, serial: str) -> str | None:
        return None


@pytest.mark.parametrize("typed", ANSWERS)
@pytest.mark.parametrize("behind_password", [True, False])
def test_an_answer_costs_every_user_the_same_number_of_writes(typed: str, behind_password: bool) -> None:
    answer = Answer.parse(typed.encode())
    if behind_password:
        answer = Answer.parse_behind_password(f"password{typed.replace(' ', '')}".encode())
    costs = {}
    for name, record in (USERS | {"zoe": None}).items():
        store = Counting(record)
        decide(store, name, answer, Policy(), lambda: 86_400)
        costs[name] = store.writes
    assert len(set(costs.values())) == 1, costs
