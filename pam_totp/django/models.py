"""Public: the django-otp device. It states that a Django user has codes on this host.

The database holds no keys or counters, because the service on this host checks every code.
"""

from __future__ import annotations

import logging

from django.db import models
from django_otp.models import Device

from pam_totp import client
from pam_totp.django import conf

log = logging.getLogger("pam_totp.django")


class HostDevice(Device):  # type: ignore[misc]
    """The device of a Django user: all tokens of the account with the same name on this host."""

    class Meta:
        constraints = (models.UniqueConstraint(fields=("user",), name="pam_totp_one_device"),)

    def verify_token(self, token: object) -> bool:
        """Return True if the service accepts the code, which uses it up.

        Return False if the service refuses the code. Log the reason and return False if the service cannot check it.
        """
        allowed, _ = self.verify_is_allowed()
        if not allowed:
            return False
        try:
            return client.verify(
                self.user.get_username(),
                str(token),
                service=conf.get("PAM_TOTP_SERVICE"),
                path=conf.get("PAM_TOTP_SOCKET"),
                timeout=conf.get("PAM_TOTP_TIMEOUT"),
            ).accepted
        except client.ClientError as e:
            log.error("%s", e)
            return False
