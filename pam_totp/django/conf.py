"""Public: the settings of a Django project, and their defaults.

PAM_TOTP_SERVICE           "web"                   the name that [clients] in /etc/pam_totp.toml gives to the account
PAM_TOTP_SOCKET            "/run/pam_totp/socket"  the service's socket
PAM_TOTP_TIMEOUT           15.0                    seconds, for the check of one code
PAM_TOTP_PASSWORD_SERVICE  "pam_totp-portal"       the PAM service that asks for the password only
PAM_TOTP_CREATE_USERS      False                   create a missing Django user for a system account
PAM_TOTP_CREATE_DEVICES    True                    create a device when a user signs in through PamBackend
PAM_TOTP_ACCOUNT_FIELD     None                    the field of the user model with the account's name (None: the
                                                   field of the user's name, USERNAME_FIELD)
PAM_TOTP_PORTAL_URL        None                    the address of the portal, to which pages link
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
    "PAM_TOTP_ACCOUNT_FIELD": None,
    "PAM_TOTP_PORTAL_URL": None,
}


def get(name: str) -> Any:
    """Return the project's setting with the full name `name`, or its default."""
    return getattr(settings, name, DEFAULTS[name])
