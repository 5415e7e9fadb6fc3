"""The forms: what is asked, how a keyboard is to look, and what may be typed at all."""

from __future__ import annotations

from typing import Any

from flask_wtf import FlaskForm
from wtforms import PasswordField, StringField
from wtforms.validators import InputRequired, Length, Optional

from pam_totp.core.answer import MAX_ANSWER
from pam_totp.core.fields import MAX_TEXT

_CODE = {"inputmode": "numeric", "autocomplete": "one-time-code", "spellcheck": "false", "autocapitalize": "off"}
# A recovery code has letters, which a numeric keyboard has not.
_ANSWER = {**_CODE, "inputmode": "text"}
_PLAIN = {"autocomplete": "off", "spellcheck": "false", "autocapitalize": "off"}


def _filled(what: str, most: int) -> list[Any]:
    return [InputRequired(f"Enter {what}."), Length(max=most, message="That is too long.")]


class SignIn(FlaskForm):  # type: ignore[misc]
    user = StringField(
        "User name",
        _filled("your user name", MAX_TEXT),
        render_kw={"autocomplete": "username", "autocapitalize": "off", "spellcheck": "false"},
    )
    # Not a required one: a blank password gets the same answer, after the same time, as a wrong one.
    password = PasswordField(
        "Password", [Length(max=MAX_ANSWER)], render_kw={"autocomplete": "current-password", "required": True}
    )


class Code(FlaskForm):  # type: ignore[misc]
    proof = StringField(
        "One-time code",
        _filled("the code", MAX_ANSWER),
        description="From your phone or token. Two codes in a row will do too.",
        render_kw=_CODE,
    )


class RecoveryCode(FlaskForm):  # type: ignore[misc]
    """The same question for somebody without phone and token, with all of the keyboard."""

    proof = StringField(
        "Recovery code",
        _filled("the recovery code", MAX_ANSWER),
        description="One of those that you have kept; each is good once.",
        render_kw=_PLAIN,
    )


class _Proof(FlaskForm):  # type: ignore[misc]
    """A form that may ask for a code of a token that the person has."""

    proof = StringField(
        "A code of a token you have",
        _filled("a code", MAX_ANSWER),
        description="A new one: the code that you signed in with is used up. A recovery code will do too.",
        render_kw=_ANSWER,
    )

    def without_proof(self) -> None:
        """For somebody who has no token yet."""
        del self.proof


class Name(FlaskForm):  # type: ignore[misc]
    name = StringField(
        "Name",
        _filled("a name", MAX_TEXT),
        description="To tell it from your other tokens, such as “phone” or “old phone”.",
        render_kw=_PLAIN,
    )


class Scanned(_Proof):
    code = StringField(
        "The code that the app shows", _filled("the code that the app shows", MAX_ANSWER), render_kw=_CODE
    )


class Handed(_Proof):
    serial = StringField(
        "Serial number", _filled("the serial number", MAX_TEXT), description="On the back.", render_kw=_PLAIN
    )
    codes = StringField(
        "Two codes in a row",
        _filled("two codes", MAX_ANSWER),
        description="Press the button, enter the code, press again, enter the next one behind it.",
        render_kw=_CODE,
    )
    key = StringField(
        "Key", [Optional(), Length(max=MAX_ANSWER)], description="Base32, or hex: and hexadecimal.", render_kw=_PLAIN
    )


class Row(FlaskForm):  # type: ignore[misc]
    codes = StringField(
        "Two codes in a row",
        _filled("two codes", MAX_ANSWER),
        description="The code shown now, then the next one, in one line.",
        render_kw=_CODE,
    )


class Proof(_Proof):
    """Nothing but the code."""
