"""otpauth URIs, as authenticator apps read them from a QR code.

The format is the one of the "Key Uri Format" page of google-authenticator's wiki: type, label (issuer:account), and
secret, issuer, algorithm, digits, and counter or period as parameters.
"""

from __future__ import annotations

import urllib.parse

from pam_totp.oath import DEFAULT_PERIOD
from pam_totp.record import HotpToken, Token, TotpToken
from pam_totp.secretfile import base32, unbase32

DEFAULT_ISSUER = "pam_totp"


def to_uri(token: Token, user: str, issuer: str) -> str:
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
    parts = urllib.parse.urlsplit(uri)
    if parts.scheme != "otpauth" or parts.netloc not in ("totp", "hotp"):
        raise ValueError("not an otpauth://totp/… or otpauth://hotp/… URI")
    fields = urllib.parse.parse_qsl(parts.query, keep_blank_values=True, max_num_fields=20)
    if len({key for key, _ in fields}) < len(fields):
        raise ValueError("a parameter is there twice")
    given = dict(fields)
    if "secret" not in given:
        raise ValueError("no secret")
    secret = typed_secret(given["secret"])
    algorithm = given.get("algorithm", "SHA1").upper().replace("-", "")
    digits = _number(given, "digits", 6)
    if parts.netloc == "hotp":
        if "counter" not in given:
            raise ValueError("no counter")
        counter = _number(given, "counter", 0)
        return HotpToken(
            name=name, secret=secret, algorithm=algorithm, digits=digits, confirmed=False, created=now, counter=counter
        )
    period = _number(given, "period", DEFAULT_PERIOD)
    return TotpToken(
        name=name, secret=secret, algorithm=algorithm, digits=digits, confirmed=False, created=now, period=period
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


def _number(fields: dict[str, str], name: str, default: int) -> int:
    text = fields.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise ValueError(f"{name}: not a whole number")
    return int(text)
