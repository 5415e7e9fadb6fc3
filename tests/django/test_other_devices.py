"""Tests of devices of other types: a user adds a device with a code, and the host's device is always required."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from types import ModuleType
from typing import Any

import pytest

from tests.django.conftest import PASSWORD
from tests.support.site import ME, Site, codes

SETUP = "/two-factor/account/two_factor/setup/"
LOGIN = "/two-factor/account/login/"
MIDDLEWARE = "pam_totp.django.middleware.RequestMiddleware"


def sign_in(client: Any) -> Any:
    """Sign in with the password alone. Return the response."""
    return client.post("/login/", {"username": ME, "password": PASSWORD})


def set_up(client: Any) -> None:
    """Send the forms of django-two-factor-auth that add a phone app. Do not open the page before the forms."""
    from base64 import b32decode

    from django_otp.oath import totp

    client.post(SETUP, {"setup_view-current_step": "welcome"})
    client.post(SETUP, {"setup_view-current_step": "method", "method-method": "generator"})
    key = client.session.get("django_two_factor-qr_secret_key", "")
    client.post(SETUP, {"setup_view-current_step": "generator", "generator-token": totp(b32decode(key))})


def count_other_devices() -> int:
    from django_otp.plugins.otp_totp.models import TOTPDevice

    count: int = TOTPDevice.objects.count()
    return count


def without_request_middleware(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "MIDDLEWARE", [name for name in project.MIDDLEWARE if name != MIDDLEWARE])


@pytest.mark.parametrize("middleware", [True, False], ids=["documented", "without RequestMiddleware"])
def test_two_factor_auth_adds_no_device_by_the_password_alone(
    client: Any, project: Any, monkeypatch: pytest.MonkeyPatch, middleware: bool
) -> None:
    if not middleware:
        without_request_middleware(project, monkeypatch)
    sign_in(client)
    set_up(client)
    assert count_other_devices() == 0
    assert client.get("/").url == "/code/?next=/"
    for send in (client.get, client.post, client.put):
        assert send(SETUP).url == "/two-factor/account/two_factor/setup/complete/"


def test_two_factor_auth_sets_up_users_without_a_host_device(
    client: Any, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project, "PAM_TOTP_CREATE_DEVICES", False, raising=False)
    sign_in(client)
    set_up(client)
    assert count_other_devices() == 1


def test_two_factor_auth_still_asks_a_visitor_to_sign_in(client: Any) -> None:
    assert client.get(SETUP).url == f"/login/?next={SETUP}"


def add_device(request: Any) -> Any:
    """Add a device for the user in the form, like a page of another package. Return the response."""
    from django.contrib.auth import get_user_model
    from django.http import HttpResponse
    from django_otp.plugins.otp_totp.models import TOTPDevice

    TOTPDevice.objects.create(user=get_user_model().objects.get(username=request.POST["user"]))
    return HttpResponse("added")


@pytest.fixture
def adding(client: Any, project: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a client of a project that has the page `/add/`."""
    from django.urls import path

    from tests.django.urls import urlpatterns

    urls = ModuleType("urls")
    urls.__dict__["urlpatterns"] = [path("add/", add_device), *urlpatterns]
    monkeypatch.setattr(project, "ROOT_URLCONF", urls)
    return client


def test_another_page_adds_no_device_by_the_password_alone(adding: Any, caplog: pytest.LogCaptureFixture) -> None:
    sign_in(adding)
    assert adding.post("/add/", {"user": ME}).status_code == 403
    assert count_other_devices() == 0
    assert f"device refused: user='{ME}' type=otp_totp.totpdevice reason=code rhost='127.0.0.1'" in caplog.text


def test_a_session_that_lost_its_host_device_adds_no_device(adding: Any) -> None:
    """An administrator, or a page of django-two-factor-auth, deletes the device of an open session."""
    sign_in(adding)
    host_device().delete()
    set_up(adding)
    assert adding.post("/add/", {"user": ME}).status_code == 403
    assert count_other_devices() == 0


def add_by_text(request: Any) -> Any:
    """Add a device for a user id as text, like a form."""
    from django_otp.plugins.otp_totp.models import TOTPDevice

    TOTPDevice(user_id=str(request.user.pk)).save()


def copy_device(request: Any) -> Any:
    """Copy a device of mallory to the user of the request."""
    device = device_of_mallory()
    device.pk, device.user = None, request.user
    device.save()


def copy_device_with_key(request: Any) -> Any:
    device = device_of_mallory()
    device.pk, device.user = 12345, request.user
    device.save()


def take_device(request: Any) -> Any:
    device = device_of_mallory()
    device.user = request.user
    device.save()


def device_of_mallory() -> Any:
    from django_otp.plugins.otp_totp.models import TOTPDevice

    return TOTPDevice.objects.get(user__username="mallory")


def add_while_streaming(request: Any) -> Any:
    from django.http import StreamingHttpResponse

    def parts() -> Iterator[bytes]:
        yield b"first"
        add_by_text(request)
        yield b"second"

    return StreamingHttpResponse(parts())


async def add_while_streaming_async(request: Any) -> Any:
    from django.contrib.auth import get_user_model
    from django.http import StreamingHttpResponse
    from django_otp.plugins.otp_totp.models import TOTPDevice

    user = await get_user_model().objects.aget(username=ME)

    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        await TOTPDevice.objects.acreate(user=user)
        yield b"second"

    return StreamingHttpResponse(parts())


WAYS = (add_by_text, copy_device, copy_device_with_key, take_device, add_while_streaming)


@pytest.mark.parametrize("has_host_device", [True, False], ids=["device", "device deleted"])
@pytest.mark.parametrize("way", WAYS)
def test_no_way_of_saving_adds_a_device_by_the_password_alone(
    client: Any, project: Any, monkeypatch: pytest.MonkeyPatch, way: Any, has_host_device: bool
) -> None:
    from django.contrib.auth import get_user_model
    from django.core.exceptions import PermissionDenied
    from django_otp.plugins.otp_totp.models import TOTPDevice

    TOTPDevice.objects.create(user=get_user_model().objects.create_user("mallory"))
    with_page(project, monkeypatch, way)
    sign_in(client)
    if not has_host_device:
        host_device().delete()
    response = client.get("/way/")
    if response.streaming:
        with pytest.raises(PermissionDenied):
            list(response)
    else:
        assert response.status_code == 403
    assert [device.user.username for device in TOTPDevice.objects.all()] == ["mallory"]


def test_no_asynchronous_stream_adds_a_device_by_the_password_alone(
    client: Any, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asgiref.sync import async_to_sync
    from django.core.exceptions import PermissionDenied
    from django.test import AsyncClient

    with_page(project, monkeypatch, add_while_streaming_async)
    sign_in(client)
    visitor, received = AsyncClient(), list[bytes]()
    visitor.cookies = client.cookies

    async def read() -> None:
        async for part in await visitor.get("/way/"):
            received.append(part)

    with pytest.raises(PermissionDenied):
        async_to_sync(read)()
    assert received == [b"first"]
    assert count_other_devices() == 0


def with_page(project: Any, monkeypatch: pytest.MonkeyPatch, view: Any) -> None:
    """Add the page `/way/` to the project."""
    from django.urls import path

    from tests.django.urls import urlpatterns

    urls = ModuleType("urls")
    urls.__dict__["urlpatterns"] = [path("way/", view), *urlpatterns]
    monkeypatch.setattr(project, "ROOT_URLCONF", urls)


def test_a_streaming_response_arrives_whole(client: Any, project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from django.http import FileResponse, StreamingHttpResponse

    closed = []

    class Parts:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"first", b"second"])

        def close(self) -> None:
            closed.append(True)

    for made in (StreamingHttpResponse(Parts()), FileResponse(BytesIO(b"firstsecond"))):
        with_page(project, monkeypatch, lambda _: made)  # noqa: B023  called at once
        response = client.get("/way/")
        assert b"".join(response) == b"firstsecond"
        response.close()
    assert closed == [True]


def test_a_visitor_adds_no_device_for_a_user_of_the_host(adding: Any) -> None:
    sign_in(adding)
    adding.post("/logout/")
    assert adding.post("/add/", {"user": ME}).status_code == 403
    assert count_other_devices() == 0


def test_a_user_adds_a_device_after_a_code(adding: Any, site: Site) -> None:
    site.enrol()
    sign_in(adding)
    adding.post("/code/", {"code": codes(0)})
    assert adding.post("/add/", {"user": ME}).status_code == 200
    assert count_other_devices() == 1


def test_a_user_without_a_host_device_may_get_a_device(adding: Any) -> None:
    from django.contrib.auth import get_user_model

    get_user_model().objects.create_user("mallory")
    sign_in(adding)
    assert adding.post("/add/", {"user": "mallory"}).status_code == 200
    assert count_other_devices() == 1


def test_a_device_of_another_type_still_accepts_its_codes(client: Any) -> None:
    """The check of a code saves the device before the user is verified."""
    from django_otp.oath import totp
    from django_otp.plugins.otp_totp.models import TOTPDevice

    sign_in(client)
    device = TOTPDevice.objects.create(user=host_device().user, name="added by a command, without a request")
    client.post("/logout/")
    client.post(LOGIN, {"login_view-current_step": "auth", "auth-username": ME, "auth-password": PASSWORD})
    answer = {"login_view-current_step": "token", "challenge_device": device.persistent_id}
    client.post(LOGIN, answer)
    answer = {"login_view-current_step": "token", "token-otp_token": f"{totp(device.bin_key):06}"}
    assert client.post(LOGIN, answer).url == "/"
    assert client.get("/").status_code == 200


def host_device() -> Any:
    from pam_totp.django.models import HostDevice

    return HostDevice.objects.get()


@pytest.mark.parametrize("given", [{"name": "key fob"}, {"confirmed": False}], ids=["name", "unconfirmed"])
def test_a_host_device_always_requires_a_code(client: Any, given: dict[str, Any]) -> None:
    from django.contrib.auth import get_user_model

    from pam_totp.django.models import HostDevice

    HostDevice.objects.create(user=get_user_model().objects.create_user(ME), **given)
    assert (host_device().name, host_device().confirmed) == ("default", True)
    step = {"login_view-current_step": "auth", "auth-username": ME, "auth-password": PASSWORD}
    assert 'name="login_view-current_step" value="token"' in client.post(LOGIN, step).content.decode()


@pytest.mark.parametrize("given", [{"name": "key fob"}, {"confirmed": False}], ids=["name", "unconfirmed"])
def test_the_database_refuses_a_host_device_that_does_not_count(client: Any, given: dict[str, Any]) -> None:
    from django.db import IntegrityError

    from pam_totp.django.models import HostDevice

    sign_in(client)
    with pytest.raises(IntegrityError):
        HostDevice.objects.update(**given)


@pytest.mark.parametrize("given", [{"name": "key fob"}, {"confirmed": False}], ids=["name", "unconfirmed"])
def test_a_sign_in_corrects_the_row_of_an_older_version(client: Any, given: dict[str, Any]) -> None:
    sign_in(client)
    as_before_the_constraint(given)
    assert (host_device().name, host_device().confirmed) != ("default", True)
    sign_in(client)
    assert (host_device().name, host_device().confirmed) == ("default", True)


def as_before_the_constraint(fields: dict[str, Any]) -> None:
    """Write `fields` that the constraint refuses. Older tables lack the constraint, and some databases ignore it."""
    from django.db import connection

    from pam_totp.django.models import HostDevice

    with connection.cursor() as cursor:
        cursor.execute("PRAGMA ignore_check_constraints = ON")
        try:
            HostDevice.objects.update(**fields)
        finally:
            cursor.execute("PRAGMA ignore_check_constraints = OFF")


def test_the_migration_corrects_rows_of_an_older_version(client: Any) -> None:
    from django.core.management import call_command

    sign_in(client)
    call_command("migrate", "pam_totp", "0001", verbosity=0)
    try:
        from pam_totp.django.models import HostDevice

        HostDevice.objects.update(name="key fob", confirmed=False)
    finally:
        call_command("migrate", "pam_totp", verbosity=0)
    assert (host_device().name, host_device().confirmed) == ("default", True)


def test_the_admin_site_adds_a_host_device_by_its_user_alone(client: Any, site: Site) -> None:
    from django.contrib.auth import get_user_model

    from pam_totp.django.models import HostDevice

    site.enrol()
    get_user_model().objects.create_superuser(ME)
    other = get_user_model().objects.create_user("mallory")
    sign_in(client)
    client.post("/code/", {"code": codes(0)})
    page = client.get("/admin/pam_totp/hostdevice/add/").content.decode()
    assert 'name="user"' in page and 'name="name"' not in page and 'name="confirmed"' not in page
    assert client.post("/admin/pam_totp/hostdevice/add/", {"user": other.pk}).status_code == 302
    device = HostDevice.objects.get(user=other)
    assert (device.name, device.confirmed) == ("default", True)


def has_finding(number: str) -> bool:
    from pam_totp.django.checks import check

    return any(message.id == f"pam_totp.{number}" for message in check(None))


def test_the_check_warns_of_devices_that_nothing_guards(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pam_totp.django import checks
    from pam_totp.django.models import HostDevice

    assert not has_finding("W006")
    with monkeypatch.context() as once:
        without_request_middleware(project, once)
        assert has_finding("W006")
        once.setattr(checks, "device_classes", lambda: [HostDevice])
        assert not has_finding("W006"), "a risk exists only with other types of devices"
    for name, value in (
        ("PAM_TOTP_CREATE_DEVICES", False),
        ("AUTHENTICATION_BACKENDS", ["django.contrib.auth.backends.ModelBackend"]),
    ):
        with monkeypatch.context() as once:
            once.setattr(project, name, value, raising=False)
            assert has_finding("W006"), name
