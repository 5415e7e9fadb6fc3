"""Questions of members: the permission to ask, the decision, and the verdict.

Rules:
1. A host is a member if the table `member` has an entry with its certificate, and the entry is not revoked. The entry
   is read for each question, so a revocation is in force immediately. `decide` makes the decision, as at a login on one
   host.
2. The policy is that of this authority for the PAM service. A member cannot change the policy.
3. The earlier answers of a login count only as their stored verdicts state. A verdict states the count of failures
   after a wrong answer, and the code that completes codes in a row. A third code is tried once for each pair.
4. The same question of the same member gets the stored verdict, also from another authority.
5. The member gets a verdict and messages for the user. The reason is in the log of this authority alone.
6. A member that has sent too many refused answers needs two codes in a row (`budget`).
7. Every refused answer counts in the budget, also a repeated answer, and costs the same search. Otherwise the budget or
   the time could show a stolen member which users are enrolled, or that a code is right but not sufficient alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from pam_totp.authority.budget import Budgets
from pam_totp.authority.redemption import Redeeming, tickets_at
from pam_totp.core.answer import Answer
from pam_totp.core.oath import Ahead
from pam_totp.core.policy import Policy
from pam_totp.core.record import MAX_GRACE_SERVICE, UserRecord
from pam_totp.core.settings import Settings, Site, settings
from pam_totp.core.verify import Decision, Earlier, NextCode, Outcome, Tickets, verify
from pam_totp.member import wire
from pam_totp.metrics.counters import Metrics
from pam_totp.operations import audit_log, grace
from pam_totp.operations.authenticate import DECOY, Origin, decide, facts, refusal_delay, remarks
from pam_totp.store import StoreError, read_or_unknown
from pam_totp.store.file import file_name
from pam_totp.store.postgres import AlreadyAnswered, PostgresStore, Question
from pam_totp.store.postgres_members import Found, Members

REVOKED, UNKNOWN = "the member is revoked", "the certificate belongs to no member"
OTHER_USER = "the member may not ask about this user"
OTHER_SERVICE = "the member may not ask about this service"
MEMBER_BUDGET = "member-budget"  # the reason of a right code in the log, while the budget of the member is used up
Log: TypeAlias = Callable[[str, Mapping[str, str | int | None]], None]
_ACCEPTED = tuple(outcome.value for outcome in Outcome if outcome.accepted)
_PARENT = 16  # hexadecimal digits: enough to distinguish eight digests


class NotAMember(Exception):
    """The error for a certificate without a member, or of a revoked member. The text is the reason."""


class NotPermitted(Exception):
    """The error for a member that may not ask about this user, or for this service. The text is the reason."""


class Answers:
    """The decisions of an authority. The methods block, and several threads may call them.

    `site` returns the settings, and may raise SettingsError. `monotonic` is a clock for budgets and metrics.
    """

    def __init__(
        self,
        store: PostgresStore,
        site: Callable[[], Site],
        sink: audit_log.Sink,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self.store, self.members = store, Members(store)
        self._site, self._sink, self._monotonic = site, sink, monotonic
        self._budgets = Budgets()

    def member(self, fingerprint: bytes, user: str | None = None, service: str | None = None) -> Found:
        """Return the member with this certificate. Raise NotAMember or StoreError."""
        found = self.members.find(fingerprint, user, service)
        if found is None:
            raise NotAMember(UNKNOWN)
        if found.is_revoked:
            raise NotAMember(REVOKED)
        if found.is_next:
            self.members.adopt(fingerprint)
        return found

    def answer(self, fingerprint: bytes, question: wire.Question) -> wire.Verdict:
        """Return the verdict on a question. Raise NotAMember, NotPermitted, SettingsError or StoreError."""
        user = storable(question.user)
        member = self._permitted(fingerprint, user, question).name
        chosen = settings(question.service, (), self._site())
        answer = Answer.parse(question.answer.encode())
        dialogue = _Dialogue(question, answer, member)
        is_used_up = self._budgets.is_used_up(member, self._monotonic())
        log = self._log_of(question, member)
        try:
            decision = decide(
                self.store.asked(Question(question.digest(member), dialogue.verdict_text, dialogue.recall)),
                user,
                answer,
                chosen.policy,
                self.store.now,
                follow=_grace_of(chosen, question, member),
                verify=partial(dialogue.verify, fewest=2 if is_used_up else 1),
                origin=Origin(service=f"{question.service}@{member}", rhost=question.rhost),
            )
        except AlreadyAnswered as e:
            stored = json.loads(e.verdict)
            if stored["o"] not in _ACCEPTED:
                dialogue.verify(DECOY, answer, self.store.now(), chosen.policy, fewest=1)  # as for an unknown user
                self._budgets.count(member, self._monotonic())
            log(*_facts_again(stored))
            return _verdict(stored)
        finally:
            answer.wipe()
        verb, fields = facts(decision)
        if is_used_up and _suffices_elsewhere(decision, chosen.policy, self.store.now()):
            fields["reason"] = MEMBER_BUDGET
        if not decision.outcome.accepted:
            self._budgets.count(member, self._monotonic())
        elif is_used_up:
            self._budgets.give_back(member, dialogue.refused, self._monotonic())
        if is_used_up:
            self._alarm(member)
        log(verb, fields | {"at": _used(decision)})
        return _verdict(dialogue.verdict_content(decision))

    def redeem(self, fingerprint: bytes, asked: wire.Redeem) -> wire.Redemption:
        """Return the decision on a ticket, or on the first code of its token. Raise the exceptions of `answer`."""
        user = storable(asked.user)
        member = self._permitted(fingerprint, user, asked)
        chosen = settings(asked.service, (), self._site())
        ticket, first = Answer.parse(asked.ticket.encode()), Answer.parse((asked.first or "").encode())
        tickets = tickets_at(chosen, asked.service, member)
        log = self._log_of(asked, member.name)
        redeeming = Redeeming(self.store, user, ticket, chosen.policy, tickets, member.name, log)
        try:
            return redeeming.present() if asked.first is None else redeeming.confirm(first, asked.digest(member.name))
        finally:
            ticket.wipe()
            first.wipe()

    def refusal_delay(self, service: str) -> float:
        """Return the seconds from a question to its refusal, which do not depend on the user. Raise SettingsError."""
        return refusal_delay(settings(service, (), self._site()).policy)

    def begin(self, fingerprint: bytes, begun: wire.Begin) -> wire.BeginVerdict:
        """Decide whether the user may pass without a code, and return the verdict. Raise the exceptions of `answer`."""
        user = storable(begun.user)
        member = self._permitted(fingerprint, user, begun).name
        chosen = settings(begun.service, (), self._site())
        origin = _origin(chosen, begun.service, member, begun.rhost)
        # `nullok_group` is a group of accounts on the member's host, and might be missing on this host. A `nullok` with
        # this limit therefore exempts no user here.
        nullok = chosen.nullok and chosen.nullok_group is None
        if origin is None and not nullok:
            return wire.BeginVerdict(verdict=wire.ASK)
        record = read_or_unknown(self.store, user)
        now = self.store.now()  # the clock of the database, which the read of the record has set
        log = self._log_of(begun, member)
        if nullok and chosen.nullok_at(now) and not record.enrolled:
            log("ignored", {"reason": Outcome.NOT_ENROLLED.value})
            return wire.BeginVerdict(verdict=wire.PASS, by="not-enrolled")
        if origin is not None and grace.holds(record, origin, now, chosen.grace_period, chosen.policy):
            log("accepted", {"by": "grace"})
            return wire.BeginVerdict(verdict=wire.PASS, by="grace")
        return wire.BeginVerdict(verdict=wire.ASK)

    def _permitted(self, fingerprint: bytes, user: str, asked: wire.Question | wire.Begin | wire.Redeem) -> Found:
        """Return the member. Raise NotPermitted unless the member may ask about `user` and the service."""
        found = self.member(fingerprint, user, asked.service)
        if not (found.may_ask and found.may_serve):
            reason = OTHER_SERVICE if found.may_ask else OTHER_USER
            self._log_of(asked, found.name)("refused", {"reason": "not-this-member", "problem": reason})
            raise NotPermitted(reason)
        return found

    def _alarm(self, member: str) -> None:
        if self._budgets.is_alarm_due(member, self._monotonic()):
            problem = "too many refused answers: this member needs two codes in a row now (is the host compromised?)"
            audit_log.write(self._sink, "authority", "error", problem=problem, member=member)

    def _log_of(self, asked: wire.Question | wire.Begin | wire.Redeem, member: str) -> Log:
        """Return the function that logs and counts the verb and the fields of a line about the question.

        A repeated question is not counted again.
        """
        begun = self._monotonic()

        def log(verb: str, fields: Mapping[str, str | int | None]) -> None:
            where: dict[str, str | None] = {"member": member, "rhost": asked.rhost}
            audit_log.write(self._sink, asked.service, verb, user=asked.user, **{**fields, **where})
            if "again" not in fields:
                self._metrics.answer(asked.service, verb, fields, self._monotonic() - begun)

        return log


def storable(user: str) -> str:
    """Return `user`, or UNASKABLE if no record can have this name."""
    try:
        file_name(user)
    except StoreError:
        return wire.UNASKABLE
    return user


class _Dialogue:
    """One question of a login, and the earlier questions of this login with their stored verdicts."""

    def __init__(self, question: wire.Question, answer: Answer, member: str) -> None:
        self._answer = answer
        self._before: list[tuple[str, Answer]] = []  # digest and answer of the earlier questions, in order
        before = question.before()
        while before is not None:
            self._before.insert(0, (before.digest(member).hex(), Answer.parse(before.answer.encode())))
            before = before.before()
        self.recall({})  # for an unknown user, whose answer costs the same search

    def recall(self, verdicts: Mapping[str, str]) -> None:
        """Rebuild the earlier answers from the stored verdicts of the user, by the digests of their questions."""
        earlier = Earlier.NONE
        for digest, answer in self._before:
            stored = json.loads(verdicts[digest]) if digest in verdicts else {}
            following = stored.get("n")
            earlier = Earlier(
                answers=(*earlier.answers, answer),
                failures=earlier.failures + ("f" in stored),
                counted=stored.get("f", earlier.counted),
                refused=earlier.refused + (stored.get("o", _ACCEPTED[0]) not in _ACCEPTED),
                next_code=None if following is None else NextCode(token=following[0], moving_factor=following[1]),
            )
        if earlier.next_code is not None:
            parent = self._parent()
            if any(json.loads(verdict).get("p") == parent for verdict in verdicts.values()):
                earlier = earlier._replace(next_code=None)
        self._earlier = earlier

    @property
    def refused(self) -> int:
        """The number of earlier answers of this login that were refused."""
        return self._earlier.refused

    def verify(
        self,
        record: UserRecord,
        answer: Answer,
        now: int,
        policy: Policy,
        *,
        earlier: Earlier = Earlier.NONE,
        ahead: Ahead | None = None,
        fewest: int,
        tickets: Tickets = Tickets.NONE,
    ) -> Decision:
        """Return the decision of `core.verify.verify`, with the earlier answers of `recall`."""
        return verify(record, answer, now, policy, earlier=self._earlier, ahead=ahead, fewest=fewest, tickets=tickets)

    def verdict_text(self, decision: Decision) -> str:
        """Return the text to store for a decision: short, because it is written at each login."""
        return json.dumps(self.verdict_content(decision), separators=(",", ":"))

    def verdict_content(self, decision: Decision) -> dict[str, Any]:
        """Return the content of the text that `verdict_text` returns.

        The keys of the content are:
        - `o`: the outcome;
        - `m`: the messages after an accepted answer;
        - `t`: the name, the creation and the next counter or step of the token that showed the accepted codes;
        - `f`: the count of failures, if this answer was counted as a failure;
        - `n`: the code that completes the codes in a row;
        - `p`: the earlier question with the `n` to which this answer was compared.
        """
        content: dict[str, Any] = {"o": decision.outcome.value}
        token = None if decision.token is None else decision.record.token(decision.token)
        if decision.outcome.accepted and token is not None:
            content["t"] = [token.name, token.created, token.next_factor]
        if decision.outcome.accepted and (messages := remarks(decision)):
            content["m"] = messages
        if decision.outcome is Outcome.WRONG and self._answer.recovery_code is None:
            content["f"] = decision.record.failures
        if decision.next_code is not None:
            content["n"] = [decision.next_code.token, decision.next_code.moving_factor]
        if self._earlier.next_code is not None:
            content["p"] = self._parent()
        return content

    def _parent(self) -> str:
        return self._before[-1][0][:_PARENT]


def _verdict(content: Mapping[str, Any]) -> wire.Verdict:
    """Return the verdict that the content of a stored text encodes (`_Dialogue.verdict_content`)."""
    if content["o"] not in _ACCEPTED:
        return wire.Verdict(verdict=wire.REFUSED, again="n" in content)
    return wire.Verdict(verdict=wire.ACCEPTED, by=content["o"], messages=tuple(content.get("m", ())))


def _suffices_elsewhere(decision: Decision, policy: Policy, now: int) -> bool:
    """Return True if the budget of the member is the only reason of a refusal."""
    if decision.outcome is not Outcome.CONSECUTIVE_NEEDED or decision.next_code is not None:
        return False
    failures, _ = decision.record.failures_now(now)
    token = None if decision.token is None else decision.record.token(decision.token)
    return policy.codes_needed(failures) == 1 and token is not None and not token.row_needed


def _facts_again(content: Mapping[str, Any]) -> tuple[str, dict[str, str | int | None]]:
    """Return the verb and the fields of the line about a question that was decided before."""
    if content["o"] not in _ACCEPTED:
        return "refused", {"reason": content["o"], "again": "yes"}
    name, created, following = content.get("t", (None, None, None))
    at = None if following is None else following - 1
    fields = {"by": content["o"], "token": name, "created": created, "next": following, "at": at, "again": "yes"}
    return "accepted", fields


def _used(decision: Decision) -> int | None:
    """Return the counter or step of the last accepted code; None if no code of a token was accepted."""
    token = None if decision.token is None else decision.record.token(decision.token)
    return token.next_factor - 1 if token is not None and decision.outcome.accepted else None


def _origin(chosen: Settings, service: str, member: str, rhost: str | None) -> tuple[str, str] | None:
    """Return the origin for grace, or None if the login cannot have grace. Each member has separate grace."""
    if chosen.grace_period == 0:
        return None
    place = f"{service}@{member}"
    if len(place) > MAX_GRACE_SERVICE:
        place = hashlib.sha256(place.encode()).hexdigest()[:MAX_GRACE_SERVICE]
    return grace.origin(place, rhost)


def _grace_of(chosen: Settings, question: wire.Question, member: str) -> Callable[[Decision, int], UserRecord] | None:
    origin = _origin(chosen, question.service, member, question.rhost)
    if origin is None:
        return None

    def follow(decision: Decision, now: int) -> UserRecord:
        return decision.record if decision.outcome.is_long_code else grace.granted(decision.record, origin, now)

    return follow
