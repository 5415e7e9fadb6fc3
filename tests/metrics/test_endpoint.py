"""Tests of the socket of the metrics, alone and in a running service."""

from __future__ import annotations

import grp
import os
import signal
import socket
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pam_totp.metrics import endpoint
from pam_totp.metrics.counters import SERVICE, Metrics
from pam_totp.metrics.endpoint import MAX_CLIENTS, Endpoint, fetch
from tests.conftest import as_root
from tests.support.pamconf import Result
from tests.support.site import OTHER_UID, PATIENCE, Site, codes, until

GET = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Served:
    """An endpoint with counters, at a path that every account can reach. `problems` lists the logged errors."""

    def __init__(self, folder: Path) -> None:
        self.path, self.metrics, self.problems = folder / "metrics", Metrics(), list[str]()
        self.endpoint = Endpoint(str(self.path), self.metrics, SERVICE, self.problems.append)
        self.endpoint.open()

    def connected(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(PATIENCE)
        client.connect(str(self.path))
        return client

    def asked(self, request: bytes) -> bytes:
        with self.connected() as client:
            client.sendall(request)
            return received(client)


def received(client: socket.socket) -> bytes:
    reply = b""
    while part := client.recv(65536):
        reply += part
    return reply


@pytest.fixture
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="pam_totp-test-") as folder:
        Path(folder).chmod(0o755)
        made = Served(Path(folder))
        yield made
        made.endpoint.close()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (GET, 200),
        (b"GET /metrics HTTP/1.0\n\n", 200),
        (b"GET /metrics?x=1 HTTP/1.1\r\n\r\n", 200),
        (b"GET /metrics/without-reasons HTTP/1.1\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\n\r\n", 405),
        (b"GET /metrics HTTP/2.0\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nx: " + b"x" * 9000, 400),
    ],
)
def test_a_request_gets_the_status_of_http(served: Served, request_: bytes, status: int) -> None:
    head, _, body = served.asked(request_).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Length: %d\r\n" % len(body) in head
    assert (b"# TYPE pam_totp_answers_total counter" in body) == (status == 200)


def test_curl_reads_the_metrics(served: Served) -> None:
    served.metrics.error()
    words = ["curl", "--silent", "--fail", "--unix-socket", str(served.path), "http://localhost/metrics"]
    try:
        text = subprocess.run(words, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    except FileNotFoundError:
        pytest.skip("requires curl")
    assert 'pam_totp_errors_total{role="service"} 1\n' in text
    assert text == fetch(str(served.path), reasons=True)


def as_account(uid: int, groups: list[int], served: Served) -> bytes:
    """Return the beginning of the reply to the account `uid` with `groups`."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(write, served.asked(GET)[:60])
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with open(read, "rb") as pipe:
        return pipe.read()


@as_root
def test_only_root_and_the_group_read_the_metrics(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert as_account(OTHER_UID, [], served).startswith(b"HTTP/1.1 403 ")
    found: dict[str, grp.struct_group] = {}
    monkeypatch.setattr(grp, "getgrnam", found.__getitem__)
    assert as_account(OTHER_UID, [4242], served).startswith(b"HTTP/1.1 403 ")
    found[endpoint.GROUP] = grp.struct_group((endpoint.GROUP, "x", 4242, []))
    assert as_account(OTHER_UID, [], served).startswith(b"HTTP/1.1 403 ")
    assert as_account(OTHER_UID, [11, 4242], served).startswith(b"HTTP/1.1 200 ")


@as_root
def test_other_accounts_keep_no_place_from_root_and_the_group(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    known = grp.struct_group((endpoint.GROUP, "x", 4242, []))
    monkeypatch.setattr(grp, "getgrnam", {endpoint.GROUP: known}.__getitem__)
    assert as_account(OTHER_UID, [4242], served).startswith(b"HTTP/1.1 200 ")
    ready, connected = os.pipe()
    child = os.fork()  # a change of this process's uid would also change the uid of the endpoint
    if child == 0:
        try:
            os.setresuid(OTHER_UID, OTHER_UID, OTHER_UID)
            stuck = [served.connected() for _ in range(2 * MAX_CLIENTS)]
            os.write(connected, b"x" * len(stuck))
            signal.pause()
        finally:
            os._exit(0)
    assert len(os.read(ready, 100)) == 2 * MAX_CLIENTS
    for end in (ready, connected):
        os.close(end)
    try:
        for _ in range(3):
            assert served.asked(GET).startswith(b"HTTP/1.1 200 ")
            assert as_account(OTHER_UID, [4242], served).startswith(b"HTTP/1.1 200 ")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_stuck_reader_holds_no_other_reader(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = [served.connected() for _ in range(MAX_CLIENTS - 1)]
    stuck[0].sendall(b"GET /metrics")
    assert served.asked(GET).startswith(b"HTTP/1.1 200 ")
    for client in stuck:
        client.close()


def test_the_number_and_the_time_of_requests_are_bounded(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "REQUEST_SECONDS", 0.2)
    stuck = [served.connected() for _ in range(3 * MAX_CLIENTS)]
    for client in stuck:
        with client:
            assert b"200" not in received(client)
    until(lambda: served.asked(GET).startswith(b"HTTP/1.1 200 "), "the endpoint drops the stuck readers")


def test_a_path_that_cannot_be_used_is_logged_and_kept(tmp_path: Path) -> None:
    served = Served(tmp_path / "missing")
    assert served.problems == [f"metrics: {served.path}: no such file or directory"]
    (tmp_path / "metrics").write_text("kept")
    served = Served(tmp_path)
    assert served.problems == [f"metrics: {served.path}: must be a socket"]
    assert served.path.read_text() == "kept"
    served.endpoint.close()
    assert served.path.exists()


def test_a_socket_of_an_ended_service_is_replaced(served: Served) -> None:
    successor = Endpoint(str(served.path), Metrics(), SERVICE, served.problems.append)
    successor.open()
    served.endpoint.close()
    assert fetch(str(served.path), reasons=True), "the first service must not unlink its successor's socket"
    successor.close()
    assert not served.path.exists()
    assert served.problems == []


def test_a_service_that_has_no_metrics_is_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fetch(str(tmp_path / "metrics"), reasons=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "metrics"))
        listener.listen()

        def close_at_once() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=close_at_once)
        thread.start()
        with pytest.raises(OSError, match=r"no metrics|reset|Broken pipe"):
            fetch(str(tmp_path / "metrics"), reasons=True)
        thread.join(PATIENCE)


# ---- in the service


def sample(site: Site, line: str) -> int:
    """Return the value of the sample whose line begins with `line`, or 0 if the sample is missing."""
    text = fetch(str(site.folder / "metrics"), reasons=True).replace('role="service",', "")
    return next((int(found.rpartition(" ")[2]) for found in text.splitlines() if found.startswith(line)), 0)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_service_counts_the_logins_of_all_its_workers(site: Site, workers: int) -> None:
    site.start("--workers", str(workers), "--metrics", str(site.folder / "metrics"))
    site.enrol()
    site.configure("demo", way="socket")
    for counter in range(6):
        assert site.gets_in(codes(counter))
    assert not site.gets_in(codes(0))
    assert site.login("").result is Result.AUTH_ERR
    until(lambda: sample(site, 'pam_totp_logins_total{service="demo",result="refused"}') == 2, "the logins are counted")
    answers = 'pam_totp_answers_total{service="demo",outcome='
    assert sample(site, 'pam_totp_logins_total{service="demo",result="accepted"}') == 6
    assert sample(site, f'{answers}"accepted",reason="code"}}') == 6
    assert sample(site, f'{answers}"refused",reason="replayed"}}') >= 1
    assert sample(site, f'{answers}"refused",reason="malformed"}}') >= 1
    assert sample(site, 'pam_totp_decision_seconds_count{outcome="accepted"}') == 6
    assert sample(site, 'pam_totp_decision_seconds_bucket{outcome="accepted",le="10"}') == 6


def test_an_error_line_of_the_service_is_counted(site: Site) -> None:
    site.start("--metrics", str(site.folder / "metrics"))
    site.enrol()
    site.configure("demo", way="socket")
    site.path().write_text("damaged")
    assert site.login(codes(0)).result is Result.AUTHINFO_UNAVAIL
    assert sample(site, 'pam_totp_errors_total{role="service"}') >= 1
    until(lambda: sample(site, 'pam_totp_logins_total{service="demo",result="unavailable"}') == 1, "a counted login")


def test_logins_succeed_without_a_place_for_the_metrics(site: Site) -> None:
    site.start("--metrics", "/no/such/folder/metrics")
    site.enrol()
    site.configure("demo", way="socket")
    assert site.gets_in(codes(0))
    assert site.log.has("error", "metrics", "/no/such/folder/metrics")


def test_the_service_removes_its_socket_of_metrics(site: Site) -> None:
    path = site.folder / "metrics"
    process = site.start("--metrics", str(path))
    until(path.exists, "the socket exists")
    assert stat.S_ISSOCK(path.stat().st_mode)
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert not path.exists()
