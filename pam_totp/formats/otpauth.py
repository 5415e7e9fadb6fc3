"""otpauth URIs, which phone apps read from a QR code; a file has one URI per line, or URIs with commas between them.

The page "Key Uri Format" in google-authenticator's wiki defines the format. A URI has a type, a label (issuer:account),
and the parameters secret, issuer, algorithm, digits, and counter or period.

Rules:
- URIs are read as apps write them. The case of the scheme, the type and the names is ignored. A label may have
  characters that a URI must escape. A parameter without a value is ignored. A label in another encoding than
  UTF-8 is dropped, because the key is sufficient.
- A URI that cannot be used becomes a token with the reason (`unsupported`). A line without a URI is an error.
- An error and a reason never show the URI.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pam_totp.core.fields import MAX_TEXT, require, text
from pam_totp.core.oath import ALGORITHMS, DEFAULT_PERIOD, MAX_DIGITS, MIN_DIGITS, MOVING_FACTOR_LIMIT
from pam_totp.core.record import HotpToken, Token, TotpToken, UserRecord
from pam_totp.core.secretfile import base32, unbase32
from pam_totp.formats.format import Format, ParsedFile, ParseOptions, parsed_by_line
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import (
    FormatError,
    algorithm_of,
    as_utf8,
    first_lines,
    key_of,
    numbered_lines,
    period_of,
    whole_number,
)
from pam_totp.formats.picture import is_picture, read_picture, without_symbol

DEFAULT_ISSUER = "pam_totp"
MAX_URI = 2048  # characters
NO_URI = "must be an otpauth://totp/... or otpauth://hotp/... URI"
_IGNORED_FIELDS = {"issuer", "image", "icon", "color", "lock"}  # for the phone app only
_FIELDS = {"secret", "algorithm", "digits", "counter", "period"}
_MAX_FIELDS = 20
_MAX_LINE = 1024 * 1024  # characters: some apps write all URIs in one line
_URI = re.compile(r"otpauth://([^/?]*)/*(.*)", re.IGNORECASE)
_QUERY = re.compile(r"\?(?=(?:secret|issuer|algorithm|digits|counter|period)(?:[=&]|$))|\?(?!.*\?)", re.IGNORECASE)
_BETWEEN = re.compile(r"[\s,;\"'\[\]]+(?=otpauth://)", re.IGNORECASE)  # between two URIs of one line
_AROUND = " \t\xa0,;\"'[]"
_DEFAULTS = {"algorithm": "SHA1", "digits": 6, "period": DEFAULT_PERIOD}


class OtpauthUris(Format):
    """A file of otpauth URIs; lines that start with # are comments."""

    name = "otpauth"
    labels_name_users = True
    suffix = "otpauth.txt"
    lost_fields = frozenset({"last_used", "name", "serial", "last_step", "drift", "row_needed"})

    def sniff(self, data: bytes) -> bool:
        lines = (without_symbol(line.lstrip(_AROUND)) for line in first_lines(data, 1))
        return any(line.lower().startswith("otpauth://") for line in lines)

    def decode(self, data: bytes) -> bytes:
        return read_picture(data) if is_picture(data) else as_utf8(data)

    def parse(self, data: bytes, options: ParseOptions) -> ParsedFile:
        parsed = parsed_by_line(data, _tokens)
        return replace(parsed, max_tokens=max(parsed.max_tokens, data.lower().count(b"otpauth://")))

    def write(self, record: UserRecord, tokens: Sequence[Token], password: str | None = None) -> bytes:
        return "".join(f"{to_uri(token, record.user)}\n" for token in tokens).encode("ascii")


def check_issuer(issuer: str) -> None:
    """Raise ValueError if apps cannot show `issuer`, or if it has a colon, which "Key Uri Format" forbids."""
    if ":" in issuer:
        raise ValueError("the issuer must not contain a colon: apps read it as the end of the issuer")
    require(text, issuer, "the issuer", ValueError)


def to_uri(token: Token, user: str, issuer: str = DEFAULT_ISSUER, *, brief: bool = False) -> str:
    """Return the URI of `token`. The URI of a HOTP token has the counter of the next code.

    With `brief`, omit the parameters that have the defaults of "Key Uri Format", so that a QR code is small.

    Raise ValueError if the issuer is invalid (`check_issuer`).
    """
    check_issuer(issuer)
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
    if brief:
        fields = {name: value for name, value in fields.items() if _DEFAULTS.get(name) != value}
    return f"otpauth://{token.type}/{label}?{urllib.parse.urlencode(fields, quote_via=urllib.parse.quote)}"


def from_uri(uri: str, name: str, now: int) -> Token:
    """Return the unconfirmed token that `uri` describes, with the name `name`, created at `now` (Unix seconds).

    Raise ValueError, with a text that never shows the secret.
    """
    return replace(_token(uri.strip(), 1), name=name, confirmed=False).token(now)


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


def uris(text: str) -> list[str]:
    """Return the otpauth URIs of a line, which commas, spaces or quotation marks may separate."""
    bare = without_symbol(text.lstrip(_AROUND))
    return [uri.strip(_AROUND) for uri in _BETWEEN.split(bare) if uri.strip(_AROUND)]


def imported(uri: str, line: int) -> ImportedToken:
    """Return the token of `uri`, or a token with the reason why the URI is unusable. Raise FormatError."""
    if not uri.lower().startswith("otpauth://"):
        raise FormatError(line, NO_URI)
    try:
        return _token(uri, line)
    except ValueError as e:
        kind, label, query = _parts(uri)
        # The label contains the key if the question mark is missing.
        user = _account_of(label)[0] if "secret=" in query.lower() else None
        user = user[:MAX_TEXT] if user else None
        return ImportedToken(line=line, type=kind if kind == "hotp" else "totp", user=user, unsupported=str(e))


def _tokens(data: bytes) -> Iterator[ImportedToken]:
    for number, line in numbered_lines(data, _MAX_LINE):
        if not line.lstrip().startswith("#"):
            for uri in uris(line):
                yield imported(uri, number)


def _token(uri: str, line: int) -> ImportedToken:
    """Return the token of `uri`. Raise ValueError, without the number of the line."""
    if len(uri) > MAX_URI:
        raise ValueError(f"the URI must be at most {MAX_URI} characters")
    kind, label, query = _parts(uri)
    if not kind:
        raise ValueError(NO_URI)
    if kind not in ("totp", "hotp"):
        raise ValueError("unsupported type: must be totp or hotp")
    fields = _fields(query)
    if not fields.get("secret"):
        raise ValueError("missing secret")
    algorithm = algorithm_of(fields.get("algorithm", "SHA1"))
    if algorithm is None:
        raise ValueError(f"algorithm: must be {', '.join(ALGORITHMS)}")
    if kind == "hotp" and "counter" not in fields:
        raise ValueError("missing counter")
    counter = fields.get("counter", "0") if kind == "hotp" else "0"
    unknown = fields.keys() - _FIELDS - _IGNORED_FIELDS
    user, remarks = _account_of(label)
    if unknown:
        remarks = (*remarks, f"{len(unknown)} unknown parameters dropped")
    return ImportedToken(
        line=line,
        type=kind,
        secret=key_of(fields["secret"], None, "secret", "base32"),
        algorithm=algorithm,
        digits=whole_number(fields.get("digits", str(MIN_DIGITS)), None, "digits", low=MIN_DIGITS, high=MAX_DIGITS),
        counter=whole_number(counter, None, "counter", high=MOVING_FACTOR_LIMIT - 1),
        period=period_of(fields.get("period", str(DEFAULT_PERIOD)), None, "period"),
        user=user,
        remarks=remarks,
    )


def _parts(uri: str) -> tuple[str, str, str]:
    """Return the type in lower case, the label and the query of an otpauth URI, or empty strings."""
    match = _URI.fullmatch(uri)
    if match is None:
        return "", "", ""
    label, *query = _QUERY.split(match[2], maxsplit=1)
    return match[1].lower(), label, "".join(query)


def account(label: str) -> str | None:
    """Return the account in a label, which may have the issuer and a colon before the account, or None."""
    return label.rpartition(":")[2].strip() or None


def _account_of(label: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the account in a label with escapes, and remarks. The account is None if the label is not UTF-8."""
    try:
        return account(urllib.parse.unquote(label, errors="strict")), ()
    except UnicodeDecodeError:
        return None, ("user name dropped: it is not UTF-8",)


def _fields(query: str) -> dict[str, str]:
    """Return the parameters that have a value, by their names in lower case. Raise ValueError."""
    fields: dict[str, str] = {}
    pairs = [pair for pair in re.split("&(?:amp;)?", query) if pair]
    if len(pairs) > _MAX_FIELDS:
        raise ValueError(f"the URI must have at most {_MAX_FIELDS} parameters")
    for pair in pairs:
        name, _, value = pair.partition("=")
        name = urllib.parse.unquote(name).strip().lower()
        value = _unquoted(value.replace("+", " "), strict=name in _FIELDS).strip()
        if value and fields.setdefault(name, value) != value:
            raise ValueError("each parameter must have one value")
    return fields


def _unquoted(value: str, *, strict: bool) -> str:
    try:
        return urllib.parse.unquote(value, errors="strict" if strict else "replace")
    except UnicodeDecodeError:
        raise ValueError("the parameters must be UTF-8") from None
