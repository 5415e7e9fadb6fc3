"""The address and the scheme of a request behind a proxy.

Rules:
- Only the proxy may name address and scheme, in X-Forwarded-For and X-Forwarded-Proto. Proxy headers of other peers are
  removed.
- The last address of X-Forwarded-For counts, because the proxy appended it. The client may have sent the others.
- The application gets one canonical address in REMOTE_ADDR, without a port. Therefore the limits and the log show one
  client under one address. A request without a valid address is refused.

waitress's own code for these headers compares text, and reads `::ffff:192.0.2.7` as the address `::ffff`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pam_totp.core import address as addresses
from pam_totp.web.headers import refuse

if TYPE_CHECKING:
    from pam_totp.core.address import Address

App = Callable[[dict[str, Any], Any], Iterable[bytes]]

_FOR, _PROTO = "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO"
_OTHERS = ("HTTP_FORWARDED", *(f"HTTP_X_FORWARDED_{name}" for name in ("HOST", "PORT", "BY", "PREFIX", "SERVER")))
_SCHEMES = ("http", "https")
_NO_CLIENT = "The proxy in front of this server sent no valid address of the client. Tell your administrator."


def client(peer: Address | None, forwarded: str | None, trusted: Address | None) -> Address | None:
    """Return the address of the client: the last of X-Forwarded-For if `peer` may name the client, otherwise `peer`.

    Return None if the last address is invalid.
    """
    if forwarded is None or trusted is None or peer != trusted:
        return peer
    return addresses.parse_hop(forwarded.rpartition(",")[2])


def trusting(app: App, proxy: str | None) -> App:
    """Return `app` behind a filter, which applies the proxy headers of `proxy` (an address, or None), and removes all
    others."""
    trusted = None if proxy is None else addresses.parse(proxy)

    def respond(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        forwarded, scheme = environ.pop(_FOR, None), environ.pop(_PROTO, None)
        for name in _OTHERS:
            environ.pop(name, None)
        peer = addresses.parse(environ["REMOTE_ADDR"])
        address = client(peer, forwarded, trusted)
        if trusted is not None and peer == trusted and scheme is not None:
            environ["wsgi.url_scheme"] = scheme.strip().lower()
        if address is None or environ["wsgi.url_scheme"] not in _SCHEMES:
            return refuse(start_response, _NO_CLIENT)
        environ["REMOTE_ADDR"] = environ["REMOTE_HOST"] = str(address)
        return app(environ, start_response)

    return respond
