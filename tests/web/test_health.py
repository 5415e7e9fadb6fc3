"""Tests of the page for monitors."""

from __future__ import annotations

import http.client
import threading
from typing import Any

import pytest

from pam_totp.core.record import UserRecord
from pam_totp.store import NotThere, StoreError
from pam_totp.web import health
from pam_totp.web.headers import HEADERS
from tests.support.site import PATIENCE, Site
from tests.web.kit import ORIGIN, Portal
from tests.web.over_http import served


class Store:
    """A store that counts reads. Each read waits for the event `gate`, and then raises `error`."""

    def __init__(self) -> None:
        self.error: Exception = NotThere()
        self.reads = 0
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.gate.set()

    def read(self, user: str) -> UserRecord:
        self.reads += 1
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        raise self.error


def test_a_monitor_learns_whether_the_store_is_reachable(site: Site) -> None:
    portal = Portal(site)
    client = portal.browser().client
    answer = client.get("/health", base_url=ORIGIN)
    assert (answer.status_code, answer.text, answer.mimetype) == (200, "ok\n", "text/plain")
    site.store.rename(site.folder / "away")
    assert client.get("/health", base_url=ORIGIN).status_code == 200, "the portal caches the result"
    portal.clock.advance(health.RESULT_LASTS)
    answer = client.get("/health", base_url=ORIGIN)
    assert (answer.status_code, answer.text) == (503, "the store is not reachable\n")
    assert answer.headers["Retry-After"] == "10"
    assert str(site.folder) not in str(answer.headers) + answer.text
    for _ in range(3):
        portal.clock.advance(health.RESULT_LASTS)
        assert client.get("/health", base_url=ORIGIN).status_code == 503
    assert len(portal.log) == 1, "the portal logs the reason once"
    assert str(site.store) in portal.log[0]
    (site.folder / "away").rename(site.store)
    portal.clock.advance(health.RESULT_LASTS)
    assert client.get("/health", base_url=ORIGIN).status_code == 200


def test_the_page_for_monitors_has_no_session_and_no_language(site: Site) -> None:
    browser = Portal(site, path="/otp").browser()
    for path in ("/otp/health", "/health?lang=de"):
        answer = browser.client.get(path, base_url=ORIGIN, headers={"Accept-Language": "de"})
        assert answer.text == "ok\n"
        assert set(answer.headers.keys()) & {"Set-Cookie", "Vary", "Content-Language"} == set()
        assert answer.headers["Cache-Control"] == "no-store"
        assert dict(answer.headers).items() >= HEADERS.items()
    assert browser.client.head("/health", base_url=ORIGIN).status_code == 200
    assert browser.open("/health/").status == 404
    assert browser.post("/health", {"a": "b"}).status == 405


def test_monitors_need_no_name_no_tls_and_no_limit(site: Site) -> None:
    portal = Portal(site, hosts=("portal.example",), rate_limits=True, per_address=1)
    with served(portal.app) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        for host in [f"127.0.0.1:{port}", "other.example", ""] * 20:
            connection.request("GET", "/health", headers={"Host": host})
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"ok\n")
        connection.request("GET", "/sign-in")
        assert connection.getresponse().status == 400, "other pages require the name and TLS"
        connection.close()


def test_a_flood_of_monitors_reads_the_store_once(site: Site) -> None:
    store = Store()
    portal = Portal(site, store=store)
    for _ in range(100):
        assert portal.browser().client.get("/health", base_url=ORIGIN).status_code == 200
    assert store.reads == 1
    store.error = StoreError("gone")
    portal.clock.advance(health.RESULT_LASTS)
    for _ in range(100):
        assert portal.browser().client.get("/health", base_url=ORIGIN).status_code == 503
    assert store.reads == 2


def test_a_store_that_does_not_answer_delays_one_monitor_only(site: Site) -> None:
    store = Store()
    store.gate.clear()
    portal = Portal(site, store=store)
    found: list[int] = []

    def ask() -> None:
        found.append(portal.browser().client.get("/health", base_url=ORIGIN).status_code)

    first = threading.Thread(target=ask)
    first.start()
    assert store.entered.wait(PATIENCE)
    for _ in range(10):
        ask()
    assert (found, store.reads) == ([200] * 10, 1), "the other requests receive the last result"
    store.error = StoreError("gone")
    store.gate.set()
    first.join(PATIENCE)
    assert found[10:] == [503]


def test_with_socket_a_monitor_learns_whether_the_service_answers(site: Site) -> None:
    config: dict[str, Any] = {"store": None, "socket": str(site.socket)}
    portal = Portal(site, **config)
    client = portal.browser().client
    assert client.get("/health", base_url=ORIGIN).status_code == 503
    assert f"{site.socket}: not found" in portal.log[0]
    site.start()
    try:
        portal.clock.advance(health.RESULT_LASTS)
        assert client.get("/health", base_url=ORIGIN).status_code == 200
    finally:
        site.stop()


@pytest.mark.parametrize("path", ["/health", "/otp/health"])
def test_a_monitor_costs_no_session_memory(site: Site, path: str) -> None:
    portal = Portal(site, path="/otp")
    sessions = portal.app.extensions["pam_totp"].sessions
    for _ in range(10):
        portal.browser().client.get(path, base_url=ORIGIN)
    assert sessions._sessions == {}
