"""What the web's tests share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.services.conftest import _machine, _sshd, machine, sshd  # noqa: F401  fixtures
from tests.services.namespace import Machine
from tests.site import Site
from tests.web.kit import Portal
from tests.web.people import People, Person
from tests.web.served import BehindTls, Served, in_the_clear, missing

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture
def portal(site: Site) -> Portal:
    """The portal in this process, without limits on tries."""
    return Portal(site)


@pytest.fixture(scope="session")
def _served(request: pytest.FixtureRequest) -> Iterator[Served]:
    why = missing()
    if why is not None:
        pytest.skip(why)
    if os.geteuid() != 0:
        with in_the_clear() as served:
            yield served
        return
    own: Machine = request.getfixturevalue("_machine")
    with tempfile.TemporaryDirectory(prefix="pam_totp-browser-") as folder:
        yield BehindTls(own, Path(folder))


@pytest.fixture
def served(_served: Served) -> Served:
    """The portal as people reach it, with nobody enrolled."""
    _served.forget_everybody()
    return _served


@pytest.fixture
def behind_tls(served: Served) -> BehindTls:
    if not isinstance(served, BehindTls):
        pytest.skip("needs root: accounts, PAM and nginx are those of a machine of its own")
    return served


@pytest.fixture(scope="module")
def _chromium(_served: Served) -> Iterator[Chromium]:
    """One browser for the module, and gone with it: while it is there, its event loop is in Django's way."""
    from playwright.sync_api import sync_playwright  # slow to import, and only for these tests

    names = "--host-resolver-rules=MAP * 127.0.0.1"  # whatever a page should ask for stays here
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_served.browser, args=[*FLAGS, names])
        yield browser
        browser.close()


@pytest.fixture
def people(_chromium: Chromium, served: Served) -> Iterator[People]:
    """As many people as a test needs, each with a browser of their own."""
    there: list[Person] = []

    def one(**context: Any) -> Person:
        there.append(Person(_chromium, served, **context))
        return there[-1]

    yield one
    for person in there:
        person.close()
