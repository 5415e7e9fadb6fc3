"""Tests of Django's error reports: no report shows the host's password or a code.

Django itself renders the reports: as the mail to the administrators, and as the page for one exception.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pam_totp import client as service
from pam_totp.system import passwords
from tests.django.conftest import PASSWORD
from tests.support.site import ME, Site, codes

CODE = "314159"


class BrokenError(Exception):
    """An exception that pam_totp does not handle."""


def fail(*_: object, **__: object) -> Any:
    raise BrokenError


@pytest.fixture
def mails(project: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Yield a function that returns the text of all mails to the administrators, with their HTML parts."""
    from django.core import mail
    from django.utils.log import AdminEmailHandler

    monkeypatch.setattr(project, "ADMINS", [("Admin", "admin@example.org")])
    monkeypatch.setattr(project, "EMAIL_BACKEND", "django.core.mail.backends.locmem.EmailBackend")
    monkeypatch.setattr(mail, "outbox", [], raising=False)
    handler = AdminEmailHandler(include_html=True)
    loggers = [logging.getLogger(name) for name in ("django.request", "pam_totp.django")]
    for logger in loggers:
        logger.addHandler(handler)
    yield lambda: "\n".join(m.body + "".join(str(part[0]) for part in m.alternatives) for m in mail.outbox)
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.fixture
def browser(client: Any) -> Any:
    client.raise_request_exception = False
    return client


def sign_in(browser: Any) -> Any:
    return browser.post("/login/", {"username": ME, "password": PASSWORD})


def test_a_failed_save_of_the_user_shows_no_password(browser: Any, mails: Callable[[], str]) -> None:
    from django.contrib.auth import get_user_model
    from django.db.models.signals import pre_save

    pre_save.connect(fail, sender=get_user_model())
    try:
        page = sign_in(browser)
    finally:
        pre_save.disconnect(fail, sender=get_user_model())
    assert "BrokenError" in mails() and "pam_totp/django/backends.py" in mails()
    assert PASSWORD not in mails()
    assert "errorlist" in page.content.decode(), "the sign-in is refused"


def test_a_failed_check_of_the_password_shows_no_password(
    browser: Any, mails: Callable[[], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pam_totp.django import backends

    (tmp_path / "pam_totp-portal").touch()
    monkeypatch.setattr(passwords, "PAM_FOLDER", str(tmp_path))
    monkeypatch.setattr(passwords, "_python_pam", lambda: fail)
    checker = passwords.SystemPasswords("pam_totp-portal", fail)
    monkeypatch.setattr(passwords, "is_account", lambda _: True)
    monkeypatch.setitem(backends._checkers, "pam_totp-portal", checker)
    page = sign_in(browser)
    assert "BrokenError" in mails() and "pam_totp/system/passwords.py" in mails()
    assert PASSWORD not in mails()
    assert "errorlist" in page.content.decode(), "the sign-in is refused"


def test_a_failed_asynchronous_sign_in_shows_no_password(
    project: Any, mails: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from asgiref.sync import async_to_sync

    from pam_totp.django.backends import PamBackend

    monkeypatch.setattr(PamBackend, "authenticate", fail)
    try:
        async_to_sync(PamBackend().aauthenticate)(None, username=ME, password=PASSWORD)
    except BrokenError:
        page = report()
    assert "asgiref/sync.py" in page
    assert PASSWORD not in page


def test_a_failed_check_of_the_code_shows_no_code(
    browser: Any, site: Site, mails: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.enrol()
    sign_in(browser)
    monkeypatch.setattr(service, "_remaining", fail)
    page = browser.post("/code/", {"code": CODE})
    assert "BrokenError" in mails() and "pam_totp/client.py" in mails()
    assert CODE not in mails()
    assert "Codes cannot be checked" in page.content.decode()


def test_a_failed_page_for_the_code_shows_no_code(
    browser: Any, site: Site, mails: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pam_totp.django import views

    site.enrol()
    sign_in(browser)
    monkeypatch.setattr(views, "otp_login", fail)
    assert browser.post("/code/", {"code": codes(0)}).status_code == 500
    assert "BrokenError" in mails() and "pam_totp/django/views.py" in mails()
    assert codes(0) not in mails()


def test_a_view_that_asks_the_service_itself_shows_no_code(project: Any, tmp_path: Path) -> None:
    try:
        service.verify(ME, CODE, service="web", path=str(tmp_path / "none"))
    except service.ClientError:
        page = report()
    assert "pam_totp/client.py" in page
    assert CODE not in page


def report() -> str:
    """Return Django's page for the current exception, as HTML with the variables of each frame."""
    from django.views.debug import ExceptionReporter

    text: str = ExceptionReporter(None, *sys.exc_info()).get_traceback_html()
    return text
