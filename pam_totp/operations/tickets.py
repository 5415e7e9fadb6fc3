"""Enrolment tickets and temporary codes, which an administrator or a desk member hands to a user.

Rules:
1. A ticket and a temporary code have 80 random bits, as a recovery code has. They are shown once, and stored as salted
   digests with their end.
2. `invited` makes the token at once, unconfirmed. The owner of the ticket sees the same key at every try, so that a
   lost connection costs nothing.
3. `redeemed` confirms the token by its first code, ends the ticket, and replaces the recovery codes and all tokens that
   were confirmed before, in one change. Of two owners of one ticket at the same time, one wins.
4. A wrong ticket is not counted as a failure, because it is too long to be guessed. A wrong first code is not counted,
   because the owner of the ticket knows the key.
5. Functions return new values. The caller stores them. The operating system generates the random bits.
"""

from __future__ import annotations

import secrets

from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.oath import MIN_DIGITS
from pam_totp.core.policy import Policy
from pam_totp.core.record import (
    DEFAULT_NAMES,
    NEW_RECOVERY_CODES,
    NEW_SECRET,
    TemporaryCode,
    Ticket,
    Token,
    UserRecord,
)
from pam_totp.core.verify import is_ticket
from pam_totp.operations.enroll import new_long_code, new_recovery_codes, new_token, verify_first_code

DAY = 86_400  # seconds
TICKET_DAYS = 7  # days that a ticket is valid, unless its maker chooses another end
MAX_TICKET = 90 * DAY  # seconds
MAX_TEMPORARY = DAY  # seconds
_SALT = 16  # bytes


def invited(record: UserRecord, token: Token, ends: int, picture: str | None = None) -> tuple[UserRecord, str]:
    """Return `record` with a new ticket for `token`, and the ticket for display. See `new_ticket` and `with_ticket`."""
    ticket, shown = new_ticket(token, ends, picture)
    return with_ticket(record, token, ticket), shown


def new_ticket(token: Token, ends: int, picture: str | None = None) -> tuple[Ticket, str]:
    """Return a new ticket for the unconfirmed `token`, and the ticket for display. `ends` is in Unix seconds."""
    salt, (code, shown) = secrets.token_hex(_SALT), new_long_code()
    digest = recovery_digest(salt, code)
    return Ticket(salt=salt, digest=digest, ends=ends, token=token.name, picture=picture), shown


def with_ticket(record: UserRecord, token: Token, ticket: Ticket) -> UserRecord:
    """Return `record` with `ticket` in place of an earlier one, and with `token` unless the record has it.

    `token` is a new token, or a token that an administrator has assigned. The token of the earlier ticket is removed,
    unless it has a serial number. Raise RecordError for a name or key that another token has.
    """
    earlier = record.invited
    if earlier is not None and earlier.serial is None and earlier != token:
        record = record.without_token(earlier.name)
    if record.token(token.name) != token:
        record = record.with_token(token)
    return record.with_ticket(ticket)


def new_phone(record: UserRecord, now: int) -> Token:
    """Return a new unconfirmed phone app for `record`, with the name `phone` or, for a second phone, `phone 2`."""
    kept = record.tokens if (old := record.invited) is None else [t for t in record.tokens if t is not old]
    names, name = {t.name for t in kept}, DEFAULT_NAMES["totp"]
    name = next(n for n in (name, *(f"{name} {i}" for i in range(2, len(kept) + 3))) if n not in names)
    key = secrets.token_bytes(NEW_SECRET)
    return new_token("totp", name=name, secret=key, algorithm="SHA1", digits=MIN_DIGITS, now=now)


def redeemed(
    record: UserRecord, ticket: Answer, first: Answer, now: int, policy: Policy
) -> tuple[UserRecord, Token, list[str]] | None:
    """Return `record` after the first code of the invited token, the confirmed token, and new recovery codes.

    The ticket lowers the failures as a recovery code does (law 8).

    Return None for a ticket that is wrong, used or past its end at `now` (Unix seconds), and for wrong first codes.
    """
    token = record.invited
    if token is None or not is_ticket(record, ticket, now):
        return None
    confirmed = verify_first_code(token, first, now, codes_needed=codes_needed(token))
    if confirmed is None:
        return None
    after = record.redeemed(confirmed).lowered(policy.most_failures_kept, now)
    after, shown = new_recovery_codes(after, NEW_RECOVERY_CODES)
    return after, confirmed, shown


def codes_needed(token: Token) -> int:
    """Return the number of codes in a row that confirm an invited token: 2 for a key fob, whose counter is unknown."""
    return 1 if token.type == "totp" else 2


def shows_key(token: Token) -> bool:
    """Return True if the ticket's owner may see the key: a token with a serial number has its key already."""
    return token.serial is None


def with_temporary_code(record: UserRecord, ends: int) -> tuple[UserRecord, str]:
    """Return `record` with a new temporary code that ends at `ends` (Unix seconds), and the code for display."""
    salt, (code, shown) = secrets.token_hex(_SALT), new_long_code()
    return record.with_temporary(TemporaryCode(salt=salt, digest=recovery_digest(salt, code), ends=ends)), shown
