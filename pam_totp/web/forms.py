"""The forms: fields, hints, keyboards, and limits on the input.

Rules:
- A form reports only the shape of an input. Every user's codes have the same shapes, so such an error shows nothing
  about a token. It is not counted as a failure, and not logged.
- White space and invisible characters around a name are ignored. An answer ignores more characters (core.answer).
- Only the store decides whether an input of the right shape is correct. Its refusal has one text for all reasons.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from flask_wtf import FlaskForm
from wtforms import Field, PasswordField, SelectField, StringField
from wtforms.validators import DataRequired, Length, Optional, ValidationError

from pam_totp.core.answer import CODE_LENGTHS, MAX_ANSWER, RECOVERY_LENGTH, Answer
from pam_totp.core.fields import MAX_TEXT
from pam_totp.core.oath import ALGORITHMS

_CODE = {"inputmode": "numeric", "autocomplete": "one-time-code", "spellcheck": "false", "autocapitalize": "off"}
# A recovery code has letters, which a numeric keyboard lacks.
_CODE_WITH_LETTERS = {**_CODE, "inputmode": "text"}
# White space (str.isspace) and invisible characters that a paste may add to a name.
_AROUND = "".join(map(chr, (*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, *range(0x2000, 0x2010), 0x2028, 0x2029)))
_AROUND += "\u202f\u205f\u2060\u3000\ufeff"
_TEXT = {"autocomplete": "off", "spellcheck": "false", "autocapitalize": "off"}


_DIGITS = f"{min(CODE_LENGTHS)} to {max(CODE_LENGTHS)} digits"
NO_CODE = f"This is not a code: a code has {_DIGITS}. Codes in a row must have the same length."
NO_RECOVERY_CODE = f"This is not a recovery code: a recovery code has {RECOVERY_LENGTH} letters and digits."
NO_PROOF = f"This is not a code: a code has {_DIGITS}, and a recovery code {RECOVERY_LENGTH} letters and digits."


def _required(what: str, max_length: int) -> list[Any]:
    return [DataRequired(f"Enter {what}."), Length(max=max_length, message="This text is too long.")]


def answer_bytes(text: str | None) -> bytes:
    """Return a typed answer as bytes. A character that has no UTF-8 makes the answer malformed."""
    return (text or "").encode("utf-8", "replace")


def _is_code(answer: Answer) -> bool:
    return answer.codes(CODE_LENGTHS) is not None


def _is_recovery_code(answer: Answer) -> bool:
    return answer.recovery_code is not None


def _is_either(answer: Answer) -> bool:
    return answer.is_well_formed


def _answer(what: str, has_shape: Callable[[Answer], bool], otherwise: str) -> list[Any]:
    """Return the validators of a field for an answer. `otherwise` is the error of another shape."""

    def check(_: FlaskForm, field: Field) -> None:
        if not has_shape(Answer.parse(answer_bytes(field.data))):
            raise ValidationError(otherwise)

    return [*_required(what, MAX_ANSWER), check]


def _trimmed(text: str | None) -> str | None:
    """Return a typed name without the white space and the invisible characters around it."""
    return None if text is None else text.strip(_AROUND)


class SignInForm(FlaskForm):  # type: ignore[misc]
    user = StringField(
        "User name",
        _required("your user name", MAX_TEXT),
        filters=[_trimmed],
        render_kw={"autocomplete": "username", "autocapitalize": "off", "spellcheck": "false"},
    )
    # InputRequired is omitted, because a blank and a wrong password must get the same page after the same time.
    password = PasswordField(
        "Password", [Length(max=MAX_ANSWER)], render_kw={"autocomplete": "current-password", "required": True}
    )


class CodeForm(FlaskForm):  # type: ignore[misc]
    proof = StringField(
        "One-time code",
        _answer("the code", _is_either, NO_CODE),
        description="From your phone app or key fob. Two codes in a row also work.",
        render_kw=_CODE,
    )


class RecoveryCodeForm(FlaskForm):  # type: ignore[misc]
    """The form for a recovery code. Its field selects a full keyboard, because a recovery code has letters."""

    proof = StringField(
        "Recovery code",
        _answer("the recovery code", _is_recovery_code, NO_RECOVERY_CODE),
        description="One of the recovery codes that you saved. Each works once.",
        render_kw=_TEXT,
    )


class FormWithProof(FlaskForm):  # type: ignore[misc]
    """A form that asks for a code from a token that the user already has."""

    proof = StringField(
        "A code from a token that you already use",
        _answer("a code", _is_either, NO_PROOF),
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
        filters=[_trimmed],
        description="Choose a new name, such as “phone” or “old phone”.",
        render_kw=_TEXT,
    )


class ScanForm(FormWithProof):
    code = StringField(
        "The code that the app shows", _answer("the code that the app shows", _is_code, NO_CODE), render_kw=_CODE
    )


class Kind(StrEnum):
    """The kinds of key fobs that users can add by their key."""

    BUTTON = "at every press"
    EVERY_30_SECONDS = "every 30 seconds"
    EVERY_60_SECONDS = "every 60 seconds"

    @property
    def period(self) -> int | None:
        """The period of the codes in seconds, or None."""
        return {Kind.EVERY_30_SECONDS: 30, Kind.EVERY_60_SECONDS: 60}.get(self)


class HardwareTokenForm(FormWithProof):
    serial = StringField(
        "Serial number",
        _required("the serial number", MAX_TEXT),
        filters=[_trimmed],
        description="On the back of the key fob.",
        render_kw=_TEXT,
    )
    codes = StringField(
        "Two codes in a row",
        _answer("two codes", _is_code, NO_CODE),
        description="Enter a code and then the next code, in this field or one after the other. For the next code,"
        " press the button again or, if there is no button, wait for it.",
        render_kw=_CODE,
    )
    kind = SelectField(
        "A new code appears",
        choices=[str(kind) for kind in Kind],
        default=str(Kind.BUTTON),
        description="For a key fob with a clock, one code is enough instead of two in a row.",
    )
    digits = SelectField("Digits of a code", choices=[str(n) for n in sorted(CODE_LENGTHS)], default="6")
    algorithm = SelectField("Algorithm", choices=list(ALGORITHMS), default="SHA1")
    key = StringField(
        "Key",
        [Optional(), Length(max=MAX_ANSWER)],
        description="In Base32, or in hexadecimal with “hex:” in front.",
        render_kw=_TEXT,
    )


NEXT = {True: "press the button again", False: "wait for the next code"}  # by_button -> the way to the next code


class ResyncForm(FlaskForm):  # type: ignore[misc]
    codes = StringField("Two codes in a row", _answer("two codes", _is_code, NO_CODE), render_kw=_CODE)

    def fit(self, *, by_button: bool, is_next: bool) -> None:
        """Set the label and the hint for the kind of the token. `is_next`: the first code has arrived."""
        if is_next:
            self.codes.label.text = "The next code"
            self.codes.description = f"The first code has arrived. Now {NEXT[by_button]}, and enter it."
        else:
            how = NEXT[by_button]
            self.codes.description = f"Enter a code, {how}, and enter that too, in this field or one after the other."


class NextCodeForm(FlaskForm):  # type: ignore[misc]
    codes = StringField(
        "The next code",
        _answer("the next code", _is_code, NO_CODE),
        description="The first code has arrived. Press the button again or, if there is no button, wait for the next"
        " code.",
        render_kw=_CODE,
    )


def is_single_code(text: str | None) -> bool:
    """Return True if a typed answer is one code, not codes in a row."""
    return len(Answer.parse(answer_bytes(text)).codes(CODE_LENGTHS) or ()) == 1


class ProofForm(FormWithProof):
    """A form with the proof as its only field."""
