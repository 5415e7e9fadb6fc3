"""Tests of the client address of a request: the trusted peer, the spellings, and the count of requests."""

from __future__ import annotations

import http.client
import socket
from typing import Any

import pytest

from pam_totp.web.headers import HEADERS
from pam_totp.web.server import Address, check_exposure
from tests.support.site import PATIENCE, Site
from tests.web.kit import Portal
from tests.web.over_http import HttpBrowser, served

CLIENT = "203.0.113.9"


@pytest.fixture
def seen(site: Site) -> tuple[Portal, list[str]]:
    """Return a portal, and the list of the addresses that it sees."""
    portal, addresses = Portal(site), list[str]()
    application = portal.app.wsgi_app

    def note(environ: dict[str, Any], start_response: Any) -> Any:
        addresses.append(environ["REMOTE_ADDR"])
        return application(environ, start_response)

    portal.app.wsgi_app = note  # type: ignore[method-assign]
    return portal, addresses


def get(port: int, host: str = "127.0.0.1", **headers: str) -> int:
    """Send a request to the portal on the loopback address `host`. Return the status."""
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET", "/sign-in", headers={"Host": "portal.example", **named})
    return connection.getresponse().status


@pytest.mark.parametrize(
    ("listen", "proxy"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("127.0.0.1", "::FFFF:7F00:1"),
        ("::1", "::1"),
        ("::1", "0:0:0:0:0:0:0:1"),
        ("::1", "0::0:1"),
    ],
)
def test_a_proxy_is_recognised_in_every_spelling(seen: tuple[Portal, list[str]], listen: str, proxy: str) -> None:
    portal, addresses = seen
    check_exposure(Address("192.0.2.1", 8443), proxy)
    with served(portal.app, proxy, listen) as port:
        assert get(port, listen, X_Forwarded_For=CLIENT, X_Forwarded_Proto="https") == 200
    assert addresses == [CLIENT]


@pytest.mark.parametrize(("listen", "proxy"), [("127.0.0.1", "::1"), ("::1", "127.0.0.1"), ("127.0.0.1", "127.0.0.2")])
def test_the_headers_of_another_peer_are_ignored(seen: tuple[Portal, list[str]], listen: str, proxy: str) -> None:
    portal, addresses = seen
    with served(portal.app, proxy, listen) as port:
        assert get(port, listen, X_Forwarded_For=CLIENT, X_Forwarded_Proto="https") == 400, "the request is plain HTTP"
    assert addresses == [listen]


@pytest.mark.parametrize(
    ("header", "address"),
    [
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:203.0.113.9", CLIENT),
        ("203.0.113.9:4711", CLIENT),
        ("192.0.2.1, 198.51.100.1:2,203.0.113.9", CLIENT),
        ("not an address, 203.0.113.9", CLIENT),
    ],
)
def test_the_last_address_of_the_proxy_counts_in_its_usual_spelling(
    seen: tuple[Portal, list[str]], header: str, address: str
) -> None:
    portal, addresses = seen
    with served(portal.app) as port:
        assert get(port, X_Forwarded_For=header, X_Forwarded_Proto="https") == 200
    assert addresses == [address]


@pytest.mark.parametrize("header", ["", "unknown", "unix:", "203.0.113.9, ", "203.0.113.9:x", "*", "portal.example"])
def test_a_proxy_that_sends_no_valid_address_is_refused(seen: tuple[Portal, list[str]], header: str) -> None:
    portal, addresses = seen
    with served(portal.app) as port:
        assert get(port, X_Forwarded_For=header, X_Forwarded_Proto="https") == 400
    assert addresses == []


@pytest.mark.parametrize("proto", ["", "ftp", "https, http", "javascript"])
def test_a_proxy_that_sends_no_valid_scheme_is_refused(seen: tuple[Portal, list[str]], proto: str) -> None:
    portal, addresses = seen
    with served(portal.app) as port:
        assert get(port, X_Forwarded_For=CLIENT, X_Forwarded_Proto=proto) == 400
    assert addresses == []


@pytest.mark.parametrize(
    "spelling", ["[2001:db8::1]:{}", "2001:db8::{:x}", "[2001:db8::{:x}]:80", "::ffff:192.0.2.1", "192.0.2.1:{}"]
)
def test_no_spelling_of_an_address_circumvents_the_limits(site: Site, spelling: str) -> None:
    portal = Portal(site, rate_limits=True)
    with served(portal.app) as port:
        statuses = [HttpBrowser(port, spelling.format(4711 + i)).sign_in("alice", "wrong") for i in range(13)]
    assert statuses == [401] * 10 + [429] * 3


def test_two_clients_with_mapped_addresses_have_separate_counts(site: Site) -> None:
    portal = Portal(site, rate_limits=True)
    with served(portal.app) as port:
        for _ in range(10):
            HttpBrowser(port, "::ffff:192.0.2.1").sign_in("alice", "wrong")
        assert HttpBrowser(port, "::ffff:192.0.2.99").sign_in("alice", "wrong") == 401


def test_the_log_has_the_address_in_its_usual_spelling(site: Site) -> None:
    portal = Portal(site)
    with served(portal.app) as port:
        HttpBrowser(port, "[2001:DB8::0:1]:4711").sign_in("alice", "wrong")
    assert any(line.endswith("reason=password rhost=2001:db8::1") for line in portal.log)


@pytest.mark.parametrize(
    "request_lines",
    [
        "GET /sign-in HTTP/1.0\r\nX-Forwarded-For: nothing\r\n",  # answered by the module proxy_headers
        "GET /sign-in HTTP/1.0\r\nHost : portal.example\r\n",  # answered by the server
    ],
)
def test_an_answer_without_a_page_has_the_security_headers(site: Site, request_lines: str) -> None:
    with served(Portal(site).app) as port, socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(f"{request_lines}\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    assert answer.startswith("HTTP/1.0 400 ")
    for name, value in (HEADERS | {"Cache-Control": "no-store"}).items():
        assert f"\r\n{name}: {value}\r\n" in answer
