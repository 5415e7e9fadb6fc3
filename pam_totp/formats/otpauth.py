"""otpauth URIs, as authenticator apps read them from a QR code; for import one a line.

The format is the one of the "Key Uri Format" page of google-authenticator's wiki: type, label (issuer:account), and
secret, issuer, algorithm, digits, and counter or period as parameters.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from dataclasses import replace

from pam_totp.core.oath import ALGORITHMS, DEFAULT_PERIOD
from pam_totp.core.record import HotpToken, Token, TotpToken
from pam_totp.core.secretfile import base32, unbase32
from pam_totp.formats.imported_token import FormatError, Found, lines_of

DEFAULT_ISSUER = "pam_totp"
MAX_URI = 2048  # characters
_NO_MATTER = {"issuer", "image", "icon", "color", "lock"}  # how an app shows it
_FIELDS = {"secret", "algorithm", "digits", "counter", "period"}
_SHORTEST_PERIOD, _LONGEST_PERIOD = 1, 86_400  # seconds


def to_uri(token: Token, user: str, issuer: str = DEFAULT_ISSUER) -> str:
    """The URI of `token`; for HOTP the counter is that of the next code.

    Raises ValueError for a colon in the issuer: "neither issuer nor account name may itself contain a colon".
    """
    if ":" in issuer:
        raise ValueError("the issuer has a colon in it, which apps take for its end")
    label = ":".join(urllib.parse.quote(part, safe="@") for part in (issuer, user))
    fields: dict[str, str | int] = {
        "secret": base32(token.secret),
        "issuer": issuer,
        "algorithm": token.algorithm,
        "digits": token.digits,
    }
    if isinstance(token, HotpToken):
        fields["counter"] = token.counter
    elif isinstance(token, TotpToken):
        fields["period"] = token.period
    return f"otpauth://{token.type}/{label}?{urllib.parse.urlencode(fields, quote_via=urllib.parse.quote)}"


def from_uri(uri: str, name: str, now: int) -> Token:
    """The token that `uri` describes, unconfirmed and called `name`. Raises ValueError, never showing the secret."""
    return replace(_found(uri, 1), name=name, confirmed=False).token(now)


def parse(data: bytes, now: int) -> list[Found]:
    """The tokens of a file of URIs, one a line; lines that begin with # are comments. Raises FormatError."""
    return list(each(data, now))


def each(data: bytes, now: int) -> Iterator[Found]:
    """The same tokens, one after the other. Raises FormatError where it comes to it."""
    for number, line in lines_of(data):
        if line.startswith("#"):
            continue
        try:
            yield _found(line.strip(), number)
        except FormatError:
            raise
        except ValueError as e:
            raise FormatError(number, str(e)) from None


def write(user: str, tokens: list[Token]) -> bytes:
    """One URI a line."""
    return "".join(f"{to_uri(token, user)}\n" for token in tokens).encode("ascii")


def _found(uri: str, line: int) -> Found:
    if len(uri) > MAX_URI:
        raise ValueError(f"longer than {MAX_URI} characters")
    try:
        parts = urllib.parse.urlsplit(uri)
    except ValueError:
        raise ValueError("not a URI") from None
    if parts.scheme != "otpauth" or parts.netloc.lower() not in ("totp", "hotp"):
        raise ValueError("not an otpauth://totp/… or otpauth://hotp/… URI")
    kind = parts.netloc.lower()
    try:
        fields = urllib.parse.parse_qsl(
            parts.query, keep_blank_values=True, strict_parsing=True, max_num_fields=20, errors="strict"
        )
        label = urllib.parse.unquote(parts.path, errors="strict")
    except ValueError:
        raise ValueError("its parameters cannot be read") from None
    if len({key for key, _ in fields}) < len(fields):
        raise ValueError("a parameter is there twice")
    given = dict(fields)
    if not given.get("secret"):
        raise ValueError("no secret")
    algorithm = given.get("algorithm", "SHA1").upper().replace("-", "").removeprefix("HMAC")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm: not one of {', '.join(ALGORITHMS)}")
    if kind == "hotp" and "counter" not in given:
        raise ValueError("no counter")
    unknown = sorted(given.keys() - _FIELDS - _NO_MATTER)
    return Found(
        line=line,
        kind=kind,
        secret=typed_secret(given["secret"]),
        algorithm=algorithm,
        digits=_number(given, "digits", 6, range(6, 9)),
        counter=_number(given, "counter", 0, range(1 << 64)) if kind == "hotp" else 0,
        period=_number(given, "period", DEFAULT_PERIOD, range(_SHORTEST_PERIOD, _LONGEST_PERIOD + 1)),
        user=label.lstrip("/").rpartition(":")[2].strip() or None,
        remarks=(f"{len(unknown)} parameters that are not known here",) if unknown else (),
    )


def typed_secret(text: str) -> bytes:
    """A key as people type it: base32 in any case, with spaces, hyphens and padding forgiven, or `hex:` and
    hexadecimal. Raises ValueError."""
    squeezed = "".join(text.split()).replace("-", "")
    if squeezed[:4].lower() == "hex:":
        try:
            return bytes.fromhex(squeezed[4:])
        except ValueError:
            raise ValueError("not hexadecimal after hex:") from None
    return unbase32(squeezed.upper().rstrip("="))


def _number(fields: dict[str, str], name: str, default: int, within: range) -> int:
    text = fields.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) in within):
        raise ValueError(f"{name}: not a whole number {within.start} … {within.stop - 1}")
    return int(text)
