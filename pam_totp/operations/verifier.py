"""The verifier of one login: it decides on the answers of one user, over a store of this process.

Rules:
1. The dialogue is the same on every host, because it asks a `Verifier` instead of a store or an authority.
2. A verifier keeps the refused answers of its login, because single codes of one login may be codes in a row (law
   5). The dialogue wipes these answers, and calls `wipe`, when the login ends.
3. All work that can wait, compute for long or fail is the job of a `UseStore`. The driver of the dialogue calls it.
4. A verdict has all facts about an answer for the dialogue and the log. A verdict contains no code, and a key only for
   the owner of a right enrolment ticket.
5. A ticket is confirmed by a first code in one change. Of two logins with one ticket, only one confirms it.
"""

from __future__ import annotations

from pam_totp.core.answer import CODE_LENGTHS, Answer
from pam_totp.core.fields import Value
from pam_totp.core.lean import TYPE_CHECKING, Enum, Protocol
from pam_totp.core.oath import MAX_DIGITS, Ahead
from pam_totp.core.record import UNKNOWN_USER, UserRecord
from pam_totp.core.settings import Settings, is_database
from pam_totp.core.verify import Decision, Earlier, Outcome, Tickets, verify, work_out_ahead
from pam_totp.operations import grace
from pam_totp.operations.authenticate import (
    DECOY,
    REFUSAL_DELAY,
    Origin,
    Verify,
    decide,
    facts,
    refusal_delay,
    remarks,
)
from pam_totp.operations.tickets import Confirmation, Invitation, confirm_by_ticket, invitation, verify_ticket_alone
from pam_totp.store import NoAccount, NotThere, Store, StoreError, clock_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Set
    from typing import TypeAlias

OpenStore: TypeAlias = "Callable[[float], Store]"  # the argument is the longest wait for a lock, in seconds
UNKNOWN_ACCOUNT = "unknown account: nullok requires a passwd entry"


class Result(Enum):
    """The result of a dialogue. The value is its verb in the log, if a verdict can have this result."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    IGNORED = "ignored"  # `nullok`, and the user is not enrolled
    UNAVAILABLE = "unavailable"  # the store cannot be reached
    NO_ANSWER = "no answer"


class Verdict(Value):
    """The verdict on an answer, or on a user who needs no code.

    `fields` are for the line of the log, and `messages` for the user after an accepted answer. `asks_again` is True if
    the two codes of the login are consecutive, and a third is needed. With `forward_pass`, codes of `code_lengths`
    digits end the answer. `invitation` is set if the answer is a right ticket, which is not accepted.
    """

    result: Result
    fields: Mapping[str, str | int | None]
    messages: tuple[str, ...] = ()
    asks_again: bool = False
    code_lengths: Set[int] = CODE_LENGTHS
    invitation: Invitation | None = None

    @property
    def accepted(self) -> bool:
        return self.result is Result.ACCEPTED


class UseStore:
    """A request to call `job` with the longest wait for a lock, in seconds. The reply is the result of the job.

    A job may raise StoreError. A job that raises LockBusy can be called again. `is_slow` is True if the job may compute
    for long even without a lock, and `is_remote` if it waits for a database. `record` is the store and the user of the
    record that the job changes. The driver calls jobs of one record in their order.
    """

    def __init__(
        self,
        job: Callable[[float], object],
        *,
        is_slow: bool,
        is_remote: bool = False,
        record: tuple[str, str] | None = None,
    ) -> None:
        self.job, self.is_slow, self.is_remote, self.record = job, is_slow, is_remote, record


class Verifier(Protocol):
    """The part of a login that decides on its answers."""

    delay: float  # seconds from an answer to its refusal

    def before_prompt(self) -> UseStore | None:
        """Return the question whether the user may pass without a code, or None if every user needs a code.

        The reply is the verdict that lets the user pass, or None.
        """

    def while_typing(self) -> UseStore | None:
        """Return work that shortens the next decision, or None. The work handles StoreError, and its reply is None."""

    def decide(self, answer: Answer, *, prompted: bool) -> UseStore:
        """Return the question whether `answer` is right. The reply is a verdict.

        `prompted` is False for the answer of an earlier module.
        """

    def confirm(self, ticket: Answer, first: Answer) -> UseStore:
        """Return the question whether `first` confirms the token of `ticket`. The reply is a `Confirmation`. The
        change is durable before the reply.
        """

    def wipe(self) -> None:
        """Overwrite or drop the codes and answers of the verifier, after the login."""


class LocalVerifier:
    """The verifier for the answers of `user`, the name in the passwd entry, over a store. `now` returns Unix seconds.

    `origin` is the login's key of grace (`grace.origin`), or None if the login cannot have grace. `came_from` is for
    the recent logins of the record. `search` verifies answers that need a long search. `tickets` are the users whose
    tickets are valid; with EVERYBODY, no other answer is accepted. The argument of `check_account` is the longest
    wait for a lock, in seconds. `check_account` returns True if `nullok` lets the user pass, and raises StoreError if
    the lookup fails.
    """

    def __init__(
        self,
        settings: Settings,
        user: str,
        open_store: OpenStore,
        *,
        origin: tuple[str, str] | None,
        came_from: Origin,
        now: Callable[[], int],
        check_account: Callable[[float], bool],
        search: Verify = verify,
        tickets: Tickets = Tickets.NONE,
    ) -> None:
        self._tickets = tickets
        self._settings, self._user, self._open_store = settings, user, open_store
        self._origin, self._came_from, self._now, self._search = origin, came_from, now, search
        self._check_account = check_account
        self._nullok = settings.nullok_at(now())
        self._is_in_home = settings.secret is not None  # the home folder can be on a slow server
        self._is_remote = settings.secret is None and is_database(settings.store)
        self.delay = refusal_delay(settings.policy)
        self._earlier = Earlier.NONE
        self._ahead = Ahead()

    def before_prompt(self) -> UseStore | None:
        if not self._nullok and self._origin is None:
            return None
        is_slow = self._is_in_home or self._settings.nullok_group is not None  # the group can be in a name service
        return UseStore(self._exempt, is_slow=is_slow, is_remote=self._is_remote)

    def while_typing(self) -> UseStore | None:
        return UseStore(self._compute_codes, is_slow=self._is_in_home, is_remote=self._is_remote)

    def decide(self, answer: Answer, *, prompted: bool) -> UseStore:
        def job(lock_wait: float) -> Verdict:
            store = self._open_store(lock_wait)
            decision = decide(
                store,
                self._user,
                answer,
                self._settings.policy,
                clock_of(store, self._now),
                follow=None if self._origin is None else self._with_grace,
                earlier=self._earlier,
                ahead=self._ahead,
                verify=self._verify(is_slow=is_slow),
                tickets=self._tickets if prompted else Tickets.NONE,
                origin=self._came_from,
            )
            if not decision.outcome.accepted:
                self._earlier = self._earlier.followed_by(answer, decision, prompted=prompted)
            return _verdict(decision)

        searches_far = len(answer.digits) > MAX_DIGITS or bool(self._earlier.answers)  # for codes in a row
        is_slow = searches_far or self._is_in_home or self.delay > REFUSAL_DELAY  # a longer delay means a longer search
        record = (self._settings.store, self._user)
        return UseStore(job, is_slow=is_slow, is_remote=self._is_remote, record=record)

    def _verify(self, *, is_slow: bool) -> Verify:
        if self._tickets is Tickets.EVERYBODY:
            return verify_ticket_alone
        return self._search if is_slow else verify

    def confirm(self, ticket: Answer, first: Answer) -> UseStore:
        def job(lock_wait: float) -> Confirmation:
            store = self._open_store(lock_wait)
            clock = clock_of(store, self._now)

            def change(record: UserRecord) -> tuple[UserRecord, Confirmation]:
                after, found = confirm_by_ticket(
                    record, ticket, first, clock(), self._settings.policy, tickets=self._tickets
                )
                return after if found.at is None else after.with_recent(self._came_from.enrolment(found.at)), found

            try:
                return store.update(self._user, change)
            except NotThere:
                return Confirmation.CLOSED

        # The job may search for codes in a row, and changes the same record as `decide`.
        record = (self._settings.store, self._user)
        return UseStore(job, is_slow=True, is_remote=self._is_remote, record=record)

    def wipe(self) -> None:
        self._ahead.wipe()

    def _exempt(self, lock_wait: float) -> Verdict | None:
        """Return the verdict that lets the user pass without a code, or None."""
        try:
            record = self._open_store(lock_wait).read(self._user)
        except NoAccount:
            if self._nullok:
                raise StoreError(UNKNOWN_ACCOUNT) from None
            return None
        except NotThere:
            record = UNKNOWN_USER
        if self._nullok and not record.enrolled and self._check_account(lock_wait):
            return Verdict(result=Result.IGNORED, fields={"reason": Outcome.NOT_ENROLLED.value})
        return Verdict(result=Result.ACCEPTED, fields={"by": "grace"}) if self._has_grace(record) else None

    def _compute_codes(self, lock_wait: float) -> None:
        """Compute the next codes while the user types. For a user without a record, compute those of a decoy."""
        try:
            record = self._open_store(lock_wait).read(self._user)
        except (NotThere, StoreError):  # `decide` will report the error
            record = UNKNOWN_USER
        tokens = [token for token in record.tokens if token.active] or DECOY.tokens[:1]
        self._ahead = work_out_ahead(tokens, self._now(), self._settings.policy)

    def _has_grace(self, record: UserRecord) -> bool:
        period, policy = self._settings.grace_period, self._settings.policy
        return self._origin is not None and grace.holds(record, self._origin, self._now(), period, policy)

    def _with_grace(self, decision: Decision, now: int) -> UserRecord:
        if decision.outcome.is_long_code or self._origin is None:
            return decision.record
        return grace.granted(decision.record, self._origin, now)


def _verdict(decision: Decision) -> Verdict:
    accepted = decision.outcome.accepted
    return Verdict(
        result=Result.ACCEPTED if accepted else Result.REFUSED,
        fields=facts(decision)[1],
        invitation=invitation(decision.record) if decision.outcome is Outcome.TICKET else None,
        messages=tuple(remarks(decision)) if accepted else (),
        asks_again=decision.next_code is not None,
        code_lengths=decision.record.code_lengths if decision.record.enrolled else CODE_LENGTHS,
    )
