"""Enrolment: new tokens, the first code that confirms a token, and recovery codes.

Rules:
1. A new token is unconfirmed until its first code proves that the user has it. The first code is used up.
2. A recovery code has 80 random bits. The code is shown once, and stored as a salted digest.
3. Functions return new values. The caller stores them.
4. The operating system generates the random bits. Every other input is an argument.
5. Logins import this module, so it imports only modules that load fast.
"""

from __future__ import annotations

import os

from pam_totp.core.answer import CROCKFORD, RECOVERY_BITS, RECOVERY_LENGTH, Answer, recovery_digest
from pam_totp.core.lean import TYPE_CHECKING
from pam_totp.core.oath import DEFAULT_PERIOD, find_numbers
from pam_totp.core.policy import Policy
from pam_totp.core.record import GOOD_SECRET, UNKNOWN_USER, HotpToken, Token, TotpToken, UserRecord
from pam_totp.core.secretfile import base32
from pam_totp.core.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterable

# The limits for a first code are wide: a key fob can be many presses ahead, and a token's clock can be wrong.
FIRST_CODE = Policy(look_ahead=10, window=1, resync_window=1000, resync_steps=240)
CLOCK_REACH = 14 * 3600  # seconds: a clock of another time zone is at most that far from UTC
_SALT = 16  # bytes
_GROUP = 4  # characters between two separators, in keys and recovery codes


def new_token(
    kind: str,
    *,
    name: str,
    secret: bytes,
    algorithm: str,
    digits: int,
    now: int,
    counter: int = 0,
    period: int = DEFAULT_PERIOD,
) -> Token:
    """Return an unconfirmed token of `kind` hotp or totp.

    `secret` is the raw key. `now` is in Unix seconds, and `period` in seconds. Raise RecordError if a field is invalid.
    """
    common = {"name": name, "secret": secret, "algorithm": algorithm, "digits": digits}
    if kind == "hotp":
        return HotpToken(**common, confirmed=False, created=now, counter=counter)  # type: ignore[arg-type]
    return TotpToken(**common, confirmed=False, created=now, period=period)  # type: ignore[arg-type]


def verify_first_code(token: Token, answer: Answer, now: int, *, codes_needed: int = 1) -> Token | None:
    """Return the confirmed token with the codes of `answer` used up. Return None for wrong or too few codes.

    `now` is in Unix seconds. `codes_needed` is 1, or 2 if the counter is unknown.
    """
    alone = UNKNOWN_USER.with_token(token.confirmed_without_code())
    if len(answer.codes({token.digits}) or ()) < codes_needed:
        return None
    decision = verify(alone, answer, now, FIRST_CODE)
    return decision.record.tokens[0] if decision.outcome.accepted else None


def clock_error(token: Token, answer: Answer, now: int) -> int | None:
    """Return the seconds by which the clock of a phone is ahead (negative: behind) if the phone showed `answer`.

    Return None if the steps within CLOCK_REACH of `now` (Unix seconds) have other codes. `token` is new: the user knows
    its key, so the result reveals nothing more. One wrong code in 300 is mistaken for a code of another time.
    """
    found = answer.numbers({token.digits})
    if not isinstance(token, TotpToken) or found is None or len(found[1]) != 1:
        return None
    step, reach = now // token.period, CLOCK_REACH // token.period
    sides = (range(step + 1, step + reach + 1), range(step - reach, step))
    steps = (find_numbers(token.secret, found[1], side, token.digits, token.algorithm) for side in sides)
    errors = [(s - step) * token.period for s in steps if s is not None]
    return min(errors, key=abs, default=None)


def replaced(record: UserRecord, old: Token, new: Token) -> tuple[UserRecord, Token] | None:
    """Return the record with `new` in place of `old`, and the token that `new` replaced.

    Logins might have used codes of `old` meanwhile. Return None if the record lacks a token with the name, key and
    creation time of `old`, because another process has changed the record. Raise RecordError for a key that another
    token has.
    """
    last = record.token(old.name)
    if last is None or (last.secret, last.created) != (old.secret, old.created):
        return None
    return record.with_changed(last, new), last


def warnings(token: Token, *, is_scanned: bool = False) -> list[str]:
    """Return the warnings about `token`. `is_scanned` is True if a phone app reads the token from a QR code."""
    found = []
    if len(token.secret) < GOOD_SECRET:
        found.append(f"the key has {8 * len(token.secret)} bits; RFC 4226 requires at least {8 * GOOD_SECRET}")
    if is_scanned and unusual(token):
        found.append(f"some phone apps ignore {', '.join(unusual(token))} in a QR code, and then show wrong codes")
    return found


def unusual(token: Token) -> list[str]:
    """Return the properties that a phone app ignores if it supports only the defaults of the otpauth URI."""
    found = []
    if token.algorithm != "SHA1":
        found.append(token.algorithm)
    if token.digits != 6:
        found.append(f"{token.digits} digits")
    if isinstance(token, TotpToken) and token.period != DEFAULT_PERIOD:
        found.append(f"a period of {token.period} s")
    return found


def grouped_key(token: Token) -> str:
    """Return the key in base32, in groups of four characters, for typing."""
    return _grouped(base32(token.secret), " ")


def new_recovery_codes(record: UserRecord, count: int) -> tuple[UserRecord, list[str]]:
    """Return `record` with `count` new recovery codes instead of the old codes, and the new codes for display."""
    salt = os.urandom(_SALT).hex()
    codes = [new_long_code() for _ in range(count)]
    digests = tuple(recovery_digest(salt, code) for code, _ in codes)
    return record.with_recovery(salt, digests), [shown for _, shown in codes]


def valid_recovery_codes(record: UserRecord, codes: Iterable[str]) -> list[str]:
    """Return the displayed `codes` that are still in `record`."""
    salt = record.salt
    return [] if salt is None else [c for c in codes if recovery_digest(salt, c.replace("-", "")) in record.recovery]


def new_long_code() -> tuple[str, str]:
    """Return a random code of 80 bits, and the same code in groups of four characters, for display."""
    number = int.from_bytes(os.urandom(RECOVERY_BITS // 8), "big")
    code = "".join(CROCKFORD[number >> 5 * i & 31] for i in range(RECOVERY_LENGTH))
    return code, _grouped(code, "-")


def _grouped(text: str, between: str) -> str:
    return between.join(text[i : i + _GROUP] for i in range(0, len(text), _GROUP))
