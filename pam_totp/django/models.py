"""The device: one row says that a Django user has codes on this host. No key and no counter is in the database."""

from __future__ import annotations

import logging

from django.db import models
from django_otp.models import Device

from pam_totp import client
from pam_totp.django import conf

log = logging.getLogger("pam_totp.django")


class HostDevice(Device):  # type: ignore[misc]
    """All tokens that the user of the same name has on this host."""

    class Meta:
        constraints = (models.UniqueConstraint(fields=("user",), name="pam_totp_one_device"),)

    def verify_token(self, token: object) -> bool:
        """Ask the service; that uses the code up. False where it was refused, or could not be asked (see the log)."""
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
