"""A fleet for tests: a database, two authorities on loopback, and members with certificates.

Rules:
- The authorities are processes of `pam-totp authority serve`. Tests can kill these processes, and start them again.
- A fleet has its own database in the server of the session. Other tests can empty the server's default store.
- Each test uses its own users and members, because all tests of a session share the fleet.
"""

from __future__ import annotations

import http.client
import json
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from pam_totp.authority import certificates
from pam_totp.authority.certificates import Issuer
from pam_totp.core.record import UserRecord
from pam_totp.member import wire
from pam_totp.member.wire import JoinLine, Question, Verdict
from pam_totp.store.postgres import PostgresStore, initialise
from pam_totp.store.postgres_members import ALL_USERS, Members
from pam_totp.store.postgres_schema import NONE
from tests.support.cluster import Server
from tests.support.site import PATIENCE, TREE, fob, until

HOST = "127.0.0.1"
POLICY = "[service.graceful]\ngrace_period = 600\n[service.open]\nnullok = true\n"
POLICY += "[service.tickets]\nenroll = 'ticket'\n"


class Reply(NamedTuple):
    """A reply of an authority: the status, and the JSON object."""

    status: int
    content: dict[str, Any]


class Client:
    """A connection to an authority, optionally with the certificate of a member. Requests share the connection."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.http = http.client.HTTPSConnection(HOST, port, context=context, timeout=PATIENCE)

    def send(self, method: str, path: str, body: bytes | None = None) -> Reply:
        self.http.request(method, path, body)
        response = self.http.getresponse()
        return Reply(response.status, json.loads(response.read()))

    def post(self, path: str, message: wire.Message) -> Reply:
        return self.send("POST", path, message.to_json())

    def ask(self, question: Question) -> Verdict:
        """Return the verdict on a question. Fail if the reply has no verdict."""
        status, content = self.post(wire.ANSWER_PATH, question)
        assert status == 200, content
        return Verdict.from_json(json.dumps(content).encode())

    def close(self) -> None:
        self.http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Member:
    """A member, with the files of its key and its certificate in `folder`."""

    def __init__(self, fleet: Fleet, name: str, folder: Path) -> None:
        self._fleet, self.name, self.folder = fleet, name, folder
        self.key, self.certificate, self.ca = (folder / file for file in ("key.pem", "certificate.pem", "ca.pem"))

    @property
    def fingerprint(self) -> bytes:
        return certificates.fingerprint(self.certificate.read_text())

    @property
    def site(self) -> str:
        """Return the text of the member's site file."""
        return (
            f"[member]\nauthorities = {json.dumps(self._fleet.addresses)}\ncertificate = '{self.certificate}'\n"
            f"key = '{self.key}'\nca = '{self.ca}'\n"
        )

    def context(self) -> ssl.SSLContext:
        context = self._fleet.context()
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client(self, authority: int = 0) -> Client:
        return Client(self._fleet.authorities[authority].port, self.context())

    def ask(self, question: Question, authority: int = 0) -> Verdict:
        with self.client(authority) as client:
            return client.ask(question)


class AuthorityProcess:
    """A process of `pam-totp authority serve`. `before` is a prefix of the command, such as nsenter."""

    def __init__(self, folder: Path, port: int, before: Sequence[str] = ()) -> None:
        self.folder, self.port, self._before = folder, port, before
        self.config, self.log = folder / "site.toml", folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        begin = self.log.stat().st_size if self.log.exists() else 0
        words = [
            *self._before,
            sys.executable,
            "-m",
            "pam_totp.cli",
            "authority",
            "serve",
            "--config",
            str(self.config),
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*words, "--log", "stderr"], cwd=TREE, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

        def listens() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()
            return "the authority listens on" in self.log.read_text()[begin:]

        until(listens, "the authority listens")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def send_signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end of the process, and return its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        status = self._process.wait(PATIENCE)
        self._process = None
        return status

    def stop(self) -> None:
        if self._process is not None:
            self.end(signal.SIGKILL)

    def lines(self, *words: str) -> list[str]:
        """Return the lines of the log that contain all `words`."""
        return [line for line in self.log.read_text().splitlines() if all(word in line for word in words)]

    def waits_for(self, *words: str) -> str:
        """Wait for a line that contains all `words`, and return the last such line."""
        until(lambda: self.lines(*words), f"a line of the authority with {words}: {self.log.read_text()[-2000:]}")
        return self.lines(*words)[-1]


class Fleet:
    """A database with the tables of a store, and two authorities. The group `web` may ask about all users."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._folder = folder
        self._numbers = iter(range(1, 1_000_000))
        name = f"fleet{secrets.token_hex(4)}"
        server.sql(f"CREATE DATABASE {name}")
        self.server, self.url = server, server.url.replace("/postgres?", f"/{name}?")
        initialise(self.url, NONE)
        self.store = PostgresStore(self.url, wait=PATIENCE)
        self.members = Members(self.store)
        self.members.allow("web", [ALL_USERS])
        ports = free_ports(2)
        self.addresses = [f"{HOST}:{port}" for port in ports]
        self.authorities = [AuthorityProcess(folder / f"authority{n}", port) for n, port in enumerate(ports)]
        for authority in self.authorities:
            authority.folder.mkdir()
            self.configure(authority)
        self.pin: str = json.loads(self.command("authority", "init", "--json").stdout)["pin"]
        self.issuer = Issuer(str(folder / "tls/ca.pem"), str(folder / "tls/ca.key"))

    def configure(self, authority: AuthorityProcess, policy: str = POLICY) -> None:
        """Write the site file of `authority`, which ends with the lines `policy`."""
        tls, url = self._folder / "tls", json.dumps(self.url)
        authority.config.write_text(
            f"[store]\nurl = {url}\nwait = 3.0\n[authority]\nlisten = '{HOST}:{authority.port}'\n"
            f"addresses = {json.dumps(self.addresses)}\nca = '{tls}/ca.pem'\nca_key = '{tls}/ca.key'\n"
            f"certificate = '{tls}/authority.pem'\nkey = '{tls}/authority.key'\n{policy}"
        )

    def command(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run `pam-totp` with the site file of the first authority. Check the exit status, and return the result."""
        command: list[str | Path] = [sys.executable, "-m", "pam_totp.cli", *words]
        done = subprocess.run(
            [*command, "--config", self.authorities[0].config],
            cwd=TREE,
            text=True,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == status, done.stderr
        return done

    def start(self) -> None:
        for authority in self.authorities:
            authority.start()

    def stop(self) -> None:
        for authority in self.authorities:
            authority.stop()

    def user(self, **fields: Any) -> str:
        """Enrol a new user, by default with one HOTP token, and return the name."""
        user = f"user{next(self._numbers)}"
        record = UserRecord(user=user, **{"tokens": (fob(),)} | fields)
        self.store.update(user, lambda _: (record, None), create=True)
        return user

    def member(self, *groups: str, services: list[str] | None = None) -> Member:
        """Add a new member to `groups`, by default to `web`, and return the member.

        `services` are the PAM services for which the member may ask, by default all services.
        """
        name = f"web{next(self._numbers)}.example.org"
        member = Member(self, name, self._folder / name)
        member.folder.mkdir()
        member.key.write_text(self.key)
        member.ca.write_text(Path(self.issuer.certificate).read_text())
        member.certificate.write_text(self.issuer.sign_member(certificates.make_request(self.key), name))
        token = secrets.token_bytes(32)
        self.members.add(name, groups or ("web",), services, token, 60)
        self.members.join(token, member.fingerprint)
        return member

    @cached_property
    def key(self) -> str:
        """Return the key that all members share, because the generation of a key is slow."""
        return certificates.make_key()

    def join_line(self, name: str, *groups: str) -> JoinLine:
        """Add the new member `name` to `groups`, by default to `web`. Return the join line of the member."""
        token = secrets.token_bytes(wire.TOKEN_BYTES)
        self.members.add(name, groups or ("web",), None, sha256(token).digest(), 3600)
        return JoinLine(authorities=tuple(self.addresses), pin=self.pin, token=token.hex())

    def context(self) -> ssl.SSLContext:
        """Return a TLS context that trusts the CA of the fleet, without a certificate of a member."""
        return ssl.create_default_context(cafile=self.issuer.certificate)

    def anonymous(self, authority: int = 0) -> Client:
        """Return a client without a certificate."""
        return Client(self.authorities[authority].port, self.context())


def free_ports(count: int) -> list[int]:
    """Return `count` ports on loopback that are free now."""
    with_ports = [socket.socket() for _ in range(count)]
    try:
        for listener in with_ports:
            listener.bind((HOST, 0))
        return [listener.getsockname()[1] for listener in with_ports]
    finally:
        for listener in with_ports:
            listener.close()


def question(user: str, answer: str, *before: str, id: str | None = None, **fields: Any) -> Question:
    """Return a question of a new login, or of the login `id`. `before` lists the refused answers of the login."""
    given: dict[str, Any] = {"service": "sshd", "rhost": "192.0.2.7", "tty": "ssh"} | fields
    first, second = (*before, None, None)[:2]
    return Question(id=id or secrets.token_hex(16), user=user, answer=answer, first=first, second=second, **given)


@contextmanager
def running(server: Server) -> Iterator[Fleet]:
    """Yield a fleet whose authorities run."""
    folder = Path(tempfile.mkdtemp(prefix="pam_totp-fleet-"))
    fleet = None
    try:
        fleet = Fleet(server, folder)
        fleet.start()
        yield fleet
    finally:
        if fleet is not None:
            fleet.stop()
            with suppress(Exception):
                server.sql(f"DROP DATABASE {fleet.url.split('/')[3].partition('?')[0]} WITH (FORCE)")
        shutil.rmtree(folder)
