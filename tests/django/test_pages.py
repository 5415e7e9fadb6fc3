"""Tests of the pages for a code: CodeView, HostAdminSite, and the pages of the Flask example."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from pam_totp.core.answer import recovery_digest
from tests.django.conftest import PASSWORD
from tests.support.site import ME, Site, codes

OUTAGE = "Codes cannot be checked at the moment"
SALT, RECOVERY = "00" * 16, "ABCDEFGHJKMNPQRS"
PORTAL = "https://portal.example.org/otp/"


class Page(HTMLParser):
    """A parsed page: the attributes of each field by name, the viewport, and the targets of the links."""

    def __init__(self, response: Any) -> None:
        super().__init__()
        self.fields: dict[str, dict[str, str | None]] = {}
        self.viewport: str | None = None
        self.links: list[str | None] = []
        self.text = response.get_data(as_text=True) if hasattr(response, "get_data") else response.content.decode()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "input" and found.get("type") != "hidden" and found.get("name"):
            self.fields[str(found["name"])] = found
        elif tag == "meta" and found.get("name") == "viewport":
            self.viewport = found["content"]
        elif tag == "a":
            self.links.append(found.get("href"))


def sign_in(client: Any, path: str = "/login/", user: str = ME) -> Any:
    return client.post(path, {"username": user, "password": PASSWORD})


def enrol_with_recovery(site: Site) -> None:
    site.enrol(salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))


# The page for a code


def test_the_page_asks_a_phone_for_digits_and_for_letters(visitor: Any) -> None:
    sign_in(visitor)
    for path, label, keyboard in (("/code/", "One-time code", "numeric"), ("/code/?recovery=yes", "Recovery", "text")):
        page = Page(visitor.get(path))
        assert label in page.text
        assert page.viewport == "width=device-width, initial-scale=1"
        field = page.fields["code"]
        assert (field["inputmode"], field["autocomplete"]) == (keyboard, "one-time-code")
        assert (field["autocapitalize"], field["spellcheck"]) == ("off", "false")
    assert "?recovery=yes&next=" in Page(visitor.get("/code/")).links


@pytest.mark.parametrize("path", ["/code/", "/code/?recovery=yes"])
def test_both_keyboards_send_a_recovery_code(client: Any, site: Site, path: str) -> None:
    enrol_with_recovery(site)
    sign_in(client)
    assert client.post(path, {"code": f"{RECOVERY[:8]}-{RECOVERY[8:]}".lower()}).url == "/"
    assert f"Hello, {ME}" in client.get("/").content.decode()


def test_the_page_redirects_to_the_requested_page(client: Any, site: Site) -> None:
    site.enrol()
    sign_in(client)
    page = client.get("/code/?next=/admin/%3Fa%3D1%26b%3D2")
    assert 'name="next" value="/admin/?a=1&amp;b=2"' in page.content.decode()
    assert "?recovery=yes&next=%2Fadmin%2F%3Fa%3D1%26b%3D2" in Page(page).links
    assert client.post("/code/", {"code": codes(0), "next": "/admin/?a=1&b=2"}).url == "/admin/?a=1&b=2"
    assert client.post("/code/?next=https://example.org/", {"code": codes(1)}).url == "/", "no other site"


def test_only_a_right_code_gives_the_session_a_new_key(client: Any, site: Site) -> None:
    site.enrol()
    sign_in(client)
    before = client.session.session_key
    page = Page(client.post("/code/", {"code": "271828"}))
    assert client.session.session_key == before
    assert "271828" not in page.text, "the field is empty for the next code"
    client.post("/code/", {"code": codes(0)})
    assert client.session.session_key != before


def test_the_page_links_to_the_portal(client: Any, site: Site, project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    site.enrol()
    sign_in(client)
    assert not [link for link in Page(client.get("/code/")).links if link and link.startswith("http")]
    monkeypatch.setattr(project, "PAM_TOTP_PORTAL_URL", PORTAL)
    assert PORTAL in Page(client.get("/code/")).links
    client.post("/code/", {"code": codes(0)})
    assert PORTAL in Page(client.get("/")).links


def test_a_user_without_a_device_is_refused_with_a_message(visitor: Any, site: Site) -> None:
    from pam_totp.django.models import HostDevice

    site.enrol()
    sign_in(visitor)
    HostDevice.objects.all().delete()
    assert "Your account has no device for codes" in visitor.post("/code/", {"code": codes(0)}).content.decode()
    assert visitor.get("/").status_code == 302
    assert site.counter() == 0, "the code is not used up"


# The device


def test_an_outage_of_the_service_is_no_wrong_code(
    client: Any, site: Site, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The forms of django-otp call verify_is_allowed first. Pages that call only verify_token show a message."""
    from django_otp.admin import OTPAdminSite
    from two_factor.admin import original_login

    from tests.django.test_django import site_urls

    site.enrol()
    page = OTPAdminSite("admin")
    monkeypatch.setattr(type(page), "login", original_login, raising=False)  # django-two-factor-auth replaces `login`
    monkeypatch.setattr(project, "ROOT_URLCONF", site_urls(page))
    monkeypatch.setattr(project, "LOGIN_REDIRECT_URL", "/")
    make_superuser()
    answer = {"username": ME, "password": PASSWORD, "otp_token": codes(0)}
    device = make_device()
    site.stop()
    text = client.post("/a/b/login/", {**answer, "otp_device": device.persistent_id}).content.decode()
    assert OUTAGE in text and "Invalid token" not in text
    assert device.verify_is_allowed()[0] is False
    site.start()
    assert device.verify_is_allowed() == (True, None)
    assert client.post("/a/b/login/", {**answer, "otp_device": device.persistent_id}).status_code == 302


def test_every_cause_besides_a_wrong_code_is_reported_as_an_outage(
    client: Any, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.enrol()
    sign_in(client)
    site.path().chmod(0o644)  # the service refuses a record with this mode
    assert OUTAGE in client.post("/code/", {"code": codes(0)}).content.decode()
    site.path().chmod(0o600)
    site.config.write_text("[polcy]\n")
    assert OUTAGE in client.post("/code/", {"code": codes(0)}).content.decode()
    assert "cannot use its store" in caplog.text and "rejects its configuration" in caplog.text
    site.config.write_text("")
    assert client.post("/code/", {"code": codes(0)}).url == "/"


def test_a_custom_view_can_distinguish_an_outage_from_a_wrong_code(client: Any, site: Site) -> None:
    from pam_totp.client import OutOfReach, Verdict

    site.enrol()
    device = make_device()
    outcome = device.verify_code("000000")
    assert (outcome.verdict, len(outcome.messages)) == (Verdict.REFUSED, 1)
    assert device.verify_code(codes(0))
    site.stop()
    with pytest.raises(OutOfReach):
        device.verify_code(codes(1))


@pytest.mark.parametrize("code", [755224, None, 0])
def test_a_code_that_is_not_text_raises_a_type_error(
    client: Any, site: Site, caplog: pytest.LogCaptureFixture, code: Any
) -> None:
    """A number loses its leading zeros. verify_token must raise no error, so it logs the error and refuses the code."""
    site.enrol()
    device = make_device()
    with pytest.raises(TypeError, match=r"^code must be str or bytes, not (int|NoneType)$"):
        device.verify_code(code)
    assert device.verify_token(code) is False
    assert "TypeError: code must be str or bytes, not " in caplog.text
    assert site.counter() == 0


def test_verify_token_shows_an_outage_as_a_message(client: Any, site: Site) -> None:
    from django.contrib.messages import get_messages
    from django.contrib.messages.storage.cookie import CookieStorage
    from django.test import RequestFactory

    from pam_totp.django.middleware import RequestMiddleware

    site.enrol()
    device = make_device()
    site.stop()
    request = RequestFactory().get("/")
    request._messages = CookieStorage(request)
    assert RequestMiddleware(lambda _: device.verify_token(codes(0)))(request) is False
    assert [(m.level_tag, str(m)) for m in get_messages(request)] == [
        ("error", f"{OUTAGE}. Try again later, with a new code.")
    ]


# The admin site


@pytest.fixture
def admin(client: Any, site: Site) -> Any:
    """Return a client of the example's admin site. The user is a superuser with a token."""
    site.enrol()
    make_superuser()
    return client


@pytest.fixture
def _stock_login(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.contrib.admin import AdminSite
    from two_factor.admin import original_login

    monkeypatch.setattr(AdminSite, "login", original_login)  # django-two-factor-auth replaces this method


LOGIN = "/admin/login/?next=/admin/"


@pytest.mark.usefixtures("_stock_login")
def test_the_admin_site_asks_for_a_code_without_a_choice(admin: Any) -> None:
    page = Page(admin.get(LOGIN))
    assert set(page.fields) == {"username", "password"}
    assert admin.post(LOGIN, {"username": ME, "password": PASSWORD}).url == "/admin/"
    assert admin.get("/admin/").url == LOGIN
    page = Page(admin.get(LOGIN))
    assert set(page.fields) == {"code"}, "the page has no field for a device"
    assert page.fields["code"]["inputmode"] == "numeric"
    assert "<select" not in page.text
    assert "?recovery=yes&next=%2Fadmin%2F" in page.links
    page = Page(admin.post(LOGIN, {"code": "000000"}))
    assert page.text.count("Refused. Try the next code.") == 1
    assert admin.post(LOGIN, {"code": codes(0)}).url == "/admin/"
    assert "1 answer was refused since the last login" in admin.get("/admin/").content.decode()
    assert admin.get(LOGIN).url == "/admin/"


@pytest.mark.usefixtures("_stock_login")
def test_the_admin_site_distinguishes_an_outage_from_a_wrong_code(admin: Any, site: Site) -> None:
    sign_in(admin, LOGIN)
    site.stop()
    page = Page(admin.post(LOGIN, {"code": codes(0)}))
    assert OUTAGE in page.text and "Refused" not in page.text
    assert admin.get("/admin/").status_code == 302


@pytest.mark.usefixtures("_stock_login")
def test_the_admin_site_asks_only_staff_users_for_a_code(visitor: Any) -> None:
    sign_in(visitor)
    page = Page(visitor.get(LOGIN))
    assert set(page.fields) == {"username", "password"}
    assert "not authorized" in page.text
    assert visitor.get("/admin/").status_code == 302


@pytest.mark.usefixtures("_stock_login")
def test_an_admin_user_without_a_device_is_refused_with_a_message(visitor: Any) -> None:
    from pam_totp.django.models import HostDevice

    make_superuser()
    sign_in(visitor, LOGIN)
    HostDevice.objects.all().delete()
    assert "Your account has no device for codes" in Page(visitor.post(LOGIN, {"code": codes(0)})).text
    assert visitor.get("/admin/").status_code == 302


@pytest.mark.usefixtures("_stock_login")
def test_a_site_on_which_every_page_requires_a_sign_in_still_opens(
    admin: Any, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    middleware = pytest.importorskip("django.contrib.auth.middleware")
    if not hasattr(middleware, "LoginRequiredMiddleware"):
        pytest.skip("Django 5.1 added LoginRequiredMiddleware")
    position = project.MIDDLEWARE.index("django_otp.middleware.OTPMiddleware")
    all_pages = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    monkeypatch.setattr(
        project, "MIDDLEWARE", [*project.MIDDLEWARE[:position], all_pages, *project.MIDDLEWARE[position:]]
    )
    from django.test import Client

    browser = Client()
    assert browser.get(LOGIN).status_code == 200
    sign_in(browser, LOGIN)
    assert browser.post(LOGIN, {"code": codes(0)}).url == "/admin/"
    assert browser.get("/admin/").status_code == 200


def test_an_admin_site_whose_login_page_is_of_its_former_class_is_reported(
    stopped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.contrib.admin import AdminSite

    from pam_totp.django.checks import check
    from pam_totp.django.sites import HostAdminSite
    from tests.django.test_django import site_urls

    def is_reported() -> bool:
        return any(message.id == "pam_totp.W009" for message in check(None))

    site = AdminSite()
    monkeypatch.setattr(stopped, "ROOT_URLCONF", site_urls(site))
    site.__class__ = HostAdminSite
    assert is_reported()
    monkeypatch.setattr(stopped, "ROOT_URLCONF", site_urls(site))
    assert not is_reported()


# django-two-factor-auth


BACKUP = "/two-factor/account/two_factor/backup/tokens/"


def test_a_user_of_the_host_makes_no_backup_tokens(
    client: Any, site: Site, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django_otp.plugins.otp_static.models import StaticDevice

    site.enrol()
    sign_in(client)
    client.post("/code/", {"code": codes(0)})
    profile = "/two-factor/account/two_factor/"
    for send in (client.get, client.post):
        assert send(BACKUP).url == profile
    monkeypatch.setattr(project, "PAM_TOTP_PORTAL_URL", PORTAL)
    assert client.post(BACKUP).url == PORTAL
    assert StaticDevice.objects.count() == 0
    assert "Create recovery codes in the portal" in client.get("/").content.decode()


def test_a_user_without_a_host_device_still_makes_backup_tokens(
    visitor: Any, stopped: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.contrib.auth import get_user_model
    from django_otp.plugins.otp_static.models import StaticDevice

    monkeypatch.setattr(stopped, "PAM_TOTP_CREATE_DEVICES", False, raising=False)
    sign_in(visitor)
    device = StaticDevice.objects.create(user=get_user_model().objects.get(), name="backup")
    session = visitor.session
    session["otp_device_id"] = device.persistent_id
    session.save()
    assert visitor.post(BACKUP).url == BACKUP
    assert device.token_set.count() == 10


def test_the_login_of_two_factor_auth_takes_recovery_codes_of_a_phone(client: Any, site: Site) -> None:
    enrol_with_recovery(site)
    path = "/two-factor/account/login/"
    step = {"login_view-current_step": "auth", "auth-username": ME, "auth-password": PASSWORD}
    field = Page(client.post(path, step)).fields["token-otp_token"]
    assert (field["autocomplete"], field.get("inputmode", "text")) == ("one-time-code", "text")
    answer = {"login_view-current_step": "token", "token-otp_token": RECOVERY}
    assert client.post(path, answer).url == "/"


# The examples


def test_the_examples_fit_phones_and_password_managers(visitor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import pam

    from examples import flask_app

    monkeypatch.setattr(pam, "authenticate", lambda *_, **__: True)
    flask = flask_app.app.test_client()
    page = Page(flask.get("/login", base_url="https://x"))
    csrf = re.search(r'name="csrf_token" value="([^"]*)"', page.text)
    assert csrf
    form = {"csrf_token": csrf[1], "user": ME, "password": PASSWORD}
    flask.post("/login", data=form, base_url="https://x", headers={"Referer": "https://x/"})
    code, recovery = (Page(flask.get(f"/code{query}", base_url="https://x")) for query in ("", "?recovery=yes"))
    for shown in (page, code, recovery, Page(visitor.get("/login/"))):
        assert shown.viewport == "width=device-width, initial-scale=1"
    assert page.fields["user"]["autocomplete"] == "username"
    assert page.fields["password"]["autocomplete"] == "current-password"
    assert (code.fields["code"]["autocomplete"], code.fields["code"]["inputmode"]) == ("one-time-code", "numeric")
    assert "?recovery=yes" in code.links
    assert recovery.fields["code"].get("inputmode", "text") == "text"
    for field in (code.fields["code"], recovery.fields["code"], page.fields["user"]):
        assert (field["autocapitalize"], field["spellcheck"]) == ("off", "false")


def make_superuser() -> Any:
    from django.contrib.auth import get_user_model

    return get_user_model().objects.create_superuser(ME)


def make_device() -> Any:
    from django.contrib.auth import get_user_model

    from pam_totp.django.models import HostDevice

    return HostDevice.objects.create(user=get_user_model().objects.get_or_create(username=ME)[0])
