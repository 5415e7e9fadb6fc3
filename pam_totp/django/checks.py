"""What `manage.py check` says of the settings and the host."""

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
OTHER_PASSWORDS = "django.contrib.auth.backends.ModelBackend"


@register(Tags.security)  # type: ignore[untyped-decorator]
def check(app_configs: object, **_: Any) -> list[CheckMessage]:
    """All findings, in the order of their numbers."""
    return list(_found())


def _found() -> Iterator[CheckMessage]:
    service, timeout = conf.get("PAM_TOTP_SERVICE"), conf.get("PAM_TOTP_TIMEOUT")
    if not isinstance(service, str) or not service:
        yield Error("PAM_TOTP_SERVICE is not a name", hint="say what /etc/pam_totp.toml says", id="pam_totp.E001")
    if not isinstance(timeout, int | float) or timeout <= 0:
        yield Error("PAM_TOTP_TIMEOUT is not a number of seconds", id="pam_totp.E002")
    if MIDDLEWARE not in settings.MIDDLEWARE:
        hint = f"add {MIDDLEWARE!r} behind AuthenticationMiddleware"
        yield Error("nobody is ever verified without django-otp's middleware", hint=hint, id="pam_totp.E003")
    socket = conf.get("PAM_TOTP_SOCKET")
    if not os.path.exists(socket):
        hint = "start 'pam-totp serve', or correct PAM_TOTP_SOCKET; until then every code is refused"
        yield Warning(f"no service at {socket}", hint=hint, id="pam_totp.W001")
    if BACKEND in settings.AUTHENTICATION_BACKENDS:
        file = os.path.join(PAM_FOLDER, str(conf.get("PAM_TOTP_PASSWORD_SERVICE")))
        if not os.path.exists(file):
            hint = f"put a file there, such as {EXAMPLE}; until then every password is refused"
            yield Warning(f"no PAM service {file}", hint=hint, id="pam_totp.W002")
        if OTHER_PASSWORDS in settings.AUTHENTICATION_BACKENDS:
            hint = "leave ModelBackend out: PamBackend does the rest of its work"
            yield Warning("passwords of Django's own are accepted beside the host's", hint=hint, id="pam_totp.W003")
