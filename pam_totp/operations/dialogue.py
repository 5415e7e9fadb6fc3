"""One login as a dialogue without I/O: prompts, decisions and messages, with a result.

Rules:
1. A dialogue has no socket, thread, clock or sleep. It yields each wait to its driver: the service, the helper, a test.
2. It speaks to the user through a `Conversation`. Its only state is its own, and ends with it.
3. Only the results ACCEPTED and IGNORED let a user pass.
4. Every refusal has the same delay. After the first refusal, the dialogue asks once more, for any answer and any user
   (law 5). The last refusal shows the same text for every reason. Rules 7 and 9 replace this rule.
5. The waits between two prompts do not depend on the user, except for grace and `nullok`.
6. No lock is held during a prompt.
7. With `forward_pass`, the next module checks the password after the code. Until then, nothing shows whether the code
   was right: there is one prompt, no text, and the same delay after every answer.
8. Answers are wiped when the dialogue ends.
9. In sshd, the text of a refusal precedes the second prompt, and no text follows the last answer. sshd omits the line
   `PAM: Authentication failure for USER from ADDRESS` if a module shows a text after the last answer.
"""

from __future__ import annotations

from pam_totp.core.answer import CODE_LENGTHS, Answer
from pam_totp.core.lean import TYPE_CHECKING, Enum, Protocol
from pam_totp.core.oath import MAX_DIGITS, Ahead
from pam_totp.core.record import UNKNOWN_USER, UserRecord
from pam_totp.core.settings import NEXT_PROMPT, Settings, is_database
from pam_totp.core.verify import Decision, Earlier, Outcome, verify, work_out_ahead
from pam_totp.operations import grace
from pam_totp.operations.audit_log import NO_ANSWER
from pam_totp.operations.authenticate import (
    DECOY,
    REFUSAL_DELAY,
    REFUSED,
    Verify,
    decide,
    facts,
    refusal_delay,
    remarks,
)
from pam_totp.store import NoAccount, NotThere, Store, StoreError, clock_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any, TypeAlias, TypeVar

    R = TypeVar("R")

Typed = bytes | bytearray
Log: TypeAlias = "Callable[..., None]"  # verb, fields
OpenStore: TypeAlias = "Callable[[float], Store]"  # the seconds that it waits for a lock
Waits: TypeAlias = "Generator[Any, Any, R]"  # yields waits, and returns R
UNKNOWN_ACCOUNT = "unknown account: nullok requires a passwd entry"


class Result(Enum):
    """The result of a dialogue."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    IGNORED = "ignored"  # `nullok`, and the user is not enrolled
    UNAVAILABLE = "unavailable"  # the store cannot be reached
    NO_ANSWER = "no answer"


class UseStore:
    """Call `job` with the seconds that it may wait for a lock. The reply is its result; it may raise StoreError.

    A job that raises LockBusy can be called again. `is_slow` is True if the job may compute for long without a lock
    too, and `is_remote` if it waits for a database. `record` is the store and the user of the record that it changes.
    Jobs of one record are done in their order.
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


class Pause:
    """Wait until `seconds` have passed since the last answer. There is no reply."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Conversation(Protocol):
    """The way to the user."""

    def ask(self, prompt: str, *, echo: bool, meanwhile: UseStore | None) -> Waits[Typed | None]:
        """Show a prompt, and return the answer; None if there is none. Do `meanwhile` while the user types."""

    def first_pass(self) -> Waits[Typed | None]:
        """Return the answer that an earlier module got, or None."""

    def show(self, text: str, *, error: bool) -> None:
        """Show a text, as an error or as information."""

    def hand_on(self, password: memoryview) -> None:
        """Make `password` the answer that later modules get."""


class Dialogue:
    """One login of `user`, the name in the passwd entry. `now` returns Unix seconds.

    `origin` is its key of grace (`grace.origin`), or None if there is no grace. `search` verifies answers that need a
    long search. `is_sshd` is True if the host program is sshd. With `nullok`, `check_account` gets the seconds that it
    may wait for a lock. It returns True if the user may pass without being enrolled, and raises StoreError if that is
    not known.
    """

    def __init__(
        self,
        settings: Settings,
        user: str,
        open_store: OpenStore,
        *,
        origin: tuple[str, str] | None,
        now: Callable[[], int],
        log: Log,
        check_account: Callable[[float], bool],
        search: Verify = verify,
        is_sshd: bool = False,
    ) -> None:
        self._settings, self._user, self._open_store = settings, user, open_store
        self._is_sshd = is_sshd
        self._origin, self._now, self._log, self._search = origin, now, log, search
        self._check_account = check_account
        self._nullok = settings.nullok_at(now())
        self._may_pass = False  # without being enrolled
        self._is_in_home = settings.secret is not None  # the home folder may be on a slow server
        self._is_remote = settings.secret is None and is_database(settings.store)
        self._delay = refusal_delay(settings.policy)
        self._earlier = Earlier.NONE
        self._ahead = Ahead()
        self._answers: list[Answer] = []  # to be wiped

    def run(self, conversation: Conversation) -> Waits[Result]:
        try:
            return (yield from self._run(conversation))
        except StoreError as e:
            self._log("error", problem=str(e))
            return Result.UNAVAILABLE
        finally:
            self._ahead.wipe()
            for answer in self._answers:
                answer.wipe()

    def _run(self, conversation: Conversation) -> Waits[Result]:
        settings, log = self._settings, self._log
        if settings.debug:
            shown = {
                n: "yes" if v is True else v for n, v in settings.facts().items() if v is not False and n != "user"
            }
            log("debug", **shown)
        if self._nullok or self._origin is not None:
            is_slow = self._is_in_home or settings.nullok_group is not None  # a name service may have the group
            record = yield UseStore(self._read, is_slow=is_slow, is_remote=self._is_remote)
            if self._may_pass:
                log("ignored", reason=Outcome.NOT_ENROLLED.value)
                return Result.IGNORED
            if self._has_grace(record):
                log("accepted", by="grace")
                return Result.ACCEPTED

        if settings.first_pass in ("try_first_pass", "use_first_pass"):
            typed = yield from conversation.first_pass()
            if typed is not None:
                decision = yield from self._decide(typed, conversation, prompted=False)
                if decision.outcome.accepted:
                    return Result.ACCEPTED
            if settings.first_pass == "use_first_pass":
                if typed is None:
                    log("refused", reason=NO_ANSWER)
                if not self._is_sshd:
                    conversation.show(REFUSED, error=True)
                return Result.REFUSED

        meanwhile = UseStore(self._compute_codes, is_slow=self._is_in_home, is_remote=self._is_remote)
        typed = yield from conversation.ask(settings.prompt, echo=settings.echo, meanwhile=meanwhile)
        if typed is None:
            log("refused", reason=NO_ANSWER)
            return Result.NO_ANSWER
        decision = yield from self._decide(typed, conversation)
        asks_again = settings.second_prompt
        if asks_again and self._is_sshd and not decision.outcome.accepted:
            conversation.show(REFUSED, error=True)
        while asks_again and not decision.outcome.accepted:
            typed = yield from conversation.ask(NEXT_PROMPT, echo=settings.echo, meanwhile=None)
            if typed is None:
                log("refused", reason=NO_ANSWER)
                break
            decision = yield from self._decide(typed, conversation)
            asks_again = decision.next_code is not None
        if decision.outcome.accepted:
            return Result.ACCEPTED
        if settings.first_pass != "forward_pass" and not self._is_sshd:
            conversation.show(REFUSED, error=True)
        return Result.REFUSED

    def _decide(self, typed: Typed, conversation: Conversation, *, prompted: bool = True) -> Waits[Decision]:
        """Decide on an answer, and delay a refusal. `prompted` is False for the answer of an earlier module.

        With `forward_pass`, the next module gets the password after a refusal too. Otherwise its behaviour would show
        whether the codes were right.
        """
        settings = self._settings
        forwards = settings.first_pass == "forward_pass"
        answer = Answer.parse_behind_password(typed) if forwards else Answer.parse(typed)
        self._answers.append(answer)

        def job(lock_wait: float) -> Decision:
            store = self._open_store(lock_wait)
            return decide(
                store,
                self._user,
                answer,
                settings.policy,
                clock_of(store, self._now),
                follow=None if self._origin is None else self._with_grace,
                earlier=self._earlier,
                ahead=self._ahead,
                verify=self._search if is_slow else verify,
            )

        searches_far = len(answer.digits) > MAX_DIGITS or bool(self._earlier.answers)  # for codes in a row
        is_slow = searches_far or self._is_in_home or self._delay > REFUSAL_DELAY  # the delay covers any search
        try:
            record = (settings.store, self._user)
            decision: Decision = yield UseStore(job, is_slow=is_slow, is_remote=self._is_remote, record=record)
        except StoreError:
            yield Pause(self._delay)  # the delay must hide the length of the search, also if the disk is full
            raise
        password = answer.password(decision.record.code_lengths if decision.record.enrolled else CODE_LENGTHS)
        if password:
            conversation.hand_on(password)
        verb, fields = facts(decision)
        self._log(verb, **fields)
        if forwards or not decision.outcome.accepted:
            yield Pause(self._delay)
        if not decision.outcome.accepted:
            self._earlier = self._earlier.followed_by(answer, decision, prompted=prompted)
        elif not forwards:
            for remark in remarks(decision):
                conversation.show(remark, error=False)
        return decision

    def _read(self, lock_wait: float) -> UserRecord:
        try:
            record = self._open_store(lock_wait).read(self._user)
        except NoAccount:
            if self._nullok:
                raise StoreError(UNKNOWN_ACCOUNT) from None
            return UNKNOWN_USER
        except NotThere:
            record = UNKNOWN_USER
        if self._nullok and not record.enrolled:
            self._may_pass = self._check_account(lock_wait)
        return record

    def _compute_codes(self, lock_wait: float) -> None:
        """Compute the next codes while the user types. For a user without a record, compute those of a decoy."""
        try:
            record = self._open_store(lock_wait).read(self._user)
        except (NotThere, StoreError):  # `decide` meets the error again
            record = UNKNOWN_USER
        tokens = [token for token in record.tokens if token.active] or DECOY.tokens[:1]
        self._ahead = work_out_ahead(tokens, self._now(), self._settings.policy)

    def _has_grace(self, record: UserRecord) -> bool:
        period, policy = self._settings.grace_period, self._settings.policy
        return self._origin is not None and grace.holds(record, self._origin, self._now(), period, policy)

    def _with_grace(self, decision: Decision, now: int) -> UserRecord:
        if decision.outcome is Outcome.RECOVERY or self._origin is None:
            return decision.record
        return grace.granted(decision.record, self._origin, now)
