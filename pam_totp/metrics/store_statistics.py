"""The statistics of a store: tokens by type and state, users without recovery codes, users with wrong answers.

Rules:
1. A metric never contains the name of a user or token, or a serial number. Only the terminal shows names.
2. No metric has the number of users with wrong answers. That number would show which names are enrolled, because only
   the failures of enrolled users are counted.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from pam_totp.core.record import TOKEN_TYPES, Token, TotpToken, UserRecord
from pam_totp.metrics.exposition import Metric, Sample

STATES = ("active", "never_used", "row_needed", "unconfirmed", "disabled")


class TokenFacts(NamedTuple):
    """The facts about a token that explain its lines in the log. `period` is in seconds, or 0 for HOTP."""

    serial: str | None
    period: int
    drift: int


class StoreStatistics:
    """The statistics of the records that were added."""

    def __init__(self) -> None:
        self.users = self.enrolled = self.unreadable = 0
        self.tokens: Counter[tuple[str, str]] = Counter()  # by type and state
        self.without_recovery = 0  # enrolled users
        self.failures: dict[str, int] = {}  # by user
        self.known: dict[tuple[str, str, int], TokenFacts] = {}  # by user, name and creation

    def add(self, record: UserRecord, now: int) -> None:
        self.users += 1
        self.enrolled += record.enrolled
        self.without_recovery += record.enrolled and not record.recovery
        failures, _ = record.failures_now(now)
        if failures:
            self.failures[record.user] = failures
        for token in record.tokens:
            self.tokens[token.type, state_of(token)] += 1
            period, drift = (token.period, token.drift) if isinstance(token, TotpToken) else (0, 0)
            self.known[record.user, token.name, token.created] = TokenFacts(token.serial, period, drift)

    def metrics(self) -> list[Metric]:
        tokens = [
            Sample({"type": kind, "state": state}, self.tokens[kind, state]) for kind in TOKEN_TYPES for state in STATES
        ]
        return [
            Metric("pam_totp_tokens", "gauge", "Tokens by type and state.", tuple(tokens)),
            *(
                Metric(f"pam_totp_{name}", "gauge", text, (Sample({}, value),))
                for name, text, value in (
                    ("users", "Users with a readable record.", self.users),
                    ("users_enrolled", "Users who need a code.", self.enrolled),
                    (
                        "users_without_recovery_codes",
                        "Enrolled users without unused recovery codes.",
                        self.without_recovery,
                    ),
                    ("records_unreadable", "Records that cannot be read.", self.unreadable),
                )
            ),
        ]


def state_of(token: Token) -> str:
    """Return the state of a token: one of STATES."""
    if not token.enabled:
        return "disabled"
    if not token.confirmed:
        return "unconfirmed"
    if token.row_needed:
        return "row_needed"
    return "never_used" if token.last_used is None else "active"
