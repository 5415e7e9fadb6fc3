"""The refusal of devices of other types that a request adds with the password alone.

Rules:
- A user with a HostDevice has a second factor, so a new device of this user needs a code first. Otherwise, an attacker
  with the password could add a device, and give its codes.
- The same applies to a session with a HostDevice from `PamBackend`, even after the deletion of the device.
- The request must be of a user who gave a code. Commands have no request, and may add devices.
- A device is new if the database has no device with the same id and user. Examples are a copy, and a device of another
  user. An existing device may be saved: every check of a code saves the device before the user is verified.
"""

from __future__ import annotations

import logging
from typing import Any

from django.contrib.auth import BACKEND_SESSION_KEY, get_user_model, load_backend
from django.core.exceptions import PermissionDenied
from django.db.models.signals import pre_save
from django_otp.models import Device

from pam_totp.django import conf
from pam_totp.django.backends import PamBackend
from pam_totp.django.middleware import address_of, current_request
from pam_totp.django.models import HostDevice

log = logging.getLogger("pam_totp.django")


def install() -> None:
    """Guard every type of device, also those of applications that are loaded later."""
    pre_save.connect(refuse_without_code, dispatch_uid="pam_totp.django.guard")


def refuse_without_code(sender: type[Any], instance: Any, using: str | None = None, **_: object) -> None:
    """Raise PermissionDenied if the password alone would add a device, so that the response has status 403."""
    if not issubclass(sender, Device) or issubclass(sender, HostDevice):
        return
    request = current_request()
    if request is None or _is_verified(request) or not _is_new(instance, using):
        return
    if not needs_code(request, instance.user_id):
        return
    name, rhost = instance.user.get_username(), address_of(request)
    log.warning("device refused: user=%a type=%s reason=code rhost=%a", name, sender.model_label(), rhost)
    raise PermissionDenied("enter a code before you add a device")


def _is_new(device: Any, using: str | None) -> bool:
    """Return True unless the database has `device` with the same user."""
    rows = type(device)._base_manager.using(using)
    return bool(device._state.adding) or not rows.filter(pk=device.pk, user_id=device.user_id).exists()


def needs_code(request: Any, user_id: object) -> bool:
    """Return True if a new device of the user needs a code first. See the rules."""
    user_id = get_user_model()._meta.pk.to_python(user_id)  # a form sends the id as text
    user = getattr(request, "user", None)
    if user_id is not None and user_id == getattr(user, "pk", None) and conf.get("PAM_TOTP_CREATE_DEVICES"):
        backend = getattr(request, "session", {}).get(BACKEND_SESSION_KEY)
        if backend is not None and isinstance(load_backend(backend), PamBackend):
            return True
    return bool(HostDevice.objects.filter(user_id=user_id).exists())


def _is_verified(request: Any) -> bool:
    """Return True if the user of the request gave a code. Return False if OTPMiddleware is missing."""
    is_verified = getattr(getattr(request, "user", None), "is_verified", None)
    return is_verified is not None and bool(is_verified())
