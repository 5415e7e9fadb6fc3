"""Tests of the decisions of an authority: dialogues, repeated questions, permissions, budgets, grace and nullok."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from pam_totp.authority import answers
from pam_totp.authority.answers import Answers, NotAMember, NotPermitted
from pam_totp.authority.budget import BURST, Budgets
from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.oath import hotp
from pam_totp.core.record import HotpToken, TemporaryCode, UserRecord
from pam_totp.core.settings import SettingsError, Site, parse_site
from pam_totp.core.verify import Decision, Earlier, verify
from pam_totp.member import wire
from pam_totp.member.wire import Begin, Question, Verdict
from pam_totp.metrics.counters import AUTHORITY, Metrics
from pam_totp.metrics.exposition import text_of
from pam_totp.store import StoreError
from pam_totp.store.postgres import ASKED, PostgresStore
from pam_totp.store.postgres_members import ALL_USERS
from tests.support.cluster import Server, with_postgresql
from tests.support.site import KEY, PATIENCE, fob, phone

pytestmark = with_postgresql
WEB, DB = b"w" * 32, b"d" * 32
SALT, RECOVERY = "00" * 16, "0123456789ABCDEF"


def code(counter: int) -> str:
    return hotp(KEY, counter, 6)


class Authority:
    """An authority with the members web1, which may ask about all users, and db1, which may ask about bob's sudo."""

    def __init__(self, url: str) -> None:
        self.lines: list[str] = []
        self.site = Site.NONE
        self.now = 1000.0
        self.metrics = Metrics()
        self.store = PostgresStore(url, wait=PATIENCE)
        self.answers = self.another()
        members = self.answers.members
        for name, fingerprint, services in (("web1", WEB, None), ("db1", DB, ["sudo"])):
            token = secrets.token_bytes(32)
            members.add(name, [name[:-1]], services, token, 60)
            members.join(token, fingerprint)
        members.allow("web", [ALL_USERS])
        members.allow("db", ["admins"])
        members.put("admins", ["bob"])

    def another(self) -> Answers:
        """Return another process of the authority, with its own budgets."""
        sink = lambda priority, line: self.lines.append(line)  # noqa: E731
        return Answers(self.store, lambda: self.site, sink, monotonic=lambda: self.now, metrics=self.metrics)

    def put(self, user: str = "alice", **fields: Any) -> None:
        record = UserRecord(user=user, **{"tokens": (fob(),)} | fields)
        self.store.update(user, lambda _: (record, None), create=True)

    def record(self, user: str = "alice") -> UserRecord:
        return self.store.read(user)

    def counter(self, user: str = "alice") -> int:
        token = self.record(user).tokens[0]
        assert isinstance(token, HotpToken)
        return token.counter

    def reason(self) -> str:
        """Return the reason in the last log line."""
        return next((field[7:] for field in self.lines[-1].split() if field.startswith("reason=")), "")

    def ask(self, question: Question, member: bytes = WEB) -> Verdict:
        return self.answers.answer(member, question)


def question(answer: str, *before: str, id: str | None = None, **fields: Any) -> Question:
    """Return a question of a new login, or of the login `id`. `before` lists the refused answers of that login."""
    given: dict[str, Any] = {"user": "alice", "service": "sshd", "rhost": "192.0.2.7", "tty": "ssh"} | fields
    first, second = (*before, None, None)[:2]
    return Question(id=id or secrets.token_hex(16), answer=answer, first=first, second=second, **given)


@pytest.fixture
def authority(database: str) -> Authority:
    made = Authority(database)
    made.put()
    made.lines.clear()
    return made


# ---- one question


def test_an_authority_counts_each_question_once(authority: Authority) -> None:
    asked = question(code(3))
    for _ in range(2):
        assert authority.ask(asked).verdict == "accepted"
    assert authority.ask(question(code(3))).verdict == "refused"
    text = text_of(authority.metrics.collect(AUTHORITY))
    answers = 'pam_totp_answers_total{role="authority",service="sshd",outcome='
    assert f'{answers}"accepted",reason="code"}} 1\n' in text
    assert f'{answers}"refused",reason="replayed"}} 1\n' in text
    assert 'pam_totp_hotp_ahead_counters_sum{role="authority"} 3\n' in text
    assert "alice" not in text
    assert "web1" not in text


def test_a_code_is_accepted_once(authority: Authority) -> None:
    verdict = authority.ask(question(code(3)))
    assert verdict == Verdict(verdict="accepted", by="code")
    assert authority.lines[-1] == (
        "pam_totp(sshd:auth): accepted user=alice by=code token=fob created=0 next=4 ahead=3 at=3 member=web1"
        " rhost=192.0.2.7"
    )
    assert authority.ask(question(code(3))) == Verdict(verdict="refused")
    assert authority.reason() == "replayed"


def test_a_record_keeps_the_service_the_member_and_the_address_once(authority: Authority) -> None:
    authority.put()
    for asked in (question("000000"), question(code(0), service="sudo", rhost=None)):
        for _ in range(2):
            authority.ask(asked)
    kept = [(r.accepted, r.outcome, r.service, r.rhost) for r in authority.record().recent_logins]
    assert kept == [(False, "wrong", "sshd@web1", "192.0.2.7"), (True, "code", "sudo@web1", None)]


def test_the_messages_for_the_user_come_with_the_verdict(authority: Authority) -> None:
    authority.put("bob", salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))
    authority.ask(question("000000", user="bob"))
    asked = question(RECOVERY, user="bob")
    expected = ("recovery code used, 0 left", "1 answer was refused since the last login")
    for _ in range(2):
        assert authority.ask(asked) == Verdict(verdict="accepted", by="recovery", messages=expected)


def test_a_question_asked_again_gets_the_stored_verdict(authority: Authority) -> None:
    right, wrong = question(code(0)), question("000000")
    first = authority.ask(right), authority.ask(wrong)
    assert [verdict.accepted for verdict in first] == [True, False]
    other = authority.another()
    assert (other.answer(WEB, right), other.answer(WEB, wrong)) == first
    assert (authority.counter(), authority.record().failures) == (1, 1)
    assert [" again=yes " in line for line in authority.lines] == [False, False, True, True]
    assert "accepted user=alice by=code token=fob created=0 next=1 at=0 again=yes member=web1" in authority.lines[2]


def test_the_same_id_from_another_member_is_decided_anew(authority: Authority) -> None:
    authority.put("bob")
    asked = question(code(0), user="bob", service="sudo")
    assert authority.ask(asked).accepted
    assert not authority.ask(asked, DB).accepted
    assert authority.reason() == "replayed"


def test_a_malformed_or_unknown_answer_is_refused_alike(authority: Authority) -> None:
    refused = Verdict(verdict="refused")
    names = {"nobody": "not-enrolled", wire.UNASKABLE: "not-enrolled", "é" * 120: "not-enrolled"}
    for user, reason in names.items():
        assert authority.ask(question(code(0), user=user)) == refused
        assert authority.reason() == reason
    assert authority.ask(question("")) == refused
    assert authority.reason() == "malformed"
    assert authority.counter() == 0


def test_the_policy_is_that_of_the_authority(authority: Authority) -> None:
    assert not authority.ask(question(code(15))).accepted
    authority.site = parse_site("[service.sshd]\nlook_ahead = 20\n")
    assert not authority.ask(question(code(15), service="sudo")).accepted
    assert authority.ask(question(code(15))).accepted


def test_an_invalid_site_file_or_a_lost_database_is_no_verdict(postgresql: Server, authority: Authority) -> None:
    def invalid() -> Site:
        raise SettingsError("the site file is invalid")

    with pytest.raises(SettingsError):
        Answers(authority.store, invalid, print).answer(WEB, question(code(0)))
    lost = PostgresStore("postgresql:///otp?host=/missing", wait=0.5)
    with pytest.raises(StoreError, match="out of reach"):
        Answers(lost, lambda: Site.NONE, print).answer(WEB, question(code(0)))


# ---- dialogues


def test_two_prompts_accept_two_codes_in_a_row(authority: Authority) -> None:
    first = question(code(40))
    assert not authority.ask(first).accepted
    assert authority.record().failures == 1
    verdict = authority.ask(question(code(41), code(40), id=first.id))
    assert verdict == Verdict(verdict="accepted", by="row"), "no message about the refusal in this dialogue"
    assert authority.record().failures == 0, "the failure of the first answer is removed"
    assert authority.counter() == 42


def test_an_earlier_answer_that_was_never_asked_counts_nothing(authority: Authority) -> None:
    authority.put(failures=3, failures_at=2**31)
    verdict = authority.ask(question(code(41), code(40)))
    assert verdict.by == "row", "two codes in a row in one answer are also accepted"
    assert authority.record().failures == 3, "no failure is removed"


def test_a_failure_that_another_login_added_is_not_taken_back(authority: Authority) -> None:
    other = question("000000")
    authority.ask(other)
    verdict = authority.ask(question(code(41), "000000"))
    assert verdict == Verdict(verdict="refused")
    verdict = authority.ask(question(code(42), code(41)))
    assert (verdict.by, authority.record().failures) == ("row", 2)


def test_three_prompts_accept_three_codes_in_a_row(authority: Authority) -> None:
    authority.put(failures=20, failures_at=2**31)
    first = question(code(5))
    assert authority.ask(first) == Verdict(verdict="refused")
    second = question(code(6), code(5), id=first.id)
    assert authority.ask(second) == Verdict(verdict="refused", again=True)
    assert authority.ask(second) == Verdict(verdict="refused", again=True), "the stored verdict"
    third = question(code(7), code(5), code(6), id=first.id)
    verdict = authority.ask(third)
    assert (verdict.verdict, verdict.by) == ("accepted", "row")
    assert authority.counter() == 8
    assert authority.another().answer(WEB, third) == verdict


def test_a_third_code_is_tried_once_for_each_pair(authority: Authority) -> None:
    """A stolen member could otherwise try all third codes after a guessed pair of codes."""
    authority.put(failures=20, failures_at=2**31)
    first = question(code(5))
    authority.ask(first)
    assert authority.ask(question(code(6), code(5), id=first.id)).again
    assert not authority.ask(question("000000", code(5), code(6), id=first.id)).accepted
    assert not authority.ask(question(code(7), code(5), code(6), id=first.id)).accepted
    assert authority.reason() == "codes-in-a-row-needed"


def test_a_third_code_without_the_stored_pair_is_a_lone_code(authority: Authority) -> None:
    authority.put(failures=20, failures_at=2**31)
    assert not authority.ask(question(code(7), code(5), code(6))).accepted
    first = question(code(5))
    authority.ask(first)
    assert authority.ask(question(code(6), code(5), id=first.id)).again
    for number in range(ASKED):  # other logins displace the stored verdicts
        authority.ask(question(f"00000{number}"))
    assert not authority.ask(question(code(7), code(5), code(6), id=first.id)).accepted


def test_a_repeated_answer_is_not_counted(authority: Authority) -> None:
    first = question("000000")
    authority.ask(first)
    authority.ask(question("000 000", "000000", id=first.id))
    assert authority.reason() == "repeated"
    assert authority.record().failures == 1


# ---- members


def test_an_unknown_or_revoked_certificate_is_no_member(authority: Authority) -> None:
    with pytest.raises(NotAMember, match="belongs to no member"):
        authority.ask(question(code(0)), b"x" * 32)
    authority.answers.members.revoke("web1")
    with pytest.raises(NotAMember, match="revoked"):
        authority.ask(question(code(0)))
    with pytest.raises(NotAMember, match="revoked"):
        authority.answers.begin(WEB, Begin(user="alice", service="sshd", rhost=None))
    assert authority.counter() == 0


def test_a_member_asks_only_for_its_users_and_services(authority: Authority) -> None:
    authority.put("bob")
    for user, service, reason in (("alice", "sudo", "this user"), ("bob", "sshd", "this service")):
        with pytest.raises(NotPermitted, match=reason):
            authority.ask(question(code(0), user=user, service=service), DB)
        assert authority.reason() == "not-this-member"
        with pytest.raises(NotPermitted, match=reason):
            authority.answers.begin(DB, Begin(user=user, service=service, rhost=None))
    assert authority.ask(question(code(0), user="bob", service="sudo"), DB).accepted
    assert authority.counter() == 0


def test_the_first_use_of_a_renewed_certificate_ends_the_old_one(authority: Authority) -> None:
    authority.answers.members.renew(WEB, b"n" * 32)
    assert authority.ask(question(code(0))).accepted
    assert authority.ask(question(code(1)), b"n" * 32).accepted
    with pytest.raises(NotAMember):
        authority.ask(question(code(2)))


# ---- budgets


def test_a_guessing_member_needs_two_codes_in_a_row(authority: Authority) -> None:
    authority.put("bob")
    for number in range(BURST):
        user = f"user{number}" if number % 2 else "nobody"
        assert not authority.ask(question("000000", user=user)).accepted
    assert not authority.ask(question(code(0))).accepted
    assert authority.reason() == "member-budget"
    alarms = [line for line in authority.lines if "too many refused answers" in line]
    assert len(alarms) == 1
    assert alarms[0].startswith("pam_totp(authority:auth): error problem=")
    assert alarms[0].endswith(" member=web1")
    assert (authority.counter(), authority.record().failures) == (0, 0)
    assert authority.ask(question(f"{code(0)} {code(1)}")).by == "row"
    lone = question(code(2))
    authority.ask(lone)
    assert authority.ask(question(code(3), code(2), id=lone.id)).by == "row", (
        "the codes at two prompts are also accepted"
    )
    assert authority.ask(question(code(0), user="bob", service="sudo"), DB).accepted, "another member is not affected"
    authority.now += 1.0
    assert authority.ask(question(code(4))).accepted
    assert len([line for line in authority.lines if "too many refused answers" in line]) == 1, "one line a minute"


def test_right_codes_use_no_budget(authority: Authority) -> None:
    for number in range(2 * BURST):
        assert authority.ask(question(code(number))).accepted


def test_codes_in_a_row_give_back_the_refusals_of_their_login(authority: Authority) -> None:
    """A busy member would otherwise need two codes in a row until its users stop logging in."""
    for number in range(BURST):
        authority.ask(question("000000", user=f"user{number}"))
    for number in range(0, 2 * BURST, 2):
        first = question(code(number))
        assert not authority.ask(first).accepted
        assert authority.ask(question(code(number + 1), code(number), id=first.id)).accepted
    assert authority.ask(question(f"{code(40)} {code(41)}", "000000")).accepted, "an unseen first answer"
    assert not authority.ask(question(code(42))).accepted
    authority.now += 1.0
    assert authority.ask(question(code(42))).accepted


@pytest.mark.parametrize("answer", [code(0), "000000"])
def test_the_budget_shows_no_right_code_that_is_not_used_up(authority: Authority, answer: str) -> None:
    authority.put("bob")
    for number in range(BURST):
        authority.ask(question("000000", user=f"user{number}"))
    for _ in range(4):
        assert not authority.ask(question(answer, user="bob")).accepted
    authority.now += 2.0
    assert not authority.ask(question(code(0))).accepted
    authority.now += 1.0
    assert authority.ask(question(code(0))).accepted


PROBES: dict[str, tuple[str, str]] = {  # fact that a stolen member might probe -> user, answer
    "unknown": ("nobody", "000000"),
    "unknown, malformed": ("nobody", ""),
    "enrolled": ("bob", "000000"),
    "enrolled, malformed": ("bob", ""),
    "a right code of three": ("bob", code(0)),
    "two right codes of three": ("bob", f"{code(0)} {code(1)}"),
    "a used code": ("carol", code(4)),
}


@pytest.mark.parametrize("repeats", [False, True])
@pytest.mark.parametrize("probe", PROBES)
def test_the_budget_shows_nothing_of_a_refused_answer(authority: Authority, probe: str, repeats: bool) -> None:
    """A stolen member with a right code of one of its users could otherwise guess codes in a row one at a time."""
    authority.put("bob", failures=20, failures_at=2**31)
    authority.put("carol", tokens=(fob(counter=5),))
    user, answer = PROBES[probe]
    asked = question(answer, user=user)
    for _ in range(BURST):
        assert not authority.ask(asked if repeats else question(answer, user=user)).accepted
    assert not authority.ask(question(code(0))).accepted
    assert authority.reason() == "member-budget"
    assert authority.counter() == 0


@pytest.mark.parametrize("user", ["alice", "nobody"])
def test_an_answer_asked_again_costs_the_same_search(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    searched: list[tuple[int, ...]] = []

    def note(record: UserRecord, answer: Answer, *rest: Any, earlier: Earlier, **options: Any) -> Decision:
        searched.append(tuple(len(a.digits) for a in (*earlier.answers, answer)))
        return verify(record, answer, *rest, earlier=earlier, **options)

    monkeypatch.setattr(answers, "verify", note)
    asked = question("222222", "111111", user=user)
    for _ in range(2):
        searched.clear()
        assert not authority.ask(asked).accepted
        assert searched == [(6, 6)]


def test_a_budget_of_refused_answers_comes_back_with_time() -> None:
    budgets = Budgets()
    for _ in range(BURST + 4):  # slightly above the budget, because some answers are decided in parallel
        budgets.count("web1", 10.0)
    assert budgets.is_used_up("web1", 12.0)
    assert not budgets.is_used_up("web1", 12.5)
    assert not budgets.is_used_up("web2", 10.0)
    for _ in range(100 * BURST):
        budgets.count("web2", 10.0)
    assert budgets.is_used_up("web2", 69.0)
    assert not budgets.is_used_up("web2", 70.5), "a flood can delay honest users for one more minute"
    assert [budgets.is_alarm_due("web1", now) for now in (0.0, 59.0, 60.0, 61.0)] == [True, False, True, False]


# ---- grace and nullok


def begin(authority: Authority, user: str = "alice", service: str = "sshd", rhost: str | None = "192.0.2.7") -> str:
    verdict = authority.answers.begin(WEB, Begin(user=user, service=service, rhost=rhost))
    return verdict.by or verdict.verdict


def test_without_a_policy_every_user_is_asked(authority: Authority) -> None:
    assert [begin(authority), begin(authority, "nobody")] == ["ask", "ask"]


def test_grace_belongs_to_one_member_service_and_address(authority: Authority) -> None:
    authority.site = parse_site("[policy]\ngrace_period = 600\n")
    assert begin(authority) == "ask"
    assert authority.ask(question(code(0))).accepted
    assert begin(authority) == "grace"
    assert " accepted user=alice by=grace member=web1 rhost=192.0.2.7" in authority.lines[-1]
    assert begin(authority, service="sudo") == "ask"
    assert begin(authority, rhost="192.0.2.8") == "ask"
    assert begin(authority, rhost=None) == "ask"
    authority.answers.members.allow("db", [ALL_USERS])
    authority.answers.members.add("db1", ["db"], None, b"t" * 32, 60)
    at_other = authority.answers.begin(DB, Begin(user="alice", service="sshd", rhost="192.0.2.7"))
    assert at_other.verdict == "ask"
    authority.site = Site.NONE
    assert begin(authority) == "ask"


def test_a_long_name_of_a_member_has_its_own_grace(authority: Authority) -> None:
    authority.site = parse_site("[policy]\ngrace_period = 600\n")
    members = authority.answers.members
    names = ["web1.a-long-name.of-a-host.example.org", "web2.a-long-name.of-a-host.example.org"]
    for name in names:
        members.add(name, ["web"], None, name.encode()[:32], 60)
        members.join(name.encode()[:32], name.encode()[:32])
    first, second = (name.encode()[:32] for name in names)
    assert authority.ask(question(code(0)), first).accepted
    asked = Begin(user="alice", service="sshd", rhost="192.0.2.7")
    assert [authority.answers.begin(member, asked).verdict for member in (first, second)] == ["pass", "ask"]


@pytest.mark.parametrize("by", ["recovery", "temporary"])
def test_a_code_of_80_bits_is_accepted_once_and_grants_no_grace(authority: Authority, by: str) -> None:
    authority.site = parse_site("[policy]\ngrace_period = 600\n")
    digest = recovery_digest(SALT, RECOVERY)
    temporary = TemporaryCode(salt=SALT, digest=digest, ends=1 << 40)
    authority.put("bob", **({"salt": SALT, "recovery": (digest,)} if by == "recovery" else {"temporary": temporary}))
    assert authority.ask(question(RECOVERY, user="bob")).by == by
    assert begin(authority, "bob") == "ask"
    assert not authority.ask(question(RECOVERY, user="bob")).accepted


def test_nullok_of_the_authority_lets_unenrolled_users_pass(authority: Authority) -> None:
    authority.put("new", tokens=(phone(confirmed=False),))
    authority.site = parse_site("[service.sshd]\nnullok = true\n")
    names = ["alice", "nobody", "new"]
    assert [begin(authority, name) for name in names] == ["ask", "not-enrolled", "not-enrolled"]
    assert begin(authority, "nobody", "sudo") == "ask"
    for limit in ('nullok_until = "2001-01-01"', 'nullok_group = "students"'):
        authority.site = parse_site(f"[service.sshd]\n{limit}\n")
        assert begin(authority, "nobody") == "ask"
