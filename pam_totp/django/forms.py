"""The form for a code, and the attributes of its field for keyboards of phones and for password managers.

Rules:
- A keyboard of digits cannot type a recovery code. A field that also takes recovery codes therefore requests another
  keyboard.
- The text about an outage differs from that about a wrong code. Otherwise, the user would try code after code.
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.core.exceptions import ValidationError
from django.views.decorators.debug import sensitive_variables

from pam_totp import client
from pam_totp.core.answer import MAX_ANSWER
from pam_totp.django.middleware import tell
from pam_totp.django.models import UNAVAILABLE, HostDevice

CODE = {"autocomplete": "one-time-code", "spellcheck": "false", "autocapitalize": "off", "autofocus": True}
REFUSED = "Refused. Try the next code. If that is refused too, enter two codes in a row in one answer, or three."
NO_DEVICE = "Your account has no device for codes. Ask an administrator."


class EmptyInput(forms.TextInput):  # type: ignore[misc]
    """A field that is empty after a refusal, so that no page contains a code and the user can type the next code."""

    def get_context(self, name: str, value: object, attrs: dict[str, Any]) -> Any:
        return super().get_context(name, None, attrs)


class CodeForm(forms.Form):  # type: ignore[misc]
    """A form for the code of a user who gave the password.

    `device` is the device that accepted the code of a valid form. The field requests the keyboard of digits on a
    phone, or the keyboard of letters if the request's query has `recovery`.
    """

    code = forms.CharField(
        label="One-time code", max_length=MAX_ANSWER, widget=EmptyInput({**CODE, "inputmode": "numeric"})
    )

    def __init__(self, request: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._user = request.user
        self.device: HostDevice | None = None
        if "recovery" in request.GET:
            self.fields["code"].label = "Recovery code"
            self.fields["code"].widget.attrs["inputmode"] = "text"

    @sensitive_variables()  # type: ignore[untyped-decorator]
    def clean(self) -> None:
        code = self.cleaned_data.pop("code", None)  # so that no error report shows it
        if code is None:  # the field has its own error
            return
        device = HostDevice.objects.filter(user=self._user).first()
        if device is None:
            raise ValidationError(NO_DEVICE, code="no_device")
        try:
            outcome = device.verify_code(code)
        except client.ClientError:
            raise ValidationError(UNAVAILABLE, code="unavailable") from None
        if not outcome:
            raise ValidationError([ValidationError(text, code="refused") for text in outcome.messages or (REFUSED,)])
        tell(messages.INFO, *outcome.messages)
        self.device = device
