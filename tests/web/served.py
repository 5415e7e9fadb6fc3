"""The portal for tests with a real browser.

Root runs the portal behind nginx with TLS, on a test machine with PAM and accounts. Other accounts run the portal over
HTTP on loopback, and all users have the same password.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from pam_totp.core.policy import Policy
from pam_totp.core.record import Token, UserRecord
from pam_totp.store.file import FileStore
from pam_totp.web.portal import App, Config, FirstToken
from tests.services.namespace import COPY, LIBRARIES, Machine
from tests.support.etc import PASSWORD
from tests.support.isolation import BROWSERS, installed_browser
from tests.support.site import TREE, Site, until
from tests.web.kit import FixedPassword, make_app

CHROMIUM = installed_browser() or BROWSERS[0]
NAME = "portal.example.org"  # the host name in docs/web.md
OPTIONS = ("--behind-tls-proxy", "--issuer", NAME, "--host", NAME)
APP, TELEPHONE = App("Test app", "https://app.example/"), "+49 30 1234"


class Served(Protocol):
    """A running portal, and its store."""

    url: str
    password: str
    browser: str  # path of the program that starts the browser

    def record(self, user: str) -> UserRecord: ...
    def enrol(self, user: str, *tokens: Token, **fields: Any) -> None: ...
    def delete_all_users(self) -> None: ...


class TlsPortal:
    """`pam-totp portal`, started as root on a test machine, behind nginx with the configuration of docs/web.md.

    A portal with another `first_token` can run beside the first portal, on other `ports`: of the portal, and of nginx.
    """

    password = PASSWORD

    def __init__(
        self, machine: Machine, folder: Path, first_token: str = "password", ports: tuple[int, int] = (8443, 443)
    ) -> None:
        self.machine = machine
        self.ports = ports
        self.url = f"https://{NAME}" if ports[1] == 443 else f"https://{NAME}:{ports[1]}"
        self.browser = _browser_on(machine, folder)
        service = TREE / "pam_totp" / "web" / "pam_totp-portal"
        machine.write("/etc/pam.d/pam_totp-portal", service.read_text())
        path = f"PYTHONPATH={COPY}:{LIBRARIES}"
        python = ["env", path, "PYTHONDONTWRITEBYTECODE=1", os.path.realpath(sys.executable), "-m", "pam_totp.cli"]
        more = ("--app", f"{APP.name}={APP.url}") if first_token == "ticket" else ()
        if more:
            machine.write("/etc/pam_totp.toml", f'[portal]\ntelephone = "{TELEPHONE}"\n')
        words = ("--listen", f"127.0.0.1:{ports[0]}", "--first-token", first_token, *more)
        self.process = machine.start(*python, "portal", *OPTIONS, *words)
        self._start_nginx()
        for port in ports:
            until(partial(listens, machine, port), f"a process listens on port {port}")

    def _start_nginx(self) -> None:
        page = (TREE / "docs" / "web.md").read_text()
        server = re.findall(r"```nginx\n(.*?)```", page, re.S)[0]
        server = server.replace("$remote_addr", "$http_x_person")  # the header with the test user's address
        server = server.replace(":8443", f":{self.ports[0]}").replace("listen 443", f"listen {self.ports[1]}")
        key, certificate = (re.findall(rf"{word} (\S+);", server)[0] for word in ("_key", "ssl_certificate"))
        for file in (key, certificate):
            self.machine.path(os.path.dirname(file)).mkdir(parents=True, exist_ok=True)
        made = self.machine.run(
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-subj",
                f"/CN={NAME}",
                "-days",
                "2",
            ),
            *("-keyout", key, "-out", certificate),
        )
        assert made.returncode == 0, made.stderr
        self.machine.write(
            f"/run/nginx-{self.ports[1]}.conf",
            f"pid /run/nginx-{self.ports[1]}.pid; error_log /run/nginx.log; events {{}}\n"
            f"http {{ access_log off; include /etc/nginx/mime.types;\n{server}\n}}",
        )
        self.machine.start(
            *("/usr/sbin/nginx", "-p", "/run", "-c", f"/run/nginx-{self.ports[1]}.conf"),
            *("-g", "daemon off; master_process off;"),
        )

    def record(self, user: str) -> UserRecord:
        return self.machine.record(user)

    def enrol(self, user: str, *tokens: Token, **fields: Any) -> None:
        self.machine.enrol(user, *tokens, **fields)

    def delete_all_users(self) -> None:
        self.machine.reset()


def listens(machine: Machine, port: int) -> bool:
    """Return True if a process of the machine listens on TCP port `port`."""
    table = (machine.root.parent / "net" / "tcp").read_text()
    return re.search(rf":{port:04X} \S+ 0A ", table) is not None


def _browser_on(machine: Machine, folder: Path) -> str:
    """Write a program that starts the browser in the network of the machine. Return the path of the program."""
    program = folder / "browser"
    network = machine.root.parent / "ns" / "net"
    program.write_text(f'#!/bin/sh\nexec nsenter --net={network} -- {CHROMIUM} "$@"\n')
    program.chmod(0o755)
    return str(program)


class PlainPortal:
    """The portal in this process, on a loopback port of the host."""

    password = PASSWORD
    browser = CHROMIUM

    def __init__(self, site: Site, port: int) -> None:
        self._site = site
        self.url = f"http://localhost:{port}"

    def record(self, user: str) -> UserRecord:
        return self._site.record(user)

    def enrol(self, user: str, *tokens: Token, **fields: Any) -> None:
        self._site.enrol(*tokens, user=user, **fields)

    def delete_all_users(self) -> None:
        for name in self._site.files():
            path = self._site.store / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def plain_portal(**config: Any) -> Iterator[PlainPortal]:
    """Serve the portal in this process, and yield it. `config` overrides the configuration."""
    from waitress.server import create_server  # needs the extra `web`

    with tempfile.TemporaryDirectory(prefix="pam_totp-portal-") as folder:
        site = Site(Path(folder))
        defaults: dict[str, Any] = {
            "store": FileStore(str(site.store)),
            "passwords": FixedPassword(),
            "policy": Policy(),
            "issuer": NAME,
            "tls": False,
            "first_token": FirstToken.PASSWORD,
            "apps": (APP,),
            "rate_limits": False,
            "sink": lambda *_: None,
        }
        server = create_server(make_app(Config(**defaults | config)), host="127.0.0.1", port=0, threads=8)

        def run() -> None:
            with suppress(OSError):  # raised when the test closes the server's sockets
                server.run()

        threading.Thread(target=run, daemon=True).start()
        yield PlainPortal(site, int(server.effective_port))
        server.close()


def missing_programs() -> str | None:
    """Return the reason for skipping the browser tests, or None if all programs are installed."""
    programs = [CHROMIUM, "zbarimg", *(("openssl", "/usr/sbin/nginx") if os.geteuid() == 0 else ())]
    absent = [program for program in programs if shutil.which(program) is None]
    return f"needs {', '.join(absent)} (see WANT_TEST and NEED_TEST in the Makefile)" if absent else None
