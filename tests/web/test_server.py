"""Tests of `pam-totp portal` as a process: addresses, the trusted proxy, errors at the start."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pam_totp.web.server import Address, ListenError, check_exposure, serve
from tests.support.site import TREE, Site
from tests.web.kit import Portal
from tests.web.over_http import served


@pytest.mark.parametrize("text", ["0.0.0.0:8443", "[::]:8443", "192.0.2.1:80", "[2001:db8::1]:443"])
def test_the_portal_listens_beyond_loopback_only_behind_tls(site: Site, text: str) -> None:
    done = site.command("portal", "--listen", text)
    assert done.returncode == 2
    assert "must be loopback, unless a proxy terminates TLS (see --behind-tls-proxy)" in done.stderr
    check_exposure(Address.parse(text), "127.0.0.1")


@pytest.mark.parametrize("text", ["127.0.0.1:0", "127.1.2.3:8443", "[::1]:8443"])
def test_the_portal_listens_on_loopback_without_tls(text: str) -> None:
    check_exposure(Address.parse(text), None)
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize("text", ["", "8443", "localhost:8443", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "::1:65536"])
def test_an_invalid_address_is_rejected(text: str) -> None:
    with pytest.raises(ListenError):
        Address.parse(text)


def test_an_unusable_store_is_reported_at_the_start(site: Site) -> None:
    site.store.chmod(0o755)
    done = site.command("portal", "--listen", "127.0.0.1:0")
    assert done.returncode == 3
    assert "its mode must be 0700" in done.stderr


def test_the_nginx_example_in_the_readme_matches_docs_web() -> None:
    """tests/web/served.py runs nginx with the example of docs/web.md."""
    readme, web_md = (
        re.findall(r"```nginx\n(.*?)```", (TREE / page).read_text(), re.DOTALL) for page in ("README.md", "docs/web.md")
    )
    lines = [line.strip() for line in web_md[0].splitlines()]
    assert (len(readme), len(web_md)) == (1, 2), "docs/web.md also has an example for a portal below a path"
    assert all(line.strip() in lines for line in readme[0].splitlines())


@pytest.mark.parametrize("module", ["flask", "flask_wtf", "waitress"])
def test_a_missing_package_prints_one_line_with_the_remedy(site: Site, tmp_path: Path, module: str) -> None:
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
        f"needs {module} (install the package pam-totp-portal, or run 'make install EXTRAS=web' in the sources)"
        in done.stderr
    )


def test_a_port_in_use_is_named(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        address = Address("127.0.0.1", busy.getsockname()[1])
        with pytest.raises(OSError, match="already in use") as caught:
            serve(Portal(site).app, address, proxy=None, ready=lambda _: None)
        words = ["portal", "--store", str(site.store), "--listen", str(address)]
        script = f"""
import sys
from pam_totp import cli
from pam_totp.system import passwords
passwords.SystemPasswords = lambda *_: None  # this machine might lack the portal's PAM service
sys.exit(cli.main({words!r}))
"""
        done = subprocess.run([sys.executable, "-c", script], cwd=TREE, capture_output=True, text=True, check=False)
    assert caught.value.filename == str(address)
    remedy = "stop the process that uses this address, or choose another port with --listen"
    assert (done.returncode, done.stderr) == (3, f"pam-totp: {address}: address already in use ({remedy})\n")


def get(port: int, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("GET", "/sign-in", headers={"Host": "portal.example", **named})
    return connection.getresponse()


def test_only_the_named_proxy_may_declare_tls(site: Site) -> None:
    with served(Portal(site).app, proxy="127.0.0.1") as port:
        assert get(port).status == 400, "the portal rejects a request without TLS"
        assert get(port, X_Forwarded_Proto="https").status == 200
    with served(Portal(site).app, proxy="192.0.2.1") as port:
        assert get(port, X_Forwarded_Proto="https").status == 400


def test_only_the_named_proxy_may_declare_the_client_address(site: Site) -> None:
    seen: list[str | None] = []
    for proxy, tls in (("127.0.0.1", True), ("192.0.2.1", False), (None, False)):
        portal = Portal(site, tls=tls)
        portal.app.before_request(lambda: seen.append(_remote()))
        with served(portal.app, proxy) as port:
            get(port, X_Forwarded_For="203.0.113.9", X_Forwarded_Proto="https")
    assert seen == ["203.0.113.9", "127.0.0.1", "127.0.0.1"]


def _remote() -> str | None:
    from flask import request

    return request.remote_addr


def test_a_response_does_not_name_the_server_software(site: Site) -> None:
    with served(Portal(site, tls=False).app, None) as port:
        assert get(port).getheader("Server") is None


def test_a_malformed_http_request_is_rejected(site: Site) -> None:
    with served(Portal(site, tls=False).app, None) as port, socket.create_connection(("127.0.0.1", port), 20) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("proxy", ["*", "proxy.example.org", "127.0.0.1:443", ""])
def test_the_proxy_must_be_one_ip_address(proxy: str) -> None:
    with pytest.raises(ListenError, match="must be an IP address"):
        check_exposure(Address("127.0.0.1", 8443), proxy)
    check_exposure(Address("127.0.0.1", 8443), "::1")
