"""Checks of the settings and of the host, for `manage.py check`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from inspect import iscoroutinefunction, isfunction
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model, load_backend
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import FieldDoesNotExist
from django.db.models import NOT_PROVIDED
from django.http import HttpRequest
from django.urls import URLPattern, URLResolver, get_resolver
from django_otp import device_classes

from pam_totp.django import conf
from pam_totp.django.accounts import account_field
from pam_totp.django.backends import PamBackend
from pam_totp.django.models import HostDevice
from pam_totp.django.sites import HostAdminSite
from pam_totp.system.passwords import EXAMPLE, PAM_FOLDER

MIDDLEWARE = "django_otp.middleware.OTPMiddleware"
REQUEST_MIDDLEWARE = "pam_totp.django.middleware.RequestMiddleware"
MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"


@register(Tags.security)  # type: ignore[untyped-decorator]
def check(app_configs: object, **_: Any) -> list[CheckMessage]:
    """Return all findings, in the order of their numbers."""
    return list(_findings())


def _findings() -> Iterator[CheckMessage]:
    service, timeout = conf.get("PAM_TOTP_SERVICE"), conf.get("PAM_TOTP_TIMEOUT")
    if not isinstance(service, str) or not service:
        hint = "use the name that [clients] in /etc/pam_totp.toml gives to this application's account"
        yield Error("PAM_TOTP_SERVICE must be a non-empty string", hint=hint, id="pam_totp.E001")
    if not isinstance(timeout, int | float) or timeout <= 0:
        yield Error("PAM_TOTP_TIMEOUT must be a positive number of seconds", id="pam_totp.E002")
    if MIDDLEWARE not in settings.MIDDLEWARE:
        hint = f"add {MIDDLEWARE!r} after AuthenticationMiddleware; until then no user is verified"
        yield Error("MIDDLEWARE must have django-otp's middleware", hint=hint, id="pam_totp.E003")
    field = conf.get("PAM_TOTP_ACCOUNT_FIELD")
    if field and not _is_unique_field(field):
        hint = "name a field that has at most one user for each account, and that users cannot change themselves"
        yield Error("PAM_TOTP_ACCOUNT_FIELD must be a unique field of the user model", hint=hint, id="pam_totp.E004")
    socket = conf.get("PAM_TOTP_SOCKET")
    if not os.path.exists(socket):
        hint = "start 'pam-totp serve', or correct PAM_TOTP_SOCKET; until then every code is refused"
        yield Warning(f"socket of the pam_totp service not found: {socket}", hint=hint, id="pam_totp.W001")
    backends = _backends()
    if backends:
        file = os.path.join(PAM_FOLDER, str(conf.get("PAM_TOTP_PASSWORD_SERVICE")))
        if not os.path.exists(file):
            hint = f"create the file (an example is {EXAMPLE}); until then every password is refused"
            yield Warning(f"PAM service not found: {file}", hint=hint, id="pam_totp.W002")
        if MODEL_BACKEND in settings.AUTHENTICATION_BACKENDS:
            hint = "remove ModelBackend: PamBackend replaces it"
            yield Warning("Django also accepts the passwords in its database", hint=hint, id="pam_totp.W003")
    pages = list(_pages(get_resolver().url_patterns)) if getattr(settings, "ROOT_URLCONF", None) else []
    for site in _open_admin_sites(pages):
        hint = "add 'admin.site.__class__ = HostAdminSite' to urls.py (from pam_totp.django.sites import HostAdminSite)"
        yield Warning(f"admin site {site!r} may open with the password alone", hint=hint, id="pam_totp.W004")
    if REQUEST_MIDDLEWARE not in settings.MIDDLEWARE:
        hint = f"add {REQUEST_MIDDLEWARE!r}, so that the log has the address, and users see the messages of the service"
        yield Warning("MIDDLEWARE must have RequestMiddleware of pam_totp", hint=hint, id="pam_totp.W005")
    others = [model.model_label() for model in device_classes() if not issubclass(model, HostDevice)]
    remedy = _missing_guard()
    if others and remedy:
        text = f"users may add devices of other types with the password alone: {', '.join(others)}"
        yield Warning(text, hint=remedy, id="pam_totp.W006")
    if any(_is_admin_documentation(page) for page in pages):
        hint = "wrap the views of django.contrib.admindocs in otp_required, or remove them from urls.py (docs/web.md)"
        yield Warning("the admin documentation requires the password only", hint=hint, id="pam_totp.W007")
    missing = _fields_that_new_users_lack(backends) if conf.get("PAM_TOTP_CREATE_USERS") else []
    if missing:
        hint = "return the fields from fields_of_new_user of a subclass of PamBackend; until then new users are refused"
        yield Warning(f"new users lack required fields: {', '.join(missing)}", hint=hint, id="pam_totp.W008")
    if any(_is_login_of_former_class(page) for page in pages):
        hint = "move the line with HostAdminSite above urlpatterns; until then no user can enter the admin site"
        yield Warning("the login page of the admin site must be that of HostAdminSite", hint=hint, id="pam_totp.W009")


def _backends() -> list[PamBackend]:
    """Return the backends of the project that are instances of PamBackend or of a subclass."""
    return [found for found in map(load_backend, settings.AUTHENTICATION_BACKENDS) if isinstance(found, PamBackend)]


def _is_unique_field(name: Any) -> bool:
    try:
        field = get_user_model()._meta.get_field(name)
    except FieldDoesNotExist:
        return False
    return bool(getattr(field, "unique", False))


def _fields_that_new_users_lack(backends: Iterable[PamBackend]) -> list[str]:
    """Return the required fields that get no value, so that the database refuses the first or the second new user."""
    given = {account_field(), "password"}
    for backend in backends:
        given |= set(backend.fields_of_new_user("account"))
    fields = (field for field in get_user_model()._meta.concrete_fields if field.name not in given)
    return [field.name for field in fields if _must_be_given(field)]


def _must_be_given(field: Any) -> bool:
    if field.null or field.primary_key or field.has_default() or getattr(field, "generated", False):
        return False
    if getattr(field, "db_default", NOT_PROVIDED) is not NOT_PROVIDED:
        return False
    is_automatic = getattr(field, "auto_now", False) or getattr(field, "auto_now_add", False)
    return not is_automatic and (field.unique or not field.empty_strings_allowed)


def _missing_guard() -> str | None:
    """Return a hint on how to guard the device types of other applications, or None if these types are guarded."""
    if REQUEST_MIDDLEWARE not in settings.MIDDLEWARE:
        return f"add {REQUEST_MIDDLEWARE!r}: then a user of this host needs a code before adding a device"
    if not _backends() or not conf.get("PAM_TOTP_CREATE_DEVICES"):
        return (
            "create a HostDevice for every user, or remove the applications: pam_totp guards only users with a"
            " HostDevice"
        )
    return None


class _UserWithoutCode:
    """A user with all permissions, who gave the password only."""

    pk = id = otp_device = None
    is_active = is_staff = is_superuser = is_authenticated = True
    is_anonymous = False

    def is_verified(self) -> bool:
        return False


def _pages(patterns: Iterable[URLPattern | URLResolver]) -> Iterator[Callable[..., Any]]:
    """Yield the views that a user without a code may open, by the tests of their decorators."""
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            yield from _pages(pattern.url_patterns)
        elif all(_may_pass(value) for name, value in _enclosed(pattern.callback) if name == "test_func"):
            yield pattern.callback


def _enclosed(view: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each variable in the closure of `view`, and in the closures of functions there.

    A decorator encloses the view that it guards. user_passes_test also encloses its test, by the name `test_func`.
    """
    functions, seen = [view], set[int]()
    while functions:
        function = functions.pop()
        seen.add(id(function))
        if isinstance(function, partial):
            functions.append(function.func)
        if not isfunction(function):
            continue
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # the variable has no value yet
                continue
            yield name, value
            if callable(value) and id(value) not in seen:
                functions.append(value)


def _may_pass(test: Any) -> bool:
    """Return True if a user without a code may pass the test of user_passes_test."""
    try:
        return iscoroutinefunction(test) or bool(test(_UserWithoutCode()))
    except Exception:  # the test reads an attribute that `_UserWithoutCode` lacks: its result is unknown
        return True


def _open_admin_sites(pages: Iterable[Callable[..., Any]]) -> list[str]:
    """Return the distinct names of the admin sites that a user without a code may open."""
    sites = {id(site): site for page in pages for site in _admin_sites(page)}
    return [site.name for site in sites.values() if _may_be_open(site)]


def _admin_sites(page: Callable[..., Any]) -> Iterator[Any]:
    """Yield the admin sites that guard the page: as a view of the site, or through the site's `admin_view`."""
    if hasattr(page, "admin_site"):  # AdminSite sets this attribute on the views that need a permission
        yield page.admin_site
    for name, value in _enclosed(page):
        if name == "self" and hasattr(value, "admin_view"):
            yield value


def _is_admin_documentation(page: Callable[..., Any]) -> bool:
    """Return True if the page is from django.contrib.admindocs, which no admin site guards."""
    return str(getattr(getattr(page, "view_class", None), "__module__", "")).startswith("django.contrib.admindocs.")


def _is_login_of_former_class(page: Callable[..., Any]) -> bool:
    """Return True if urls.py created the login page of a HostAdminSite while the site was still of another class."""
    site = getattr(page, "__self__", None)
    return isinstance(site, HostAdminSite) and page.__name__ == "login" and page.__func__ is not type(site).login  # type: ignore[attr-defined]


def _may_be_open(site: Any) -> bool:
    """Return True if a user without a code may open the site. The site itself decides, by any kind of guard."""
    request = HttpRequest()
    request.user = _UserWithoutCode()
    try:
        return bool(site.has_permission(request))
    except Exception:  # the site needs attributes that this request lacks, so the result is unknown
        return True
