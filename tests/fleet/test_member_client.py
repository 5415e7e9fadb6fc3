"""Tests of a member's questions to its authorities: open connections, failover, deadlines, and reasons of errors."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pam_totp.member.client import Client, client_of
from pam_totp.member.errors import NotAllowed, OutOfReach
from pam_totp.member.wire import ANSWER_PATH, Question, Verdict
from pam_totp.store import StoreError
from tests.support.site import PATIENCE, until
from tests.support.tls import ACCEPTED, Authority, Fleet, Reply, Request, Server, Signed, free_port, self_signed

QUESTION = Question(id="0" * 32, user="alice", service="sshd", rhost=None, tty=None, answer="755224")


def ask(client: Client) -> tuple[Verdict, str]:
    return client.ask("POST", ANSWER_PATH, QUESTION, Verdict)


def problem(client: Client) -> str:
    with pytest.raises(OutOfReach) as caught:
        ask(client)
    return str(caught.value)


def test_questions_follow_each_other_on_one_kept_connection(members: Fleet) -> None:
    server = members.server()
    client = members.client(server.address)
    for _ in range(5):
        verdict, authority = ask(client)
        assert (verdict.by, authority) == ("code", server.address)
    assert server.connections == 1
    assert [r.document for r in server.requests] == [QUESTION_DOCUMENT] * 5
    assert server.requests[0].peer is not None, "the member shows its certificate"


QUESTION_DOCUMENT = {
    "v": 1,
    "id": "0" * 32,
    "user": "alice",
    "service": "sshd",
    "rhost": None,
    "tty": None,
    "answer": "755224",
    "first": None,
    "second": None,
}


def test_a_kept_connection_that_was_closed_is_replaced(members: Fleet) -> None:
    server = members.server()
    client = members.client(server.address)
    ask(client)
    server.hang_up()
    assert ask(client)[0].accepted
    assert server.connections == 2


def test_a_question_is_repeated_if_a_kept_connection_gives_no_reply(members: Fleet) -> None:
    replies: list[Reply] = [(200, ACCEPTED), None, (200, ACCEPTED)]
    server = members.server(lambda request: replies.pop(0))
    client = members.client(server.address)
    ask(client)
    assert ask(client)[0].accepted
    assert len(server.requests) == 3
    assert server.requests[1].body == server.requests[2].body, "the same id"


def test_threads_share_the_connections(members: Fleet) -> None:
    server = members.server()
    client = members.client(server.address, answer=5, patience=5, connect=5)
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(ask(client)[1])) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [server.address] * 20
    before = server.connections
    for _ in range(5):
        ask(client)
    assert server.connections == before


def test_the_next_authority_gets_the_same_question(members: Fleet) -> None:
    release = threading.Event()
    slow = members.server(lambda request: (release.wait(), (200, ACCEPTED))[1])
    other = members.server()
    client = members.client(slow.address, other.address, answer=5)
    assert ask(client)[1] == other.address
    assert slow.requests[0].body == other.requests[0].body
    begun = time.monotonic()
    assert ask(client)[1] == other.address
    assert time.monotonic() - begun < 0.25, "an authority that failed is asked last"
    assert len(slow.requests) == 1
    release.set()


def test_an_authority_that_failed_is_asked_if_no_other_answers(members: Fleet) -> None:
    replies: list[Reply] = [(503, {"error": "store out of reach"}), (200, ACCEPTED)]
    server = members.server(lambda request: replies.pop(0))
    assert ask(members.client(f"127.0.0.1:{free_port()}", server.address))[0].accepted
    assert len(server.requests) == 2


def test_if_no_authority_answers_the_error_has_all_reasons(members: Fleet) -> None:
    refusing, silent = (
        f"127.0.0.1:{free_port()}",
        members.server(lambda request: (503, {"error": "store out of reach"})),
    )
    begun = time.monotonic()
    expected = f"{refusing}: connection refused; {silent.address}: status 503: store out of reach"
    assert problem(members.client(refusing, silent.address)) == f"no authority answered: {expected}"
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("status", "document"), [(401, {"error": "revoked"}), (403, {"error": "not this member's user"})]
)
def test_a_refusal_to_answer_is_final(members: Fleet, status: int, document: object) -> None:
    server, other = members.server(lambda request: (status, document)), members.server()
    with pytest.raises(NotAllowed) as caught:
        ask(members.client(server.address, other.address))
    assert (caught.value.status, caught.value.authority) == (status, server.address)
    assert other.requests == []


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
REPLIES: dict[str, tuple[Reply, str]] = {
    "no JSON": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", "the reply must be a valid message"),
    "another verdict": ((200, {**ACCEPTED, "verdict": "perhaps"}), "the reply must be a valid message"),
    "more keys": ((200, {**ACCEPTED, "key": "x"}), "the reply must be a valid message"),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n", "the reply must be valid HTTP"),
    "too long": (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 1_000_000, "the reply must be at most 32768 bytes"),
    "a head without end": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000, ""),
    "cut off": (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", "the reply must be valid HTTP"),
    "empty": (None, "connection closed"),
    "400": ((400, {"error": "malformed"}), "status 400: malformed"),
    "a length of 100 GB": (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{", "the reply must be valid HTTP"),
    "a length of 67 bits": (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n{" % 10**20, "the reply must be valid HTTP"),
    "a chunk of 68 bits": (CHUNKED + b"f" * 17 + b"\r\nx", "the reply must be valid HTTP"),
    "a chunk of -5 bytes": (CHUNKED + b"-5\r\nx", "the reply must be valid HTTP"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_a_bad_reply_accepts_nobody(members: Fleet, name: str) -> None:
    reply, reason = REPLIES[name]
    server = members.server(lambda request: reply)
    assert reason in problem(members.client(server.address))


def test_a_server_that_sends_byte_by_byte_gains_no_time(members: Fleet) -> None:
    """The server never completes the reply. The member closes the connection after `answer` seconds."""
    server = DripFeeder(members.good, members.folder)
    begun = time.monotonic()
    try:
        assert problem(members.client(server.address)) == f"no authority answered: {server.address}: no answer in time"
    finally:
        server.close()
    assert time.monotonic() - begun < 20


class DripFeeder(Server):
    """A server that sends a byte of its reply every 0.05 s."""

    def __init__(self, signed: Signed, folder: Path) -> None:
        super().__init__(signed, folder, lambda request: None)
        self.is_closed = threading.Event()

    def _answer(self, tls: Any) -> bool:
        tls.recv(65_536)
        while not self.is_closed.wait(0.05):
            tls.sendall(b"x")
        return False

    def close(self) -> None:
        self.is_closed.set()
        super().close()


def test_a_question_that_was_given_up_leaves_nothing_to_send(members: Fleet) -> None:
    """The connection's reset proves that TCP has dropped the unsent data."""
    server = SilentServer(members.good, members.folder)
    try:
        assert problem(members.client(server.address)).endswith("no answer in time")
        assert server.ends.get(timeout=PATIENCE) == TCP_CLOSE
    finally:
        server.close()


TCP_CLOSE = 7  # the TCP state after a reset; after a FIN, the state is 8, CLOSE_WAIT (tcp_states.h of Linux)


class SilentServer(Server):
    """A server that sends no reply. `ends` receives the final TCP state of each connection."""

    def __init__(self, signed: Signed, folder: Path) -> None:
        super().__init__(signed, folder, lambda request: None)
        self.ends: queue.Queue[int] = queue.Queue()

    def _answer(self, tls: Any) -> bool:
        with suppress(OSError):
            while tls.recv(65_536):
                pass
        self.ends.put(tls.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0])
        return False


def test_a_port_that_accepts_no_handshake_costs_one_connection_time(members: Fleet) -> None:
    good = members.server()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = members.client(f"127.0.0.1:{silent.getsockname()[1]}", good.address, connect=0.2, answer=5, patience=4)
        assert ask(client)[1] == good.address


CERTIFICATES: dict[str, tuple[Callable[[Authority], Signed], str]] = {
    "expired": (lambda ca: ca.sign(server=True, days=(-90, -1)), "its certificate has expired, or the clock"),
    "clock 400 days behind": (lambda ca: ca.sign(server=True, days=(400, 800)), "its certificate is not valid yet"),
    "self-signed": (lambda ca: self_signed(), "its certificate is self-signed"),
    "unknown CA": (lambda ca: Authority("other").sign(server=True), "its certificate was issued by an unknown CA"),
    "other address": (lambda ca: ca.sign("otp2", server=True), "its certificate is for another address"),
    "of a member": (lambda ca: ca.sign(), "its certificate is not valid: unsuitable certificate purpose"),
}


@pytest.mark.parametrize("name", CERTIFICATES)
def test_an_authority_must_have_a_valid_certificate(members: Fleet, name: str) -> None:
    make, reason = CERTIFICATES[name]
    server = members.server(signed=make(members.authority))
    begun = time.monotonic()
    assert reason in problem(members.client(server.address, answer=8))
    assert time.monotonic() - begun < 6, "another attempt would fail with the same error"
    assert server.requests == []


def test_the_name_of_an_authority_is_verified_too(members: Fleet) -> None:
    server = members.server(signed=members.authority.sign("otp2", server=True))
    assert "its certificate is for another host name" in problem(members.client(f"localhost:{server.port}"))
    right = members.server()
    assert ask(members.client(f"localhost:{right.port}"))[0].accepted


@pytest.mark.parametrize(
    ("days", "reason"), [((-90, -1), "the certificate of this host has expired"), (None, "certificate of this host")]
)
def test_a_rejected_certificate_of_the_member_is_named(
    members: Fleet, days: tuple[int, int] | None, reason: str
) -> None:
    signed = Authority("other").sign("web1") if days is None else members.authority.sign("web1", days=days)
    (members.credentials / "certificate.pem").write_bytes(signed.certificate)
    (members.credentials / "key.pem").write_bytes(signed.key)
    server = members.server()
    assert reason in problem(members.client(server.address))
    until(lambda: server.handshake_errors, "the server has recorded its handshake error")


def test_an_unknown_host_name_is_an_error(members: Fleet) -> None:
    assert "host name not found" in problem(members.client("name.invalid:1", answer=2, connect=2, patience=2))


def test_new_credentials_are_used_at_once(members: Fleet) -> None:
    server = members.server()
    client = members.client(server.address)
    ask(client)
    renewed = members.authority.sign("web1")
    # Do the first steps of a renewal: write the new key beside the old key, and replace the certificate.
    (members.credentials / "key.pem.next").write_bytes(renewed.key)
    os.chmod(members.credentials / "key.pem.next", 0o600)
    replace(members.credentials / "certificate.pem", renewed.certificate)
    ask(client)
    peers = [request.peer for request in server.requests]
    assert peers[0] != peers[1], "the client completes the renewal"
    assert sorted(os.listdir(members.credentials)) == ["ca.pem", "certificate.pem", "key.pem"], "it is complete"
    ask(client)
    assert server.requests[2].peer == peers[1]
    assert ask(members.client(server.address))[0].accepted, "a new process uses the new files"


def replace(path: Path, content: bytes) -> None:
    other = path.with_suffix(".new")
    other.touch(0o600)
    other.write_bytes(content)
    other.rename(path)


def test_a_question_under_an_old_certificate_is_repeated(members: Fleet) -> None:
    """The authority refuses the old certificate, because another process has just renewed the certificate."""
    renewed = members.authority.sign("web1")

    def renew_and_refuse(request: Request) -> Reply:
        if len(server.requests) > 1:
            return 200, ACCEPTED
        replace(members.credentials / "key.pem", renewed.key)
        replace(members.credentials / "certificate.pem", renewed.certificate)
        return 401, {"error": "unknown certificate"}

    server = members.server(renew_and_refuse)
    assert ask(members.client(server.address))[0].accepted


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no key": (
        lambda folder: (folder / "key.pem").unlink(),
        "key.pem: no such file or directory (run 'pam-totp join')",
    ),
    "no CA": (lambda folder: (folder / "ca.pem").unlink(), "ca.pem: no such file or directory (run 'pam-totp join')"),
    "a readable key": (lambda folder: (folder / "key.pem").chmod(0o640), "key.pem: its mode must be 0600"),
    "an open folder": (lambda folder: folder.chmod(0o755), "its mode must be 0700"),
    "a writable CA file": (lambda folder: (folder / "ca.pem").chmod(0o666), "must be writable by its owner only"),
    "a link": (lambda folder: relink(folder / "key.pem"), "key.pem: must be a regular file"),
    "no certificate": (
        lambda folder: (folder / "certificate.pem").write_text("x"),
        "must be a valid certificate or key",
    ),
}


def relink(path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.symlink_to(path.with_suffix(".old"))


@pytest.mark.parametrize("name", FILES)
def test_credentials_that_are_not_safe_are_not_used(members: Fleet, name: str) -> None:
    damage, reason = FILES[name]
    server = members.server()
    damage(members.credentials)
    with pytest.raises(StoreError, match=reason.replace("(", r"\(").replace(")", r"\)")):
        ask(members.client(server.address))
    assert server.connections == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="requires root: only root can give files to another owner")
def test_credentials_of_another_account_are_not_used(members: Fleet) -> None:
    os.chown(members.credentials / "key.pem", 12_345, -1)
    with pytest.raises(StoreError, match=r"key\.pem: must be owned by uid 0"):
        ask(members.client(f"127.0.0.1:{free_port()}"))


def test_a_child_process_makes_its_own_connections(members: Fleet) -> None:
    server = members.server()
    settings = members.settings(server.address)
    client = client_of(settings)
    ask(client)
    assert client_of(settings) is client
    child = os.fork()
    if child == 0:
        try:
            other = client_of(settings)
            os._exit(0 if other is not client and ask(other)[0].accepted else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert server.connections == 2
    ask(client)
    assert server.connections == 2, "the child has not closed the parent's connection"
    client.close()
