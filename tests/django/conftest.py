"""Fixtures: Django with an empty database for each test, and the service that Django asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.site import ME, Site

PASSWORD = "correct horse"


@pytest.fixture(scope="session")
def _django() -> None:
    # Set the variable here, because tests/support/isolation.py removes the variables of the shell.
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.django.settings")
    import django  # reads DJANGO_SETTINGS_MODULE

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


class Passwords:
    """A fake checker of system passwords, because the tests have no accounts."""

    def verify(self, user: str, password: str) -> bool:
        return password == PASSWORD and user in (ME, "mallory")


@pytest.fixture
def stopped(_django: None, site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield Django's settings, which a test may change. The database is empty, and the service is not running."""
    from django.conf import settings
    from django.core.management import call_command

    from pam_totp.django import backends

    monkeypatch.setattr(settings, "PAM_TOTP_SOCKET", str(site.socket))
    monkeypatch.setitem(backends._checkers, "pam_totp-portal", Passwords())
    yield settings
    call_command("flush", verbosity=0, interactive=False)


@pytest.fixture
def project(stopped: Any, site: Site) -> Any:
    """Return Django's settings, which a test may change. Django asks the service of `site`. The database is empty."""
    site.start()
    return stopped


@pytest.fixture
def client(project: Any) -> Any:
    from django.test import Client

    return Client()


@pytest.fixture
def visitor(stopped: Any) -> Any:
    """Return a client for a test that needs no service."""
    from django.test import Client

    return Client()
