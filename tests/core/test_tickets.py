"""Tests of enrolment tickets and temporary codes."""

from __future__ import annotations

import pytest

from pam_totp.core.answer import Answer
from pam_totp.core.oath import hotp, totp
from pam_totp.core.policy import Policy
from pam_totp.core.record import RecentLogin, RecordError, Token, UserRecord
from pam_totp.core.verify import Outcome, Tickets, verify
from pam_totp.operations.authenticate import Origin, decide
from pam_totp.operations.enroll import new_recovery_codes, new_token
from pam_totp.operations.tickets import issue_ticket, redeem_ticket, shows_key, with_temporary_code
from tests.core.stores import Memory

NOW = 1_800_000_000
ENDS = NOW + 7 * 86_400
POLICY = Policy()


def phone(name: str = "phone", key: int = 1) -> Token:
    return new_token("totp", name=name, secret=bytes([key]) * 20, algorithm="SHA1", digits=6, now=NOW)


def fob() -> Token:
    token = new_token("hotp", name="fob", secret=b"2" * 20, algorithm="SHA1", digits=6, now=NOW, counter=0)
    return token.with_serial("HT-7")


def code(key: int = 1, at: int = NOW) -> Answer:
    return Answer.parse(totp(bytes([key]) * 20, at).encode())


def answer(text: str) -> Answer:
    return Answer.parse(text.encode())


def owner(*, enrolled: bool = False) -> tuple[UserRecord, Answer]:
    """Return a record with a ticket for a new phone, and the ticket. An enrolled user has an old phone."""
    record = UserRecord(user="alice")
    if enrolled:
        old = phone("old", key=9).confirmed_without_code()
        record = new_recovery_codes(record.with_token(old), 2)[0]
    record, shown = issue_ticket(record, phone(), ENDS)
    return record, answer(shown)


def test_a_ticket_is_shown_in_groups_and_stored_as_a_digest() -> None:
    record, shown = issue_ticket(UserRecord(user="alice"), phone(), ENDS)
    assert [len(group) for group in shown.split("-")] == [4, 4, 4, 4]
    assert record.ticket is not None
    assert shown.replace("-", "") not in record.ticket.digest
    assert record.invited_token == phone()
    assert not record.enrolled


def test_a_ticket_counts_only_where_the_dialogue_takes_tickets() -> None:
    for enrolled, without, unenrolled in (
        (False, Outcome.NOT_ENROLLED, Outcome.TICKET),
        (True, Outcome.WRONG, Outcome.WRONG),
    ):
        record, ticket = owner(enrolled=enrolled)
        found = [verify(record, ticket, NOW, POLICY, tickets=tickets) for tickets in Tickets]
        assert [d.outcome for d in found] == [without, unenrolled, Outcome.TICKET]
        assert not found[2].outcome.accepted
        assert found[2].record == record
        assert found[2].token == "phone"


@pytest.mark.parametrize(("at", "outcome"), [(ENDS - 1, Outcome.TICKET), (ENDS, Outcome.NOT_ENROLLED)])
def test_a_ticket_ends(at: int, outcome: Outcome) -> None:
    record, ticket = owner()
    assert verify(record, ticket, at, POLICY, tickets=Tickets.UNENROLLED).outcome is outcome
    assert (redeem_ticket(record, ticket, code(at=at), at, POLICY) is None) is (at == ENDS)


def test_a_wrong_ticket_is_not_counted() -> None:
    record, _ = owner()
    wrong = answer("0000-0000-0000-0000")
    decision = verify(record, wrong, NOW, POLICY, tickets=Tickets.UNENROLLED)
    assert (decision.outcome, decision.record) == (Outcome.NOT_ENROLLED, record)
    enrolled, _ = owner(enrolled=True)
    after = verify(enrolled, wrong, NOW, POLICY, tickets=Tickets.EVERYBODY).record
    assert after.failures == 0


def test_the_first_code_confirms_the_token_and_ends_the_ticket() -> None:
    record, ticket = owner()
    done = redeem_ticket(record, ticket, code(), NOW, POLICY)
    assert done is not None
    after, token, codes = done
    assert after.enrolled
    assert after.ticket is None
    assert after.tokens == (token,)
    assert len(set(codes)) == len(after.recovery) == 10
    assert verify(after, answer(codes[3]), NOW, POLICY).outcome is Outcome.RECOVERY
    assert verify(after, code(), NOW, POLICY).outcome is Outcome.REPLAYED, "the first code is used up"
    assert redeem_ticket(after, ticket, code(at=NOW + 30), NOW + 30, POLICY) is None, "a ticket is accepted once"
    assert verify(after, ticket, NOW, POLICY, tickets=Tickets.EVERYBODY).outcome is Outcome.WRONG


def test_a_wrong_first_code_leaves_the_ticket() -> None:
    record, ticket = owner()
    assert redeem_ticket(record, ticket, code(key=3), NOW, POLICY) is None
    assert redeem_ticket(record, ticket, ticket, NOW, POLICY) is None
    assert redeem_ticket(record, answer("0000-0000-0000-0000"), code(), NOW, POLICY) is None
    assert redeem_ticket(record, code(), code(), NOW, POLICY) is None


def test_the_ticket_of_an_enrolled_user_replaces_the_old_tokens() -> None:
    record, ticket = owner(enrolled=True)
    record = record.with_token(fob())  # an assigned token is not replaced
    for _ in range(30):
        record = record.refused_as_wrong(NOW)
    done = redeem_ticket(record, ticket, code(), NOW, POLICY)
    assert done is not None
    after = done[0]
    assert [t.name for t in after.tokens] == ["phone", "fob"]
    assert verify(after, code(key=9), NOW, POLICY).outcome is not Outcome.CODE
    assert not set(after.recovery) & set(record.recovery)
    assert after.failures == POLICY.most_failures_kept


def test_until_the_first_code_the_old_tokens_remain() -> None:
    record, _ = owner(enrolled=True)
    assert verify(record, code(key=9), NOW, POLICY).outcome is Outcome.CODE


def test_a_key_fob_is_confirmed_by_two_codes_in_a_row() -> None:
    record, shown = issue_ticket(UserRecord(user="alice").with_token(fob()), fob(), ENDS)
    assert record.tokens == (fob(),)
    assert not shows_key(fob())
    assert shows_key(phone())
    one, two = hotp(b"2" * 20, 40), hotp(b"2" * 20, 41)
    assert redeem_ticket(record, answer(shown), answer(one), NOW, POLICY) is None
    done = redeem_ticket(record, answer(shown), answer(one + two), NOW, POLICY)
    assert done is not None
    assert done[1].next_factor == 42


def test_a_key_fob_with_a_clock_is_confirmed_by_two_codes_too() -> None:
    timed = phone("HT-8", key=8).with_serial("HT-8")
    record, shown = issue_ticket(UserRecord(user="alice").with_token(timed), timed, ENDS)
    assert redeem_ticket(record, answer(shown), code(key=8), NOW, POLICY) is None, "an attacker could guess one code"
    two = totp(bytes([8]) * 20, NOW) + totp(bytes([8]) * 20, NOW + 30)
    assert redeem_ticket(record, answer(shown), answer(two), NOW + 30, POLICY) is not None


def test_a_new_ticket_replaces_the_earlier_one_and_its_key() -> None:
    record, ticket = owner()
    again, shown = issue_ticket(record, phone("phone", key=2), ENDS)
    assert [t.secret for t in again.tokens] == [b"\2" * 20]
    assert verify(again, ticket, NOW, POLICY, tickets=Tickets.UNENROLLED).outcome is Outcome.NOT_ENROLLED
    assert verify(again, answer(shown), NOW, POLICY, tickets=Tickets.UNENROLLED).outcome is Outcome.TICKET
    other, _ = issue_ticket(again, fob(), ENDS)
    assert [t.name for t in other.tokens] == ["fob"]
    back, _ = issue_ticket(other, phone(), ENDS)
    assert [t.name for t in back.tokens] == ["fob", "phone"], "an assigned token remains"


def test_the_name_or_key_of_another_token_is_an_error() -> None:
    record, _ = owner(enrolled=True)
    for token in (phone("old", key=5), phone("new", key=9)):
        with pytest.raises(RecordError):
            issue_ticket(record, token, ENDS)


def test_a_ticket_follows_its_token() -> None:
    record, ticket = owner()
    token = record.tokens[0]
    renamed = record.with_changed(token, token.renamed("mobile"))
    assert verify(renamed, ticket, NOW, POLICY, tickets=Tickets.UNENROLLED).token == "mobile"
    assert record.with_changed(token, token.confirmed_without_code()).ticket is None
    assert record.without_token("phone").ticket is None


def test_the_ticket_of_a_disabled_token_does_not_count() -> None:
    record, ticket = owner()
    disabled = record.with_changed(record.tokens[0], record.tokens[0].switched(enabled=False))
    assert verify(disabled, ticket, NOW, POLICY, tickets=Tickets.EVERYBODY).outcome is Outcome.NOT_ENROLLED
    assert redeem_ticket(disabled, ticket, code(), NOW, POLICY) is None
    enabled = disabled.with_changed(disabled.tokens[0], disabled.tokens[0].switched(enabled=True))
    assert redeem_ticket(enabled, ticket, code(), NOW, POLICY) is not None


def test_the_ticket_of_a_first_enrolment_ends_with_another_enrolment() -> None:
    record, ticket = owner()
    confirmed = fob().confirmed_without_code()
    assert record.with_token(confirmed).ticket is None
    unconfirmed = record.with_token(fob())
    assert verify(unconfirmed, ticket, NOW, POLICY, tickets=Tickets.EVERYBODY).outcome is Outcome.TICKET
    assert unconfirmed.with_changed(unconfirmed.tokens[1], confirmed).ticket is None
    for_a_lost_phone, _ = owner(enrolled=True)
    assert for_a_lost_phone.with_token(confirmed).ticket == for_a_lost_phone.ticket


def test_a_temporary_code_opens_once_and_ends() -> None:
    record = UserRecord(user="alice").with_token(phone().confirmed_without_code())
    record, shown = with_temporary_code(record, NOW + 60)
    temporary = answer(shown)
    decision = verify(record, temporary, NOW + 59, POLICY)
    assert decision.outcome is Outcome.TEMPORARY
    assert decision.outcome.accepted
    assert decision.record.temporary is None
    assert verify(decision.record, temporary, NOW + 59, POLICY).outcome is Outcome.WRONG
    assert verify(record, temporary, NOW + 60, POLICY).outcome is Outcome.WRONG
    assert verify(record, temporary, NOW, Policy(lock_after=1)).outcome is Outcome.TEMPORARY


def test_a_temporary_code_without_a_token_opens_nothing() -> None:
    record, shown = with_temporary_code(UserRecord(user="alice"), NOW + 60)
    assert verify(record, answer(shown), NOW, POLICY).outcome is Outcome.NOT_ENROLLED


def test_decide_does_the_work_of_a_refusal_for_a_ticket() -> None:
    record, ticket = owner()
    store = Memory(record)
    decision = decide(
        store, "alice", ticket, POLICY, lambda: NOW, tickets=Tickets.UNENROLLED, origin=Origin(service="x")
    )
    assert decision.outcome is Outcome.TICKET
    assert (store.read("alice"), store.updates) == (record, ["decoy"])


def test_decide_keeps_recent_logins() -> None:
    record = UserRecord(user="alice").with_token(phone().confirmed_without_code())
    store = Memory(record)
    origin = Origin(service="sshd", rhost="192.0.2.7")

    def login(given: Answer, at: int, origin: Origin | None = origin) -> None:
        decide(store, "alice", given, POLICY, lambda: at, origin=origin)

    login(code(), NOW)
    for n in range(1, 7):
        login(code(key=3), NOW + n, Origin(service="s\n" + "x" * 99, rhost=""))
    login(answer("12"), NOW + 8)  # a malformed answer changes nothing
    login(code(key=4), NOW + 9, None)
    service = "s?" + "x" * 62
    wrong = [
        RecentLogin(at=NOW + n, accepted=False, outcome="wrong", service=service, rhost=None) for n in (3, 4, 5, 6)
    ]
    first = RecentLogin(at=NOW, accepted=True, outcome="code", service="sshd", rhost="192.0.2.7")
    assert list(store.read("alice").recent_logins) == [first, *wrong], "refusals do not displace an acceptance"


@pytest.mark.parametrize(
    "text", ["", "; ", "accepted", "accepted x code sshd", "accepted 5 code a b c", "accepted -1 code sshd", ";;"]
)
def test_a_login_replaces_no_text_that_is_no_entry(text: str) -> None:
    record = UserRecord(user="alice", recent=text)
    assert record.recent_logins == ()
    login = RecentLogin(at=5, accepted=True, outcome="code", service="sshd", rhost=None)
    assert record.with_recent(login.entry()).recent_logins == (login,)
    while record.recent:
        record = record.without_oldest_recent()


@pytest.mark.parametrize("field", ["service", "rhost", "outcome"])
@pytest.mark.parametrize("value", ["a b", "a;b", "", "x" * 65, "a\nb"])
def test_a_recent_login_is_one_entry(field: str, value: str) -> None:
    login = RecentLogin(at=5, accepted=True, outcome="code", service="sshd", rhost="192.0.2.7")
    assert RecentLogin.parse(login.entry()) == login
    with pytest.raises(RecordError):
        login._replace(**{field: value})


def test_a_user_is_invited_until_the_end_of_the_ticket() -> None:
    record, ticket = owner()
    assert record.is_invited(ENDS - 1)
    assert not record.is_invited(ENDS)
    assert not UserRecord(user="alice").is_invited(NOW)
    done = redeem_ticket(record, ticket, code(), NOW, POLICY)
    assert done is not None
    assert not done[0].is_invited(NOW)
