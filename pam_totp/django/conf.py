"""The settings, and what they are where a project says nothing.

PAM_TOTP_SERVICE           "web"           the name under which /etc/pam_totp.toml lists this application's account
PAM_TOTP_SOCKET            /run/pam_totp/socket
PAM_TOTP_TIMEOUT           15.0            seconds
PAM_TOTP_PASSWORD_SERVICE  "pam_totp-portal"  the PAM service that asks for a password and nothing else
PAM_TOTP_CREATE_USERS      False           whether a system account that signs in gets a Django user
PAM_TOTP_CREATE_DEVICES    True            whether whoever signs in by PamBackend gets a device
"""

from __future__ import annotations

from typing import Any

from django.conf import settings

from pam_totp.client import DEFAULT_SOCKET, DEFAULT_TIMEOUT

DEFAULTS: dict[str, Any] = {
    "PAM_TOTP_SERVICE": "web",
    "PAM_TOTP_SOCKET": DEFAULT_SOCKET,
    "PAM_TOTP_TIMEOUT": DEFAULT_TIMEOUT,
    "PAM_TOTP_PASSWORD_SERVICE": "pam_totp-portal",
    "PAM_TOTP_CREATE_USERS": False,
    "PAM_TOTP_CREATE_DEVICES": True,
}


def get(name: str) -> Any:
    """One setting by its full name."""
    return getattr(settings, name, DEFAULTS[name])
