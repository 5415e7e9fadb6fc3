"""~/.google_authenticator, the file of pam_google_authenticator: a key, then ` " KEY value` lines, then scratch codes.

What is kept: the key, HOTP_COUNTER (the counter of the next code; above zero it wins over TOTP_AUTH), STEP_SIZE,
TIME_SKEW (our drift), and the latest step of DISALLOW_REUSE, with all before it. A fork's DIGITS and ALGORITHM too.
"""

from __future__ import annotations

import base64

from pam_totp.core.oath import ALGORITHMS, DEFAULT_PERIOD, MAX_DIGITS, MIN_DIGITS
from pam_totp.core.record import MAX_DRIFT, HotpToken, Token, TotpToken
from pam_totp.core.secretfile import base32
from pam_totp.formats.imported_token import FormatError, Found, lines_of, whole

MAX_FILE = 64 * 1024  # bytes: more than it reads itself
MAX_STEP_SIZE = 60  # seconds
MAX_WINDOW = 100
DEFAULT_WINDOW = 3
OUR_REACH = {"hotp": 11, "totp": 3}  # codes that our default policy looks at: windows up to there need no word
COUNTER_LIMIT = 1 << 63
_FAR_AHEAD = MAX_WINDOW  # steps: no code farther ahead can have been used
_LOOKALIKES = str.maketrans("018", "OLB", " \t-")
_NO_MATTER = {"RESETTING_TIME_SKEW"}  # a memory of attempts, not a setting


def parse(data: bytes, now: int) -> list[Found]:
    """The one token of the file; `now` is in Unix seconds. Raises FormatError."""
    if len(data) > MAX_FILE:
        raise FormatError(None, f"larger than {MAX_FILE // 1024} KiB")
    lines = list(lines_of(data))
    if not lines:
        raise FormatError(1, "no key")
    (first, key), *rest = lines
    secret = _key(key, first)
    settings: dict[str, tuple[int, str]] = {}
    remarks: list[str] = []
    scratch = 0
    for number, line in rest:
        if line.startswith('" '):
            name, _, value = line[2:].partition(" ")
            if not (name.isascii() and name.replace("_", "").isalnum()):
                raise FormatError(number, "no setting after the quotation mark")
            if name in settings:
                remarks.append(f"{name} is there twice; the first counts")
            settings.setdefault(name, (number, value.strip()))
        elif len(line) == 8 and line.isascii() and line.isdigit() and line[0] != "0":
            scratch += 1
        else:
            raise FormatError(number, "neither a setting nor a scratch code")
    if scratch:
        remarks.append(f"{scratch} scratch codes not kept: too short for codes that are not counted (see 'recovery')")
    return [_token(first, secret, settings, remarks, now)]


def _key(text: str, line: int) -> bytes:
    """Base32 as that module takes it: any case, blanks and hyphens, 0 for O, 1 for L, 8 for B; odd bits at the end."""
    letters = text.upper().translate(_LOOKALIKES)
    if not letters or letters.strip("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"):
        raise FormatError(line, "the key is not base32")
    return base64.b32decode(letters + "A" * (-len(letters) % 8))[: len(letters) * 5 // 8]


def _token(line: int, secret: bytes, settings: dict[str, tuple[int, str]], remarks: list[str], now: int) -> Found:
    def number(name: str, default: int, low: int, high: int) -> int:
        at, value = settings.pop(name, (line, str(default)))
        return whole(value, at, name, low=low, high=high)

    counter = number("HOTP_COUNTER", 0, 0, COUNTER_LIMIT - 1)
    by_time = settings.pop("TOTP_AUTH", None) is not None
    kind = "totp" if by_time and counter == 0 else "hotp"
    period = number("STEP_SIZE", DEFAULT_PERIOD, 1, MAX_STEP_SIZE)
    skew = number("TIME_SKEW", 0, -MAX_DRIFT, MAX_DRIFT)
    digits = number("DIGITS", MIN_DIGITS, MIN_DIGITS, MAX_DIGITS)
    at, algorithm = settings.pop("ALGORITHM", (line, "SHA1"))
    algorithm = algorithm.upper().replace("-", "")
    if algorithm not in ALGORITHMS:
        raise FormatError(at, f"ALGORITHM: not one of {', '.join(ALGORITHMS)}")
    window = number("WINDOW_SIZE", DEFAULT_WINDOW, 1, MAX_WINDOW)
    if window > OUR_REACH[kind]:
        ours = f"look_ahead={window - 1}" if kind == "hotp" else f"window={window // 2}"
        remarks.append(f"WINDOW_SIZE {window} not kept ('{ours}' in the policy is as wide)")
    reuse = settings.pop("DISALLOW_REUSE", None)
    last_step = None
    if kind == "totp":
        last_step = _last_step(reuse, now // period + skew, remarks)
    hosts = [name for name in settings if name in {f"LAST{i}" for i in range(10)}]
    if hosts:
        remarks.append(f"{len(hosts)} logins without a code for a while (grace_period) not kept")
    for name in settings.keys() - set(hosts) - _NO_MATTER:
        remarks.append(f"{name} not kept" + (": all wrong answers count here" if name == "RATE_LIMIT" else ""))
    return Found(
        line=line,
        kind=kind,
        secret=secret,
        algorithm=algorithm,
        digits=digits,
        counter=counter,
        period=period,
        last_step=last_step,
        drift=skew if kind == "totp" else 0,
        remarks=tuple(remarks),
        unfit=None
        if by_time or counter > 0
        else "neither TOTP_AUTH nor a HOTP_COUNTER above 0: it never let anybody in",
    )


def _last_step(reuse: tuple[int, str] | None, current: int, remarks: list[str]) -> int | None:
    """The last step that may have been used. Where no list of them was kept, it is the present one."""
    if reuse is None:
        remarks.append("no DISALLOW_REUSE, so what was used is not known: every code up to now is taken for used")
        return max(current, 0)
    line, value = reuse
    return max((whole(step, line, "DISALLOW_REUSE", high=current + _FAR_AHEAD) for step in value.split()), default=None)


def unwritable(token: Token) -> str | None:
    """Why that module could not use `token`, or None."""
    if token.algorithm != "SHA1" or token.digits != MIN_DIGITS:
        return "google-authenticator knows SHA1 and 6 digits only"
    if isinstance(token, TotpToken) and token.period > MAX_STEP_SIZE:
        return f"google-authenticator knows periods up to {MAX_STEP_SIZE} s only"
    if isinstance(token, HotpToken) and not 0 < token.counter < COUNTER_LIMIT:
        return "google-authenticator knows no counter 0: use one code first"
    return None


def write(token: Token) -> bytes:
    """The file that holds `token` alone, for a `token` that is not `unwritable`."""
    lines = [base32(token.secret)]
    if isinstance(token, TotpToken):
        lines += [f'" STEP_SIZE {token.period}'] if token.period != DEFAULT_PERIOD else []
        lines += [f'" TIME_SKEW {token.drift}'] if token.drift else []
        lines += [f'" DISALLOW_REUSE {"" if token.last_step is None else token.last_step}'.rstrip(), '" TOTP_AUTH']
    elif isinstance(token, HotpToken):
        lines += [f'" HOTP_COUNTER {token.counter}']
    return "".join(f"{line}\n" for line in lines).encode("ascii")
