"""The recent logins of a user, in words for the user and for administrators.

Rules:
- A record keeps the last acceptances and the last refusals (`UserRecord.with_recent`), for display only.
- A login by grace or `nullok` needs no code and leaves the record unchanged, so the recent logins lack it.
"""

from __future__ import annotations

from pam_totp.core.record import RecentLogin, UserRecord
from pam_totp.core.verify import Outcome

WORDS = {
    Outcome.CODE: "accepted with a code",
    Outcome.CONSECUTIVE: "accepted with codes in a row",
    Outcome.RECOVERY: "accepted with a recovery code",
    Outcome.TEMPORARY: "accepted with a temporary code",
    Outcome.TICKET: "accepted with a ticket and a first code",
    Outcome.WRONG: "refused: wrong code",
    Outcome.REPLAYED: "refused: code used before",
    Outcome.CONSECUTIVE_NEEDED: "refused: codes in a row needed",
    Outcome.REPEATED: "refused: same code again",
    Outcome.LOCKED: "refused: too many wrong codes",
}
OTHER_WORDS = {True: "accepted", False: "refused"}  # for an outcome of a later version
_WORDS = {outcome.value: text for outcome, text in WORDS.items()}


def newest_first(record: UserRecord) -> tuple[RecentLogin, ...]:
    """Return the recent logins of `record`, the newest first."""
    return record.recent_logins[::-1]


def words(login: RecentLogin) -> str:
    """Return the outcome of a login in words."""
    return _WORDS.get(login.outcome, OTHER_WORDS[login.accepted])
