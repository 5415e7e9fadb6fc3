"""Enrolment: new tokens, the code that proves that their holder has them, recovery codes.

Pure but for the source of randomness.
"""

from __future__ import annotations

import secrets

from pam_totp.core.answer import CROCKFORD, RECOVERY_BITS, RECOVERY_LENGTH, Answer, recovery_digest
from pam_totp.core.oath import DEFAULT_PERIOD
from pam_totp.core.policy import Policy
from pam_totp.core.record import GOOD_SECRET, HotpToken, Token, TotpToken, UserRecord
from pam_totp.core.secretfile import base32
from pam_totp.core.verify import verify

# A first code may come from a token that was pressed in a drawer, or whose clock is slow.
FIRST_CODE = Policy(look_ahead=10, window=1, resync_window=1000, resync_steps=240)
_SALT = 16  # bytes
_GROUP = 4  # characters, in keys and recovery codes


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
    """An unconfirmed token of `kind` hotp or totp. Raises RecordError."""
    common = {"name": name, "secret": secret, "algorithm": algorithm, "digits": digits}
    if kind == "hotp":
        return HotpToken(**common, confirmed=False, created=now, counter=counter)  # type: ignore[arg-type]
    return TotpToken(**common, confirmed=False, created=now, period=period)  # type: ignore[arg-type]


def proved(token: Token, answer: Answer, now: int, *, codes_needed: int = 1) -> Token | None:
    """`token`, confirmed and with the answer's codes used up, or None where they are not its codes, or too few."""
    alone = UserRecord(user="nobody").with_token(token.confirmed_without_code())
    if len(answer.codes({token.digits}) or ()) < codes_needed:
        return None
    decision = verify(alone, answer, now, FIRST_CODE)
    return decision.record.tokens[0] if decision.outcome.accepted else None


def warnings(token: Token, *, scanned: bool = False) -> list[str]:
    """What a person should know before relying on this token; `scanned` where a phone reads it from a QR code."""
    found = []
    if len(token.secret) < GOOD_SECRET:
        found.append(f"the key has {8 * len(token.secret)} bits; RFC 4226 asks for at least {8 * GOOD_SECRET}")
    if scanned and unusual(token):
        found.append(f"some phones' apps pass over {', '.join(unusual(token))} in a QR code, and show wrong codes")
    return found


def unusual(token: Token) -> list[str]:
    """What apps that know only the defaults of the otpauth URI would get wrong."""
    found = []
    if token.algorithm != "SHA1":
        found.append(token.algorithm)
    if token.digits != 6:
        found.append(f"{token.digits} digits")
    if isinstance(token, TotpToken) and token.period != DEFAULT_PERIOD:
        found.append(f"a period of {token.period} s")
    return found


def grouped_key(token: Token) -> str:
    """The key in base32, in groups of four, for typing."""
    return _grouped(base32(token.secret), " ")


def new_recovery_codes(record: UserRecord, count: int) -> tuple[UserRecord, list[str]]:
    """`record` with `count` fresh recovery codes in place of all it had, and those codes as they are shown."""
    salt = secrets.token_hex(_SALT)
    codes = [_recovery_code() for _ in range(count)]
    digests = tuple(recovery_digest(salt, code) for code in codes)
    return record.with_recovery(salt, digests), [_grouped(code, "-") for code in codes]


def _recovery_code() -> str:
    number = secrets.randbits(RECOVERY_BITS)
    return "".join(CROCKFORD[number >> 5 * i & 31] for i in range(RECOVERY_LENGTH))


def _grouped(text: str, between: str) -> str:
    return between.join(text[i : i + _GROUP] for i in range(0, len(text), _GROUP))
