"""Tests of self-service: a refused change has a `Reason` for programs and a text for the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pam_totp.core.oath import hotp, totp
from pam_totp.core.policy import Policy
from pam_totp.core.record import MAX_TOKENS, HotpToken, Token, UserRecord
from pam_totp.core.verify import Outcome
from pam_totp.operations.enroll import new_recovery_codes, new_token
from pam_totp.operations.self_service import TEXTS, Asking, Factors, Problem, Reason, conflict
from pam_totp.operations.tickets import issue_ticket
from pam_totp.store.file import FileStore
from tests.core.stores import Memory, code
from tests.support.site import KEY, fob

ALICE = Asking("alice", proof=code(0))


def factors(*tokens: Token, **more: Any) -> Factors:
    store = Memory(UserRecord(user="alice", tokens=tokens))
    given: dict[str, Any] = {"policy": Policy(), "service": "test", "sink": lambda *_: None, "now": lambda: 1000}
    return Factors(store, **given | more)


def reason(answer: object) -> Reason | None:
    return answer.reason if isinstance(answer, Problem) else None


def other(number: int) -> HotpToken:
    return fob(name=f"token {number}", secret=bytes([number]) * 20)


def test_a_token_that_the_record_refuses_gets_the_records_reason() -> None:
    full = UserRecord(user="alice", tokens=tuple(other(i) for i in range(MAX_TOKENS)))
    one = UserRecord(user="alice", tokens=(fob(),))
    assert conflict(full, fob()) is Reason.TOO_MANY_TOKENS
    assert conflict(one, fob(secret=KEY[::-1])) is Reason.NAME_IN_USE
    assert conflict(one, fob(name="another")) is Reason.TOKEN_KNOWN
    assert conflict(one, fob(name="another", secret=KEY[::-1])) is None


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (fob(confirmed=False, secret=KEY[::-1]), Reason.INVALID_CODE),
        (fob(confirmed=False), Reason.NAME_IN_USE),
        (fob(confirmed=False, name="another"), Reason.TOKEN_KNOWN),
    ],
)
def test_the_reason_for_a_refused_token_is_a_code(new: Token, expected: Reason) -> None:
    assert reason(factors(fob()).add(ALICE, new, code(0))) is expected


def test_the_reason_for_a_refused_change_is_a_code() -> None:
    mine = factors(fob(), other(1))
    assert reason(mine.rename(ALICE, "lost", "new")) is Reason.TOKEN_GONE
    assert reason(mine.rename(ALICE, "fob", "token 1")) is Reason.NAME_IN_USE
    assert reason(mine.rename(ALICE, "fob", "")) is Reason.INVALID_NAME
    assert reason(mine.remove(Asking("alice", proof=b"000000"), "fob")) is Reason.REFUSED
    assert reason(factors(fob()).remove(ALICE, "fob")) is Reason.LAST_TOKEN
    assert reason(mine.claim(ALICE, "SM01", code(0, 2))) is Reason.NO_TOKEN_WAITING
    assert reason(mine.resync(ALICE, "fob", b"1")) is Reason.CODES_NEEDED
    assert reason(mine.resync(ALICE, "lost", code(0, 2))) is Reason.TOKEN_GONE
    assert reason(factors(first_token=True).recovery(ALICE)) is Reason.NOT_ENROLLED
    assert reason(factors().recovery(ALICE)) is Reason.FIRST_TOKEN


def test_a_user_adds_the_first_token_only_if_the_site_says_so() -> None:
    new = fob(confirmed=False)
    assert reason(factors().add(ALICE, new, code(0))) is Reason.FIRST_TOKEN
    assert factors(first_token=True).add(ALICE, new, code(0)) is None


def test_a_first_token_that_an_administrator_assigned_needs_its_codes_only() -> None:
    assigned = fob(serial="SM01", confirmed=False)
    assert reason(factors(assigned).claim(ALICE, "SM01", code(0))) is Reason.NOT_CONSECUTIVE
    claimed = factors(assigned).claim(ALICE, "sm-01 ", code(0, 2))
    assert isinstance(claimed, HotpToken)
    assert (claimed.name, claimed.confirmed, claimed.counter) == ("fob", True, 2)
    assert reason(factors(assigned, other(1)).claim(Asking("alice"), "SM01", code(0, 2))) is Reason.REFUSED


@pytest.mark.parametrize("owned", [[], [other(1)]])
def test_a_wrong_claim_is_logged_counted_and_delayed(owned: list[Token], monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    delays: list[float] = []
    monkeypatch.setattr("pam_totp.operations.self_service.time.sleep", delays.append)
    monkeypatch.setattr("pam_totp.operations.self_service.refusal_delay", lambda _: 1000.0)
    assigned = fob(serial="SM01", confirmed=False)
    mine = factors(assigned, *owned, sink=lambda _, line: lines.append(line))
    asking = Asking("alice", "192.0.2.7")
    assert reason(mine.claim(asking, "SM01", b"000000 111111")) is Reason.NOT_CONSECUTIVE
    assert reason(mine.claim(asking, "SM01", code(0))) is Reason.NOT_CONSECUTIVE
    assert lines == [
        f"pam_totp(test:auth): refused user=alice reason={why} token=fob rhost=192.0.2.7"
        for why in ("not-in-a-row", "malformed")
    ]
    assert (mine.of("alice").failures, mine.of("alice").refused) == (1, 2)
    assert [round(delay, -2) for delay in delays] == [1000.0] * 2


def test_a_locked_user_claims_no_token() -> None:
    lines: list[str] = []
    assigned = fob(serial="SM01", confirmed=False)
    mine = factors(assigned, policy=Policy(lock_after=1), sink=lambda _, line: lines.append(line))
    assert reason(mine.claim(ALICE, "SM01", b"000000 111111")) is Reason.NOT_CONSECUTIVE
    assert reason(mine.claim(ALICE, "SM01", code(0, 2))) is Reason.NOT_CONSECUTIVE
    assert "reason=locked" in lines[-1]
    assert mine.of("alice").failures == 1
    assert not mine.of("alice").enrolled


def test_a_record_keeps_sign_ins_and_the_codes_of_changes() -> None:
    store = Memory(UserRecord(user="alice", tokens=(fob(), other(1))))
    mine = Factors(store, policy=Policy(), service="portal", sink=lambda *_: None, now=lambda: 1000)
    mine.answer(Asking("alice", "192.0.2.7", b"000000"))
    mine.answer(Asking("alice", "192.0.2.7", code(0)))
    mine.remove(Asking("alice", "192.0.2.8", code(1)), "token 1")
    kept = [(r.outcome, r.service, r.rhost) for r in store.read("alice").recent_logins]
    here, there = ("portal", "192.0.2.7"), ("portal", "192.0.2.8")
    assert kept == [("wrong", *here), ("code", *here), ("code", *there)]


def invited_alice(*tokens: Token) -> tuple[Memory, bytes]:
    """Return a store in which alice has `tokens` and a ticket for a phone. Return this ticket as well."""
    token = new_token("totp", name="phone", secret=b"p" * 20, algorithm="SHA1", digits=6, now=1000)
    record, ticket = issue_ticket(UserRecord(user="alice", tokens=tokens), token, 2000)
    return Memory(record), ticket.encode()


def of_store(store: Memory, lines: list[str] | None = None, **more: Any) -> Factors:
    sink = (lambda _, line: lines.append(line)) if lines is not None else lambda *_: None
    given: dict[str, Any] = {"policy": Policy(), "service": "test", "sink": sink, "now": lambda: 1000, "tickets": True}
    return Factors(store, **given | more)


def test_a_valid_ticket_may_begin_and_a_wrong_one_costs_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    lines: list[str] = []
    monkeypatch.setattr("pam_totp.operations.self_service.time.sleep", delays.append)
    store, ticket = invited_alice(fob())
    mine = of_store(store, lines)
    before = store.read("alice")
    assert mine.may_begin(Asking("alice", proof=ticket)) is Outcome.TICKET
    assert (store.read("alice"), delays) == (before, [])
    assert mine.may_begin(Asking("alice", proof=b"0000000000000000")) is None
    assert (len(delays), store.read("alice").failures, store.read("alice").refused) == (1, 0, 1)
    assert [line.split()[1] for line in lines] == ["presented", "refused"]
    assert of_store(store, tickets=False).may_begin(Asking("alice", proof=ticket)) is None
    assert of_store(store, now=lambda: 2000).may_begin(Asking("alice", proof=ticket)) is None


def test_a_recovery_code_that_may_begin_is_not_used_up() -> None:
    record, shown = new_recovery_codes(UserRecord(user="alice", tokens=(fob(),), refused=3), 1)
    store, lines = Memory(record), list[str]()
    assert of_store(store, lines).may_begin(Asking("alice", proof=shown[0].encode())) is Outcome.RECOVERY
    assert (store.read("alice"), lines) == (record, [])


def test_a_ticket_is_redeemed_once_by_the_first_code() -> None:
    lines: list[str] = []
    store, ticket = invited_alice(fob())
    mine, asking = of_store(store, lines), Asking("alice", "192.0.2.7", ticket)
    right = totp(b"p" * 20, 1000).encode()
    assert reason(mine.redeem(asking, b"000000")) is Reason.INVALID_CODE
    assert reason(mine.redeem(Asking("alice", proof=b"0" * 16), right)) is Reason.TICKET_ENDED
    assert reason(mine.redeem(Asking("bob", proof=ticket), right)) is Reason.TICKET_ENDED
    codes = mine.redeem(asking, right)
    assert isinstance(codes, list)
    assert len(codes) == 10
    assert [t.name for t in store.read("alice").tokens] == ["phone"]
    assert reason(mine.redeem(asking, totp(b"p" * 20, 1030).encode())) is Reason.TICKET_ENDED
    assert [" ".join(line.split()[1:5]) for line in lines] == [
        "accepted user=alice by=ticket token=phone",
        "changed user=alice what=enroll token=phone",
        "changed user=alice what=remove token=fob",
        "changed user=alice what=recovery at=1000",
    ]
    assert all(line.endswith("rhost=192.0.2.7") for line in lines)


def test_a_set_up_needs_a_proof_if_the_user_has_a_token() -> None:
    new = new_token("totp", name="fob", secret=b"n" * 20, algorithm="SHA1", digits=6, now=1000)
    first = totp(b"n" * 20, 1000).encode()
    for proof, expected in ((b"", Reason.REFUSED), (code(0), None)):
        store = Memory(UserRecord(user="alice", tokens=(fob(), other(1))))
        mine = of_store(store)
        made = mine.set_up(Asking("alice", proof=proof), new, first, ("token 1",))
        assert reason(made) is expected
        names = [t.name for t in store.read("alice").tokens]
        assert names == (["fob", "token 1"] if expected else ["fob", "fob 2"]), "the name of a token is unique"
    assert reason(mine.set_up(Asking("alice", proof=code(1)), other(3), code(0), ("gone",))) is Reason.INVALID_CODE
    changed = mine.set_up(Asking("alice", proof=code(1)), fob(secret=b"q" * 20), hotp(b"q" * 20, 0).encode(), ("gone",))
    assert reason(changed) is Reason.TOKEN_CHANGED
    assert reason(of_store(Memory(UserRecord(user="alice"))).set_up(Asking("alice"), new, first)) is Reason.FIRST_TOKEN


@pytest.mark.parametrize(("steps", "minutes"), [(2, 1), (-2, -1), (-14, -7), (1680, 840), (1681, None), (0, None)])
def test_the_error_of_a_phones_clock_is_told_up_to_a_time_zone(steps: int, minutes: int | None) -> None:
    now = 1_795_000_000
    token = new_token("totp", name="phone", secret=b"p" * 20, algorithm="SHA1", digits=6, now=now)
    first = totp(b"p" * 20, now + 30 * steps).encode()
    problem = factors(now=lambda: now, first_token=True).add(Asking("alice"), token, first)
    if minutes is None:
        assert problem is None or problem == Problem("code", Reason.INVALID_CODE)
    else:
        assert problem == Problem("code", Reason.CLOCK, minutes)
    with_serial = factors(now=lambda: now, first_token=True).add(Asking("alice"), token.with_serial("T1"), first)
    assert reason(with_serial) in (Reason.INVALID_CODE, None), "the key of a key fob was not shown"


def test_every_change_by_a_user_is_logged_without_codes() -> None:
    lines: list[str] = []
    mine = factors(sink=lambda _, line: lines.append(line), first_token=True)
    ann = Asking("alice", "192.0.2.7", proof=code(1))
    assert mine.add(ann, fob(confirmed=False, created=7), code(0)) is None
    assert mine.add(ann, fob(confirmed=False, name="b", secret=KEY[::-1]), hotp(KEY[::-1], 0).encode()) is None
    assert mine.rename(ann, "b", "blue one") is None
    assert mine.resync(ann, "fob", code(40, 2)) is None
    assert mine.remove(Asking("alice", "192.0.2.7", proof=code(42)), "blue one") is None
    assert not isinstance(mine.recovery(Asking("alice", "192.0.2.7", proof=code(43))), Problem)
    said = [line.removeprefix("pam_totp(test:auth): ") for line in lines]
    end = "at=1000 by=alice rhost=192.0.2.7"
    assert [line for line in said if line.startswith("changed")] == [
        f"changed user=alice what=enroll token=fob created=7 next=1 {end}",
        f"changed user=alice what=enroll token=b created=0 next=1 {end}",
        f'changed user=alice what=rename token=b created=0 next=1 to="blue one" {end}',
        f"changed user=alice what=resync token=fob created=7 next=42 {end}",
        f'changed user=alice what=remove token="blue one" created=0 next=1 {end}',
        f"changed user=alice what=recovery {end}",
    ]
    assert not any(code(n).decode() in line for n in range(44) for line in lines)


def test_a_claimed_token_is_logged_as_confirmed() -> None:
    lines: list[str] = []
    mine = factors(fob(serial="SM01", confirmed=False), sink=lambda _, line: lines.append(line))
    assert reason(mine.claim(Asking("alice"), "SM01", code(0, 2))) is None
    assert lines == ["pam_totp(test:auth): changed user=alice what=confirm token=fob created=0 next=2 at=1000 by=alice"]


def test_a_refused_change_is_not_logged_as_a_change() -> None:
    lines: list[str] = []
    mine = factors(fob(), other(1), sink=lambda _, line: lines.append(line))
    assert mine.remove(Asking("alice", proof=b"000000"), "fob") is not None
    assert mine.rename(ALICE, "fob", "token 1") is not None
    assert lines == ["pam_totp(test:auth): refused user=alice reason=wrong"]


def test_every_reason_has_a_text_for_the_user() -> None:
    assert list(TEXTS) == list(Reason)
    assert Problem("name", Reason.INVALID_NAME).text.startswith("This field must have 1 to")
    assert Problem("proof", Reason.REFUSED).text.startswith("Refused")


def test_a_serial_number_of_another_user_is_refused_without_its_owner(folder: Path) -> None:
    store = FileStore(str(folder))
    store.update("bob", lambda record: (record.with_token(other(2).with_serial("SM01")), None), create=True)
    made = Factors(store, policy=Policy(), service="portal", sink=lambda *_: None, now=lambda: 5, first_token=True)
    problem = made.add(ALICE, fob().with_serial("sm-01"), code(0, 2), codes=2)
    assert problem == Problem("serial", Reason.SERIAL_TAKEN)
    assert "bob" not in problem.text
    assert sorted(store.users()) == ["bob"]
