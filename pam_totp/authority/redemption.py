"""The question of a member about an enrolment ticket, or about the first code of its token.

Rules:
1. A right ticket gives the member the key of the token: the user reads the key there. Therefore only the members of a
   group that may enrol users get the key (`pam-totp member groups`). Other members cannot redeem tickets.
2. A refused ticket has no line in the log, because the question about the same answer follows.
3. A right first code confirms the token in one change. The same question again, within REPEAT, gets new recovery codes,
   because the reply with the first recovery codes may be lost. The repeated question gets codes only while the token
   exists and is enabled, and the member may enrol users.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

from pam_totp.core.answer import Answer
from pam_totp.core.policy import Policy
from pam_totp.core.record import NEW_RECOVERY_CODES, UserRecord
from pam_totp.core.settings import Settings
from pam_totp.core.verify import Outcome, Tickets
from pam_totp.member import wire
from pam_totp.operations.authenticate import decide, facts
from pam_totp.operations.enroll import new_recovery_codes
from pam_totp.operations.first_login import NOT_CONFIRMED, TICKET_ENDED
from pam_totp.operations.tickets import (
    BY_TICKET,
    Confirmation,
    Invitation,
    confirm_by_ticket,
    invitation,
    tickets_of,
    verify_ticket_alone,
)
from pam_totp.store import NotThere
from pam_totp.store.postgres import AlreadyAnswered, PostgresStore, Question
from pam_totp.store.postgres_members import Found

REPEAT = 60  # seconds
REFUSED = wire.Redemption(verdict=wire.REFUSED)
Log: TypeAlias = Callable[[str, Mapping[str, str | int | None]], None]


def tickets_at(chosen: Settings, service: str, member: Found) -> Tickets:
    """Return the users whose tickets are valid in a login to `service` at this member."""
    return tickets_of(chosen, service) if member.may_enroll else Tickets.NONE


class Redeeming(NamedTuple):
    """One question. `user` is the name to look up, and `member` the name of the member."""

    store: PostgresStore
    user: str
    ticket: Answer
    policy: Policy
    tickets: Tickets
    member: str
    log: Log

    def present(self) -> wire.Redemption:
        """Return the reply to a question about the ticket."""
        decision = decide(
            self.store,
            self.user,
            self.ticket,
            self.policy,
            self.store.now,
            verify=verify_ticket_alone,
            tickets=self.tickets,
        )
        shown = invitation(decision.record) if decision.outcome is Outcome.TICKET else None
        if shown is None:
            return REFUSED
        self.log(*facts(decision))
        described = {name: getattr(shown, name) for name in shown._fields}
        return wire.Redemption(verdict=wire.OPEN, token=decision.token, **described)

    def confirm(self, first: Answer, digest: bytes) -> wire.Redemption:
        """Return the reply to a question about the first code. `digest` identifies the question."""
        shown: list[Invitation | None] = []

        def change(record: UserRecord) -> tuple[UserRecord, Confirmation]:
            shown[:] = [invitation(record)]
            return confirm_by_ticket(record, self.ticket, first, self.store.now(), self.policy, tickets=self.tickets)

        try:
            found = self.store.asked(Question(digest, _stored_text)).update(self.user, change)
        except NotThere:
            return REFUSED
        except AlreadyAnswered as e:
            return self._again(json.loads(e.verdict))
        if found.recovery_codes is None or shown[0] is None:
            self.log("refused", {"reason": NOT_CONFIRMED if found.is_open else TICKET_ENDED})
            return wire.Redemption(verdict=wire.OPEN) if found.is_open else REFUSED
        for verb, fields in found.lines(shown[0]):
            used = {"at": int(fields["next"] or 0) - 1} if verb == "accepted" else {}  # as for every accepted code
            self.log(verb, fields | used)
        token = str(found.fields["token"])
        return wire.Redemption(verdict=wire.ACCEPTED, codes=found.recovery_codes, token=token)

    def _again(self, content: Mapping[str, str | int]) -> wire.Redemption:
        """Return the reply to a repeated question about a right first code. `content` is the content of the text from
        `_stored_text`.
        """
        if self.tickets is Tickets.NONE or self.store.now() - int(content["a"]) > REPEAT:
            return REFUSED

        def renew(record: UserRecord) -> tuple[UserRecord, tuple[str, ...]]:
            token = record.token(str(content["t"]))
            if token is None or not token.active:
                return record, ()
            after, codes = new_recovery_codes(record, NEW_RECOVERY_CODES)
            return after, tuple(codes)

        try:
            codes = self.store.update(self.user, renew)
        except NotThere:
            return REFUSED
        if not codes:
            return REFUSED
        self.log("changed", {"what": "recovery", "codes": len(codes), "by": BY_TICKET, "again": "yes"})
        return wire.Redemption(verdict=wire.ACCEPTED, codes=codes, token=str(content["t"]))


def _stored_text(found: Confirmation) -> str:
    """Return the text to store for an enrolment, with the outcome (`o`), its time (`a`) and the token's name (`t`)."""
    return json.dumps({"o": Outcome.TICKET.value, "a": found.at, "t": found.fields.get("token")})
