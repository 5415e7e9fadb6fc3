"""Tests of the portal's connections: clients that send slowly, read nothing, or send many requests at once."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from pam_totp.web import connections, server
from tests.support.site import PATIENCE, TREE, Site, until
from tests.web.kit import Portal
from tests.web.over_http import HttpBrowser, served

HEADERS = "Host: portal.example\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n"
FILE = f"GET /static/portal.css HTTP/1.1\r\n{HEADERS}\r\n".encode()


@contextmanager
def connected(port: int, count: int = 1) -> Iterator[list[socket.socket]]:
    """Yield `count` connections with small receive buffers."""
    with ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.settimeout(PATIENCE)
            connection.connect(("127.0.0.1", port))
            connections.append(connection)
        yield connections


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def is_served(port: int) -> bool:
    return HttpBrowser(port, "198.51.100.1").ask("GET", "/sign-in")[0] == 200


# Requests at once


def open_files() -> list[str]:
    """Return the open static files of the portal in this process."""
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return [path for path in (os.readlink(link) for link in links if os.path.exists(link)) if "/static/" in path]


def test_no_file_stays_open_for_clients_that_only_send(site: Site) -> None:
    with served(Portal(site).app) as port, connected(port, 10) as connections:
        for connection in connections:
            connection.settimeout(0.2)
            try:
                while connection.send(FILE * 200):
                    pass
            except OSError:  # the server has stopped reading, or has closed the connection
                continue
        assert is_served(port)
        until(lambda: not open_files(), "no file is open")


def test_a_connection_has_few_requests_at_once(site: Site) -> None:
    most = connections.MAX_AT_ONCE
    with served(Portal(site).app) as port, connected(port, 2) as (few, many):
        few.sendall(FILE * most)
        few.shutdown(socket.SHUT_WR)
        assert read_all(few).count(b"HTTP/1.1 200 OK") == most
        many.sendall(FILE * 20)
        answers = read_all(many)
        assert answers.count(b"HTTP/1.1 200 OK") == most
        assert answers.count(b"Connection: close") == 1, "the header tells the client to send the other requests again"


def test_requests_one_after_the_other_keep_the_connection(site: Site) -> None:
    with served(Portal(site).app) as port:
        browser = HttpBrowser(port, "192.0.2.1")
        assert [browser.ask("GET", "/static/icon.svg")[0] for _ in range(50)] == [200] * 50


# Slow clients


@pytest.mark.parametrize(
    "drops",
    [[], [b"G", b"E", b"T", b" "], [b"\r\n"], [b"POST /sign-in HTTP/1.1\r\nContent-Length: 60000\r\n\r\n", b"x"]],
    ids=["silent", "header", "blank lines", "body"],
)
def test_a_connection_ends_if_its_request_is_not_complete_in_time(
    site: Site, monkeypatch: pytest.MonkeyPatch, drops: list[bytes]
) -> None:
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT", 1.0)
    with served(Portal(site).app) as port, connected(port) as (connection,):
        connection.settimeout(0.1)
        rest = itertools.chain(drops, itertools.repeat(drops[-1] if drops else b""))
        until(lambda: is_ended(connection, next(rest)), "the connection has ended")


def is_ended(connection: socket.socket, drop: bytes = b"") -> bool:
    """Send `drop`. Return True if the server has ended the connection."""
    try:
        connection.send(drop)
        return connection.recv(100) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_delayed_response_may_exceed_the_time_limit_of_a_request(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_TIMEOUT", 0.2)
    portal = Portal(site, passwords=Held())
    with served(portal.app) as port:
        browser = HttpBrowser(port, "192.0.2.1")
        form = browser.form("/sign-in") | {"user": "alice", "password": "wrong"}
        assert HttpBrowser.another(browser, port, "192.0.2.1").ask("POST", "/sign-in", form)[0] == 401


class Held:
    """A first factor that refuses every password after ten times the time limit of a request."""

    def verify(self, user: str, password: str, delay: Callable[[float], None]) -> bool:
        delay(2.0)
        return False


def test_new_connections_replace_waiting_connections(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 40)
    with served(Portal(site).app) as port:
        first = HttpBrowser(port, "192.0.2.1")
        assert first.ask("GET", "/sign-in")[0] == 200
        with connected(port, 60) as connections:
            for connection in connections:
                connection.send(b"G")
                connection.settimeout(0.01)
            assert all(is_served(port) for _ in range(5))
            until(lambda: sum(map(is_ended, connections)) >= 24, "the oldest connections have ended")
            assert not is_ended(connections[-1]), "new connections are open"


# Descriptors


@pytest.mark.parametrize(("hard", "connections", "soft"), [(5000, 1000, 1200), (400, 200, 400)])
def test_each_connection_has_a_descriptor(hard: int, connections: int, soft: int) -> None:
    program = f"""
import resource
from pam_totp.web import server
resource.setrlimit(resource.RLIMIT_NOFILE, (300, {hard}))
print(server.permitted_connections(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=TREE, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(connections), str(soft), str(hard)]
