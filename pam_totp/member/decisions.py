"""The verifier of a login on a member: the authorities decide on its answers.

Rules:
1. This host sends the answers of the user, and gets a verdict with the messages for the user.
2. All questions of one login have one random id, so that an authority decides on a repeated question only once.
3. A malformed answer is sent as an empty answer: the user might have typed a password. This host sends only the
   codes of an answer that also contains a password (`forward_pass`).
4. Logins fail while no authority decides. With `centre_down = "break-glass"`, recovery codes of this host are
   valid then, if the user's record on this host has no token. A code of a token is therefore valid only with an
   authority.
5. This host asks about an enrolment ticket first, and only if this login takes tickets. The reply to a right ticket has
   the token's key.
6. An authority may exempt a user from the prompt only if this host asked for the exemption: by `nullok` or
   `grace_period`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pam_totp.core.answer import CODE_LENGTHS, recovery_digest
from pam_totp.core.fields import Value
from pam_totp.core.policy import Policy
from pam_totp.core.verify import Outcome, Tickets
from pam_totp.member.client import client_of
from pam_totp.member.errors import UNAUTHORIZED, NotAllowed
from pam_totp.member.wire import (
    ACCEPTED,
    ANSWER_PATH,
    BEGIN_PATH,
    ID_BYTES,
    MAX_NAME,
    OPEN,
    REDEEM_PATH,
    Begin,
    BeginVerdict,
    Question,
    Redeem,
    Redemption,
    askable,
    text_of,
)
from pam_totp.member.wire import Verdict as WireVerdict
from pam_totp.operations.authenticate import REFUSAL_DELAY, Origin
from pam_totp.operations.tickets import Confirmation, Invitation
from pam_totp.operations.verifier import Result, UseStore, Verdict
from pam_totp.store import NotThere, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pam_totp.core.answer import Answer
    from pam_totp.core.record import UserRecord
    from pam_totp.core.settings import MemberSettings, Settings
    from pam_totp.operations.conversation import Log
    from pam_totp.operations.verifier import OpenStore

REFUSED, NOT_THIS_MEMBER, REVOKED = "refused", "not-this-member", "not-a-member"  # reasons in the log
BREAK_GLASS = "break-glass"
_optional_name = text_of(0, MAX_NAME)


class Asked(Value):
    """The subject of a login's questions: the user by the name in the passwd entry, and the PAM items."""

    user: str
    service: str
    rhost: str | None
    tty: str | None


class RemoteVerifier:
    """The verifier that asks the authorities of `member` about the answers of one login.

    `asks_grace` is True if the login may have grace. `nullok`, `check_account` and `tickets` are those of a local
    verifier; `check_account` may call `is_enrolled`. `open_store` opens the store with the records for break-glass.
    `log` gets a verb and fields.
    """

    delay = REFUSAL_DELAY

    def __init__(
        self,
        settings: Settings,
        member: MemberSettings,
        asked: Asked,
        open_store: OpenStore,
        *,
        nullok: bool,
        asks_grace: bool,
        came_from: Origin,
        now: Callable[[], int],
        check_account: Callable[[float], bool],
        log: Log,
        tickets: Tickets,
    ) -> None:
        self._tickets = tickets
        self._member, self._asked, self._open_store = member, asked, open_store
        self._nullok, self._asks_grace, self._came_from, self._now = nullok, asks_grace, came_from, now
        self._check_account, self._log = check_account, log
        self._id = os.urandom(ID_BYTES).hex()
        self._refused: list[str] = []  # the refused answers to the prompts of this login
        self._lengths = frozenset({member.forward_digits}) if settings.first_pass == "forward_pass" else CODE_LENGTHS

    def before_prompt(self) -> UseStore | None:
        if not (self._nullok or self._asks_grace):
            return None
        return UseStore(self._exempt, is_slow=False, is_remote=True, record=self._record)

    def while_typing(self) -> None:
        return None

    def decide(self, answer: Answer, *, prompted: bool) -> UseStore:
        def job(lock_wait: float) -> Verdict:
            text = _text(answer, self._lengths)
            first, second = (*self._refused, None, None)[:2] if prompted else (None, None)
            question = Question(
                id=self._id,
                user=askable(self._asked.user),
                service=askable(self._asked.service),
                rhost=_askable_or_none(self._asked.rhost),
                tty=_askable_or_none(self._asked.tty),
                answer=text,
                first=first,
                second=second,
            )
            try:
                verdict = self._redeem(answer) if prompted else None
                if verdict is not None or self._tickets is Tickets.EVERYBODY:
                    return verdict or self._verdict(Result.REFUSED, {"reason": REFUSED})
                found, authority = client_of(self._member).ask("POST", ANSWER_PATH, question, WireVerdict)
            except StoreError as e:  # OutOfReach, or the credentials of this host cannot be used
                if not self._member.allows_break_glass:
                    raise
                return self._break_glass(answer, e, lock_wait)
            except NotAllowed as e:
                return self._verdict(Result.REFUSED, {"reason": _reason(e), "authority": e.authority})
            if found.accepted:
                fields = {"by": found.by, "authority": authority}
                return self._verdict(Result.ACCEPTED, fields, messages=found.messages)
            if prompted:
                self._refused.append(text)
            fields = {"reason": REFUSED, "authority": authority}
            return self._verdict(Result.REFUSED, fields, asks_again=found.again and len(self._refused) == 2)

        return UseStore(job, is_slow=False, is_remote=True, record=self._record)

    def _redeem(self, answer: Answer) -> Verdict | None:
        """Return the verdict on a right ticket, or None for every other answer. Raise StoreError."""
        if self._tickets is Tickets.NONE or answer.recovery_code is None:
            return None
        try:
            found, authority = self._ask_redemption(answer, None)
        except NotAllowed:
            return None  # the question about the answer gets the same refusal, which is logged
        if found.verdict != OPEN:
            return None
        facts = {name: getattr(found, name) for name in Invitation._fields}
        fields: dict[str, str | None] = {"what": Outcome.TICKET.value, "token": found.token, "authority": authority}
        return self._verdict(Result.REFUSED, fields, invitation=Invitation(**facts))

    def confirm(self, ticket: Answer, first: Answer) -> UseStore:
        def job(_: float) -> Confirmation:
            try:
                found, authority = self._ask_redemption(ticket, _text(first, self._lengths))
            except NotAllowed:  # revoked meanwhile
                return Confirmation.CLOSED
            if found.verdict != ACCEPTED:
                return Confirmation(is_open=found.verdict == OPEN)
            fields = {"token": found.token, "authority": authority}
            return Confirmation(is_open=False, recovery_codes=found.codes, fields=fields, at=self._now())

        return UseStore(job, is_slow=False, is_remote=True, record=self._record)

    def _ask_redemption(self, ticket: Answer, first: str | None) -> tuple[Redemption, str]:
        question = Redeem(
            id=self._id,
            user=askable(self._asked.user),
            service=askable(self._asked.service),
            rhost=_askable_or_none(self._asked.rhost),
            ticket=_text(ticket, self._lengths),
            first=first,
        )
        return client_of(self._member).ask("POST", REDEEM_PATH, question, Redemption)

    @property
    def _record(self) -> tuple[str, str]:
        """The record of a `UseStore`: questions about one user are asked one after the other."""
        return self._member.key, self._asked.user

    def wipe(self) -> None:
        self._refused.clear()

    def _verdict(
        self,
        result: Result,
        fields: dict[str, str | None],
        *,
        messages: tuple[str, ...] = (),
        asks_again: bool = False,
        invitation: Invitation | None = None,
    ) -> Verdict:
        return Verdict(
            result=result,
            fields=fields,
            messages=messages,
            asks_again=asks_again,
            code_lengths=self._lengths,
            invitation=invitation,
        )

    def _exempt(self, lock_wait: float) -> Verdict | None:
        """Return the verdict that lets the user pass without a code, or None."""
        try:
            found, authority = self._begin(self._asked.user)
        except NotAllowed:  # the answer gets the same refusal, which is logged
            return None
        except StoreError:
            if self._member.allows_break_glass:
                return None
            raise
        if found.by == "grace" and self._asks_grace:
            return self._verdict(Result.ACCEPTED, {"by": found.by, "authority": authority})
        if found.by == Outcome.NOT_ENROLLED.value and self._nullok and self._check_account(lock_wait):
            return self._verdict(Result.IGNORED, {"reason": found.by, "authority": authority})
        return None

    def is_enrolled(self, user: str) -> bool:
        """Return True if `user` might be enrolled, by the reply of the authority. Raise StoreError."""
        try:
            return self._begin(user)[0].by != Outcome.NOT_ENROLLED.value
        except NotAllowed:
            return True

    def _begin(self, user: str) -> tuple[BeginVerdict, str]:
        service, rhost = askable(self._asked.service), _askable_or_none(self._asked.rhost)
        question = Begin(user=askable(user), service=service, rhost=rhost)
        return client_of(self._member).ask("POST", BEGIN_PATH, question, BeginVerdict)

    def _break_glass(self, answer: Answer, problem: StoreError, lock_wait: float) -> Verdict:
        """Return the verdict on a right recovery code of this host. Raise `problem` for every other answer.

        Raise an error with both texts if the store of this host fails, too.
        """
        code, user = answer.recovery_code, self._asked.user
        if code is None:
            raise problem

        def change(record: UserRecord) -> tuple[UserRecord, int | None]:
            digest = None if record.salt is None else recovery_digest(record.salt, code)
            if record.tokens or digest is None or digest not in record.recovery:
                return record, None
            now = self._now()
            after = record.recovered(digest, Policy().most_failures_kept, now)
            after = after.with_recent(self._came_from.entry(Outcome.RECOVERY, now))
            return after, len(after.recovery)

        try:
            left = self._open_store(lock_wait).update(user, change)
        except NotThere:
            left = None
        except StoreError as e:
            raise type(e)(f"{problem}; break-glass: {e}") from None
        if left is None:
            raise problem
        self._log("error", problem=f"break-glass: {user} logs in by a recovery code of this host: {problem}")
        fields: dict[str, str | None] = {"by": BREAK_GLASS, "recovery_left": str(left)}
        return self._verdict(Result.ACCEPTED, fields, messages=(f"recovery code used, {left} left",))


def _reason(refusal: NotAllowed) -> str:
    return REVOKED if refusal.status == UNAUTHORIZED else NOT_THIS_MEMBER


def _text(answer: Answer, lengths: frozenset[int]) -> str:
    """Return the code, the codes in a row or the recovery code of an answer; "" for every other answer."""
    if answer.typed is not None:
        codes = answer.typed[len(answer.password(lengths)) :]
    else:
        codes = answer.digits if answer.recovery_code is None else answer.recovery_code
    return bytes(codes).decode("ascii")


def _askable_or_none(item: str | None) -> str | None:
    """Return the PAM item `item`, or None if a question cannot contain the item."""
    return item if item is not None and _optional_name(item) is None else None
