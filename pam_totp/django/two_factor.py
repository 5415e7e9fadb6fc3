"""The plugin for django-two-factor-auth: a login with a code that this host verifies.

Rules:
- A user with a HostDevice sets up no other device (see `guard.needs_code`). SetupView itself refuses only the GET
  requests of a user with a device. An attacker could therefore add a device by three POST requests after the password.
- Such a user cannot create backup tokens, because their use would bypass this host's count of failures. The user has
  recovery codes of this host instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django import forms
from django.contrib import messages
from django.shortcuts import redirect, resolve_url
from two_factor.forms import AuthenticationTokenForm
from two_factor.plugins.registry import MethodBase
from two_factor.views import BackupTokensView, SetupView

from pam_totp.core.answer import MAX_ANSWER
from pam_totp.django import conf
from pam_totp.django.forms import CODE
from pam_totp.django.guard import needs_code
from pam_totp.django.middleware import tell
from pam_totp.django.models import HostDevice


class AnswerForm(AuthenticationTokenForm):  # type: ignore[misc]
    """A form for every answer that the service accepts: codes, a recovery code or a temporary code."""

    otp_token = forms.CharField(
        label="One-time code",
        max_length=MAX_ANSWER,
        widget=forms.TextInput(CODE),  # without a keyboard of digits, because recovery codes have letters
    )


class HostMethod(MethodBase):  # type: ignore[misc]
    """A login method without set-up pages: users enrol in the portal, or an administrator enrols them."""

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


def guard_pages() -> None:
    """Make the pages that add devices or backup tokens redirect every request of a user with a HostDevice."""
    _guard(SetupView, lambda view: view.get_success_url())
    _guard(BackupTokensView, lambda _: _recovery_page())


def _guard(view: Any, target: Callable[[Any], str]) -> None:
    dispatch = view.dispatch

    @wraps(dispatch)
    def guarded(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if needs_code(request, request.user.pk):  # a visitor has no pk, and must sign in first
            return redirect(target(self))
        return dispatch(self, request, *args, **kwargs)

    view.dispatch = guarded


def _recovery_page() -> str:
    """Show the user how to get recovery codes. Return the address of the portal, or of the profile without a portal."""
    tell(messages.INFO, "Create recovery codes in the portal of this host, or ask an administrator for them.")
    return str(conf.get("PAM_TOTP_PORTAL_URL") or resolve_url("two_factor:profile"))
