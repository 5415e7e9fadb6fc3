"""The server of the portal: waitress on a TCP port, with one process and several threads.

Rules:
- The server listens on loopback only, unless a proxy terminates TLS.
- The server takes a request's address from a header only if the proxy named by `proxy` sent the request.
- No thread waits for the delay of a refusal (connections). Few threads check passwords (dispatcher).
"""

from __future__ import annotations

import logging
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from pam_totp.core import address as addresses
from pam_totp.web import proxy_headers

THREADS = 32  # most threads wait for a disk, or for the check of a password
BACKLOG = 1024
MAX_CONNECTIONS = 1000
MAX_BODY = 1 << 16  # bytes; the application has a lower limit, and answers with a page
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MAX_HEADERS = 1 << 15  # bytes
OTHER_FILES = 200  # descriptors: a few for each thread, with slack


class ListenError(ValueError):
    """The error of an address that is invalid, or on which the portal must not listen."""


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address and a port to listen on."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address in `text`, ADDRESS:PORT. An IPv6 address is in square brackets. Raise ListenError."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        if addresses.parse(host) is None:
            raise ListenError(f"{text}: must be ADDRESS:PORT (examples: 127.0.0.1:8443, [::1]:8443)")
        if not colon or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise ListenError(f"{text}: the port must be 0 to 65535")
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        address = addresses.parse(self.host)
        return address is not None and address.is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def check_exposure(address: Address, proxy: str | None) -> None:
    """Raise ListenError if passwords would cross a network unencrypted, or if any client could forge an address."""
    if proxy is not None and addresses.parse(proxy) is None:
        raise ListenError(f"{proxy}: --behind-tls-proxy must be an IP address (example: 127.0.0.1)")
    if proxy is None and not address.is_loopback:
        raise ListenError(f"{address}: must be loopback, unless a proxy terminates TLS (see --behind-tls-proxy)")


def permitted_connections() -> int:
    """Raise the soft limit of descriptors if necessary. Return the number of connections that the limit permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = MAX_CONNECTIONS + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < enough:
        soft = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
        with suppress(OSError, ValueError):  # a service unit may forbid a higher limit, and set LimitNOFILE= instead
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(MAX_CONNECTIONS, max(soft - OTHER_FILES, soft // 2))
    )


def _options(address: Address) -> dict[str, Any]:
    """Return the options for waitress."""
    return {
        "host": address.host,
        "port": address.port,
        "backlog": BACKLOG,
        "connection_limit": permitted_connections(),
        "max_request_header_size": MAX_HEADERS,
        "max_request_body_size": MAX_BODY,
        "asyncore_use_poll": True,  # select(2) is limited to descriptors below 1024
        "clear_untrusted_proxy_headers": False,  # see proxy_headers
        "ident": None,
    }


def create(app: Any, address: Address, *, proxy: str | None, path: str = "") -> Any:
    """Return waitress's server of `app`. Only `proxy` may set the address and the scheme of a request.

    `path` is the path of the portal.
    """
    from waitress.server import create_server  # needs the extra `web`

    from pam_totp.web.connections import channel_class
    from pam_totp.web.dispatcher import Dispatcher

    server = create_server(proxy_headers.trusting(app, proxy), _dispatcher=Dispatcher(THREADS), **_options(address))
    server.channel_class = channel_class(proxy, path)
    return server


def serve(app: Any, address: Address, *, proxy: str | None, path: str = "", ready: Callable[[Address], None]) -> None:
    """Serve `app` until SIGTERM or SIGINT.

    `path` is the path of the portal. `proxy` is the address of the proxy that terminates TLS, or None. Call `ready`
    with the bound address. Raise ListenError, OSError with the address as its file name, and ImportError without
    waitress.
    """
    check_exposure(address, proxy)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # waitress warns of every request that has to wait
    # waitress's threads inherit this mask, so that only the main thread handles these signals.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        server = create(app, address, proxy=proxy, path=path)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(address)) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, exit_on_signal)
    ready(Address(address.host, server.effective_port))
    server.run()  # waitress finishes the current requests on SystemExit


def exit_on_signal(*_: object) -> NoReturn:
    """Exit on a signal, and block later signals, for example from timeout(1), which would interrupt the exit."""
    # Block the signals instead of ignoring them: Python prints an error for an ignored signal that has already arrived.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    raise SystemExit(0)
