"""Enrolment tickets and temporary codes, which an administrator or a desk member hands to a user.

Rules:
1. A ticket and a temporary code have 80 random bits, as a recovery code has. Both are shown once, and stored as salted
   digests with the time of expiry.
2. `issue_ticket` adds the token to the record, unconfirmed. The owner of the ticket therefore sees the same key at
   every try, for example after a lost connection.
3. `redeem_ticket` is one change: it confirms the token by its first code, and uses up the ticket. The change also
   replaces the recovery codes and all earlier confirmed tokens. Of two logins with one ticket at the same time, only
   one succeeds.
4. A wrong ticket is no failure, because a ticket is too long to be guessed. A wrong first code is no failure, because
   the owner of the ticket knows the key. The key of a key fob is hidden. A key fob therefore needs two codes in a row,
   which are too long to be guessed.
5. Functions return new values. The caller stores them. The operating system generates the random bits.
"""

from __future__ import annotations

import os

from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.fields import Value
from pam_totp.core.lean import TYPE_CHECKING
from pam_totp.core.oath import MIN_DIGITS
from pam_totp.core.policy import Policy
from pam_totp.core.record import (
    DAY,
    DEFAULT_NAMES,
    NEW_RECOVERY_CODES,
    NEW_SECRET,
    TemporaryCode,
    Ticket,
    Token,
    UserRecord,
)
from pam_totp.core.settings import REDEEM_SERVICE, Settings
from pam_totp.core.verify import Decision, Outcome, Tickets, is_ticket, takes_ticket
from pam_totp.operations.audit_log import of_token
from pam_totp.operations.enroll import (
    grouped_key,
    new_long_code,
    new_recovery_codes,
    new_token,
    unusual,
    verify_first_code,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import ClassVar

TICKET_DAYS = 7  # days that a ticket is valid, unless its creator chooses another end
MAX_TICKET = 90 * DAY  # seconds
MAX_TEMPORARY = DAY  # seconds
BY_TICKET = "ticket"  # in the log: the author of a change, and the method of an accepted login
_SALT = 16  # bytes


class Invitation(Value):
    """The facts that the owner of a ticket sees before the first code.

    `key` is base32 in groups of four characters, or None for a token with a serial number, which already contains its
    key. `unusual` are the properties that some phone apps ignore in a QR code. `picture` is the QR code
    (`formats.qr.packed`), or None.
    """

    type: str
    digits: int
    codes_needed: int
    key: str | None
    serial: str | None = None
    unusual: tuple[str, ...] = ()
    picture: str | None = None


class Confirmation(Value):
    """The decision on a first code.

    `is_open` is True if the code is wrong and the ticket is still valid. `recovery_codes` are the new codes if the
    token was confirmed, otherwise None. `fields` are for the log; `removals` are the fields of the replaced tokens.
    `at` is the time of the change (Unix seconds).
    """

    is_open: bool
    recovery_codes: tuple[str, ...] | None = None
    fields: Mapping[str, str | int | None] = {}
    removals: tuple[Mapping[str, str | int | None], ...] = ()
    at: int | None = None

    CLOSED: ClassVar[Confirmation]

    def lines(self, invitation: Invitation) -> Iterator[tuple[str, dict[str, str | int | None]]]:
        """Yield the verbs and the fields of the lines about a confirmed token."""
        made: dict[str, str | int | None] = {"at": self.at, "by": BY_TICKET}
        kind = {"type": invitation.type, "serial": invitation.serial}
        for removal in self.removals:
            yield "changed", {"what": "remove", **removal, **made}
        yield "changed", {"what": "enroll", **self.fields, **kind, **made}
        yield "changed", {"what": "recovery", "codes": len(self.recovery_codes or ()), **made}
        yield "accepted", {"by": BY_TICKET, **self.fields}


Confirmation.CLOSED = Confirmation(is_open=False)


def tickets_of(chosen: Settings, service: str) -> Tickets:
    """Return the users whose tickets are valid in a login to `service`."""
    if service == REDEEM_SERVICE:
        return Tickets.EVERYBODY
    return Tickets.UNENROLLED if chosen.takes_tickets(service) else Tickets.NONE


def invitation(record: UserRecord) -> Invitation | None:
    """Return the invitation of the user's ticket, or None without a ticket. The caller checks the ticket."""
    token = record.invited_token
    if token is None or record.ticket is None:
        return None
    shown = shows_key(token)
    return Invitation(
        type=token.type,
        digits=token.digits,
        codes_needed=codes_needed(token),
        key=grouped_key(token) if shown else None,
        serial=token.serial,
        unusual=tuple(unusual(token)) if shown else (),
        picture=record.ticket.picture if shown else None,
    )


def issue_ticket(record: UserRecord, token: Token, ends: int, picture: str | None = None) -> tuple[UserRecord, str]:
    """Return `record` with a new ticket for `token` that expires at `ends` (Unix seconds), and the ticket as text."""
    ticket, shown = new_ticket(token, ends, picture)
    return with_ticket(record, token, ticket), shown


def new_ticket(token: Token, ends: int, picture: str | None = None) -> tuple[Ticket, str]:
    """Return a new ticket for the unconfirmed `token`, and its text for the owner. `ends` is in Unix seconds."""
    salt, (code, shown) = os.urandom(_SALT).hex(), new_long_code()
    digest = recovery_digest(salt, code)
    return Ticket(salt=salt, digest=digest, ends=ends, token=token.name, picture=picture), shown


def with_ticket(record: UserRecord, token: Token, ticket: Ticket) -> UserRecord:
    """Return `record` with `ticket` in place of an earlier ticket, and with `token` unless the record has it.

    `token` is a new token, or a token that an administrator has assigned. The token of the earlier ticket is removed,
    unless it has a serial number. Raise RecordError if another token of the record has the name or the key.
    """
    earlier = record.invited_token
    if earlier is not None and earlier.serial is None and earlier != token:
        record = record.without_token(earlier.name)
    if record.token(token.name) != token:
        record = record.with_token(token)
    return record.with_ticket(ticket)


def new_phone(record: UserRecord, now: int) -> Token:
    """Return a new unconfirmed phone app for `record`, with the name `phone` or, for a second phone, `phone 2`."""
    kept = record.tokens if (old := record.invited_token) is None else [t for t in record.tokens if t is not old]
    names, name = {t.name for t in kept}, DEFAULT_NAMES["totp"]
    name = next(n for n in (name, *(f"{name} {i}" for i in range(2, len(kept) + 3))) if n not in names)
    key = os.urandom(NEW_SECRET)
    return new_token("totp", name=name, secret=key, algorithm="SHA1", digits=MIN_DIGITS, now=now)


def redeem_ticket(
    record: UserRecord, ticket: Answer, first: Answer, now: int, policy: Policy
) -> tuple[UserRecord, Token, list[str]] | None:
    """Redeem a ticket: return `record` after the first code of its token, the confirmed token, and new recovery codes.

    The ticket lowers the failures as a recovery code does (law 8).

    Return None for a wrong first code, and for a ticket that is wrong, used, or expired at `now` (Unix seconds).
    """
    token = record.invited_token
    if token is None or not is_ticket(record, ticket, now):
        return None
    confirmed = verify_first_code(token, first, now, codes_needed=codes_needed(token))
    if confirmed is None:
        return None
    after = record.redeemed(confirmed).lowered(policy.most_failures_kept, now)
    after, shown = new_recovery_codes(after, NEW_RECOVERY_CODES)
    return after, confirmed, shown


def confirm_by_ticket(
    record: UserRecord, ticket: Answer, first: Answer, now: int, policy: Policy, *, tickets: Tickets
) -> tuple[UserRecord, Confirmation]:
    """Do the same as `redeem_ticket` in a dialogue that takes `tickets`. Return the record and the confirmation."""
    if not takes_ticket(record, tickets):
        return record, Confirmation.CLOSED
    done = redeem_ticket(record, ticket, first, now, policy)
    if done is None:
        return record, Confirmation(is_open=is_ticket(record, ticket, now))
    after, token, codes = done
    return after, Confirmation(
        is_open=False,
        recovery_codes=tuple(codes),
        fields=of_token(token),
        removals=tuple(of_token(t) for t in record.tokens if t.confirmed),
        at=now,
    )


def verify_ticket_alone(
    record: UserRecord, answer: Answer, now: int, policy: Policy, *, tickets: Tickets = Tickets.NONE, **_: object
) -> Decision:
    """Do the same as `core.verify.verify` for the user's ticket. Refuse every other answer, and use up no code."""
    if record.ticket is not None and takes_ticket(record, tickets) and is_ticket(record, answer, now):
        return Decision(outcome=Outcome.TICKET, record=record, token=record.ticket.token)
    return Decision(outcome=Outcome.WRONG, record=record)


def codes_needed(token: Token) -> int:
    """Return the number of codes in a row that confirm the token of a ticket: 1 for TOTP in a phone app, otherwise 2.

    The counter of a HOTP token is unknown. The key of a key fob is hidden, so an attacker could guess one code.
    """
    return 1 if token.type == "totp" and shows_key(token) else 2


def shows_key(token: Token) -> bool:
    """Return True if the ticket's owner may see the key. A token with a serial number already contains its key."""
    return token.serial is None


def with_temporary_code(record: UserRecord, ends: int) -> tuple[UserRecord, str]:
    """Return `record` with a new temporary code that expires at `ends` (Unix seconds), and the code for display."""
    salt, (code, shown) = os.urandom(_SALT).hex(), new_long_code()
    return record.with_temporary(TemporaryCode(salt=salt, digest=recovery_digest(salt, code), ends=ends)), shown
