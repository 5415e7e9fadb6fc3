"""Tests of an authority against unknown peers and slow clients, in this process, with short limits."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from pam_totp.authority import connections, server, workers
from pam_totp.authority.answers import Answers
from pam_totp.authority.certificates import BadRequest, Issuer
from pam_totp.authority.server import Server
from pam_totp.authority.workers import Busy, Workers
from pam_totp.core.address import networks, parse
from pam_totp.core.settings import AuthoritySettings, Site
from pam_totp.member import wire
from pam_totp.store.postgres import PostgresStore
from tests.support.cluster import with_postgresql
from tests.support.fleet import HOST, Client, Fleet, free_ports, question
from tests.support.site import PATIENCE, codes, until

pytestmark = with_postgresql
QUESTION = question("alice", "123456").to_json()
HEAD = f"POST {wire.ANSWER_PATH} HTTP/1.1\r\nHost: otp\r\nContent-Length: {len(QUESTION)}\r\n".encode()


class Here:
    """An authority in this process, which runs while `serve` calls a function in a thread."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.lines = fleet, list[str]()
        (self.port,) = free_ports(1)
        tls = Path(fleet.issuer.certificate).parent
        settings = AuthoritySettings(
            listen=(f"{HOST}:{self.port}",),
            addresses=tuple(fleet.addresses),
            ca=str(tls / "ca.pem"),
            ca_key=str(tls / "ca.key"),
            certificate=str(tls / "authority.pem"),
            key=str(tls / "authority.key"),
        )
        sink = lambda priority, line: self.lines.append(line)  # noqa: E731
        answers = Answers(PostgresStore(fleet.url, wait=PATIENCE), lambda: Site.NONE, sink)
        self.server = Server(settings, answers, sink, 2)

    def serve(self, work: Callable[[], None]) -> None:
        async def run() -> None:
            ready = asyncio.Event()
            serving = asyncio.create_task(self.server.run(lambda _: ready.set()))
            await ready.wait()
            try:
                await asyncio.to_thread(work)
            finally:
                self.server._stopped.set()
                await serving

        asyncio.run(run())

    def plain(self) -> socket.socket:
        return socket.create_connection((HOST, self.port), timeout=PATIENCE)

    def encrypted(self, context: ssl.SSLContext | None = None) -> ssl.SSLSocket:
        return (context or self.fleet.context()).wrap_socket(self.plain(), server_hostname=HOST)

    def client(self) -> Client:
        return Client(self.port, self.fleet.context())

    def said(self, *words: str) -> bool:
        return any(all(word in line for word in words) for line in self.lines)


@pytest.fixture
def here(fleet: Fleet) -> Here:
    return Here(fleet)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time limits of connections, and the silence between log lines."""
    for name in ("HANDSHAKE", "REQUEST", "SILENCE"):
        monkeypatch.setattr(connections, name, 0.2)


def ends(connection: socket.socket) -> bool:
    """Return True if the server closes the connection before the socket's time-out."""
    try:
        while connection.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_garbage_before_tls_is_logged_once(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        for data in (
            b"GET / HTTP/1.1\r\n\r\n",
            b"\0" * 500,
            b"\x16\x03\x01\x00\x05hello",
            b"SSH-2.0-x\r\n",
            b"\xff" * 70_000,
        ):
            with here.plain() as connection:
                connection.sendall(data)
                assert ends(connection)
        with here.client() as client:
            assert client.send("GET", wire.CA_PATH).status == 200

    monkeypatch.setattr(connections, "SILENCE", PATIENCE)
    here.serve(work)
    (refused,) = (line for line in here.lines if "refused: handshake failed" in line)
    assert "http request" in refused
    assert f"rhost={HOST}" in refused


def test_refused_connections_are_counted_in_the_next_line() -> None:
    lines: list[tuple[str, str, int]] = []

    async def run() -> None:
        events = connections.Seldom(lambda reason, peer, count: lines.append((reason, peer, count)))
        for number in range(5):
            events.note("bad", f"192.0.2.{number}")
        assert lines == [("bad", "192.0.2.0", 1)]
        events._flush()
        events._flush()
        events.note("worse", "192.0.2.9")

    asyncio.run(run())
    assert lines == [("bad", "192.0.2.0", 1), ("bad", "192.0.2.4", 4), ("worse", "192.0.2.9", 1)]


@pytest.mark.usefixtures("quick")
def test_a_client_that_never_ends_its_handshake_or_request_is_dropped(here: Here) -> None:
    member = here.fleet.member()

    def work() -> None:
        with here.plain() as connection:
            assert ends(connection), "no handshake"
        with here.encrypted() as connection:
            assert ends(connection), "no request"
        with here.encrypted() as connection:
            connection.sendall(HEAD)
            assert ends(connection), "half a head"
        with here.encrypted(member.context()) as connection:
            connection.sendall(HEAD + b"\r\n" + QUESTION[:10])
            assert ends(connection), "half a body"

    here.serve(work)
    assert here.said("refused: no whole request in time", f"rhost={HOST}")
    assert here.server._connections._unknown == {}
    assert here.server._connections.known == {}


@pytest.mark.usefixtures("quick")
def test_an_idle_connection_of_a_member_is_kept(here: Here) -> None:
    member, user = here.fleet.member(), here.fleet.user()

    def work() -> None:
        with Client(here.port, member.context()) as client:
            assert client.ask(question(user, codes(0))).accepted
            with here.plain() as slow:
                assert ends(slow)  # longer than the limit of a request
            assert client.ask(question(user, codes(1))).accepted

    here.serve(work)


def test_an_idle_connection_takes_less_than_100_kib(fleet: Fleet) -> None:
    """Asyncio's default buffers for the connections of ten thousand members would take 2.5 GB."""
    member, status = fleet.member(), Path(f"/proc/{fleet.authorities[1].pid}/status")

    def resident() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS:"))

    context = member.context()
    clients = [Client(fleet.authorities[1].port, context) for _ in range(65)]
    before = 0
    for number, client in enumerate(clients):
        assert client.send("GET", wire.HEALTH_PATH).status == 200
        if number == 4:
            before = resident()
    each = (resident() - before) / 60
    for client in clients:
        client.close()
    assert each < 100


def test_unknown_are_limited_and_members_are_not(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNKNOWN", (3, 10, 10))
    member, user = here.fleet.member(), here.fleet.user()

    def work() -> None:
        members = [Client(here.port, member.context()) for _ in range(4)]
        for number, client in enumerate(members):
            assert client.ask(question(user, codes(number))).accepted
        held = [here.encrypted() for _ in range(3)]
        with here.plain() as fourth:
            assert ends(fourth)
        assert members[0].ask(question(user, codes(4))).accepted
        held.pop().close()
        until_admitted(here)
        for client in members:
            client.close()
        for connection in held:
            connection.close()

    here.serve(work)
    assert here.said("refused: too many connections", f"rhost={HOST}")


def test_connections_of_one_member_beyond_its_share_count_as_unknown(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stolen member could otherwise use all connections of the authority."""
    monkeypatch.setattr(connections, "OF_ONE_MEMBER", 2)
    thief, member = here.fleet.member(), here.fleet.member()

    def work() -> None:
        with ExitStack() as stack:
            for one in (thief, thief, thief, member):
                client = stack.enter_context(Client(here.port, one.context()))
                assert client.send("GET", wire.HEALTH_PATH).status == 200
            made = here.server._connections
            assert made.of_member == {thief.name: 2, member.name: 1}
            assert set(made._unknown.values()) == {1}

    here.serve(work)
    assert here.server._connections.of_member == {}
    assert here.server._connections._unknown == {}


def test_a_host_with_many_ipv6_links_leaves_room_for_others(here: Here) -> None:
    def admitted(site: int, home: int) -> int:
        """Return the number of admitted connections from all 256 /64 networks of a /56 network."""
        peers = [parse(f"2001:db8:{site:x}:{home:02x}{link:02x}::1") for link in range(256)]
        return sum(made.admit(networks(peer), str(peer)) for peer in peers if peer is not None for _ in range(5))

    async def run() -> None:
        first = networks(ip_address("2001:db8:1::1"))
        assert sum(made.admit(first, "peer") for _ in range(300)) == 256, "one /64 network"
        assert [admitted(1, 0), admitted(1, 1), admitted(1, 2)] == [744, 1000, 0], "/56 networks of one /48"
        assert admitted(2, 0) == 1000, "another /48"
        for _ in range(256):
            made.forget_unknown(first)
        assert admitted(1, 2) == 256

    made = connections.Connections(here.server._tls, lambda: None, lambda *_: None)
    asyncio.run(run())


def until_admitted(here: Here) -> None:
    """Connect repeatedly, until the server has detected the end of another connection and admits a new connection."""
    for _ in range(1000):
        try:
            here.encrypted().close()
            return
        except OSError:
            continue
    raise AssertionError("never admitted")


def bodies() -> Iterator[bytes]:
    """Yield invalid messages, and questions with random changes."""
    chance = random.Random(20)
    document = json.loads(QUESTION)
    for key in document:
        yield json.dumps({k: v for k, v in document.items() if k != key}).encode()
        values: tuple[object, ...] = (None, 1, [], {}, True, "\0", "x" * 600)
        for value in values:
            if value is not None or key not in ("rhost", "tty", "first", "second"):
                yield json.dumps(document | {key: value}).encode()
    yield from (b"", b"{}", b"[]", b"null", b"\xff", b"[" * 5000, b"x" * wire.MAX_BODY, b"x" * (wire.MAX_BODY + 1))
    for _ in range(30):
        damaged = bytearray(QUESTION)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.choice(b'"{}[],:\\\x00\xff')
        yield bytes(damaged)


def test_malformed_messages_get_400_and_decide_nothing(here: Here) -> None:
    member = here.fleet.member()

    def work() -> None:
        with Client(here.port, member.context()) as client:
            for body in bodies():
                status, content = client.send("POST", wire.ANSWER_PATH, body)
                # An edited question can still be a valid question about another user.
                assert status == 400 or content == {"verdict": "refused", "messages": [], "by": None, "again": False}
                assert content.keys() in ({"error"}, {"verdict", "messages", "by", "again"})
            assert client.send("GET", "/").status == 404
            assert client.send("GET", wire.ANSWER_PATH).status == 405
            assert client.send("POST", "/v2/answer", QUESTION).status == 404

    here.serve(work)
    assert not [line for line in here.lines if "Error in" in line]


@pytest.mark.parametrize(
    "request_head",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n\r\n",
        HEAD + b"X: " + b"y" * 9000 + b"\r\n\r\n",
        HEAD + b"Content-Length: 5\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/answer HTTP/1.1\r\nHost: otp\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_a_malformed_head_ends_the_connection(here: Here, request_head: bytes) -> None:
    def work() -> None:
        with here.encrypted() as connection:
            connection.sendall(request_head)
            reply = connection.recv(4096)
            assert reply.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), reply
            assert ends(connection)
        with here.client() as client:
            assert client.send("GET", wire.CA_PATH).status == 200

    here.serve(work)
    assert not [line for line in here.lines if "Error in" in line]


@pytest.mark.parametrize("is_at_once", [True, False])
def test_a_request_before_the_reply_to_another_ends_the_connection(here: Here, is_at_once: bool) -> None:
    """aiohttp 3.8 keeps all received requests in memory."""
    join = wire.Join(token="0" * 32, csr="x").to_json()
    first = f"POST {wire.JOIN_PATH} HTTP/1.1\r\nHost: otp\r\nContent-Length: {len(join)}\r\n\r\n".encode() + join
    second = b"GET / HTTP/1.1\r\nHost: otp\r\n\r\n"

    def work() -> None:
        with here.encrypted() as connection:
            if is_at_once:
                connection.sendall(first + second)
            else:
                connection.sendall(first)
                until(lambda: here.said("refused: wrong join token"), "the first request")
                connection.sendall(second)
            with suppress(OSError):
                assert connection.recv(4096) == b""
        assert here.said("refused: a request before the reply to another", f"rhost={HOST}")

    here.serve(work)


def test_names_that_look_like_requests_are_asked(here: Here) -> None:
    name = "GET / HTTP/1.1\r\n GET / HTTP/1.1\n"
    member, user = here.fleet.member(), here.fleet.user()

    def work() -> None:
        with Client(here.port, member.context()) as client:
            assert not client.ask(question(name, codes(0), rhost=name, tty=name)).accepted
            assert client.ask(question(user, codes(0))).accepted

    here.serve(work)


def test_a_defect_is_an_error_without_details(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    member, user = here.fleet.member(), here.fleet.user()

    def fail(*_: object) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(Answers, "answer", fail)

    def work() -> None:
        with Client(here.port, member.context()) as client:
            status, content = client.post(wire.ANSWER_PATH, question(user, codes(0)))
            assert (status, content) == (500, {"error": "internal error"})

    here.serve(work)
    assert here.said("error problem=", f"KeyError in {wire.ANSWER_PATH}", f"member={member.name}")
    assert not here.said("secret")


BEGIN = wire.Begin(user="alice", service="sshd", rhost=None).to_json()


@pytest.mark.parametrize(("path", "body"), [(wire.ANSWER_PATH, QUESTION), (wire.BEGIN_PATH, BEGIN)])
def test_a_refusal_has_its_delay_and_a_stop_ends_it(
    here: Here, monkeypatch: pytest.MonkeyPatch, path: str, body: bytes
) -> None:
    """A stolen member could otherwise measure the time of the work before the refusal."""
    monkeypatch.setattr(Answers, "refusal_delay", lambda *_: 10 * PATIENCE)
    monkeypatch.setattr(server, "ASK_DELAY", 10 * PATIENCE)
    member, user = here.fleet.member(), here.fleet.user()
    held = []

    def work() -> None:
        held.append(here.encrypted(member.context()))
        head = f"POST {path} HTTP/1.1\r\nHost: otp\r\nContent-Length: {len(body)}\r\n\r\n"
        held[0].sendall(head.encode() + body)
        until(lambda: here.server._connections.of_member[member.name] == 1, "the decision")
        with Client(here.port, member.context()) as client:
            assert client.ask(question(user, codes(0))).accepted
        held[0].setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            held[0].recv(1)

    here.serve(work)
    with held[0] as connection:
        connection.settimeout(PATIENCE)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_flood_of_requests_causes_one_line_and_slow_replies(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stolen member could otherwise fill the log with a line for each undecided request."""
    monkeypatch.setattr(workers, "MEMBER_WAITING", 0)
    monkeypatch.setattr(connections, "SILENCE", PATIENCE)
    member, waits = here.fleet.member(), list[float]()
    wait_until = here.server._wait_until

    async def note(end: float) -> None:
        waits.append(end - asyncio.get_running_loop().time())
        await wait_until(0.0)

    monkeypatch.setattr(here.server, "_wait_until", note)

    def work() -> None:
        with Client(here.port, member.context()) as client:
            for _ in range(5):
                assert client.post(wire.ANSWER_PATH, question("alice", codes(0))).status == 503
        assert len([line for line in here.lines if "of this member wait" in line and member.name in line]) == 1
        assert [0 < seconds <= server.BUSY_DELAY for seconds in waits] == [True] * 5

    here.serve(work)


def test_without_the_key_of_the_ca_no_member_joins_or_renews(here: Here) -> None:
    member, line = here.fleet.member(), here.fleet.join_line("host-without-ca")
    here.server._settings = here.server._settings._replace(ca_key="/missing.key")

    def work() -> None:
        with here.client() as client:
            assert client.post(wire.JOIN_PATH, wire.Join(token=line.token, csr="x")).status == 503
        with Client(here.port, member.context()) as client:
            assert client.post(wire.RENEW_PATH, wire.Renew(csr="x")).status == 503

    here.serve(work)
    assert here.said("/missing.key: not found")


def test_one_certificate_at_a_time_is_renewed(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stolen member could otherwise use all processors of the authority."""
    member, mutex, begun = here.fleet.member(), threading.Lock(), list[int]()

    def sign(*_: object) -> None:
        assert mutex.acquire(blocking=False)
        if not begun:
            begun.append(1)
            until(lambda: here.server._workers._waiting[member.fingerprint] == 5, "all requests")
        mutex.release()
        raise BadRequest("signed alone")

    monkeypatch.setattr(Issuer, "sign_member", sign)

    def work() -> None:
        with ThreadPoolExecutor(5) as threads:
            clients = [Client(here.port, member.context()) for _ in range(5)]
            replies = list(threads.map(lambda c: c.post(wire.RENEW_PATH, wire.Renew(csr="x")), clients))
            for client in clients:
                client.close()
        assert [reply.content for reply in replies] == [{"error": "signed alone"}] * 5

    here.serve(work)


def test_a_wrong_join_token_is_refused_after_a_delay(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds: float) -> None:
        delays.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)

    def work() -> None:
        with here.client() as client:
            assert client.post(wire.JOIN_PATH, wire.Join(token="0" * 32, csr="x")).status == 403

    here.serve(work)
    assert any(0 < seconds <= server.JOIN_DELAY for seconds in delays)


# ---- threads


def test_a_request_without_a_thread_in_time_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "TURN", 0.05)

    async def run() -> None:
        pool, go = Workers(2), asyncio.Event()
        loop = asyncio.get_running_loop()
        wait = lambda: asyncio.run_coroutine_threadsafe(go.wait(), loop).result()  # noqa: E731
        first = asyncio.create_task(pool.run(wait, member="web1", user="alice"))
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await pool.run(int, member="web2", user="alice")
        with pytest.raises(Busy):
            await pool.run(int, member="web1", user="bob")
        assert await pool.run(int, member="web2", user="bob") == 0
        monkeypatch.setattr(workers, "WAITING", 1)
        with pytest.raises(Busy, match="requests wait"):
            await pool.run(int, member="web2", user="bob")
        go.set()
        await first
        await pool.finish(PATIENCE)
        assert pool._users._keys == pool._members._keys == {}

    asyncio.run(run())


def test_many_requests_of_one_member_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stolen member could otherwise fill the queue, so that every other member gets the status 503."""
    monkeypatch.setattr(workers, "WAITING", 8)
    monkeypatch.setattr(workers, "MEMBER_WAITING", 4)

    async def run() -> None:
        pool, go = Workers(4), asyncio.Event()
        loop = asyncio.get_running_loop()
        wait = lambda: asyncio.run_coroutine_threadsafe(go.wait(), loop).result()  # noqa: E731
        flood = [asyncio.create_task(pool.run(wait, member="web1")) for _ in range(20)]
        await asyncio.sleep(0)
        assert await pool.run(int, member="web2") == 0
        go.set()
        done = await asyncio.gather(*flood, return_exceptions=True)
        assert sum(isinstance(result, Busy) for result in done) == 16
        await pool.finish(PATIENCE)
        assert pool._waiting == {}

    asyncio.run(run())
