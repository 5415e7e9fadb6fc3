"""users.oath, the file of pam_oath: `type user pin key [counter [lastotp [timestamp]]]`, and mod_authn_otp's variant.

With a last code there, pam_oath's counter is that of this code; without one, it is the first to try. mod_authn_otp has
nine columns (failures before the last code, an address at the end), and its counter is the next, for time tokens the
offset of their clock.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Iterator
from dataclasses import replace

from pam_totp.core.oath import DEFAULT_PERIOD, MOVING_FACTOR_LIMIT, hotp
from pam_totp.core.record import MAX_DRIFT, HotpToken, Token, TotpToken
from pam_totp.formats.imported_token import FormatError, Found, hexadecimal, lines_of, whole

MAX_KEY = 32  # bytes
PERIODS = (30, 60)  # seconds
_TYPE = re.compile(r"HOTP(?:/(?:E|T(30|60))(?:/([678]))?)?")
_TIMESTAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)L", re.ASCII)
_SEARCH = sorted(range(-20, 21), key=abs)  # steps around its timestamp within which a last code is looked for
_TYPED_LATE = 1  # steps: a code typed at the edge of its step says nothing about the clock


def parse(data: bytes, now: int) -> list[Found]:
    """All tokens of the file. Raises FormatError."""
    return list(each(data, now))


def each(data: bytes, now: int) -> Iterator[Found]:
    """All tokens of the file, one after the other. Raises FormatError where it comes to it."""
    for number, line in lines_of(data):
        if not line.lstrip().startswith("#"):
            yield _token(number, line.split(), now)


def _token(line: int, fields: list[str], now: int) -> Found:
    if not (4 <= len(fields) <= 7 or len(fields) == 9):
        raise FormatError(line, f"{len(fields)} columns instead of 4 … 7 (pam_oath) or 9 (mod_authn_otp)")
    kind = _TYPE.fullmatch(fields[0])
    if kind is None:
        raise FormatError(line, "the type is not HOTP, HOTP/E, HOTP/T30 or HOTP/T60, with /6, /7 or /8 or without")
    period, digits = int(kind[1] or 0), int(kind[2] or 6)
    secret = hexadecimal(fields[3], line, "the key")
    if len(secret) > MAX_KEY:
        raise FormatError(line, f"the key is longer than {MAX_KEY} bytes")
    variant = len(fields) == 9
    if variant:
        whole(fields[5], line, "the failures")
        fields = [*fields[:5], *fields[6:8]]
    moving = fields[4] if len(fields) > 4 else "0"
    last_code = fields[5] if len(fields) > 5 and fields[5] != "-" else None
    if last_code is not None and not (len(last_code) == digits and last_code.isascii() and last_code.isdigit()):
        raise FormatError(line, f"the last code is not {digits} digits")
    last_used = _local_time(fields[6], line) if len(fields) > 6 and fields[6] != "-" else None
    remarks = () if fields[2] in ("-", "+") else ("its PIN is not kept: only the code is asked for",)
    counter = offset = 0
    if period == 0:
        counter = whole(moving, line, "the counter", high=MOVING_FACTOR_LIMIT - 1)
        counter += last_code is not None and not variant
    elif variant:
        offset = whole(moving, line, "the offset", low=-MAX_DRIFT, high=MAX_DRIFT)
    found = Found(
        line=line,
        kind="totp" if period else "hotp",
        user=fields[1],
        secret=secret,
        digits=digits,
        counter=counter,
        period=period or DEFAULT_PERIOD,
        drift=offset,
        last_used=last_used,
        remarks=remarks,
    )
    return _with_last_step(found, last_code, now) if period and last_code is not None else found


def _with_last_step(found: Found, last_code: str, now: int) -> Found:
    """A time token with the step of its last code, which is used up with all before it."""
    expected = (now if found.last_used is None else found.last_used) // found.period + found.drift
    for away in _SEARCH if found.last_used is not None else ():
        if expected + away >= 0 and hotp(found.secret, expected + away, found.digits) == last_code:
            drift = found.drift if abs(away) <= _TYPED_LATE else found.drift + away
            return replace(found, last_step=expected + away, drift=drift)
    remark = "when its last code was used is not known: every code up to now is taken for used"
    current = now // found.period + found.drift
    return replace(found, last_step=max(current, 0), remarks=(*found.remarks, remark))


def _local_time(text: str, line: int) -> int:
    """Unix seconds of a time in this host's zone, which is what the file has."""
    match = _TIMESTAMP.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        seconds = int(datetime.datetime(*map(int, match.groups())).timestamp())  # type: ignore[arg-type]  # noqa: DTZ001
        if seconds < 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise FormatError(line, "the time is not YYYY-MM-DDThh:mm:ssL") from None
    return seconds


def unwritable(token: Token) -> str | None:
    """Why pam_oath could not use `token`, or None."""
    if token.algorithm != "SHA1":
        return "users-oath knows SHA1 only"
    if len(token.secret) > MAX_KEY:
        return f"users-oath knows keys up to {8 * MAX_KEY} bits only"
    if isinstance(token, TotpToken) and token.period not in PERIODS:
        return "users-oath knows periods of 30 and 60 s only"
    if isinstance(token, HotpToken) and token.counter >= MOVING_FACTOR_LIMIT:
        return "its counter is at its end"
    return None


def write(user: str, tokens: list[Token]) -> bytes:
    """The lines for `tokens`, none of which is `unwritable`. Raises ValueError for a name with white space in it."""
    if not user or any(c.isspace() for c in user) or user.startswith("#"):
        raise ValueError("users-oath has no way to write that user's name")
    return "".join(f"{_line(user, token)}\n" for token in tokens).encode("utf-8")


def _line(user: str, token: Token) -> str:
    if isinstance(token, TotpToken):
        start = f"HOTP/T{token.period}/{token.digits}\t{user}\t-\t{token.secret.hex()}"
        if token.last_step is None:
            return start
        used = time.localtime((token.last_step - token.drift) * token.period)
        last_code = hotp(token.secret, token.last_step, token.digits)
        return f"{start}\t0\t{last_code}\t{time.strftime('%Y-%m-%dT%H:%M:%SL', used)}"
    assert isinstance(token, HotpToken)
    return f"HOTP/E/{token.digits}\t{user}\t-\t{token.secret.hex()}\t{token.counter}"
