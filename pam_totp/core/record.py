"""The record of one user: tokens, recovery codes, failures.

Rules:
1. A record is valid by construction: exact types, ranges, unique names of tokens, unique secrets.
2. Counters and steps only increase. Only `used_up` changes them in a stored record.
3. The count of failures decreases by one a day, by `lowered`, and by `unlocked` (law 8). At most one failure is removed
   for each day from the first failure to the latest time of the clock, regardless of clock changes.
4. An error names the field and the requirement, and never shows a value.
5. `repr` never shows a secret.
6. Recent logins are for display only. Decisions ignore them, and the store drops them if a slot has no space.
7. Changes by the desk are for display only, too. A login never changes them, so a slot always has space for them.
"""

from __future__ import annotations

from pam_totp.core.fields import (
    Rule,
    Value,
    boolean,
    choice,
    hexadecimal,
    instance_of,
    optional,
    printable,
    text,
    tuple_of,
    whole_number,
)
from pam_totp.core.lean import TYPE_CHECKING
from pam_totp.core.oath import ALGORITHMS, DEFAULT_PERIOD, MAX_DIGITS, MIN_DIGITS, MOVING_FACTOR_LIMIT

if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import ClassVar, Self

MAX_TOKENS = 8
MAX_RECOVERY_CODES = 100
NEW_RECOVERY_CODES = 10  # recovery codes for a user who enrols without an administrator
MAX_GRACE = 64  # entries in a file; a login keeps at most KEPT_GRACE
KEPT_GRACE = 16
KEPT_LOGINS = 4  # recent acceptances, and as many recent refusals
MAX_ORIGIN = 64  # characters of the service and of the address of a recent login
MAX_RECENT = 2048  # characters of all recent logins, and of all changes by the desk
KEPT_CHANGES = 6  # changes by the desk
MAX_GRACE_SERVICE, MAX_GRACE_RHOST = 32, 39  # characters: a service file's name, and the longest address of IPv6
MIN_SECRET, MAX_SECRET = 14, 128  # bytes: RFC 4226 §4 R6 requires 128 bits; 112 bits are common, and cause a warning
GOOD_SECRET = 16  # bytes: RFC 4226 §4 R6
DEFAULT_NAMES = {"totp": "phone", "hotp": "token"}  # token type -> the name of a token if the caller gives no name
NEW_SECRET = 20  # bytes: RFC 4226 §4 R6 recommends 160 bits
TIME_LIMIT = 1 << 62  # seconds: above the time of any clock, and sums fit in 64 bits
MAX_COUNT = 1 << 62  # the maximum of each count of answers
MAX_DRIFT = 1 << 31  # steps, ahead or behind
DAY = 86_400  # seconds


class RecordError(ValueError):
    """The error for invalid data of a record. The text names the field, never the value."""


_BETWEEN = "; "  # the separator of the entries of recent logins, and of changes by the desk
_VERDICTS = _ACCEPTED, _REFUSED = "accepted", "refused"


def _key(v: object) -> str | None:
    good = type(v) is bytes and MIN_SECRET <= len(v) <= MAX_SECRET
    return None if good else f"must be {8 * MIN_SECRET} to {8 * MAX_SECRET} bits"


def _word(v: object) -> str | None:
    """Require 1 to MAX_ORIGIN printable characters other than the characters of the separator of entries."""
    good = type(v) is str and 0 < len(v) <= MAX_ORIGIN and v.isprintable() and not {*v} & {*_BETWEEN}
    return None if good else f"must be 1 to {MAX_ORIGIN} printable characters without spaces and semicolons"


def _recent(v: object) -> str | None:
    """Require printable text of limited length. Its entries are not validated, because they are for display only."""
    good = type(v) is str and len(v) <= MAX_RECENT and v.isprintable()
    return None if good else f"must be at most {MAX_RECENT} printable characters"


_DIGEST = hexadecimal(32, 32)  # SHA-256
_TIME = whole_number(0, TIME_LIMIT - 1)


class Token(Value):
    """The fields that HOTP and TOTP tokens share.

    `secret` is the raw key. `confirmed` is False until a first code has proved that the user has the token. `enabled`
    is False if an administrator, the desk or `pam-totp restored` disabled the token. `created` and `last_used` are Unix
    seconds. `pam-totp restored` sets `row_needed`: the next accepted codes must be in a row (law 8).
    """

    name: str
    secret: bytes
    algorithm: str = "SHA1"
    digits: int = MIN_DIGITS
    enabled: bool = True
    confirmed: bool = True
    serial: str | None = None
    created: int
    last_used: int | None = None
    row_needed: bool = False

    type: ClassVar[str]
    ERROR = RecordError
    RULES: ClassVar[dict[str, Rule]] = {
        "name": text,
        "secret": _key,
        "algorithm": choice(*ALGORITHMS),
        "digits": whole_number(MIN_DIGITS, MAX_DIGITS),
        "enabled": boolean,
        "confirmed": boolean,
        "serial": optional(text),
        "created": _TIME,
        "last_used": optional(_TIME),
        "row_needed": boolean,
    }

    @property
    def active(self) -> bool:
        """Return True if codes of this token may be accepted."""
        return self.enabled and self.confirmed

    def confirmed_without_code(self) -> Self:
        """Return the token as confirmed, without checking a code."""
        return self._replace(confirmed=True)

    def renamed(self, name: str) -> Self:
        return self._replace(name=name)

    def with_serial(self, serial: str | None) -> Self:
        return self._replace(serial=serial)

    def longest(self) -> Self:
        """Return the token with the longest value of each field that a login changes."""
        return self._replace(enabled=False, confirmed=False, last_used=TIME_LIMIT - 1, row_needed=False)

    def switched(self, enabled: bool) -> Self:
        return self._replace(enabled=enabled)

    def with_row_needed(self) -> Self:
        """Return the token with `row_needed` set."""
        return self._replace(row_needed=True)

    def rolled_forward(self, next_factor: int) -> Self:
        """Return the token with all counters or steps below `next_factor` used up."""
        more = next_factor - self.next_factor
        return self.used_up(self.next_factor, more) if more > 0 else self

    @property
    def next_factor(self) -> int:
        """The lowest counter or step that is not used up."""
        raise NotImplementedError

    def used_up(self, first: int, count: int, **changes: object) -> Self:
        """Return the token with `changes`, and with `count` codes used up, from moving factor `first`.

        Raise ValueError if one of these codes was used before (law 1).
        """
        raise NotImplementedError

    def accepted(self, first: int, count: int, now: int, *, ends_consecutive: bool = False) -> Self:
        """Return the token, confirmed, after `count` codes in a row from moving factor `first` were accepted at `now`.

        `ends_consecutive` is True if the earlier codes in a row are used up already (law 5). Raise ValueError if one of
        the codes was used before (law 1).
        """
        row_needed = self.row_needed and count == 1 and not ends_consecutive
        return self.used_up(first, count, last_used=now, confirmed=True, row_needed=row_needed)

    def __repr__(self) -> str:
        return f"<{self.type} token {self.name!r}>"


class HotpToken(Token):
    """An event-based token. `counter` is the lowest counter that is not used up; 2^64 if all codes are used up."""

    counter: int = 0

    type = "hotp"
    RULES: ClassVar[dict[str, Rule]] = {**Token.RULES, "counter": whole_number(0, MOVING_FACTOR_LIMIT)}

    @property
    def next_factor(self) -> int:
        return self.counter

    def used_up(self, first: int, count: int, **changes: object) -> Self:
        if first < self.counter:
            raise ValueError("a counter must not decrease")
        return self._replace(counter=first + count, **changes)

    def longest(self) -> HotpToken:
        return super().longest()._replace(counter=MOVING_FACTOR_LIMIT)


class TotpToken(Token):
    """A time-based token. `period` is in seconds. `last_step` is the last step used up.

    `drift` is the token's clock minus this host's, in steps (RFC 6238 §6).
    """

    period: int = DEFAULT_PERIOD
    last_step: int | None = None
    drift: int = 0

    type = "totp"
    RULES: ClassVar[dict[str, Rule]] = {
        **Token.RULES,
        "period": whole_number(1, DAY),
        "last_step": optional(whole_number(0, MOVING_FACTOR_LIMIT - 1)),
        "drift": whole_number(-MAX_DRIFT, MAX_DRIFT),
    }

    @property
    def next_factor(self) -> int:
        return 0 if self.last_step is None else self.last_step + 1

    def used_up(self, first: int, count: int, **changes: object) -> Self:
        if first < self.next_factor:
            raise ValueError("a step must not decrease")
        return self._replace(last_step=first + count - 1, **changes)

    def accepted(self, first: int, count: int, now: int, *, ends_consecutive: bool = False) -> Self:
        """Return the token of `Token.accepted`. Only codes in a row change the drift (law 6)."""
        drift = first + count - 1 - now // self.period if count > 1 or ends_consecutive else self.drift
        return super().accepted(first, count, now, ends_consecutive=ends_consecutive)._replace(drift=drift)

    def longest(self) -> TotpToken:
        return super().longest()._replace(last_step=MOVING_FACTOR_LIMIT - 1, drift=-MAX_DRIFT)


TOKEN_TYPES: dict[str, type[HotpToken] | type[TotpToken]] = {"hotp": HotpToken, "totp": TotpToken}


class Grace(Value):
    """Grace for logins from `rhost` to `service`, granted at `granted` (Unix seconds). See `operations.grace`."""

    service: str
    rhost: str
    granted: int

    ERROR = RecordError
    RULES: ClassVar[dict[str, Rule]] = {"service": text, "rhost": text, "granted": _TIME}


_LONGEST_GRACE = KEPT_GRACE * (
    Grace(service="s" * MAX_GRACE_SERVICE, rhost="r" * MAX_GRACE_RHOST, granted=TIME_LIMIT - 1),
)


class Ticket(Value):
    """An enrolment ticket. `digest` is the hexadecimal SHA-256 of salt ‖ ticket, and `ends` is in Unix seconds.

    `token` is the name of the unconfirmed token that the ticket's owner confirms by a code. `picture` is the QR code of
    the token's key as text (`formats.qr`), or None.
    """

    salt: str
    digest: str
    ends: int
    token: str
    picture: str | None = None

    ERROR = RecordError
    RULES: ClassVar[dict[str, Rule]] = {
        "salt": hexadecimal(16, 64),
        "digest": _DIGEST,
        "ends": _TIME,
        "token": text,
        "picture": optional(text),
    }


class TemporaryCode(Value):
    """A single-use code of 80 bits that is valid before `ends` (Unix seconds). `digest` is as in `Ticket`."""

    salt: str
    digest: str
    ends: int

    ERROR = RecordError
    RULES: ClassVar[dict[str, Rule]] = {"salt": hexadecimal(16, 64), "digest": _DIGEST, "ends": _TIME}


class RecentLogin(Value):
    """A decision on an answer at `at` (Unix seconds), for display. `outcome` is the value of an `Outcome`.

    `service` and `rhost` have at most MAX_ORIGIN characters, without white space. `rhost` is None for a local login.
    """

    at: int
    accepted: bool
    outcome: str
    service: str
    rhost: str | None

    ERROR = RecordError
    RULES: ClassVar[dict[str, Rule]] = {
        "at": _TIME,
        "accepted": boolean,
        "outcome": _word,
        "service": _word,
        "rhost": optional(_word),
    }

    @classmethod
    def parse(cls, entry: str) -> RecentLogin | None:
        """Return the login that `entry` describes, or None for other text."""
        words = entry.split(" ")
        if len(words) not in (4, 5) or words[0] not in _VERDICTS or not (words[1].isascii() and words[1].isdigit()):
            return None
        verdict, at, outcome, service, *rhost = words
        try:
            return cls(
                at=int(at), accepted=verdict == _ACCEPTED, outcome=outcome, service=service, rhost=(*rhost, None)[0]
            )
        except ValueError:
            return None

    def entry(self) -> str:
        """Return the entry of `UserRecord.recent` for this login."""
        return recent_entry(self.at, self.accepted, self.outcome, self.service, self.rhost)


def recent_entry(at: int, accepted: bool, outcome: str, service: str, rhost: str | None) -> str:
    """Return the entry for a login, such as `accepted 1732800000 code sshd 192.0.2.7`. See `RecentLogin`."""
    return f"{_ACCEPTED if accepted else _REFUSED} {at} {outcome} {service}{f' {rhost}' if rhost else ''}"


class UserRecord(Value):
    """The second factors of one user. The fields are those of the secret file.

    `recovery` holds hexadecimal SHA-256 digests of salt ‖ code. `failures` counts the answers refused as wrong.
    `failures_at` (Unix seconds) is the time of their last decrease, or of the first failure after a count of 0, if that
    is later. `refused` counts all well-formed answers refused since the last success. `recent` has an entry for each
    recent login (`RecentLogin.entry`), as one text, because logins copy it and only the display reads it. `changes` has
    the entries of changes by the desk in the same form (`operations.desk.RecentChange`).
    """

    user: str
    tokens: tuple[Token, ...] = ()
    salt: str | None = None
    recovery: tuple[str, ...] = ()
    failures: int = 0
    failures_at: int | None = None
    refused: int = 0
    grace: tuple[Grace, ...] = ()
    ticket: Ticket | None = None
    temporary: TemporaryCode | None = None
    recent: str = ""
    changes: str = ""

    ERROR = RecordError
    RULES: ClassVar[dict[str, Rule]] = {
        "user": printable,
        "tokens": tuple_of(Token, MAX_TOKENS),
        "salt": optional(hexadecimal(16, 64)),
        "failures": whole_number(0, MAX_COUNT),
        "failures_at": optional(_TIME),
        "refused": whole_number(0, MAX_COUNT),
        "grace": tuple_of(Grace, MAX_GRACE),
        "ticket": optional(instance_of(Ticket)),
        "temporary": optional(instance_of(TemporaryCode)),
        "recent": _recent,
        "changes": _recent,
    }

    def check(self, new: Collection[str]) -> None:
        if "recovery" in new:
            self._check_recovery()
        if self.recovery and self.salt is None:
            raise RecordError("salt: required if there are recovery codes")
        if self.failures > 0 and self.failures_at is None:
            raise RecordError("failures_at: required if there are failures")
        if "tokens" in new and len(self.tokens) > 1:
            for field in ("name", "secret"):
                if len({getattr(t, field) for t in self.tokens}) < len(self.tokens):
                    raise RecordError(f"tokens: duplicate {field}")

    def _check_recovery(self) -> None:
        if type(self.recovery) is not tuple or len(self.recovery) > MAX_RECOVERY_CODES:
            raise RecordError(f"recovery: must be a list of at most {MAX_RECOVERY_CODES} entries")
        for i, code in enumerate(self.recovery):
            if _DIGEST(code) is not None:
                raise RecordError(f"recovery[{i}]: must be a SHA-256 digest in lower-case hexadecimal")
        if len(set(self.recovery)) < len(self.recovery):
            raise RecordError("recovery: duplicate digest")

    @property
    def enrolled(self) -> bool:
        """Return True if a confirmed token exists, enabled or not (law 10)."""
        return any(t.confirmed for t in self.tokens)

    @property
    def code_lengths(self) -> frozenset[int]:
        """The lengths, in digits, of the codes of all active tokens."""
        return frozenset(t.digits for t in self.tokens if t.active)

    @property
    def lasting(self) -> tuple[object, ...]:
        """The parts that no login changes: user, salt, type, name, key and serial number of each token, changes."""
        return self.user, self.salt, [(t.type, t.name, t.secret, t.serial) for t in self.tokens], self.changes

    @property
    def invited_token(self) -> Token | None:
        """The enabled, unconfirmed token that the ticket's owner may confirm, or None."""
        token = None if self.ticket is None else self.token(self.ticket.token)
        return token if token is not None and token.enabled and not token.confirmed else None

    def is_invited(self, now: int) -> bool:
        """Return True if the user has a ticket that is valid at `now` (Unix seconds)."""
        return self.ticket is not None and self.invited_token is not None and now < self.ticket.ends

    def longest(self) -> UserRecord:
        """Return the record with the longest value of every number, and all grace that logins can give or keep.

        The result lacks recent logins. It has the number of recovery codes that follows the use of its ticket.
        """
        digests = tuple(f"{i:064x}" for i in range(max(NEW_RECOVERY_CODES, len(self.recovery))))
        return self._replace(
            tokens=tuple(t.longest() for t in self.tokens),
            failures=MAX_COUNT,
            failures_at=TIME_LIMIT - 1,
            refused=MAX_COUNT,
            grace=_LONGEST_GRACE if len(self.grace) <= KEPT_GRACE else self.grace,
            salt=self.salt if self.ticket is None else "0" * 32,
            recovery=self.recovery if self.ticket is None else digests,
            recent="",
        )

    def token(self, name: str) -> Token | None:
        """Return the token with this name, or None."""
        return next((t for t in self.tokens if t.name == name), None)

    def with_token(self, token: Token) -> UserRecord:
        """Return the record with one more token. Grace ends when the tokens change.

        A ticket becomes void if `token` is the user's first confirmed token. Otherwise the ticket would later replace
        `token`.
        """
        return self._replace(tokens=(*self.tokens, token), grace=(), ticket=self._ticket_beside(token))

    def with_changed(self, old: Token, new: Token) -> UserRecord:
        """Return the record with `new` in place of `old`. Grace ends when the tokens change.

        A ticket for `old` becomes a ticket for `new`, or void if `new` is confirmed. A ticket for another token becomes
        void if `new` is the user's first confirmed token.
        """
        ticket = self._ticket_beside(new)
        if ticket is not None and ticket.token == old.name:
            ticket = None if new.confirmed else ticket._replace(token=new.name)
        return self._replace(tokens=tuple(new if t is old else t for t in self.tokens), grace=(), ticket=ticket)

    def _ticket_beside(self, token: Token) -> Ticket | None:
        """Return the ticket of the record after `token` is added or changed, or None if the ticket becomes void."""
        return None if token.confirmed and not self.enrolled else self.ticket

    def without_token(self, name: str) -> UserRecord:
        """Return the record without the token `name` and its ticket. Grace ends when the tokens change."""
        ticket = None if self.ticket is not None and self.ticket.token == name else self.ticket
        return self._replace(tokens=tuple(t for t in self.tokens if t.name != name), grace=(), ticket=ticket)

    def restored(self, tokens: tuple[Token, ...]) -> UserRecord:
        """Return the record with `tokens` in place of the old tokens, and without codes of 80 bits and grace."""
        return self._replace(tokens=tokens, recovery=(), grace=(), ticket=None, temporary=None)

    def without_tokens(self, user: str) -> UserRecord:
        """Return the record for `user` with only the recovery codes, failures and refusals of this record."""
        return self._replace(user=user, tokens=(), grace=(), ticket=None, temporary=None, recent="", changes="")

    def with_ticket(self, ticket: Ticket | None) -> UserRecord:
        """Return the record with this ticket, or without a ticket."""
        return self._replace(ticket=ticket)

    def redeemed(self, token: Token) -> UserRecord:
        """Return the record after its ticket was used for `token`, which is confirmed.

        The token replaces all tokens that were confirmed before, and the temporary code becomes void.
        """
        kept = (token if t.name == token.name else t for t in self.tokens)
        tokens = tuple(t for t in kept if t is token or not t.confirmed)
        return self._replace(tokens=tokens, grace=(), ticket=None, temporary=None, refused=0)

    def with_temporary(self, code: TemporaryCode | None) -> UserRecord:
        """Return the record with this temporary code, or without a temporary code."""
        return self._replace(temporary=code)

    @property
    def recent_logins(self) -> tuple[RecentLogin, ...]:
        """The recent logins, the oldest first."""
        found = (RecentLogin.parse(entry) for entry in self.recent.split(_BETWEEN))
        return tuple(login for login in found if login is not None)

    def with_recent(self, entry: str) -> UserRecord:
        """Return the record with one more `recent_entry`. Keep KEPT_LOGINS acceptances, and as many refusals."""
        entries = self.recent.split(_BETWEEN) if self.recent else []
        same = [other for other in entries if other[:1] == entry[:1]]
        if len(same) >= KEPT_LOGINS:
            entries.remove(same[0])
        return self._replace(recent=_BETWEEN.join([*entries, entry]))

    def without_oldest_recent(self) -> UserRecord:
        """Return the record without the oldest of its recent logins."""
        return self._replace(recent=self.recent.partition(_BETWEEN)[2])

    def with_change(self, entry: str) -> UserRecord:
        """Return the record with one more entry of a change by the desk. Drop the oldest entries beyond the limits."""
        entries = [*self.change_entries, entry][-KEPT_CHANGES:]
        while len(_BETWEEN.join(entries)) > MAX_RECENT:
            del entries[0]
        return self._replace(changes=_BETWEEN.join(entries))

    @property
    def change_entries(self) -> list[str]:
        """The entries of the changes by the desk, the oldest first."""
        return self.changes.split(_BETWEEN) if self.changes else []

    def with_recovery(self, salt: str, digests: tuple[str, ...]) -> UserRecord:
        """Return the record with these recovery codes in place of the old codes."""
        return self._replace(salt=salt, recovery=digests)

    def with_grace(self, grace: tuple[Grace, ...]) -> UserRecord:
        """Return the record with these entries of grace, which `operations.grace` chooses."""
        return self._replace(grace=grace)

    def failures_now(self, now: int) -> tuple[int, int | None]:
        """Return `failures` and `failures_at` at `now` (Unix seconds): one failure less for every full day (law 8).

        The remainder of a day is kept; otherwise one failure a day would stop the decrease. `failures_at` never
        decreases. Otherwise the same days would count again after the clock was set back and corrected.
        """
        if self.failures_at is None:
            return 0, None
        days = min(max(now - self.failures_at, 0) // DAY, self.failures)
        return self.failures - days, self.failures_at + days * DAY

    def refused_uncounted(self) -> UserRecord:
        """Return the record after a refusal that is not a failure, such as a replay."""
        return self._replace(refused=min(self.refused + 1, MAX_COUNT))

    def refused_as_wrong(self, now: int) -> UserRecord:
        """Return the record after a wrong answer at `now` (Unix seconds): one failure more."""
        failures, since = self.failures_now(now)
        if since is None or failures == 0:
            since = now if since is None else max(now, since)
        return self._replace(failures=min(failures + 1, MAX_COUNT), failures_at=since).refused_uncounted()

    def refused_and_used_up(self, token: Token, first: int, count: int) -> UserRecord:
        """Return the record after an uncounted refusal that uses up `count` codes of `token` (law 5)."""
        tokens = tuple(t.used_up(first, count) if t is token else t for t in self.tokens)
        return self.refused_uncounted()._replace(tokens=tokens)

    def accepted(self, token: Token, first: int, count: int, now: int, *, ends_consecutive: bool = False) -> UserRecord:
        """Return the record after `count` codes of `token` in a row, from moving factor `first`, were accepted.

        `now` is in Unix seconds. The failures decrease only with time; after codes in a row, call `lowered` too.
        """
        failures, since = self.failures_now(now)
        accepted = token.accepted(first, count, now, ends_consecutive=ends_consecutive)
        tokens = tuple(accepted if t is token else t for t in self.tokens)
        return self._replace(tokens=tokens, failures=failures, failures_at=since, refused=0)

    def recovered(self, digest: str, most: int, now: int) -> UserRecord:
        """Return the record after the recovery code with `digest` was accepted: without that code, and `lowered`."""
        left = tuple(d for d in self.recovery if d != digest)
        return self._replace(recovery=left, refused=0).lowered(most, now)

    def passed_temporarily(self, most: int, now: int) -> UserRecord:
        """Return the record after the temporary code was accepted: without that code, and `lowered`."""
        return self._replace(temporary=None, refused=0).lowered(most, now)

    def lowered(self, most: int, now: int, *, own: int = 0) -> UserRecord:
        """Return the record after `own` failures are subtracted at `now` (Unix seconds), with at most `most` failures.

        An attacker gains no guess by a login of the user, because the time of the next decrease is unchanged (law 8).
        """
        failures, since = self.failures_now(now)
        return self._replace(failures=min(max(failures - own, 0), most), failures_at=since)

    def unlocked(self) -> UserRecord:
        """Return the record with 0 failures."""
        return self._replace(failures=0, failures_at=None)

    def __repr__(self) -> str:
        return f"<record of {self.user!r}: {len(self.tokens)} tokens>"


UNKNOWN_USER = UserRecord(user="unknown")  # replaces a missing record
