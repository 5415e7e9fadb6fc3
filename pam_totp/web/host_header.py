"""The Host header and the path of a request, checked before Flask reads them.

Rules:
- A Host header must name one host: a name, or an address, with a port or without (RFC 9110 7.2). Any other header gets
  status 400 and no log line. werkzeug finds no URL for such a request, so even an error page of the portal would fail.
- An empty path is the path "/" (RFC 9110 4.2.3). werkzeug would redirect the client to the host name in the request.
- Host names are compared in lower case, and addresses as values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from pam_totp.core import address as addresses
from pam_totp.web.headers import refuse

App = Callable[[dict[str, Any], Any], Iterable[bytes]]

_MAX_LENGTH = 255  # of a name: RFC 1035 2.3.4
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"  # RFC 1123 forbids the underscore, but such names are common
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?", re.ASCII | re.IGNORECASE)
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
    """Return True if a Host header names one of `hosts`, which may be empty. Ignore the port."""
    return _usual_spelling(urlsplit(f"//{host}").hostname or "") in map(_usual_spelling, hosts)


def _usual_spelling(host: str) -> str:
    """Return a host name in lower case, or an address in its usual spelling."""
    address = addresses.parse(host)
    return host.lower() if address is None else str(address)
