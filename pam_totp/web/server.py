"""The portal on a port: waitress, one process, some threads.

The law: without TLS in front it listens on loopback and nowhere else; who a request comes from is what the proxy in
front says, and only where that was named.
"""

from __future__ import annotations

import ipaddress
import logging
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

THREADS = 32  # most of them wait for a disk, or let a refusal take its time
BACKLOG = 1024
MOST_CONNECTIONS = 1000
MAX_BODY = 1 << 16  # bytes: the application takes less, and has a page to say so
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
QUIET = 30  # seconds until a connection on which nothing comes is closed


class ListenError(ValueError):
    """An address that cannot be listened on, or must not be."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read HOST:PORT, where HOST is an address, in square brackets for IPv6. Raises ListenError."""
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ListenError(f"{text}: not ADDRESS:PORT, such as 127.0.0.1:8443 or [::1]:8443") from None
        if not colon or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise ListenError(f"{text}: no port 0 … 65535 after the colon")
        return cls(host, int(port))

    @property
    def loopback(self) -> bool:
        return ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def check(address: Address, proxy: str | None) -> None:
    """Raise ListenError where passwords would go over a network in the clear, or anybody would be believed."""
    if proxy is not None:
        try:
            ipaddress.ip_address(proxy)  # waitress would take a name that never matches, and * for everybody
        except ValueError:
            raise ListenError(f"{proxy}: --behind-tls-proxy takes an address, such as 127.0.0.1") from None
    if proxy is None and not address.loopback:
        raise ListenError(f"{address}: beyond loopback only with TLS in front (--behind-tls-proxy)")


def options(address: Address, proxy: str | None) -> dict[str, Any]:
    """What waitress is told; only what comes from `proxy` may say where a request is from, and over what."""
    told: dict[str, Any] = {
        "host": address.host,
        "port": address.port,
        "threads": THREADS,
        "backlog": BACKLOG,
        "connection_limit": MOST_CONNECTIONS,
        "channel_timeout": QUIET,
        "max_request_body_size": MAX_BODY,
        "asyncore_use_poll": True,  # select(2) ends at descriptor 1024
        "clear_untrusted_proxy_headers": True,
        "ident": None,
    }
    if proxy is not None:
        told |= {"trusted_proxy": proxy, "trusted_proxy_headers": "x-forwarded-for x-forwarded-proto"}
    return told


def serve(app: Any, address: Address, *, proxy: str | None, ready: Callable[[Address], None]) -> None:
    """Serve `app` until SIGTERM or SIGINT. `proxy` is the address of what ends TLS in front; None where there is
    nothing in front. Raises OSError and ImportError.
    """
    from waitress.server import create_server  # an extra

    check(address, proxy)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of every request that has to wait
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # waitress's threads inherit this: the main one ends us
    try:
        server = create_server(app, **options(address, proxy))
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(address)) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    ready(Address(address.host, server.effective_port))
    server.run()  # waitress lets the requests under way end


def end(*_: object) -> NoReturn:
    """A signal's handler: end in order. What comes after the first, as from timeout(1), does not break into that."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # not SIG_IGN: Python complains of a signal already on its way
    raise SystemExit(0)
