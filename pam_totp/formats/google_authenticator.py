"""~/.google_authenticator, the file of pam_google_authenticator.

The first line is the key in base32. Lines of the form `" NAME VALUE` are settings; the other lines are scratch codes.
The import keeps these settings:
- HOTP_COUNTER: the counter of the next code. A counter above 0 takes precedence over TOTP_AUTH.
- STEP_SIZE and TIME_SKEW: the period and the drift.
- DISALLOW_REUSE: used steps. The latest step in the list and all earlier steps are used.
- DIGITS and ALGORITHM, which only a fork writes.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

from pam_totp.core.oath import ALGORITHMS, DEFAULT_PERIOD, MAX_DIGITS, MIN_DIGITS
from pam_totp.core.record import MAX_DRIFT, HotpToken, Token, TotpToken, UserRecord
from pam_totp.core.secretfile import base32
from pam_totp.formats.format import Format, ParsedFile, ParseOptions, parsed_at_once
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import FormatError, algorithm_of, first_lines, numbered_lines, period_of, whole_number

HOME_FILE = ".google_authenticator"
MAX_FILE = 64 * 1024  # bytes: more than pam_google_authenticator reads
MAX_STEP_SIZE = 60  # seconds
MAX_WINDOW = 100
DEFAULT_WINDOW = 3
COUNTER_LIMIT = 1 << 63
# Token type -> the number of codes that the default policy tries. A WINDOW_SIZE up to this number gets no remark.
DEFAULT_REACH = {"hotp": 11, "totp": 3}
_MAX_STEPS_AHEAD = MAX_WINDOW  # the largest distance of a used step ahead of the clock
_LOOKALIKES = str.maketrans("018", "OLB", " \t-")
_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_GRACE_SETTINGS = {f"LAST{i}" for i in range(10)}  # hosts from which a login needs no code for a while
_IGNORED_SETTINGS = {"RESETTING_TIME_SKEW"}  # recent attempts, from which TIME_SKEW is computed

Settings = dict[str, tuple[int, str]]  # name -> (line, value)


class GoogleAuthenticator(Format):
    """A file with one token of one user."""

    name = "google-authenticator"
    names_users = False
    suffix = "google_authenticator"
    all_users = "folder"
    lost_fields = frozenset({"last_used", "name", "serial", "row_needed"})
    holds_one_token = True

    def sniff(self, data: bytes) -> bool:
        lines = first_lines(data, 2)
        return len(lines) == 2 and _is_base32(lines[0].upper().translate(_LOOKALIKES)) and lines[1].startswith('" ')

    def parse(self, data: bytes, options: ParseOptions) -> ParsedFile:
        return parsed_at_once([_parse(data, options.now)])

    def unwritable(self, token: Token) -> str | None:
        if token.algorithm != "SHA1" or token.digits != MIN_DIGITS:
            return "google-authenticator supports SHA1 and 6 digits only"
        if isinstance(token, TotpToken) and token.period > MAX_STEP_SIZE:
            return f"google-authenticator supports periods of up to {MAX_STEP_SIZE} s only"
        if isinstance(token, HotpToken) and not 0 < token.counter < COUNTER_LIMIT:
            return f"google-authenticator supports counters from 1 to {COUNTER_LIMIT - 1} only (use one code first)"
        return None

    def write(self, record: UserRecord, tokens: Sequence[Token], password: str | None = None) -> bytes:
        (token,) = tokens
        lines = [base32(token.secret)]
        if isinstance(token, TotpToken):
            lines += [f'" STEP_SIZE {token.period}'] if token.period != DEFAULT_PERIOD else []
            lines += [f'" TIME_SKEW {token.drift}'] if token.drift else []
            lines += [f'" DISALLOW_REUSE {"" if token.last_step is None else token.last_step}'.rstrip(), '" TOTP_AUTH']
        elif isinstance(token, HotpToken):
            lines += [f'" HOTP_COUNTER {token.counter}']
        return "".join(f"{line}\n" for line in lines).encode("ascii")


def _parse(data: bytes, now: int) -> ImportedToken:
    if len(data) > MAX_FILE:
        raise FormatError(None, f"the file must be at most {MAX_FILE // 1024} KiB")
    lines = list(numbered_lines(data))
    if not lines:
        raise FormatError(1, "missing key")
    (first, key), *rest = lines
    secret = _key(key, first)
    settings: Settings = {}
    remarks: list[str] = []
    scratch_codes = 0
    for number, text in rest:
        line = text.rstrip()
        if line.startswith('" '):
            name, _, value = line[2:].upper().partition(" ")
            if not (name.isascii() and name.replace("_", "").isalnum()):
                raise FormatError(number, "the name of a setting must follow the quotation mark")
            if name in settings:
                remarks.append(f"duplicate {name} dropped: the first value is kept")
            settings.setdefault(name, (number, value.strip()))
        elif len(line) == 8 and line.isascii() and line.isdigit() and line[0] != "0":
            scratch_codes += 1
        else:
            raise FormatError(number, "must be a setting or a scratch code")
    if scratch_codes:
        remarks.append(f"{scratch_codes} scratch codes dropped: they are too short (see 'pam-totp recovery')")
    return _token(first, secret, settings, remarks, now)


def _key(text: str, line: int) -> bytes:
    """Return the key as pam_google_authenticator decodes it.

    That module ignores case, blanks and hyphens, reads 0 as O, 1 as L and 8 as B, and drops odd bits at the end.
    """
    letters = text.upper().translate(_LOOKALIKES)
    if not _is_base32(letters):
        raise FormatError(line, "the key must be base32")
    return base64.b32decode(letters + "A" * (-len(letters) % 8))[: len(letters) * 5 // 8]


def _is_base32(letters: str) -> bool:
    return letters != "" and not letters.strip(_BASE32)


def _token(line: int, secret: bytes, settings: Settings, remarks: list[str], now: int) -> ImportedToken:
    def number(name: str, default: int, low: int, high: int) -> int:
        at, value = settings.pop(name, (line, str(default)))
        return whole_number(value, at, name, low=low, high=high)

    counter = number("HOTP_COUNTER", 0, 0, COUNTER_LIMIT - 1)
    is_totp = settings.pop("TOTP_AUTH", None) is not None
    kind = "totp" if is_totp and counter == 0 else "hotp"
    at, step_size = settings.pop("STEP_SIZE", (line, str(DEFAULT_PERIOD)))
    period = period_of(step_size, at, "STEP_SIZE", MAX_STEP_SIZE)
    skew = number("TIME_SKEW", 0, -MAX_DRIFT, MAX_DRIFT)
    digits = number("DIGITS", MIN_DIGITS, MIN_DIGITS, MAX_DIGITS)
    at, algorithm = settings.pop("ALGORITHM", (line, "SHA1"))
    known = algorithm_of(algorithm)
    if known is None:
        raise FormatError(at, f"ALGORITHM: must be {', '.join(ALGORITHMS)}")
    window = number("WINDOW_SIZE", DEFAULT_WINDOW, 1, MAX_WINDOW)
    if window > DEFAULT_REACH[kind]:
        same = f"look_ahead={window - 1}" if kind == "hotp" else f"window={window // 2}"
        remarks.append(f"WINDOW_SIZE {window} dropped (set '{same}' in the policy for the same width)")
    last_step = None
    reuse = settings.pop("DISALLOW_REUSE", None)
    if kind == "totp":
        last_step = _last_step(reuse, now // period + skew, remarks)
    remarks += _dropped(settings)
    return ImportedToken(
        line=line,
        type=kind,
        secret=secret,
        algorithm=known,
        digits=digits,
        counter=counter,
        period=period,
        last_step=last_step,
        drift=skew if kind == "totp" else 0,
        remarks=tuple(remarks),
        unsupported=None if is_totp or counter > 0 else "TOTP_AUTH or a HOTP_COUNTER above 0 is required",
    )


def _dropped(settings: Settings) -> list[str]:
    """Return remarks on the remaining settings, which the import drops."""
    hosts = [name for name in settings if name in _GRACE_SETTINGS]
    remarks = [f"{len(hosts)} hosts with a grace period dropped"] if hosts else []
    for name in settings:
        if name not in _GRACE_SETTINGS | _IGNORED_SETTINGS:
            why = ": pam_totp always counts wrong answers" if name == "RATE_LIMIT" else ""
            remarks.append(f"{name} dropped{why}")
    return remarks


def _last_step(reuse: tuple[int, str] | None, current: int, remarks: list[str]) -> int | None:
    """Return the last step that may have been used: the current step if the file has no list of used steps."""
    if reuse is None:
        remarks.append("all codes up to now count as used: the file has no DISALLOW_REUSE")
        return max(current, 0)
    line, value = reuse
    steps = (whole_number(step, line, "DISALLOW_REUSE", high=current + _MAX_STEPS_AHEAD) for step in value.split())
    return max(steps, default=None)
