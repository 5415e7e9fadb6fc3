"""The plugin for django-two-factor-auth: a login with a code that this host verifies."""

from __future__ import annotations

from typing import Any

from django import forms
from two_factor.forms import AuthenticationTokenForm
from two_factor.plugins.registry import MethodBase

from pam_totp.core.answer import MAX_ANSWER
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
