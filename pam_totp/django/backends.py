"""Public: sign in to Django with the password of an account on this host.

Rules:
- Only PAM checks a password, in the synchronous and in the asynchronous method. Django's own passwords are worthless.
- No error leaves `authenticate`: it is logged, and the sign-in is refused. The callers' variables have the password,
  and Django 4.2 shows them in its error report.
- A Django user is signed in only by the account with exactly the same name. The lookup may ignore case.
- Every frame that has the password is marked as sensitive, because the error is logged with its traceback.
- Log lines show names as ASCII in quotes (`%a`), so that no name can forge a line.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any

from asgiref.sync import markcoroutinefunction, sync_to_async
from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.hashers import make_password
from django.core.exceptions import PermissionDenied
from django.views.decorators.debug import sensitive_variables

from pam_totp.django import conf
from pam_totp.django.middleware import address_of, current_request
from pam_totp.django.models import NAME, HostDevice
from pam_totp.pam.names import passwd_name
from pam_totp.system.passwords import PasswordsUnavailable, SystemPasswords, TooManyChecks

log = logging.getLogger("pam_totp.django")
_checkers: dict[str, SystemPasswords] = {}  # by PAM service; a checker limits the checks that run at once


class PamBackend(ModelBackend):  # type: ignore[misc]
    """Authentication by the system password. A successful check creates a device, so that Django then asks for a code.

    Use this backend instead of ModelBackend. With both, Django would also accept the passwords in its database.
    """

    @sensitive_variables()  # type: ignore[untyped-decorator]
    def authenticate(
        self, request: object, username: str | None = None, password: str | None = None, **_: object
    ) -> Any:
        """Return the user, or None. If an error prevents the sign-in, log it and return None."""
        if username is None or password is None:
            return None
        try:
            return self._sign_in(passwd_name(username), password, address_of(request) or address_of(current_request()))
        except PermissionDenied:  # a receiver of a signal refuses the user; Django then asks no other backend
            raise
        except Exception:  # see the rules
            log.exception("the sign-in failed")
            return None

    def _sign_in(self, name: str, password: str, rhost: str | None) -> Any:
        user, reason = None, "password"
        if _is_correct(name, password):
            user, reason = _find_or_create_user(name), "user"
            if user is not None and user.get_username() != name:
                user = None
        if user is None or not self.user_can_authenticate(user):
            log.warning("sign-in refused: user=%a reason=%s rhost=%a", name, reason, rhost)
            return None
        if conf.get("PAM_TOTP_CREATE_DEVICES"):
            device, _ = HostDevice.objects.get_or_create(user=user, defaults={"name": NAME})
            if (device.name, device.confirmed) != (NAME, True):  # written before the database had the constraint
                device.save()
        log.info("password accepted: user=%a rhost=%a", name, rhost)
        return user

    @markcoroutinefunction
    def aauthenticate(
        self, request: object, username: str | None = None, password: str | None = None, **_: object
    ) -> Coroutine[Any, Any, Any]:
        """Do the same as `authenticate`, in a thread. ModelBackend's method would ask Django's database."""

        # Without arguments, because asgiref's frames would show them.
        @sensitive_variables()  # type: ignore[untyped-decorator]
        def check() -> Any:
            return self.authenticate(request, username, password)

        # Not `async def`: Django 4.2 cannot hide the variables of a coroutine.
        coroutine: Coroutine[Any, Any, Any] = sync_to_async(check)()
        return coroutine


def _is_correct(name: str, password: str) -> bool:
    """Ask PAM. If the password cannot be checked, log the reason and return False."""
    try:
        return _checker(conf.get("PAM_TOTP_PASSWORD_SERVICE")).verify(name, password)
    except TooManyChecks:
        log.error("cannot check the password: too many checks at once")
    except PasswordsUnavailable as e:
        log.error("cannot check the password: %s", e)
    return False


def _find_or_create_user(name: str) -> Any:
    """Return the Django user. Create a missing user if PAM_TOTP_CREATE_USERS is set, else return None."""
    model = get_user_model()
    try:
        return model._default_manager.get_by_natural_key(name)
    except model.DoesNotExist:
        if not conf.get("PAM_TOTP_CREATE_USERS"):
            return None
    # The password is unusable, because the user must sign in with the host's password. get_or_create finds the user
    # that another request creates at the same time.
    defaults = {"password": make_password(None)}
    user, _ = model._default_manager.get_or_create(**{model.USERNAME_FIELD: name}, defaults=defaults)
    return user


def _checker(service: str) -> SystemPasswords:
    if service not in _checkers:
        _checkers[service] = SystemPasswords(service, lambda _, line: log.error("%s", line))
    return _checkers[service]
