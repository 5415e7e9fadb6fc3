"""Tests of nginx's limit on passwords from docs/web.md, in front of a Django application."""

from __future__ import annotations

import http.client
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.site import PATIENCE, TREE, until

NGINX = "/usr/sbin/nginx"
FOLDERS = "client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;"

Ask = Callable[[str, str], int]


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("site.example", timeout=PATIENCE)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """Start nginx with the example of docs/web.md. Yield a function that sends a request from an address."""
    if not Path(NGINX).exists():
        pytest.skip("requires nginx")
    (example,) = re.findall(r"```conf\n(.*?)```", (TREE / "docs" / "web.md").read_text(), re.S)
    shared, server = example.replace("http://127.0.0.1:8000", "http://unix:application").split("# in the block server")
    client = "real_ip_header X-Client; set_real_ip_from unix:;"
    servers = f"server {{ listen unix:site; {client} {server} }} server {{ listen unix:application; return 204; }}"
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; master_process off; pid pid; error_log log; events {{}}\n"
        f"http {{ access_log off; {FOLDERS}\n{shared}\n{servers} }}"
    )
    path = tmp_path / "site"
    with subprocess.Popen([NGINX, "-p", tmp_path, "-c", "nginx.conf"], cwd=tmp_path, stderr=subprocess.PIPE) as nginx:
        try:
            until(lambda: (tmp_path / "pid").exists() or nginx.poll() is not None, "nginx listens")

            def send(method: str, address: str) -> int:
                connection = UnixConnection(path)
                connection.request(method, "/login/", headers={"X-Client": address})
                status = connection.getresponse().status
                connection.close()
                return status

            yield send
        finally:
            nginx.terminate()


@pytest.mark.parametrize(
    ("network", "other"),
    [
        ("192.0.2.7", "192.0.2.8"),
        ("2001:db8::{:x}", "2001:db8:0:1::1"),
        ("2001:db8:a0a:a0a::{:x}", "2001:db8:a0a:a0b::"),
    ],
)
def test_attempts_at_once_are_limited_before_they_are_checked(ask: Ask, network: str, other: str) -> None:
    started = time.monotonic()
    with ThreadPoolExecutor(30) as threads:
        statuses = list(threads.map(lambda number: ask("POST", network.format(number)), range(30)))
    more = (time.monotonic() - started) // 6 + 1  # one attempt every six seconds
    assert 10 <= statuses.count(204) <= 10 + more
    assert statuses.count(204) + statuses.count(429) == 30
    assert [ask("GET", network.format(1)) for _ in range(20)] == [204] * 20
    assert ask("POST", other) == 204
