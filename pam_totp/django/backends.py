"""Public: sign in to Django with the password of an account on this host."""

from __future__ import annotations

import logging
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend

from pam_totp.django import conf
from pam_totp.django.models import HostDevice
from pam_totp.pam.module import passwd_name
from pam_totp.system.passwords import PasswordsUnavailable, SystemPasswords, TooManyChecks

log = logging.getLogger("pam_totp.django")
_checkers: dict[str, SystemPasswords] = {}  # by PAM service; a checker limits the checks that run at once


class PamBackend(ModelBackend):  # type: ignore[misc]
    """Authentication by the system password. A successful check creates a device, so that Django then asks for a code.

    Use this backend instead of ModelBackend. With both, Django would also accept the passwords in its database.
    """

    def authenticate(
        self, request: object, username: str | None = None, password: str | None = None, **_: object
    ) -> Any:
        """Return the user, or None. Log the reason if the password cannot be checked."""
        if username is None or password is None:
            return None
        name = passwd_name(username)
        try:
            if not _checker(conf.get("PAM_TOTP_PASSWORD_SERVICE")).verify(name, password):
                return None
        except TooManyChecks:
            log.error("cannot check the password: too many checks at once")
            return None
        except PasswordsUnavailable as e:
            log.error("cannot check the password: %s", e)
            return None
        user = _find_or_create_user(name)
        if user is None or not self.user_can_authenticate(user):
            return None
        if conf.get("PAM_TOTP_CREATE_DEVICES"):
            HostDevice.objects.get_or_create(user=user, defaults={"name": "default"})
        return user


def _find_or_create_user(name: str) -> Any:
    """Return the Django user. Create a missing user if PAM_TOTP_CREATE_USERS is set, else return None."""
    model = get_user_model()
    try:
        return model._default_manager.get_by_natural_key(name)
    except model.DoesNotExist:
        if not conf.get("PAM_TOTP_CREATE_USERS"):
            return None
    user = model(**{model.USERNAME_FIELD: name})
    user.set_unusable_password()  # the user must sign in with the host's password
    user.save()
    return user


def _checker(service: str) -> SystemPasswords:
    if service not in _checkers:
        _checkers[service] = SystemPasswords(service, lambda _, line: log.error("%s", line))
    return _checkers[service]
