"""users.oath, the file of pam_oath and, with nine columns, of mod_authn_otp.

pam_oath's columns are `type user pin key [counter [last code [timestamp]]]`. The counter belongs to the last code, or
to the next code if the last code is missing.

mod_authn_otp adds a column with the number of failures before the last code, and a column with an address at the end.
In its files, the counter always belongs to the next code. The counter column of a time-based token holds the drift.
"""

from __future__ import annotations

import datetime
import functools
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pam_totp.core.oath import DEFAULT_PERIOD, MOVING_FACTOR_LIMIT, hotp
from pam_totp.core.record import MAX_DRIFT, HotpToken, Token, TotpToken, UserRecord
from pam_totp.formats.format import Format, ParsedFile, ParseOptions, parsed_by_line
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import FormatError, first_lines, key_of, numbered_lines, whole_number

MAX_KEY = 32  # bytes
PERIODS = (30, 60)  # seconds
_MOD_AUTHN_OTP_COLUMNS = 9
_TYPE = re.compile(r"HOTP(?:/(?:E|T(30|60))(?:/([678]))?)?", re.IGNORECASE | re.ASCII)
_TIMESTAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)L", re.ASCII)
_SEARCH = sorted(range(-20, 21), key=abs)  # steps from the timestamp to search for the last code, nearest first
_LATE_STEPS = 1  # steps: the age of a code when a slow user has typed it


class UsersOath(Format):
    """A file with the tokens of many users, one token per line."""

    name = "users-oath"
    user_selects_tokens = True
    suffix = "users.oath"
    all_users = "file"
    lost_fields = frozenset({"name", "serial", "drift", "row_needed"})

    def sniff(self, data: bytes) -> bool:
        return any(_TYPE.fullmatch(line.split()[0]) is not None for line in first_lines(data, 1))

    def parse(self, data: bytes, options: ParseOptions) -> ParsedFile:
        return parsed_by_line(data, functools.partial(_tokens, now=options.now))

    def unwritable(self, token: Token) -> str | None:
        if token.algorithm != "SHA1":
            return "users-oath supports SHA1 only"
        if len(token.secret) > MAX_KEY:
            return f"users-oath supports keys of up to {8 * MAX_KEY} bits only"
        if isinstance(token, TotpToken) and token.period not in PERIODS:
            return "users-oath supports periods of 30 and 60 s only"
        if isinstance(token, HotpToken) and token.counter >= MOVING_FACTOR_LIMIT:
            return "the counter is at its limit: the token has no next code"
        return None

    def write(self, record: UserRecord, tokens: Sequence[Token], password: str | None = None) -> bytes:
        user = record.user
        if not user or any(c.isspace() for c in user) or user.startswith("#"):
            raise FormatError(None, "users-oath: the user name must not be empty, contain white space or begin with #")
        return "".join(f"{_line(user, token)}\n" for token in tokens).encode("utf-8")


def _tokens(data: bytes, now: int) -> Iterator[ImportedToken]:
    for number, line in numbered_lines(data):
        if not line.lstrip().startswith("#"):
            yield _token(number, line.split(), now)


def _token(line: int, fields: list[str], now: int) -> ImportedToken:
    if not (4 <= len(fields) <= 7 or len(fields) == _MOD_AUTHN_OTP_COLUMNS):
        raise FormatError(line, f"must have 4 to 7 columns (pam_oath) or 9 (mod_authn_otp), has {len(fields)}")
    kind = _TYPE.fullmatch(fields[0])
    if kind is None:
        raise FormatError(line, "type: must be HOTP, or HOTP/E, HOTP/T30 or HOTP/T60 with /6, /7, /8 or no suffix")
    period, digits = int(kind[1] or 0), int(kind[2] or 6)
    secret = key_of(fields[3], line, "key")
    if len(secret) > MAX_KEY:
        raise FormatError(line, f"key: must be at most {MAX_KEY} bytes")
    is_mod_authn_otp = len(fields) == _MOD_AUTHN_OTP_COLUMNS
    if is_mod_authn_otp:
        whole_number(fields[5], line, "failures")
        fields = [*fields[:5], *fields[6:8]]
    moving_factor = fields[4] if len(fields) > 4 else "0"
    last_code = fields[5] if len(fields) > 5 and fields[5] != "-" else None
    if last_code is not None and not (len(last_code) == digits and last_code.isascii() and last_code.isdigit()):
        raise FormatError(line, f"last code: must have {digits} digits")
    last_used = _local_time(fields[6], line) if len(fields) > 6 and fields[6] != "-" else None
    counter = drift = 0
    if period == 0:
        counter = whole_number(moving_factor, line, "counter", high=MOVING_FACTOR_LIMIT - 1)
        counter += last_code is not None and not is_mod_authn_otp
    elif is_mod_authn_otp:
        drift = whole_number(moving_factor, line, "drift", low=-MAX_DRIFT, high=MAX_DRIFT)
    token = ImportedToken(
        line=line,
        type="totp" if period else "hotp",
        user=fields[1],
        secret=secret,
        digits=digits,
        counter=counter,
        period=period or DEFAULT_PERIOD,
        drift=drift,
        last_used=last_used,
        remarks=() if fields[2] in ("-", "+") else ("PIN dropped: a login asks for the code only",),
    )
    return _with_last_step(token, last_code, now) if period and last_code is not None else token


def _with_last_step(token: ImportedToken, last_code: str, now: int) -> ImportedToken:
    """Return the time-based `token` with the step of `last_code`: codes of this and earlier steps are replays."""
    expected = (now if token.last_used is None else token.last_used) // token.period + token.drift
    for steps in _SEARCH if token.last_used is not None else ():
        if expected + steps >= 0 and hotp(token.secret, expected + steps, token.digits) == last_code:
            drift = token.drift if abs(steps) <= _LATE_STEPS else token.drift + steps
            return replace(token, last_step=expected + steps, drift=drift)
    remark = "all codes up to now count as used: the time of the last code is unknown"
    current = now // token.period + token.drift
    return replace(token, last_step=max(current, 0), remarks=(*token.remarks, remark))


def _local_time(text: str, line: int) -> int:
    """Return the Unix seconds of a local time: the file holds times in this host's time zone."""
    match = _TIMESTAMP.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        seconds = int(datetime.datetime(*map(int, match.groups())).timestamp())  # type: ignore[arg-type]  # noqa: DTZ001
        if seconds < 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise FormatError(line, "timestamp: must be YYYY-MM-DDThh:mm:ssL") from None
    return seconds


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
