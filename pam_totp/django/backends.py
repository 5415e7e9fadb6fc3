"""Public: the sign-in to Django with the password of an account on this host.

Rules:
- Only PAM checks a password, in the synchronous and in the asynchronous method. This backend ignores Django's own
  passwords.
- `authenticate` logs an error, and refuses the sign-in. It raises only PermissionDenied. The variables of its callers
  contain the password, and the error report of Django 4.2 shows these variables.
- A Django user is signed in only by the account with exactly the same name. The lookup may ignore case. With
  PAM_TOTP_ACCOUNT_FIELD, that field contains the account's name.
- Every frame that contains the password is marked as sensitive, because the error is logged with its traceback.
- Log lines show names as ASCII in quotes (`%a`), so that no name can forge a line.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any

from asgiref.sync import markcoroutinefunction, sync_to_async
from django.contrib import messages
from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.hashers import make_password
from django.core.exceptions import PermissionDenied
from django.views.decorators.debug import sensitive_variables

from pam_totp.django import conf
from pam_totp.django.accounts import account_field, account_named, account_of, find_user
from pam_totp.django.middleware import address_of, current_request, tell
from pam_totp.django.models import NAME, HostDevice
from pam_totp.pam.names import passwd_name
from pam_totp.system.passwords import PasswordsUnavailable, SystemPasswords, TooManyChecks

log = logging.getLogger("pam_totp.django")
UNAVAILABLE = "Passwords cannot be checked at the moment. Try again later."
_checkers: dict[str, SystemPasswords] = {}  # by PAM service; a checker limits the checks that run at once


class PamBackend(ModelBackend):  # type: ignore[misc]
    """An authentication backend for system passwords.

    A right password creates a device, so Django asks for a code. PAM_TOTP_CREATE_DEVICES can turn the creation off.

    Use this backend instead of ModelBackend. With both, Django would also accept the passwords in its database.
    """

    @sensitive_variables()  # type: ignore[untyped-decorator]
    def authenticate(
        self, request: Any, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> Any:
        """Return the user, or None. Log an error that prevents the sign-in, and return None.

        Raise PermissionDenied if a receiver of a signal refuses the user.

        The keyword of the user's name may be the value of USERNAME_FIELD, for example `email`, as with ModelBackend.
        """
        if username is None:
            username = kwargs.get(get_user_model().USERNAME_FIELD)
        if username is None or password is None:
            return None
        try:
            account, rhost = passwd_name(account_named(username)), address_of(request) or address_of(current_request())
            return self._sign_in(account, password, rhost)
        except PermissionDenied:  # a receiver of a signal refuses the user; Django then asks no other backend
            raise
        except Exception:  # see the rules
            log.exception("the sign-in failed")
            return None

    def fields_of_new_user(self, account: str) -> dict[str, Any]:
        """Return the values of fields for a new Django user. A user model with required fields needs an override."""
        return {}

    def _sign_in(self, name: str, password: str, rhost: str | None) -> Any:
        user, reason = None, _problem_of(name, password)
        if reason is None:
            user, reason = self._find_or_create_user(name), "user"
            if user is not None and account_of(user) != name:
                user = None
        if user is None or not self.user_can_authenticate(user):
            log.warning("sign-in refused: user=%a reason=%s rhost=%a", name, reason, rhost)
            return None
        if conf.get("PAM_TOTP_CREATE_DEVICES"):
            device, _ = HostDevice.objects.get_or_create(user=user, defaults={"name": NAME})
            if (device.name, device.confirmed) != (NAME, True):  # a device from before the database had the constraint
                device.save()
        log.info("password accepted: user=%a rhost=%a", name, rhost)
        return user

    def _find_or_create_user(self, account: str) -> Any:
        """Return the Django user. Create a missing user if PAM_TOTP_CREATE_USERS is set, otherwise return None."""
        model = get_user_model()
        try:
            return find_user(account)
        except model.DoesNotExist:
            if not conf.get("PAM_TOTP_CREATE_USERS"):
                return None
        # The password is unusable, because the user must sign in with the host's password. get_or_create finds the
        # user that another request creates at the same time.
        defaults = {"password": make_password(None), **self.fields_of_new_user(account)}
        user, _ = model._default_manager.get_or_create(**{account_field(): account}, defaults=defaults)
        return user

    @markcoroutinefunction
    def aauthenticate(
        self, request: Any, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]:
        """Do the same as `authenticate`, in a thread. ModelBackend's method would ask Django's database."""

        # The call has no arguments, because asgiref's frames would show them.
        @sensitive_variables()  # type: ignore[untyped-decorator]
        def check() -> Any:
            return self.authenticate(request, username, password, **kwargs)

        # Not `async def`: Django 4.2 cannot hide the variables of a coroutine.
        coroutine: Coroutine[Any, Any, Any] = sync_to_async(check)()
        return coroutine


def _problem_of(name: str, password: str) -> str | None:
    """Ask PAM. Return None if the password is right, or else the reason for the log: `password` or `unavailable`.

    Log the reason and inform the user if the password cannot be checked.
    """
    try:
        return None if _checker(conf.get("PAM_TOTP_PASSWORD_SERVICE")).verify(name, password) else "password"
    except TooManyChecks:
        log.error("cannot check the password: too many checks at once")
    except PasswordsUnavailable as e:
        log.error("cannot check the password: %s", e)
    tell(messages.ERROR, UNAVAILABLE)
    return "unavailable"


def _checker(service: str) -> SystemPasswords:
    if service not in _checkers:
        _checkers[service] = SystemPasswords(service, lambda _, line: log.error("%s", line))
    return _checkers[service]
