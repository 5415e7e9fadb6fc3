"""Checks of the settings and of the host, for `manage.py check`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from pam_totp.django import conf
from pam_totp.system.passwords import EXAMPLE, PAM_FOLDER

BACKEND = "pam_totp.django.backends.PamBackend"
MIDDLEWARE = "django_otp.middleware.OTPMiddleware"
MODEL_BACKEND = "django.contrib.auth.backends.ModelBackend"


@register(Tags.security)  # type: ignore[untyped-decorator]
def check(app_configs: object, **_: Any) -> list[CheckMessage]:
    """Return all findings, in the order of their numbers."""
    return list(_findings())


def _findings() -> Iterator[CheckMessage]:
    service, timeout = conf.get("PAM_TOTP_SERVICE"), conf.get("PAM_TOTP_TIMEOUT")
    if not isinstance(service, str) or not service:
        hint = "use the name that [clients] in /etc/pam_totp.toml gives to this application's account"
        yield Error("PAM_TOTP_SERVICE must be a name", hint=hint, id="pam_totp.E001")
    if not isinstance(timeout, int | float) or timeout <= 0:
        yield Error("PAM_TOTP_TIMEOUT must be a positive number of seconds", id="pam_totp.E002")
    if MIDDLEWARE not in settings.MIDDLEWARE:
        hint = f"add {MIDDLEWARE!r} after AuthenticationMiddleware; until then no user counts as verified"
        yield Error("MIDDLEWARE must have django-otp's middleware", hint=hint, id="pam_totp.E003")
    socket = conf.get("PAM_TOTP_SOCKET")
    if not os.path.exists(socket):
        hint = "start 'pam-totp serve', or correct PAM_TOTP_SOCKET; until then every code is refused"
        yield Warning(f"socket of the pam_totp service not found: {socket}", hint=hint, id="pam_totp.W001")
    if BACKEND in settings.AUTHENTICATION_BACKENDS:
        file = os.path.join(PAM_FOLDER, str(conf.get("PAM_TOTP_PASSWORD_SERVICE")))
        if not os.path.exists(file):
            hint = f"create it (an example is {EXAMPLE}); until then every password is refused"
            yield Warning(f"PAM service not found: {file}", hint=hint, id="pam_totp.W002")
        if MODEL_BACKEND in settings.AUTHENTICATION_BACKENDS:
            hint = "remove ModelBackend: PamBackend replaces it"
            yield Warning("Django also accepts the passwords in its database", hint=hint, id="pam_totp.W003")
