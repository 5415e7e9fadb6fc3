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
from pam_totp.core.policy import Policy
from pam_totp.core.record import NEW_RECOVERY_CODES, TemporaryCode, Ticket, Token, UserRecord
from pam_totp.core.verify import is_ticket
from pam_totp.operations.enroll import new_long_code, new_recovery_codes, verify_first_code

DAY = 86_400  # seconds
TICKET_DAYS = 7  # days that a ticket is valid, unless its maker chooses another end
MAX_TICKET = 90 * DAY  # seconds
MAX_TEMPORARY = DAY  # seconds
_SALT = 16  # bytes


def invited(record: UserRecord, token: Token, ends: int, picture: str | None = None) -> tuple[UserRecord, str]:
    """Return `record` with a ticket for `token`, and the ticket for display. The ticket replaces an earlier one.

    `token` is unconfirmed. It is a new token, or a token of `record` that an administrator has assigned. The key of the
    earlier ticket's token is removed, unless the token has a serial number. `ends` is in Unix seconds. Raise
    RecordError for a name or key that another token has.
    """
    earlier = record.invited
    if earlier is not None and earlier.serial is None and earlier != token:
        record = record.without_token(earlier.name)
    if record.token(token.name) != token:
        record = record.with_token(token)
    salt, (code, shown) = secrets.token_hex(_SALT), new_long_code()
    ticket = Ticket(salt=salt, digest=recovery_digest(salt, code), ends=ends, token=token.name, picture=picture)
    return record.with_ticket(ticket), shown


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
