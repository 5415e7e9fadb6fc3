"""The record of one user: tokens, recovery codes, failures.

The law:
- a record is valid by construction: exact types, ranges, unique names, no secret twice;
- counters and steps only go up: they are moved by `accepted`, and by nothing else;
- an error names the place and what is wanted there, and never shows a value;
- nothing here shows a secret in its `repr`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Self

from pam_totp.core.fields import (
    Rule,
    Value,
    boolean,
    choice,
    hexadecimal,
    optional,
    printable,
    text,
    tuple_of,
    whole_number,
)
from pam_totp.core.oath import ALGORITHMS, DEFAULT_PERIOD, MAX_DIGITS, MIN_DIGITS, MOVING_FACTOR_LIMIT

MAX_TOKENS = 8
MAX_RECOVERY_CODES = 100
MAX_GRACE = 64
MIN_SECRET, MAX_SECRET = 14, 128  # bytes: RFC 4226 §4 R6 demands 128 bits; 112 exist in the field and are warned about
GOOD_SECRET = 16  # bytes: RFC 4226 §4 R6
DEFAULT_NAMES = {"totp": "phone", "hotp": "token"}  # of a token, by type, where none is given
NEW_SECRET = 20  # bytes: RFC 4226 §4 R6 recommends 160 bits
TIME_LIMIT = 1 << 62  # seconds: no clock reaches it, and sums with it stay far from any edge
MAX_COUNT = 1 << 62  # answers: a count stays there
MAX_DRIFT = 1 << 31  # steps, either way
DAY = 86_400  # seconds


class RecordError(ValueError):
    """Data that is no valid record; the text names the place, never the value."""


def _key(v: object) -> str | None:
    good = type(v) is bytes and MIN_SECRET <= len(v) <= MAX_SECRET
    return None if good else f"not {8 * MIN_SECRET} … {8 * MAX_SECRET} bits"


_DIGEST = hexadecimal(32, 32)  # SHA-256
_TIME = whole_number(0, TIME_LIMIT - 1)


class Token(Value):
    """What HOTP and TOTP tokens have in common.

    `secret` is the raw key. `confirmed` is False until a first code proved that the holder has the token;
    `enabled` is the admin's switch. `created` and `last_used` are Unix seconds.
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
    }

    @property
    def active(self) -> bool:
        """Whether codes of this token are looked at."""
        return self.enabled and self.confirmed

    def taken_on_trust(self) -> Self:
        """Confirmed without a code."""
        return self._replace(confirmed=True)

    def renamed(self, name: str) -> Self:
        return self._replace(name=name)

    def with_serial(self, serial: str | None) -> Self:
        return self._replace(serial=serial)

    def switched(self, enabled: bool) -> Self:
        return self._replace(enabled=enabled)

    def accepted(self, first: int, count: int, now: int) -> Token:
        """The token after `count` codes in a row from moving factor `first` were accepted at `now`; confirmed by it."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{self.type} token {self.name!r}>"


class HotpToken(Token):
    """An event token. `counter` is the counter of the next code that will be accepted; 2^64 when there is none left."""

    counter: int = 0

    type = "hotp"
    RULES: ClassVar[dict[str, Rule]] = {**Token.RULES, "counter": whole_number(0, MOVING_FACTOR_LIMIT)}

    def accepted(self, first: int, count: int, now: int) -> HotpToken:
        if first < self.counter:
            raise ValueError("a counter never goes back")
        return self._replace(counter=first + count, last_used=now, confirmed=True)


class TotpToken(Token):
    """A time token. `period` is in seconds, `last_step` the last step accepted, `drift` the token's clock less ours
    in steps (RFC 6238 §6)."""

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

    def accepted(self, first: int, count: int, now: int) -> TotpToken:
        """As for every token; a lone code leaves the drift alone, codes in a row set it."""
        if self.last_step is not None and first <= self.last_step:
            raise ValueError("a step never goes back")
        last = first + count - 1
        drift = self.drift if count == 1 else last - now // self.period
        return self._replace(last_step=last, drift=drift, last_used=now, confirmed=True)


TOKEN_TYPES: dict[str, type[HotpToken] | type[TotpToken]] = {"hotp": HotpToken, "totp": TotpToken}


class Grace(Value):
    """A login from `rhost` to `service` at `granted` (Unix seconds) that may stand for a code for a while."""

    service: str
    rhost: str
    granted: int

    ERROR = RecordError
    RULES: ClassVar[dict[str, Rule]] = {"service": text, "rhost": text, "granted": _TIME}


class UserRecord(Value):
    """All that is known about one user's second factor; the fields are those of the secret file.

    `recovery` holds hex SHA-256 digests of salt ‖ code. `failures` counts the answers refused as wrong, as of
    `failures_at`; `refused` all well-formed answers refused since the last success.
    """

    user: str
    tokens: tuple[Token, ...] = ()
    salt: str | None = None
    recovery: tuple[str, ...] = ()
    failures: int = 0
    failures_at: int | None = None
    refused: int = 0
    grace: tuple[Grace, ...] = ()

    ERROR = RecordError
    RULES: ClassVar[dict[str, Rule]] = {
        "user": printable,
        "tokens": tuple_of(Token, MAX_TOKENS),
        "salt": optional(hexadecimal(16, 64)),
        "failures": whole_number(0, MAX_COUNT),
        "failures_at": optional(_TIME),
        "refused": whole_number(0, MAX_COUNT),
        "grace": tuple_of(Grace, MAX_GRACE),
    }

    def check(self, new: Collection[str]) -> None:
        if "recovery" in new:
            self._check_recovery()
        if self.recovery and self.salt is None:
            raise RecordError("salt: missing, with recovery codes there")
        if self.failures > 0 and self.failures_at is None:
            raise RecordError("failures_at: missing, with failures there")
        for what in ("name", "secret"):
            if len({getattr(t, what) for t in self.tokens}) < len(self.tokens):
                raise RecordError(f"tokens: the same {what} twice")

    def _check_recovery(self) -> None:
        if type(self.recovery) is not tuple or len(self.recovery) > MAX_RECOVERY_CODES:
            raise RecordError(f"recovery: not a list of at most {MAX_RECOVERY_CODES}")
        for i, code in enumerate(self.recovery):
            if _DIGEST(code) is not None:
                raise RecordError(f"recovery[{i}]: not a SHA-256 digest in lower-case hexadecimal")
        if len(set(self.recovery)) < len(self.recovery):
            raise RecordError("recovery: the same digest twice")

    @property
    def enrolled(self) -> bool:
        """A confirmed token exists, enabled or not."""
        return any(t.confirmed for t in self.tokens)

    @property
    def code_lengths(self) -> frozenset[int]:
        """The lengths, in digits, of the codes that may be accepted."""
        return frozenset(t.digits for t in self.tokens if t.active)

    def token(self, name: str) -> Token | None:
        return next((t for t in self.tokens if t.name == name), None)

    def with_token(self, token: Token) -> UserRecord:
        """Enrol one more token. Grace is void when the tokens change."""
        return self._replace(tokens=(*self.tokens, token), grace=())

    def with_changed(self, old: Token, new: Token) -> UserRecord:
        """Rename or switch a token. Grace is void when the tokens change."""
        return self._replace(tokens=tuple(new if t is old else t for t in self.tokens), grace=())

    def without_token(self, name: str) -> UserRecord:
        return self._replace(tokens=tuple(t for t in self.tokens if t.name != name), grace=())

    def bare(self, user: str) -> UserRecord:
        """What another user of that name would have without the tokens: the recovery codes and the failures."""
        return self._replace(user=user, tokens=(), grace=())

    def with_recovery(self, salt: str, digests: tuple[str, ...]) -> UserRecord:
        """A fresh set of recovery codes; the old one is void."""
        return self._replace(salt=salt, recovery=digests)

    def with_grace(self, grace: tuple[Grace, ...]) -> UserRecord:
        """Which logins may do without a code is `pam.grace`'s to say."""
        return self._replace(grace=grace)

    def failures_now(self, now: int) -> tuple[int, int | None]:
        """`failures` and `failures_at` as they stand at `now`: one less for every full day.

        The remainder of a day is kept, so that one failure a day does not stop the count from falling. Where the
        clock went back, the days wait for it: starting anew would forget failures once it is set right.
        """
        if self.failures_at is None or self.failures == 0:
            return 0, None
        days = max(now - self.failures_at, 0) // DAY
        left = max(self.failures - days, 0)
        return (left, self.failures_at + days * DAY) if left else (0, None)

    def refused_uncounted(self) -> UserRecord:
        return self._replace(refused=min(self.refused + 1, MAX_COUNT))

    def refused_as_wrong(self, now: int) -> UserRecord:
        failures, since = self.failures_now(now)
        counted = self._replace(failures=min(failures + 1, MAX_COUNT), failures_at=now if since is None else since)
        return counted.refused_uncounted()

    def accepted(self, token: Token, first: int, count: int, now: int) -> UserRecord:
        """After `count` codes in a row of `token`, from moving factor `first`; a row clears the failures, one code does
        not."""
        failures, since = self.failures_now(now) if count == 1 else (0, None)
        tokens = tuple(t.accepted(first, count, now) if t is token else t for t in self.tokens)
        return self._replace(tokens=tokens, failures=failures, failures_at=since, refused=0)

    def recovered(self, digest: str) -> UserRecord:
        """After the recovery code with `digest` was accepted: it is gone, and so are the failures."""
        left = tuple(d for d in self.recovery if d != digest)
        return self._replace(recovery=left, failures=0, failures_at=None, refused=0)

    def unlocked(self) -> UserRecord:
        return self._replace(failures=0, failures_at=None)

    def __repr__(self) -> str:
        return f"<record of {self.user!r}: {len(self.tokens)} tokens>"
