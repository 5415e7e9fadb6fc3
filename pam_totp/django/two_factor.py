"""The plugin for django-two-factor-auth: a login with a code that this host verifies.

Rules:
- A user with a HostDevice sets up no other device (see `guard.needs_code`). SetupView itself refuses a user with a
  device for GET only, so three POST requests after the password would add a thief's own device.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from django import forms
from django.shortcuts import redirect
from two_factor.forms import AuthenticationTokenForm
from two_factor.plugins.registry import MethodBase
from two_factor.views import SetupView

from pam_totp.core.answer import MAX_ANSWER
from pam_totp.django.guard import needs_code
from pam_totp.django.models import HostDevice


class AnswerForm(AuthenticationTokenForm):  # type: ignore[misc]
    """A form for every answer that a login accepts: one code, codes in a row, or a recovery code."""

    otp_token = forms.CharField(
        label="One-time code",
        max_length=MAX_ANSWER,
        widget=forms.TextInput(attrs={"autofocus": "autofocus", "autocomplete": "one-time-code"}),
    )


class HostMethod(MethodBase):  # type: ignore[misc]
    """A login method without set-up pages: the portal or an administrator enrols the tokens."""

    code = "pam_totp"
    verbose_name = "Phone app or key fob"

    def get_devices(self, user: Any) -> Any:
        return HostDevice.objects.devices_for_user(user)

    def recognize_device(self, device: object) -> bool:
        return isinstance(device, HostDevice)

    def get_token_form_class(self) -> type[AnswerForm]:
        return AnswerForm

    def get_action(self, device: object) -> str:
        return "Enter a code from your phone app or key fob"

    def get_verbose_action(self, device: object) -> str:
        return "Enter a code from your phone app or key fob. Two codes in a row or a recovery code also work."


def guard_setup() -> None:
    """Let SetupView redirect every request of a user with a HostDevice, as it does for GET."""
    dispatch = SetupView.dispatch

    @wraps(dispatch)
    def guarded(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if needs_code(request, request.user.pk):  # a visitor has no pk, and must sign in first
            return redirect(self.get_success_url())
        return dispatch(self, request, *args, **kwargs)

    SetupView.dispatch = guarded
