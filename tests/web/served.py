"""The portal as people reach it, for a real browser: over TLS behind nginx on a machine of its own, or, without root,
in the clear on loopback with a first factor of the test's.
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
from pathlib import Path
from typing import Protocol

from pam_totp.core.policy import Policy
from pam_totp.core.record import Token, UserRecord
from pam_totp.store.file import FileStore
from pam_totp.web.app import create_app
from pam_totp.web.portal import Config
from tests.etc import PASSWORD
from tests.services.namespace import COPY, LIBRARIES, Machine
from tests.site import TREE, Site, until
from tests.web.kit import OnePassword

CHROMIUM = "/usr/bin/chromium"
NAME = "portal.example.org"  # as in docs/web.md


class Served(Protocol):
    """A portal that runs, and its store."""

    url: str
    password: str
    browser: str  # the program to start

    def record(self, user: str) -> UserRecord: ...
    def enrol(self, user: str, *tokens: Token) -> None: ...
    def forget_everybody(self) -> None: ...


class BehindTls:
    """`pam-totp portal` as the store's owner, started as root; nginx as docs/web.md has it; accounts with passwords."""

    url = f"https://{NAME}"
    password = PASSWORD

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine = machine
        self.browser = _inside(machine, folder)
        service = TREE / "pam_totp" / "web" / "pam_totp-portal"
        machine.write("/etc/pam.d/pam_totp-portal", service.read_text())
        path = f"PYTHONPATH={COPY}:{LIBRARIES}"
        python = ["env", path, "PYTHONDONTWRITEBYTECODE=1", os.path.realpath(sys.executable), "-m", "pam_totp.cli"]
        self.process = machine.start(*python, "portal", "--behind-tls-proxy", "--issuer", NAME, "--host", NAME)
        self._front()
        for port in (8443, 443):
            until(lambda port=port: listens(machine, port), f"port {port} is there")  # type: ignore[misc]

    def _front(self) -> None:
        page = (TREE / "docs" / "web.md").read_text()
        (server,) = re.findall(r"```nginx\n(.*?)```", page, re.S)
        server = server.replace(
            "$remote_addr", "$http_x_person"
        )  # people who sign in often, each from their own address
        key, certificate = (re.search(rf"{word} (\S+);", server)[1] for word in ("_key", "ssl_certificate"))  # type: ignore[index]
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
            "/run/nginx.conf",
            "pid /run/nginx.pid; error_log /run/nginx.log; events {}\n"
            f"http {{ access_log off; include /etc/nginx/mime.types;\n{server}\n}}",
        )
        self.machine.start(
            "/usr/sbin/nginx", "-p", "/run", "-c", "/run/nginx.conf", "-g", "daemon off; master_process off;"
        )

    def record(self, user: str) -> UserRecord:
        return self.machine.record(user)

    def enrol(self, user: str, *tokens: Token) -> None:
        self.machine.enrol(user, *tokens)

    def forget_everybody(self) -> None:
        self.machine.forget_everybody()


def listens(machine: Machine, port: int) -> bool:
    """Whether a connection to `port` of the machine's would be taken."""
    table = (machine.root.parent / "net" / "tcp").read_text()
    return re.search(rf":{port:04X} \S+ 0A ", table) is not None


def _inside(machine: Machine, folder: Path) -> str:
    """A program that starts the browser in the machine's network, where there is nothing but its loopback."""
    program = folder / "browser"
    network = machine.root.parent / "ns" / "net"
    program.write_text(f'#!/bin/sh\nexec nsenter --net={network} -- {CHROMIUM} "$@"\n')
    program.chmod(0o755)
    return str(program)


class InTheClear:
    """The portal in this process, on a port of the host's loopback."""

    password = PASSWORD
    browser = CHROMIUM

    def __init__(self, site: Site, port: int) -> None:
        self._site = site
        self.url = f"http://localhost:{port}"

    def record(self, user: str) -> UserRecord:
        return self._site.record(user)

    def enrol(self, user: str, *tokens: Token) -> None:
        self._site.enrol(*tokens, user=user)

    def forget_everybody(self) -> None:
        for file in self._site.store.iterdir():
            file.unlink()


@contextmanager
def in_the_clear() -> Iterator[InTheClear]:
    from waitress.server import create_server  # as in web.server

    with tempfile.TemporaryDirectory(prefix="pam_totp-portal-") as folder:
        site = Site(Path(folder))
        config = Config(
            store=FileStore(str(site.store)),
            passwords=OnePassword(),
            policy=Policy(),
            issuer=NAME,
            tls=False,
            limited=False,
            sink=lambda *_: None,
        )
        server = create_server(create_app(config), host="127.0.0.1", port=0, threads=8)

        def run() -> None:
            with suppress(OSError):  # its sockets are closed under it
                server.run()

        threading.Thread(target=run, daemon=True).start()
        yield InTheClear(site, int(server.effective_port))
        server.close()


def missing() -> str | None:
    """Why no browser can be tried here."""
    programs = [CHROMIUM, "zbarimg", *(("openssl", "/usr/sbin/nginx") if os.geteuid() == 0 else ())]
    absent = [program for program in programs if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)} (see WANT_TEST in the Makefile)" if absent else None
