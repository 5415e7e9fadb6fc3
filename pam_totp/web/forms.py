"""The forms: fields, hints, keyboards, and limits on the input."""

from __future__ import annotations

from typing import Any

from flask_wtf import FlaskForm
from wtforms import PasswordField, StringField
from wtforms.validators import InputRequired, Length, Optional

from pam_totp.core.answer import MAX_ANSWER
from pam_totp.core.fields import MAX_TEXT

_CODE = {"inputmode": "numeric", "autocomplete": "one-time-code", "spellcheck": "false", "autocapitalize": "off"}
# A recovery code has letters, which a numeric keyboard lacks.
_CODE_WITH_LETTERS = {**_CODE, "inputmode": "text"}
_TEXT = {"autocomplete": "off", "spellcheck": "false", "autocapitalize": "off"}


def _required(what: str, max_length: int) -> list[Any]:
    return [InputRequired(f"Enter {what}."), Length(max=max_length, message="This text is too long.")]


class SignInForm(FlaskForm):  # type: ignore[misc]
    user = StringField(
        "User name",
        _required("your user name", MAX_TEXT),
        render_kw={"autocomplete": "username", "autocapitalize": "off", "spellcheck": "false"},
    )
    # InputRequired is omitted, because a blank and a wrong password must get the same page after the same time.
    password = PasswordField(
        "Password", [Length(max=MAX_ANSWER)], render_kw={"autocomplete": "current-password", "required": True}
    )


class CodeForm(FlaskForm):  # type: ignore[misc]
    proof = StringField(
        "One-time code",
        _required("the code", MAX_ANSWER),
        description="From your phone app or key fob. Two codes in a row also work.",
        render_kw=_CODE,
    )


class RecoveryCodeForm(FlaskForm):  # type: ignore[misc]
    """The form for a recovery code. Its field selects a full keyboard, because a recovery code has letters."""

    proof = StringField(
        "Recovery code",
        _required("the recovery code", MAX_ANSWER),
        description="One of the recovery codes that you saved. Each works once.",
        render_kw=_TEXT,
    )


class FormWithProof(FlaskForm):  # type: ignore[misc]
    """A form that asks for a code from a token that the user already has."""

    proof = StringField(
        "A code from a token that you already use",
        _required("a code", MAX_ANSWER),
        description="Enter a new code: the code that you signed in with is used up. A recovery code also works.",
        render_kw=_CODE_WITH_LETTERS,
    )

    def remove_proof(self) -> None:
        """Remove the field `proof`, for a user without a token."""
        del self.proof


class NameForm(FlaskForm):  # type: ignore[misc]
    name = StringField(
        "Name",
        _required("a name", MAX_TEXT),
        description="Choose a new name, such as “phone” or “old phone”.",
        render_kw=_TEXT,
    )


class ScanForm(FormWithProof):
    code = StringField(
        "The code that the app shows", _required("the code that the app shows", MAX_ANSWER), render_kw=_CODE
    )


class HardwareTokenForm(FormWithProof):
    serial = StringField(
        "Serial number",
        _required("the serial number", MAX_TEXT),
        description="On the back of the key fob.",
        render_kw=_TEXT,
    )
    codes = StringField(
        "Two codes in a row",
        _required("two codes", MAX_ANSWER),
        description="Press the button and enter the code. Press again and enter the next code, in the same field.",
        render_kw=_CODE,
    )
    key = StringField(
        "Key",
        [Optional(), Length(max=MAX_ANSWER)],
        description="In Base32, or in hexadecimal with “hex:” in front.",
        render_kw=_TEXT,
    )


class ResyncForm(FlaskForm):  # type: ignore[misc]
    codes = StringField(
        "Two codes in a row",
        _required("two codes", MAX_ANSWER),
        description="Enter the current code, then the next code, in the same field.",
        render_kw=_CODE,
    )


class ProofForm(FormWithProof):
    """A form with the proof as its only field."""
