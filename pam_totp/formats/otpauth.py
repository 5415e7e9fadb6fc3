"""otpauth URIs, which phone apps read from a QR code; a file has one URI a line.

The page "Key Uri Format" in google-authenticator's wiki defines the format: a type, a label (issuer:account), and the
parameters secret, issuer, algorithm, digits, and counter or period.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pam_totp.core.oath import ALGORITHMS, DEFAULT_PERIOD
from pam_totp.core.record import HotpToken, Token, TotpToken, UserRecord
from pam_totp.core.secretfile import base32, unbase32
from pam_totp.formats.format import Format, ParsedFile, ParseOptions, parsed_by_line
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import FormatError, first_lines, numbered_lines

DEFAULT_ISSUER = "pam_totp"
MAX_URI = 2048  # characters
_IGNORED_FIELDS = {"issuer", "image", "icon", "color", "lock"}  # for the display in a phone app
_FIELDS = {"secret", "algorithm", "digits", "counter", "period"}
_MIN_PERIOD, _MAX_PERIOD = 1, 86_400  # seconds


class OtpauthUris(Format):
    """A file of otpauth URIs; lines that start with # are comments."""

    name = "otpauth"
    suffix = "otpauth.txt"
    lost_fields = frozenset({"last_used", "name", "serial", "last_step", "drift", "row_needed"})

    def sniff(self, data: bytes) -> bool:
        return any(line.startswith("otpauth:") for line in first_lines(data, 1))

    def parse(self, data: bytes, options: ParseOptions) -> ParsedFile:
        return parsed_by_line(data, _tokens)

    def write(self, record: UserRecord, tokens: Sequence[Token], password: str | None = None) -> bytes:
        return "".join(f"{to_uri(token, record.user)}\n" for token in tokens).encode("ascii")


def to_uri(token: Token, user: str, issuer: str = DEFAULT_ISSUER) -> str:
    """Return the URI of `token`. The URI of a HOTP token has the counter of the next code.

    Raise ValueError for a colon in the issuer, which "Key Uri Format" forbids.
    """
    if ":" in issuer:
        raise ValueError("the issuer must not contain a colon: apps read it as the end of the issuer")
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
    """Return the unconfirmed token that `uri` describes. Raise ValueError; its text never shows the secret."""
    return replace(_token(uri, 1), name=name, confirmed=False).token(now)


def typed_secret(text: str) -> bytes:
    """Return a key that a user typed: base32, or `hex:` and hexadecimal digits.

    Case, spaces, hyphens and padding are ignored. Raise ValueError.
    """
    squeezed = "".join(text.split()).replace("-", "")
    if squeezed[:4].lower() == "hex:":
        try:
            return bytes.fromhex(squeezed[4:])
        except ValueError:
            raise ValueError("the key after hex: must be hexadecimal") from None
    return unbase32(squeezed.upper().rstrip("="))


def _tokens(data: bytes) -> Iterator[ImportedToken]:
    for number, line in numbered_lines(data):
        if line.startswith("#"):
            continue
        try:
            yield _token(line.strip(), number)
        except FormatError:
            raise
        except ValueError as e:
            raise FormatError(number, str(e)) from None


def _token(uri: str, line: int) -> ImportedToken:
    if len(uri) > MAX_URI:
        raise ValueError(f"the URI must be at most {MAX_URI} characters")
    try:
        parts = urllib.parse.urlsplit(uri)
    except ValueError:
        raise ValueError("must be a URI") from None
    if parts.scheme != "otpauth" or parts.netloc.lower() not in ("totp", "hotp"):
        raise ValueError("must be an otpauth://totp/... or otpauth://hotp/... URI")
    kind = parts.netloc.lower()
    try:
        fields = urllib.parse.parse_qsl(
            parts.query, keep_blank_values=True, strict_parsing=True, max_num_fields=20, errors="strict"
        )
        label = urllib.parse.unquote(parts.path, errors="strict")
    except ValueError:
        raise ValueError("the parameters must be at most 20 pairs NAME=VALUE in UTF-8") from None
    if len({key for key, _ in fields}) < len(fields):
        raise ValueError("duplicate parameter")
    given = dict(fields)
    if not given.get("secret"):
        raise ValueError("missing secret")
    algorithm = given.get("algorithm", "SHA1").upper().replace("-", "").removeprefix("HMAC")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm: must be {', '.join(ALGORITHMS)}")
    if kind == "hotp" and "counter" not in given:
        raise ValueError("missing counter")
    unknown = sorted(given.keys() - _FIELDS - _IGNORED_FIELDS)
    return ImportedToken(
        line=line,
        type=kind,
        secret=typed_secret(given["secret"]),
        algorithm=algorithm,
        digits=_number(given, "digits", 6, range(6, 9)),
        counter=_number(given, "counter", 0, range(1 << 64)) if kind == "hotp" else 0,
        period=_number(given, "period", DEFAULT_PERIOD, range(_MIN_PERIOD, _MAX_PERIOD + 1)),
        user=label.lstrip("/").rpartition(":")[2].strip() or None,
        remarks=(f"{len(unknown)} unknown parameters dropped",) if unknown else (),
    )


def _number(fields: dict[str, str], name: str, default: int, within: range) -> int:
    text = fields.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) in within):
        raise ValueError(f"{name}: must be a whole number from {within.start} to {within.stop - 1}")
    return int(text)
