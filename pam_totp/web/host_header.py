"""The Host header and the path of a request, checked before Flask reads them.

Rules:
- A Host header must name one host: a name, or an address, with a port or without (RFC 9110 7.2). Any other header gets
  status 400, without a log line. An error page of the portal would fail, too, because werkzeug cannot find a URL for
  such a request.
- An empty path is the path "/" (RFC 9110 4.2.3). werkzeug would redirect the client to the host name in the request.
- Host names are compared as browsers send them: in lower case, in ASCII (IDNA), without a final dot. Addresses are
  compared as values. A port does not matter.
- A configured name must be a name that browsers can send: with another name, the portal would refuse every request.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from pam_totp.core import address as addresses
from pam_totp.web.headers import refuse

App = Callable[[dict[str, Any], Any], Iterable[bytes]]

_MAX_LENGTH = 255  # of a name: RFC 1035 2.3.4
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"  # RFC 1123 forbids the underscore, but such names are common
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?", re.ASCII | re.IGNORECASE)
_DOTS = re.compile("[.\u3002\uff0e\uff61]")  # the characters that separate labels: UTS #46, section 4
_NUMBER = re.compile(
    r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)$"
)  # browsers read such a name as an IPv4 address: WHATWG URL, 3.5
_NO_LABEL = "-"  # not a valid label
_SEPARATE = {"ß": "ß", "\u1e9e": "ß", "ς": "ς"}  # not folded to other letters
# Characters that UTS #46 ignores.
_IGNORED = re.compile("[\u00ad\u034f\u180b-\u180d\u180f\u200b\u2060\u2064\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]")
_NON_JOINER = "\u200c"
_JOINER = re.compile("[\u200c\u200d]")
_VIRAMA = 9  # the canonical combining class
_PORT = re.compile(r"(?::[0-9]{0,5})?", re.ASCII)


def checking(app: App) -> App:
    """Return `app` behind a check, which refuses requests with an invalid Host header and completes an empty path."""

    def respond(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not _is_valid(environ.get("HTTP_HOST", "")):
            return refuse(start_response, "The Host header of the request must name one host.")
        environ["PATH_INFO"] = environ.get("PATH_INFO") or "/"
        return app(environ, start_response)

    return respond


def _is_valid(host: str) -> bool:
    """Return True if `host` is the name or the address of one host, with a port or without, or if it is empty."""
    if host.startswith("["):
        address, bracket, port = host[1:].partition("]")
        parsed = addresses.parse(address) if bracket and "%" not in address else None
        return parsed is not None and ":" in address and _PORT.fullmatch(port) is not None
    name, colon, port = host.partition(":")
    is_name = len(name) <= _MAX_LENGTH and _NAME.fullmatch(name) is not None
    return not host or (is_name and _PORT.fullmatch(colon + port) is not None)


def is_listed(host: str, hosts: Iterable[str]) -> bool:
    """Return True if a valid Host header names one of `hosts`, which are in the spelling of `canonical`."""
    return _usual_spelling(host) in hosts


def canonical(host: str) -> str:
    """Return a configured host name, or an address, as `is_listed` compares it.

    `host` may have any case, a port, a final dot, letters beyond ASCII, and brackets around an IPv6 address. Raise
    ValueError if no browser can send `host`.
    """
    text = host if addresses.parse(host) is None or ":" not in host else f"[{host}]"
    ascii_text = ".".join(map(_ascii_label, _DOTS.split(text)))
    name = _usual_spelling(ascii_text)
    if not ascii_text or not _is_valid(ascii_text) or (_NUMBER.search(name) and addresses.parse(name) is None):
        raise ValueError(f"{host}: must be one host name or address (examples: portal.example.org, 192.0.2.7, [::1])")
    return name


def _ascii_label(label: str) -> str:
    """Return a label of a name as browsers send it (UTS #46, non-transitional: `ß` and `ς` remain separate letters).

    Return _NO_LABEL for a label that no browser can send.
    """
    # Letter by letter, because the lower case of a final Σ in a text is ς.
    folded = "".join(_SEPARATE.get(c, c.casefold()) for c in unicodedata.normalize("NFKC", label))
    label = _IGNORED.sub("", unicodedata.normalize("NFKC", folded))
    if "." in label or not _has_valid_joiners(label):
        return _NO_LABEL
    return label if label.isascii() else f"xn--{label.encode('punycode').decode('ascii')}"


def _has_valid_joiners(label: str) -> bool:
    """Return True if each joiner follows a virama, or separates letters of a cursive script (RFC 5892, A.1 and A.2)."""
    for found in _JOINER.finditer(label):
        before, after = label[: found.start()][-1:], label[found.end() :][:1]
        is_cursive = found[0] == _NON_JOINER and "AL" == _direction(before) == _direction(after)
        if not is_cursive and (not before or unicodedata.combining(before) != _VIRAMA):
            return False
    return True


def _direction(character: str) -> str:
    return unicodedata.bidirectional(character) if character else ""


def _usual_spelling(host: str) -> str:
    """Return the name or the address in a Host header, in lower case. Omit the port and a final dot."""
    is_ipv6 = host.startswith("[")
    name = host[1:].partition("]")[0] if is_ipv6 else host.partition(":")[0].lower().removesuffix(".")
    address = addresses.parse(name)
    return name if address is None else str(address)
