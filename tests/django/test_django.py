"""Tests of pam_totp.django in a real project: the password, the code, devices, settings and examples."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import partial
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pam_totp.system.passwords import PasswordsUnavailable, TooManyChecks
from tests.django.conftest import PASSWORD
from tests.support.pamconf import Result
from tests.support.site import ME, TREE, Site, codes


def sign_in(client: Any, password: str = PASSWORD, user: str = ME) -> Any:
    return client.post("/login/", {"username": user, "password": password})


def test_a_page_needs_the_password_and_then_a_code(client: Any, site: Site) -> None:
    site.enrol()
    assert client.get("/").url == "/code/?next=/"
    assert client.get("/code/").url == "/login/?next=/code/"
    assert sign_in(client).url == "/"
    assert client.get("/").url == "/code/?next=/", "a user with a token must also enter a code"
    assert client.post("/code/", {"code": codes(0)}).url == "/"
    assert f"Hello, {ME}" in client.get("/").content.decode()
    assert site.log.has("pam_totp(web:auth): accepted", f"user={ME}")


@pytest.mark.parametrize("code", ["000000", "", "x", "12345", "1" * 600, "12345\x00", "\u0661" * 6])
def test_a_malformed_code_is_refused(client: Any, site: Site, code: str) -> None:
    site.enrol()
    sign_in(client)
    page = client.post("/code/", {"code": code})
    assert page.status_code == 200
    assert "Refused" in page.content.decode() or "errorlist" in page.content.decode()
    assert client.get("/").status_code == 302


def test_a_code_is_used_up_by_django_and_by_pam(client: Any, site: Site) -> None:
    site.enrol()
    site.configure("demo", way="socket")
    assert site.login(codes(0)).result is Result.SUCCESS
    sign_in(client)
    assert "Refused" in client.post("/code/", {"code": codes(0)}).content.decode()
    assert client.post("/code/", {"code": codes(1)}).url == "/"
    assert site.login(codes(1)).result is Result.AUTH_ERR


def test_two_codes_in_a_row_resynchronise_a_token(client: Any, site: Site) -> None:
    site.enrol()
    sign_in(client)
    assert client.post("/code/", {"code": codes(300, 2)}).url == "/"


def test_a_user_without_token_is_refused(client: Any, site: Site) -> None:
    site.config.write_text("[service.web]\nnullok = true\n")
    sign_in(client)
    assert "Refused" in client.post("/code/", {"code": "123456"}).content.decode()


def test_without_the_service_codes_are_refused_and_logged(
    client: Any, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.enrol()
    sign_in(client)
    site.stop()
    page = client.post("/code/", {"code": codes(0)}).content.decode()
    assert "Codes cannot be checked at the moment" in page and "Refused" not in page
    assert "(start 'pam-totp serve')" in caplog.text
    assert client.get("/").status_code == 302


def test_a_wrong_or_blank_password_is_refused(client: Any, site: Site) -> None:
    for password in ("wrong", "", " "):
        assert "errorlist" in sign_in(client, password).content.decode()
    assert client.get("/code/").url.startswith("/login/")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TooManyChecks(), "too many checks at once"),
        (PasswordsUnavailable("python-pam is missing"), "python-pam is missing"),
    ],
    ids=["busy", "unavailable"],
)
def test_a_password_that_cannot_be_checked_is_refused_and_logged(
    client: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture, error: Exception, reason: str
) -> None:
    from pam_totp.django import backends

    class NoPasswords:
        def verify(self, user: str, password: str) -> bool:
            raise error

    monkeypatch.setitem(backends._checkers, "pam_totp-portal", NoPasswords())
    page = sign_in(client).content.decode()
    assert "errorlist" in page
    assert "Passwords cannot be checked at the moment" in page
    assert client.get("/code/").url.startswith("/login/")
    assert f"cannot check the password: {reason}" in caplog.text
    assert f"sign-in refused: user='{ME}' reason=unavailable" in caplog.text


def test_users_are_created_only_if_the_setting_allows_it(client: Any, project: Any, monkeypatch: Any) -> None:
    from django.contrib.auth import get_user_model

    monkeypatch.setattr(project, "PAM_TOTP_CREATE_USERS", False)
    assert "errorlist" in sign_in(client).content.decode()
    assert get_user_model().objects.count() == 0
    monkeypatch.setattr(project, "PAM_TOTP_CREATE_USERS", True)
    sign_in(client)
    user = get_user_model().objects.get()
    assert not user.has_usable_password()
    assert not user.is_staff


def test_a_user_with_another_spelling_of_the_name_is_refused(
    client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A user model or the collation of a database can ignore the case of a name."""
    from django.contrib.auth import get_user_model
    from django.contrib.auth.models import UserManager

    from pam_totp.django.models import HostDevice

    class IgnoresCase(UserManager):  # type: ignore[misc]
        def get_by_natural_key(self, username: str | None) -> Any:
            return self.get(username__iexact=username)

    model = get_user_model()
    monkeypatch.setattr(model._default_manager, "__class__", IgnoresCase)
    model.objects.create_superuser(ME.title())
    assert "errorlist" in sign_in(client).content.decode()
    assert client.get("/code/").url.startswith("/login/")
    assert f"sign-in refused: user='{ME}' reason=user" in caplog.text
    assert [user.get_username() for user in model.objects.all()] == [ME.title()]
    assert HostDevice.objects.count() == 0


def test_an_inactive_user_is_refused(client: Any) -> None:
    from django.contrib.auth import get_user_model

    get_user_model().objects.create_user(ME, is_active=False)
    assert "errorlist" in sign_in(client).content.decode()


def test_the_admin_site_needs_a_code_too(client: Any, site: Site) -> None:
    from django.contrib.auth import get_user_model

    site.enrol()
    get_user_model().objects.create_superuser(ME)
    sign_in(client)
    assert client.get("/admin/").status_code == 302
    client.post("/code/", {"code": codes(0)})
    assert client.get("/admin/").status_code == 200
    assert client.get("/admin/pam_totp/hostdevice/").status_code == 200


def test_the_login_page_of_the_admin_site_asks_for_a_code(
    client: Any, site: Site, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.contrib.admin import AdminSite
    from django.contrib.auth import get_user_model
    from django_otp.admin import OTPAdminSite
    from two_factor.admin import original_login

    from pam_totp.django.models import HostDevice

    monkeypatch.setattr(AdminSite, "login", original_login)  # django-two-factor-auth replaces this method
    monkeypatch.setattr(project, "ROOT_URLCONF", site_urls(OTPAdminSite("admin")))
    monkeypatch.setattr(project, "LOGIN_REDIRECT_URL", "/")
    site.enrol()
    get_user_model().objects.create_superuser(ME)
    answer = {"username": ME, "password": PASSWORD}
    assert client.post("/a/b/login/", answer).status_code == 200, "the password alone is not enough"
    answer["otp_device"] = HostDevice.objects.get().persistent_id
    assert client.post("/a/b/login/", {**answer, "otp_token": "000000"}).status_code == 200
    assert client.get("/a/b/").status_code == 302
    assert client.post("/a/b/login/", {**answer, "otp_token": codes(0)}).status_code == 302
    assert client.get("/a/b/").status_code == 200


def test_a_device_accepts_codes_of_its_own_user_only(client: Any, site: Site) -> None:
    site.enrol()
    sign_in(client, user="mallory")
    from django_otp.models import Device

    from pam_totp.django.models import HostDevice

    device = HostDevice.objects.get()
    assert device.user.get_username() == "mallory"
    assert not device.verify_token(codes(0)), "the code belongs to another user"
    assert Device.from_persistent_id(device.persistent_id) == device


def test_repeated_sign_ins_create_one_device(client: Any) -> None:
    from pam_totp.django.models import HostDevice

    sign_in(client)
    sign_in(client)
    assert [d.name for d in HostDevice.objects.all()] == ["default"]


def test_devices_are_created_only_if_the_setting_allows_it(client: Any, project: Any, monkeypatch: Any) -> None:
    from pam_totp.django.models import HostDevice

    monkeypatch.setattr(project, "PAM_TOTP_CREATE_DEVICES", False, raising=False)
    sign_in(client)
    assert HostDevice.objects.count() == 0


def test_two_factor_auth_accepts_codes_of_the_host(client: Any, site: Site) -> None:
    site.enrol()
    path = "/two-factor/account/login/"
    page = client.get(path).content.decode()
    step = {"login_view-current_step": "auth", "auth-username": ME, "auth-password": PASSWORD}
    page = client.post(path, step).content.decode()
    assert "Enter a code from your phone app or key fob" in page or "One-time code" in page
    answer = {"login_view-current_step": "token", "token-otp_token": "000000"}
    assert "Invalid token" in client.post(path, answer).content.decode()
    answer["token-otp_token"] = codes(200, 2)
    assert client.post(path, answer).url == "/"
    assert f"Hello, {ME}" in client.get("/").content.decode()
    assert site.counter() == 202


def test_the_migrations_are_complete(project: Any) -> None:
    from django.core.management import call_command

    call_command("makemigrations", "pam_totp", check=True, dry_run=True, stdout=StringIO())


def finding_ids(**_: Any) -> set[str]:
    from pam_totp.django.checks import check

    return {message.id for message in check(None)}


@pytest.fixture
def _password_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pam_totp.django.checks.PAM_FOLDER", str(tmp_path))
    (tmp_path / "pam_totp-portal").write_text("")


@pytest.mark.usefixtures("_password_service")
def test_each_wrong_setting_has_its_own_finding(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.contrib.admin import AdminSite

    assert finding_ids() == set()
    backends = [*project.AUTHENTICATION_BACKENDS, "django.contrib.auth.backends.ModelBackend"]
    for name, value, numbers in (
        ("PAM_TOTP_SERVICE", "", "E001"),
        ("PAM_TOTP_TIMEOUT", 0, "E002"),
        ("MIDDLEWARE", [name for name in project.MIDDLEWARE if "django_otp" not in name], "E003"),
        ("PAM_TOTP_SOCKET", "/nowhere", "W001"),
        ("PAM_TOTP_PASSWORD_SERVICE", "no-such-service", "W002"),
        ("AUTHENTICATION_BACKENDS", backends, "W003"),
        ("ROOT_URLCONF", site_urls(AdminSite()), "W004"),
        ("MIDDLEWARE", [name for name in project.MIDDLEWARE if "pam_totp" not in name], "W005 W006"),
        ("PAM_TOTP_CREATE_DEVICES", False, "W006"),
    ):
        with monkeypatch.context() as once:
            once.setattr(project, name, value, raising=False)
            assert finding_ids() == {f"pam_totp.{number}" for number in numbers.split()}, name


def site_urls(site: Any) -> ModuleType:
    """Return a module of URLs with an admin site at /a/b/."""
    from django.urls import include, path

    urls = ModuleType("urls")
    urls.__dict__["urlpatterns"] = [path("a/", include([path("b/", site.urls)]))]
    return urls


@pytest.mark.usefixtures("_password_service")
def test_every_guard_of_an_admin_site_is_recognised(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.contrib.admin import AdminSite
    from django_otp.admin import OTPAdminSite
    from two_factor.admin import AdminSiteOTPRequired

    class OwnSite(AdminSite):  # type: ignore[misc]
        def has_permission(self, request: Any) -> bool:
            return bool(request.user.is_active and request.user.is_verified())

    class OwnForm(AdminSite):  # type: ignore[misc]
        site_header = "Password only"

    class NeedsSession(AdminSite):  # type: ignore[misc]
        def has_permission(self, request: Any) -> bool:
            return bool(request.session["any"])

    for made, expected in (
        (OTPAdminSite(), set()),
        (AdminSiteOTPRequired(), set()),
        (OwnSite(), set()),
        (OwnForm(), {"pam_totp.W004"}),
        (NeedsSession(), {"pam_totp.W004"}),
    ):
        monkeypatch.setattr(project, "ROOT_URLCONF", site_urls(made))
        assert finding_ids() == expected, type(made).__name__


@pytest.mark.usefixtures("_password_service")
def test_a_page_in_the_admin_view_of_another_site_is_reported(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.contrib.admin import AdminSite
    from django.http import HttpResponse
    from django.views.decorators.cache import cache_page
    from django.views.generic import View
    from django_otp.admin import OTPAdminSite
    from django_otp.decorators import otp_required

    def view(request: Any) -> Any:
        return HttpResponse("report of the staff")

    other = AdminSite("other")
    for guarded, expected in (
        (other.admin_view(view), {"pam_totp.W004"}),
        (other.admin_view(view, cacheable=True), {"pam_totp.W004"}),
        (other.admin_view(View.as_view()), {"pam_totp.W004"}),
        (cache_page(60)(other.admin_view(view)), {"pam_totp.W004"}),
        (partial(other.admin_view(view)), {"pam_totp.W004"}),
        (otp_required(other.admin_view(view)), set()),
        (other.admin_view(otp_required(view)), set()),
        (OTPAdminSite("other").admin_view(view), set()),
    ):
        monkeypatch.setattr(project, "ROOT_URLCONF", page_urls(guarded))
        assert finding_ids() == expected


def page_urls(view: Any) -> ModuleType:
    from django.urls import path

    urls = ModuleType("urls")
    urls.__dict__["urlpatterns"] = [path("page/", view)]
    return urls


@pytest.mark.usefixtures("_password_service")
def test_the_admin_documentation_is_reported_until_it_is_guarded(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.contrib.admindocs import urls
    from django.urls import include, path

    (block,) = re.findall(r"```python\n(from \S*admindocs.*?)```", (TREE / "docs" / "web.md").read_text(), re.S)
    for page in urls.urlpatterns:
        monkeypatch.setattr(page, "callback", page.callback)  # restored after the test
    monkeypatch.setattr(project, "ROOT_URLCONF", ModuleType("urls"))
    project.ROOT_URLCONF.__dict__["urlpatterns"] = [path("a/doc/", include(urls))]
    assert finding_ids() == {"pam_totp.W007"}
    exec(block, {})  # noqa: S102  the project's own page
    assert finding_ids() == set()


@pytest.mark.usefixtures("_password_service")
def test_the_documented_line_guards_the_admin_site(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.contrib import admin
    from django.contrib.admin import AdminSite

    page = (TREE / "docs" / "web.md").read_text()
    (block,) = re.findall(r"```python\n(from django.contrib import admin\n.*?)```", page, re.S)
    monkeypatch.setattr(admin, "site", AdminSite())
    monkeypatch.setattr(project, "ROOT_URLCONF", site_urls(admin.site))
    assert finding_ids() == {"pam_totp.W004"}
    urls = ModuleType("urls")
    exec(block, urls.__dict__)  # noqa: S102  the project's own page
    monkeypatch.setattr(project, "ROOT_URLCONF", urls)
    assert finding_ids() == set()


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8::1:2:3:4", "2001:db8::"),
        ("2001:DB8:0:0:ffff::", "2001:db8::"),
    ],
)
def test_the_documented_limit_counts_each_network_once(address: str, network: str) -> None:
    from django.test import RequestFactory

    page = (TREE / "docs" / "web.md").read_text()
    (block,) = re.findall(r"```python\n(from datetime.*?client_network\n)```", page, re.S)
    settings: dict[str, Any] = {"INSTALLED_APPS": [], "MIDDLEWARE": []}
    exec(block, settings)  # noqa: S102  the project's own page
    assert settings["AXES_CLIENT_IP_CALLABLE"](RequestFactory(REMOTE_ADDR=address).get("/")) == network
    assert settings["AUTHENTICATION_BACKENDS"][-1] == "pam_totp.django.backends.PamBackend"


def test_the_log_and_the_user_get_address_and_messages(
    client: Any, site: Site, project: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "pam_totp.django")
    site.config.write_text(f'[clients]\n"{ME}" = "web"\n')
    site.enrol()
    client.defaults["REMOTE_ADDR"] = "::ffff:192.0.2.7"  # the log contains the address in IPv4 form
    sign_in(client, "wrong")
    assert f"sign-in refused: user='{ME}' reason=password rhost='192.0.2.7'" in caplog.text
    sign_in(client)
    assert f"password accepted: user='{ME}' rhost='192.0.2.7'" in caplog.text
    page = client.post("/code/", {"code": "000000"}).content.decode()
    assert "Refused. Try the next code." in page
    assert page.count('role="alert"') == 1
    assert site.log.has("refused", "rhost=192.0.2.7")
    page = client.post("/code/", {"code": codes(0)}, follow=True).content.decode()
    assert "1 answer was refused since the last login" in page
    assert site.log.has("accepted", "rhost=192.0.2.7")


def test_a_user_name_cannot_forge_a_line_of_the_log(client: Any, caplog: pytest.LogCaptureFixture) -> None:
    from pam_totp.django.backends import PamBackend

    assert PamBackend().authenticate(None, "a'\n\u2028password accepted: user='root'", "wrong") is None
    (line,) = caplog.messages
    assert line.isascii() and line.isprintable()
    assert line.startswith("sign-in refused: user=\"a'\\n")


def test_a_missing_user_is_logged(
    client: Any, project: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(project, "PAM_TOTP_CREATE_USERS", False)
    sign_in(client)
    assert f"sign-in refused: user='{ME}' reason=user rhost='127.0.0.1'" in caplog.text


def test_an_asynchronous_view_passes_on_the_address(project: Any, site: Site) -> None:
    import asyncio

    from django.test import RequestFactory

    from pam_totp.django.middleware import RequestMiddleware, address_of, current_request

    seen: list[str | None] = []

    async def view(request: Any) -> str:
        seen.append(address_of(current_request()))
        return "page"

    middleware = RequestMiddleware(view)
    assert asyncio.run(middleware(RequestFactory(REMOTE_ADDR="192.0.2.7").get("/"))) == "page"
    assert (seen, current_request()) == (["192.0.2.7"], None)


def test_the_example_project_starts(tmp_path: Path) -> None:
    folder = TREE / "examples" / "django_site"
    for command in (["migrate", "--verbosity=0"], ["check"]):
        done = subprocess.run(
            [sys.executable, "manage.py", *command],
            cwd=folder,
            env={"PYTHONPATH": str(TREE), "PATH": "/usr/bin:/bin", "DATABASE": str(tmp_path / "db.sqlite3")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "pam_totp.W001" in done.stderr or Path("/run/pam_totp/socket").exists()


def test_the_flask_example_is_short_and_works(site: Site, monkeypatch: Any) -> None:
    import pam

    from examples import flask_app

    site.start()
    site.enrol()
    assert len(Path(flask_app.__file__).read_text().splitlines()) < 80
    monkeypatch.setattr(pam, "authenticate", lambda user, password, **_: password == PASSWORD)
    monkeypatch.setattr(flask_app, "SOCKET", str(site.socket))
    client = flask_app.app.test_client()

    def send(path: str, **fields: str) -> Any:
        page = client.get(path, base_url="https://x").get_data(as_text=True)
        csrf = re.search(r'name="csrf_token" value="([^"]*)"', page)
        assert csrf
        return client.post(
            path, data={"csrf_token": csrf[1], **fields}, base_url="https://x", headers={"Referer": "https://x/"}
        )

    assert "do not match" in send("/login", user=ME, password="wrong").get_data(as_text=True)
    assert "do not match" in send("/login", user=ME, password="").get_data(as_text=True)
    assert send("/login", user=ME, password=PASSWORD).location == "/code"
    assert client.get("/", base_url="https://x").location == "/login"
    assert "refused" in send("/code", code="000000").get_data(as_text=True)
    assert send("/code", code=codes(0)).location == "/"
    assert client.get("/", base_url="https://x").get_data(as_text=True) == f"Hello, {ME}."
    site.stop()
    send("/login", user=ME, password=PASSWORD)
    assert "try again later" in send("/code", code=codes(1)).get_data(as_text=True)
