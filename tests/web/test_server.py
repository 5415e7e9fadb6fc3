"""`pam-totp portal` as a process: where it listens, whom it believes, how it ends."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pam_totp.web.server import Address, ListenError, check, serve
from tests.site import TREE, Site
from tests.web.kit import Portal


@pytest.mark.parametrize("text", ["0.0.0.0:8443", "[::]:8443", "192.0.2.1:80", "[2001:db8::1]:443"])
def test_beyond_loopback_it_listens_only_with_tls_in_front(site: Site, text: str) -> None:
    done = site.command("portal", "--listen", text)
    assert done.returncode == 2
    assert "only with TLS in front (--behind-tls-proxy)" in done.stderr
    check(Address.parse(text), "127.0.0.1")


@pytest.mark.parametrize("text", ["127.0.0.1:0", "127.1.2.3:8443", "[::1]:8443"])
def test_loopback_needs_none(text: str) -> None:
    check(Address.parse(text), None)
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize("text", ["", "8443", "localhost:8443", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "::1:65536"])
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(ListenError):
        Address.parse(text)


def test_a_store_that_is_not_ours_is_said_before_anybody_signs_in(site: Site) -> None:
    site.store.chmod(0o755)
    done = site.command("portal", "--listen", "127.0.0.1:0")
    assert done.returncode == 3
    assert "its mode is not 0700" in done.stderr


def test_the_readme_puts_nginx_in_front_as_docs_web_does() -> None:
    """docs/web.md's is the one that is tried, by tests/web/served.py."""
    short, whole = (
        re.findall(r"```nginx\n(.*?)```", (TREE / page).read_text(), re.DOTALL) for page in ("README.md", "docs/web.md")
    )
    lines = [line.strip() for line in whole[0].splitlines()]
    assert len(short) == len(whole) == 1
    assert all(line.strip() in lines for line in short[0].splitlines())


@pytest.mark.parametrize("module", ["flask", "flask_limiter", "waitress"])
def test_a_missing_package_is_one_line_that_says_what_to_do(site: Site, tmp_path: Path, module: str) -> None:
    (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError(name={module!r})")
    done = subprocess.run(
        [sys.executable, "-m", "pam_totp.cli", "portal", "--store", site.store],
        cwd=TREE,
        env={"PYTHONPATH": f"{tmp_path}:{TREE}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert (
        f"needs {module} (the package pam-totp-portal, or make install EXTRAS=web, or pip install '.[web]'"
        in done.stderr
    )


def test_a_port_that_is_taken_is_named(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(OSError, match="already in use") as caught:
            serve(Portal(site).app, address, proxy=None, ready=lambda _: None)
        words = ["portal", "--store", str(site.store), "--listen", str(address)]
        script = f"""
import sys
from pam_totp import cli
from pam_totp.system import passwords
passwords.SystemPasswords = lambda *_: None  # there need be no PAM service here
sys.exit(cli.main({words!r}))
"""
        done = subprocess.run([sys.executable, "-c", script], cwd=TREE, capture_output=True, text=True, check=False)
    assert caught.value.filename == str(address)
    remedy = "stop the process that listens there, or choose another port with --listen"
    assert (done.returncode, done.stderr) == (3, f"pam-totp: {address}: address already in use ({remedy})\n")


@contextmanager
def served(portal: Portal, proxy: str | None) -> Iterator[int]:
    """The portal by waitress as `serve` sets it up, in this process; the port."""
    from waitress import server as waitress

    from pam_totp.web import server

    made = waitress.create_server(portal.app, **server.options(Address("127.0.0.1", 0), proxy))

    def run() -> None:
        with suppress(OSError):  # its sockets are closed under it
            made.run()

    threading.Thread(target=run, daemon=True).start()
    yield int(made.effective_port)
    made.close()


def get(port: int, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET", "/sign-in", headers={"Host": "portal.example", **named})
    return connection.getresponse()


def test_the_proxy_says_that_there_is_tls_and_nobody_else(site: Site) -> None:
    with served(Portal(site), proxy="127.0.0.1") as port:
        assert get(port).status == 400, "past the proxy, in the clear"
        assert get(port, X_Forwarded_Proto="https").status == 200
    with served(Portal(site), proxy="192.0.2.1") as port:
        assert get(port, X_Forwarded_Proto="https").status == 400


def test_nobody_but_the_proxy_says_where_a_request_comes_from(site: Site) -> None:
    seen: list[str | None] = []
    for proxy, tls in (("127.0.0.1", True), ("192.0.2.1", False), (None, False)):
        portal = Portal(site, tls=tls)
        portal.app.before_request(lambda: seen.append(_remote()))
        with served(portal, proxy) as port:
            get(port, X_Forwarded_For="203.0.113.9", X_Forwarded_Proto="https")
    assert seen == ["203.0.113.9", "127.0.0.1", "127.0.0.1"]


def _remote() -> str | None:
    from flask import request

    return request.remote_addr


def test_an_answer_does_not_tell_what_serves_it(site: Site) -> None:
    with served(Portal(site, tls=False), None) as port:
        assert get(port).getheader("Server") is None


def test_a_request_that_is_no_http_gets_no_page(site: Site) -> None:
    with served(Portal(site, tls=False), None) as port, socket.create_connection(("127.0.0.1", port), 20) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("proxy", ["*", "proxy.example.org", "127.0.0.1:443", ""])
def test_only_one_address_is_believed_about_who_asks(proxy: str) -> None:
    with pytest.raises(ListenError, match="takes an address"):
        check(Address("127.0.0.1", 8443), proxy)
    check(Address("127.0.0.1", 8443), "::1")
