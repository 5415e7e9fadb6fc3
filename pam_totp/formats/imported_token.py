"""What importers have in common: the tokens that a file describes, and errors that name the line.

The law:
- a file is read whole or refused: what does not follow its grammar is a FormatError, with a line and without a value;
- what follows the grammar and cannot come in all the same (a PIN, a weak key) is Found with the reason (`unfit`);
- what comes in without something that it had (a policy, a PIN) says so in its `remarks`;
- nothing is read beyond the bounds given here, and nothing shows a secret.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

from pam_totp.core.oath import DEFAULT_PERIOD, MOVING_FACTOR_LIMIT
from pam_totp.core.record import DEFAULT_NAMES, HotpToken, Token, TotpToken

MAX_INPUT = 64 * 1024 * 1024  # bytes: a million lines of users.oath
MAX_LINE = 4096  # characters
_MOST_DIGITS = len(str(MOVING_FACTOR_LIMIT))


class FormatError(ValueError):
    """A file that is not what it should be; the text says where and what is wanted, and shows nothing of it."""

    def __init__(self, line: int | None, text: str) -> None:
        super().__init__(text if line is None else f"line {line}: {text}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One token as a file describes it: its fields are those of `HotpToken` and `TotpToken`.

    `line` counts from 1. `user` is None where the file does not say whose it is.
    """

    line: int
    kind: str = "hotp"
    secret: bytes = field(default=b"", repr=False)
    algorithm: str = "SHA1"
    digits: int = 6
    counter: int = 0
    period: int = DEFAULT_PERIOD
    last_step: int | None = None
    drift: int = 0
    name: str | None = None
    user: str | None = None
    serial: str | None = None
    enabled: bool = True
    confirmed: bool = True
    created: int | None = None
    last_used: int | None = None
    remarks: tuple[str, ...] = ()
    unfit: str | None = None

    def token(self, now: int) -> Token:
        """The token, which came in at `now` unless it says itself when it was made. Raises RecordError."""
        common = {
            "name": self.name or DEFAULT_NAMES[self.kind],
            "secret": self.secret,
            "algorithm": self.algorithm,
            "digits": self.digits,
            "enabled": self.enabled,
            "confirmed": self.confirmed,
            "serial": self.serial,
            "created": now if self.created is None else self.created,
            "last_used": self.last_used,
        }
        if self.kind == "hotp":
            return HotpToken(**common, counter=self.counter)  # type: ignore[arg-type]
        return TotpToken(**common, period=self.period, last_step=self.last_step, drift=self.drift)  # type: ignore[arg-type]


def lines_of(data: bytes) -> Iterator[tuple[int, str]]:
    """The lines by number, without their ends (LF or CR LF), blank ones left out; one at a time, for there may be many.

    Raises FormatError for what is not UTF-8, holds NUL or is too large.
    """
    if len(data) > MAX_INPUT:
        raise FormatError(None, f"larger than {MAX_INPUT // 1024 // 1024} MiB")
    for number, raw in enumerate(io.BytesIO(data), 1):
        try:
            line = raw.decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError:
            raise FormatError(number, "not UTF-8") from None
        if "\0" in line:
            raise FormatError(number, "a NUL character")
        if len(line) > MAX_LINE:
            raise FormatError(number, f"longer than {MAX_LINE} characters")
        if line and not line.isspace():
            yield number, line.removesuffix("\r")


def whole(text: str, line: int, what: str, *, low: int = 0, high: int = MOVING_FACTOR_LIMIT) -> int:
    """A whole number low … high in decimal ASCII digits, with a sign where `low` allows one. Raises FormatError."""
    digits = text[1:] if text[:1] == "-" and low < 0 else text
    if digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS and low <= int(text) <= high:
        return int(text)
    raise FormatError(line, f"{what}: not a whole number {low} … {high}")


def hexadecimal(text: str, line: int, what: str) -> bytes:
    """Bytes in hexadecimal of either case and without spaces. Raises FormatError."""
    if not text or len(text) % 2 or text.strip("0123456789abcdefABCDEF"):
        raise FormatError(line, f"{what}: not hexadecimal")
    return bytes.fromhex(text)
