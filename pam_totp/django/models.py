"""Public: the django-otp device. It states that a Django user has codes on this host.

Rules:
- The database holds no keys or counters, because the service on this host checks every code.
- Every row has the name "default" and is confirmed. Without both, django-two-factor-auth asks for no code, and lets
  the user add a device by the password alone.
- No error leaves `verify_token`: it is logged, and the code is refused. The callers' variables have the code, and
  Django shows them in its error report. The frames that have the code are marked as sensitive.
"""

from __future__ import annotations

import logging
from typing import Any

import django
from django.contrib import messages
from django.db import models
from django.views.decorators.debug import sensitive_variables
from django_otp.models import Device

from pam_totp import client
from pam_totp.django import conf
from pam_totp.django.middleware import address_of, current_request

log = logging.getLogger("pam_totp.django")
NAME = "default"
_CONDITION = "condition" if django.VERSION >= (5, 1) else "check"  # the argument of CheckConstraint


class HostDevice(Device):  # type: ignore[misc]
    """The device of a Django user: all tokens of the account with the same name on this host."""

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=("user",), name="pam_totp_one_device"),
            models.CheckConstraint(
                **{_CONDITION: models.Q(name=NAME, confirmed=True)}, name="pam_totp_device_requires_code"
            ),
        )

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write the row, with the name and the state that the rules require."""
        self.name, self.confirmed = NAME, True
        super().save(*args, **kwargs)

    @sensitive_variables()  # type: ignore[untyped-decorator]
    def verify_token(self, token: object) -> bool:
        """Return True if the service accepts the code, which uses it up. Show the service's messages to the user.

        Return False if the service refuses the code. Log the reason and return False if the service cannot check it.
        """
        try:
            return self._verify(str(token))
        except client.ClientError as e:
            log.error("%s", e)
        except Exception:  # see the rules
            log.exception("cannot check the code")
        return False

    def _verify(self, code: str) -> bool:
        allowed, _ = self.verify_is_allowed()
        if not allowed:
            return False
        request = current_request()
        outcome = client.verify(
            self.user.get_username(),
            code,
            service=conf.get("PAM_TOTP_SERVICE"),
            rhost=address_of(request),
            path=conf.get("PAM_TOTP_SOCKET"),
            timeout=conf.get("PAM_TOTP_TIMEOUT"),
        )
        if request is not None:
            level = messages.INFO if outcome else messages.WARNING
            for text in outcome.messages:
                messages.add_message(request, level, text, fail_silently=True)
        return outcome.accepted
