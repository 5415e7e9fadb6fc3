"""Fixtures of the tests of the portal."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pam_totp.system.portal_table import Appearance
from pam_totp.web.portal import FirstToken
from tests.services.conftest import _machine, _sshd, machine, sshd  # noqa: F401  fixtures
from tests.services.namespace import Machine
from tests.support.site import Site
from tests.web.chromium import ALL_NAMES_HERE, running
from tests.web.kit import Portal
from tests.web.people import People, Person
from tests.web.served import TELEPHONE, Served, TlsPortal, missing_programs, plain_portal

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium


@pytest.fixture
def portal(site: Site) -> Portal:
    """Return the portal in this process, without rate limits."""
    return Portal(site)


@pytest.fixture(scope="session")
def _served(request: pytest.FixtureRequest) -> Iterator[Served]:
    reason = missing_programs()
    if reason is not None:
        pytest.skip(reason)
    if os.geteuid() != 0:
        with plain_portal() as served:
            yield served
        return
    own: Machine = request.getfixturevalue("_machine")
    with tempfile.TemporaryDirectory(prefix="pam_totp-browser-") as folder:
        yield TlsPortal(own, Path(folder))


@pytest.fixture
def served(_served: Served) -> Served:
    """Return the running portal for a real browser, with an empty store."""
    _served.delete_all_users()
    return _served


@pytest.fixture(scope="session")
def _served_with_tickets(request: pytest.FixtureRequest, _served: Served) -> Iterator[Served]:
    """Yield a portal that asks for a ticket, beside the first portal. Both portals share a store if root runs them."""
    if not isinstance(_served, TlsPortal):
        with plain_portal(first_token=FirstToken.TICKET, appearance=Appearance(telephone=TELEPHONE)) as served:
            yield served
        return
    with tempfile.TemporaryDirectory(prefix="pam_totp-browser-") as folder:
        yield TlsPortal(_served.machine, Path(folder), "ticket", (8444, 444))


@pytest.fixture
def served_with_tickets(_served_with_tickets: Served) -> Served:
    """Return the running portal that asks for a ticket, with an empty store."""
    _served_with_tickets.delete_all_users()
    return _served_with_tickets


@pytest.fixture
def tls_portal(served: Served) -> TlsPortal:
    if not isinstance(served, TlsPortal):
        pytest.skip("requires root: the portal runs behind nginx on a test machine with accounts")
    return served


@pytest.fixture(scope="module")
def _chromium(_served: Served) -> Iterator[Chromium]:
    """Yield a browser for one test module, then close it: Django cannot run while Playwright's event loop runs."""
    with running(_served.browser, ALL_NAMES_HERE) as browser:
        yield browser


@pytest.fixture
def people(_chromium: Chromium, served: Served) -> Iterator[People]:
    """Yield a function that opens a separate browser context for a user. The arguments are options of the context."""
    with _people(_chromium, served) as make:
        yield make


@pytest.fixture
def newcomers(_chromium: Chromium, served_with_tickets: Served) -> Iterator[People]:
    """Yield a function like `people`, for the portal that asks for a ticket."""
    with _people(_chromium, served_with_tickets) as make:
        yield make


@contextmanager
def _people(chromium: Chromium, served: Served) -> Iterator[People]:
    made: list[Person] = []

    def make(**context: Any) -> Person:
        made.append(Person(chromium, served, **context))
        return made[-1]

    yield make
    for person in made:
        person.close()
