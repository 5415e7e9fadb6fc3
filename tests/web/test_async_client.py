"""Tests of pam_totp.client.averify with the real service, and with defective services."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest

from pam_totp import client
from pam_totp.client import Misconfigured, NotAdmitted, Outcome, OutOfReach, Verdict
from tests.support.site import ME, PATIENCE, Site, codes, until
from tests.web.test_client import fake_service, sends, variables_of_the_client


async def aask(site: Site, code: str | bytes, user: str = ME, **options: Any) -> Outcome:
    return await client.averify(user, code, service="web", path=str(site.socket), **options)


def ask(site: Site, code: str | bytes, user: str = ME, **options: Any) -> Outcome:
    return asyncio.run(aask(site, code, user, **options))


def test_the_right_code_is_accepted_once(site: Site) -> None:
    site.start()
    site.enrol()
    assert ask(site, codes(0))
    refused = ask(site, codes(0))
    assert not refused
    assert refused.messages == client.verify(ME, codes(0), service="web", path=str(site.socket)).messages
    assert ask(site, codes(1)).messages == ("2 answers were refused since the last login",)
    assert site.log.has("refused", "reason=replayed")


def test_the_rhost_of_a_listed_client_is_logged(site: Site) -> None:
    site.config.write_text(f'[clients]\n"{ME}" = "web"\n')
    site.start()
    site.enrol()
    assert ask(site, codes(0), rhost="192.0.2.7")
    assert site.log.has("accepted", "rhost=192.0.2.7", "pam_totp(web:auth)")


def test_one_of_100_tasks_with_the_same_code_is_accepted(site: Site) -> None:
    site.start()
    site.enrol()

    async def ask_at_once() -> list[Outcome | BaseException]:
        return await asyncio.gather(*(aask(site, codes(0), timeout=60.0) for _ in range(100)), return_exceptions=True)

    results = asyncio.run(ask_at_once())
    assert sum(result is not None and result == Outcome(Verdict.ACCEPTED) for result in results) == 1
    assert all(isinstance(result, Outcome | OutOfReach) for result in results), "logins wait for a slow disk"


def test_other_tasks_run_while_the_service_is_silent(site: Site) -> None:
    """The service answers only after another task of the same event loop has run."""
    ran = threading.Event()

    def waits(channel: socket.socket) -> None:
        channel.send(b"p")
        channel.recv(5000)
        assert ran.wait(PATIENCE)
        channel.send(b"r0")

    async def both() -> Outcome:
        check = asyncio.create_task(aask(site, "123456", timeout=PATIENCE))
        for _ in range(10):
            await asyncio.sleep(0)
        ran.set()
        return await check

    with fake_service(site.socket, waits):
        assert asyncio.run(both())


@pytest.mark.parametrize("prompts", [True, False], ids=["after the code", "before the code"])
def test_a_cancelled_task_closes_its_connection_at_once(site: Site, prompts: bool) -> None:
    waiting, closed = threading.Event(), threading.Event()

    def waits(channel: socket.socket) -> None:
        if prompts:
            channel.send(b"p")
            channel.recv(5000)
        waiting.set()
        assert channel.recv(5000) == b"", "the client closes the connection"
        closed.set()

    async def cancel() -> None:
        check = asyncio.create_task(aask(site, "123456", timeout=PATIENCE))
        await asyncio.to_thread(waiting.wait, PATIENCE)
        check.cancel()
        with pytest.raises(asyncio.CancelledError):
            await check
        assert await asyncio.to_thread(closed.wait, PATIENCE)

    with fake_service(site.socket, waits):
        asyncio.run(cancel())


def test_a_timeout_by_the_caller_is_raised_in_the_caller(site: Site) -> None:
    done = threading.Event()

    async def limited() -> None:
        async with asyncio.timeout(0.05):
            await aask(site, "123456", timeout=PATIENCE)

    def silent(_: socket.socket) -> None:
        done.wait(PATIENCE)

    with fake_service(site.socket, silent):
        with pytest.raises(TimeoutError):
            asyncio.run(limited())
        done.set()


@pytest.mark.parametrize("prompts", [True, False], ids=["after the code", "before the code"])
def test_a_silent_service_ends_in_a_timeout(site: Site, prompts: bool) -> None:
    done = threading.Event()

    def silent(channel: socket.socket) -> None:
        if prompts:
            channel.send(b"p")
        done.wait(PATIENCE)

    with fake_service(site.socket, silent):
        with pytest.raises(OutOfReach, match="in time") as caught:
            ask(site, "123456", timeout=0.2)
        done.set()
    assert ("may be used up" in str(caught.value)) == prompts


@pytest.mark.parametrize(
    "packets",
    [
        *((b"r0",), (b"p", b"r00"), (b"p", b"r"), (b"p", b"r-1"), (b"p", b"r\xc2\xb2"), (b"p", b"r0x"), (b"p", b"r13")),
        *((b"x",), (b"p", b"A123456"), (b"p", b"r0" + b"0" * 5000), tuple([b"i"] * 17)),
    ],
)
def test_an_unexpected_reply_is_never_an_acceptance(site: Site, packets: tuple[bytes, ...]) -> None:
    with fake_service(site.socket, sends(*packets)), pytest.raises(OutOfReach):
        ask(site, "123456")


def test_the_client_reconnects_only_before_the_code_was_sent(site: Site) -> None:
    with fake_service(site.socket, sends(), sends(), sends(b"p", b"r0")) as hellos:
        assert ask(site, "123456")
    assert len(hellos) == 3
    site.socket.unlink()
    with fake_service(site.socket, sends(b"p")) as hellos, pytest.raises(OutOfReach, match="may be used up"):
        ask(site, "123456")
    assert len(hellos) == 1


@pytest.mark.parametrize(
    ("packets", "error"),
    [
        ((b"p",), OutOfReach),
        ((b"p", b"x"), OutOfReach),
        ((b"p", b"r9"), OutOfReach),
        ((b"p", b"r3"), Misconfigured),
        ((b"r7",), NotAdmitted),
        (None, OutOfReach),
    ],
)
def test_no_variable_of_a_failed_call_shows_the_code(
    site: Site, packets: tuple[bytes, ...] | None, error: type[Exception]
) -> None:
    service = nullcontext() if packets is None else fake_service(site.socket, sends(*packets))
    with service, pytest.raises(error) as caught:
        ask(site, "314159")
    variables = variables_of_the_client(caught.value)
    assert variables
    assert not [text for text in variables if "314159" in text]
    tracebacks = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    inside = [frame for frame in tracebacks.stack if frame.filename == client.__file__ or "asyncio" in frame.filename]
    assert not [frame for frame in inside if "314159" in str(frame.locals)]


@pytest.mark.parametrize("code", ["1" * 513, "12\x0045", b"\xff" * 600, "\ud800"])
def test_an_impossible_code_is_refused_without_asking(site: Site, code: str | bytes) -> None:
    assert ask(site, code).verdict is Verdict.REFUSED


def test_a_web_server_serves_other_pages_while_codes_are_checked(site: Site) -> None:
    """The service is stopped until the server has served another page. Then the service refuses twenty wrong codes."""
    process = site.start()
    site.enrol()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        body = "page" if path == "/" else (await aask(site, path[1:], timeout=PATIENCE)).verdict.value
        writer.write(f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        await writer.drain()
        writer.close()

    async def get(port: int, path: str) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        body = (await reader.read()).decode().rpartition("\r\n\r\n")[2]
        writer.close()
        return body

    async def visit() -> list[str]:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            process.send_signal(signal.SIGSTOP)
            try:
                checks = [asyncio.create_task(get(port, f"/{number:06}")) for number in range(20)]
                assert await asyncio.wait_for(get(port, "/"), PATIENCE) == "page"
                assert not any(check.done() for check in checks)
            finally:
                process.send_signal(signal.SIGCONT)
            return await asyncio.gather(*checks)

    assert set(asyncio.run(visit())) == {"refused"}


# Both functions


def verify(user: Any, code: Any, **options: Any) -> Outcome:
    return client.verify(user, code, **options)


def averify(user: Any, code: Any, **options: Any) -> Outcome:
    return asyncio.run(client.averify(user, code, **options))


@pytest.mark.parametrize("call", [verify, averify])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"code": 314159}, "code must be str or bytes, not int"),
        ({"code": None}, "code must be str or bytes, not NoneType"),
        ({"code": bytearray(b"314159")}, "code must be str or bytes, not bytearray"),
        ({"user": None}, "user must be str, not NoneType"),
        ({"user": b"alice"}, "user must be str, not bytes"),
        ({"service": None}, "service must be str, not NoneType"),
        ({"rhost": 3221225991}, "rhost must be str or None, not int"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_of_the_wrong_type_is_a_type_error(
    site: Site, call: Callable[..., Outcome], wrong: dict[str, Any], message: str
) -> None:
    given = {"user": ME, "code": "314159", "service": "web", "path": str(site.socket)} | wrong
    with pytest.raises(TypeError, match=f"^{message}$") as caught:
        call(**given)
    assert not [text for text in variables_of_the_client(caught.value) if "314159" in text]


@pytest.mark.parametrize("call", [verify, averify])
def test_the_client_waits_while_the_queue_of_connections_is_full(
    site: Site, call: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux reports EAGAIN for a full queue, even to a socket with a timeout."""
    paused = threading.Event()

    def pause() -> float:
        paused.set()
        return 0.01

    monkeypatch.setattr(client, "_pause", pause)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(site.socket))
        listener.listen(0)
        waiting = fill(site)
        with ThreadPoolExecutor(1) as threads:
            check = threads.submit(call, ME, "123456", service="web", path=str(site.socket), timeout=PATIENCE)
            until(lambda: paused.is_set() or check.done(), "the client finds the queue full")
            listener.settimeout(1 if check.done() else PATIENCE)
            for _ in waiting:
                listener.accept()[0].close()
            channel, _ = listener.accept()
            with channel:
                assert channel.recv(5000).startswith(b"H")
                sends(b"p", b"r0")(channel)
            assert check.result(PATIENCE)
        for other in waiting:
            other.close()


@pytest.mark.parametrize("call", [verify, averify])
def test_a_queue_that_stays_full_is_an_unreachable_service(site: Site, call: Callable[..., Outcome]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(site.socket))
        listener.listen(0)
        waiting = fill(site)
        with pytest.raises(OutOfReach, match="accepts no connection"):
            call(ME, "123456", service="web", path=str(site.socket), timeout=0.1)
        for other in waiting:
            other.close()


def fill(site: Site) -> list[socket.socket]:
    """Return connections that fill the queue of the listener."""
    waiting: list[socket.socket] = []
    while True:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        channel.setblocking(False)
        try:
            channel.connect(str(site.socket))
        except BlockingIOError:
            channel.close()
            return waiting
        waiting.append(channel)
