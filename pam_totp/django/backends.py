"""Passwords of this host's accounts, for Django."""

from __future__ import annotations

import logging
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.backends import ModelBackend

from pam_totp.django import conf
from pam_totp.django.models import HostDevice
from pam_totp.pam.module import passwd_name
from pam_totp.system.passwords import Busy, Missing, SystemPasswords

log = logging.getLogger("pam_totp.django")
_checkers: dict[str, SystemPasswords] = {}  # by PAM service: each bounds how many checks run at once in this process


class PamBackend(ModelBackend):  # type: ignore[misc]
    """Signs in whose system password is right, and gives them a device, so that a code is asked for next.

    Put it in the place of ModelBackend, not beside it: beside it, a password of Django's would do as well.
    """

    def authenticate(
        self, request: object, username: str | None = None, password: str | None = None, **_: object
    ) -> Any:
        """The user, or None."""
        if username is None or password is None:
            return None
        name = passwd_name(username)
        try:
            if not _checker(conf.get("PAM_TOTP_PASSWORD_SERVICE")).right(name, password):
                return None
        except (Busy, Missing) as e:
            log.error("no password was checked: %s", str(e) or "too many at once")
            return None
        user = _user(name)
        if user is None or not self.user_can_authenticate(user):
            return None
        if conf.get("PAM_TOTP_CREATE_DEVICES"):
            HostDevice.objects.get_or_create(user=user, defaults={"name": "default"})
        return user


def _user(name: str) -> Any:
    model = get_user_model()
    try:
        return model._default_manager.get_by_natural_key(name)
    except model.DoesNotExist:
        if not conf.get("PAM_TOTP_CREATE_USERS"):
            return None
    # A password of nobody's: the one that counts is the host's.
    user = model(**{model.USERNAME_FIELD: name})
    user.set_unusable_password()
    user.save()
    return user


def _checker(service: str) -> SystemPasswords:
    if service not in _checkers:
        _checkers[service] = SystemPasswords(service, lambda _, line: log.error("%s", line))
    return _checkers[service]
