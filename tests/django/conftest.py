"""Django, set up once, with a database of its own for each test; a service beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.site import ME, Site

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.django.settings")

PASSWORD = "correct horse"


@pytest.fixture(scope="session")
def _django() -> None:
    import django  # reads the settings

    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0)


class Passwords:
    """The system's, for a test that has no accounts of its own."""

    def right(self, user: str, password: str) -> bool:
        return password == PASSWORD and user in (ME, "mallory")


@pytest.fixture
def project(_django: None, site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Django's settings, for a test to change; the service is the site's, and nobody has an account yet."""
    from django.conf import settings
    from django.core.management import call_command

    from pam_totp.django import backends

    site.start()
    monkeypatch.setattr(settings, "PAM_TOTP_SOCKET", str(site.socket))
    monkeypatch.setitem(backends._checkers, "pam_totp-portal", Passwords())  # type: ignore[arg-type]
    yield settings
    call_command("flush", verbosity=0, interactive=False)


@pytest.fixture
def client(project: Any) -> Any:
    from django.test import Client

    return Client()
