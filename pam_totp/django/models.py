"""Public: the django-otp device, which states that a Django user has codes on this host.

Rules:
- The database holds no keys or counters, because the service on this host checks every code.
- Every device has the name "default" and is confirmed. Otherwise, django-two-factor-auth would ask for no code, and
  would let the user add a device by the password alone.
- `verify_token` raises no error: it logs the error, and refuses the code. The variables of its callers contain the
  code, and Django's error report shows these variables. The frames that contain the code are marked as sensitive.
- The text about an outage differs from that about a wrong code, because another code would not help.
"""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from typing import Any

import django
from django.contrib import messages
from django.db import models
from django.views.decorators.debug import sensitive_variables
from django_otp.models import Device

from pam_totp import client
from pam_totp.django import conf
from pam_totp.django.accounts import account_of
from pam_totp.django.middleware import address_of, current_request, tell

log = logging.getLogger("pam_totp.django")
NAME = "default"
UNAVAILABLE = "Codes cannot be checked at the moment. Try again later, with a new code."
_CONDITION = "condition" if django.VERSION >= (5, 1) else "check"  # the argument of CheckConstraint


class HostDevice(Device):  # type: ignore[misc]
    """The device of a Django user: all tokens of the user's account on this host (`account_of`)."""

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=("user",), name="pam_totp_one_device"),
            models.CheckConstraint(
                **{_CONDITION: models.Q(name=NAME, confirmed=True)}, name="pam_totp_device_requires_code"
            ),
        )

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write the device, with the name and the state that the rules require."""
        self.name, self.confirmed = NAME, True
        super().save(*args, **kwargs)

    def verify_is_allowed(self) -> tuple[bool, dict[str, str] | None]:
        """Return (True, None), or (False, {"error_message": ...}) if the service is not running.

        The forms of django-otp show that message. Otherwise, the forms would report a wrong code.
        """
        return (True, None) if _listens(conf.get("PAM_TOTP_SOCKET")) else (False, {"error_message": UNAVAILABLE})

    @sensitive_variables()  # type: ignore[untyped-decorator]
    def verify_token(self, token: object) -> bool:
        """Return True if the service accepts the code `token`. An accepted code is used up.

        Show the service's messages to the user.

        Return False if the service refuses the code. Log the reason, inform the user, and return False if the service
        cannot check the code.
        """
        try:
            outcome: client.Outcome = self._ask(token)
            tell(messages.INFO if outcome else messages.WARNING, *outcome.messages)
            return outcome.accepted
        except client.ClientError as e:
            log.error("%s", e)
        except Exception:  # see the rules
            log.exception("cannot check the code")
        with suppress(Exception):  # the user is refused in any case
            tell(messages.ERROR, UNAVAILABLE)
        return False

    @sensitive_variables()  # type: ignore[untyped-decorator]
    def verify_code(self, code: str | bytes) -> client.Outcome:
        """Return the service's outcome, with its messages for the user. An accepted code is used up.

        Log an error that prevents the check, and raise client.ClientError. Raise TypeError unless `code` is str or
        bytes.
        """
        try:
            outcome: client.Outcome = self._ask(code)
            return outcome
        except client.ClientError as e:
            log.error("%s", e)
            raise
        except TypeError:
            raise
        except Exception:  # see the rules
            log.exception("cannot check the code")
        raise client.ClientError("cannot check the code (see the log)")

    @sensitive_variables()  # type: ignore[untyped-decorator]
    def _ask(self, code: Any) -> client.Outcome:
        return client.verify(
            account_of(self.user),
            code,
            service=conf.get("PAM_TOTP_SERVICE"),
            rhost=address_of(current_request()),
            path=conf.get("PAM_TOTP_SOCKET"),
            timeout=conf.get("PAM_TOTP_TIMEOUT"),
        )


def _listens(path: str) -> bool:
    """Return True if a service listens on the socket. Also return True if the queue of connections is full."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.setblocking(False)
        try:
            channel.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True
