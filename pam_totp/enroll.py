"""Enrolment: new tokens, and the code that proves that their holder has them. Pure but for the randomness given in."""

from __future__ import annotations

from pam_totp.policy import Policy
from pam_totp.record import GOOD_SECRET, HotpToken, Token, TotpToken, UserRecord
from pam_totp.secretfile import base32
from pam_totp.verify import verify

# A first code may come from a token that was pressed in a drawer, or whose clock is slow.
FIRST_CODE = Policy(look_ahead=10, window=1, resync_window=1000, resync_steps=240)


def new_token(
    kind: str, *, name: str, secret: bytes, algorithm: str, digits: int, now: int, counter: int = 0, period: int = 30
) -> Token:
    """An unconfirmed token of `kind` hotp or totp. Raises RecordError."""
    common = {"name": name, "secret": secret, "algorithm": algorithm, "digits": digits}
    if kind == "hotp":
        return HotpToken(**common, confirmed=False, created=now, counter=counter)  # type: ignore[arg-type]
    return TotpToken(**common, confirmed=False, created=now, period=period)  # type: ignore[arg-type]


def proved(token: Token, answer: bytes, now: int) -> Token | None:
    """`token`, confirmed and with the answer's codes used up, or None where they are not its codes."""
    alone = UserRecord(user="nobody").with_token(token.taken_on_trust())
    decision = verify(alone, answer, now, FIRST_CODE)
    return decision.record.tokens[0] if decision.outcome.accepted else None


def warnings(token: Token) -> list[str]:
    """What a person should know before relying on this token."""
    found = []
    if len(token.secret) < GOOD_SECRET:
        found.append(f"the key has {8 * len(token.secret)} bits; RFC 4226 asks for at least {8 * GOOD_SECRET}")
    return found


def grouped_key(token: Token) -> str:
    """The key in base32, in groups of four, for typing."""
    text = base32(token.secret)
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4))
