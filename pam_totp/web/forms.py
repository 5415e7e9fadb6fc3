"""The forms: fields, hints, keyboards, and limits on the input.

Rules:
- A form reports only the shape of an input. Every user's codes have the same shapes, so an error about the shape
  shows nothing about a token. The log and the count of failures ignore the error.
- A form ignores white space and invisible characters around a name. `core.answer` ignores more characters in an answer.
- Only the store or the service decides whether an input of the right shape is correct. On a form of the sign-in, a
  refusal has one text for all reasons.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import wtforms
from flask_wtf import FlaskForm
from wtforms import Field, PasswordField, RadioField, SelectField, StringField
from wtforms.validators import DataRequired, Length, Optional, ValidationError

from pam_totp.core import fields
from pam_totp.core.answer import CODE_LENGTHS, MAX_ANSWER, RECOVERY_LENGTH, Answer
from pam_totp.core.fields import MAX_TEXT
from pam_totp.core.oath import ALGORITHMS
from pam_totp.operations.self_service import Problem, Reason
from pam_totp.web import texts
from pam_totp.web.texts import gettext, lazy_gettext

_CODE = {"inputmode": "numeric", "autocomplete": "one-time-code", "spellcheck": "false", "autocapitalize": "off"}
# A recovery code has letters, which a numeric keyboard lacks.
_CODE_WITH_LETTERS = {**_CODE, "inputmode": "text"}
# White space (str.isspace) and invisible characters that a paste may add to a name.
_AROUND = "".join(map(chr, (*range(9, 14), *range(28, 33), 0x85, 0xA0, 0x1680, *range(0x2000, 0x2010), 0x2028, 0x2029)))
_AROUND += "\u202f\u205f\u2060\u3000\ufeff"
_TEXT = {"autocomplete": "off", "spellcheck": "false", "autocapitalize": "off"}


def no_code() -> str:
    return gettext(
        "A code has %(least)d to %(most)d digits. Codes in a row must have the same length.",
        least=min(CODE_LENGTHS),
        most=max(CODE_LENGTHS),
    )


def no_recovery_code() -> str:
    return gettext("A recovery code has %(length)d letters and digits.", length=RECOVERY_LENGTH)


def no_ticket() -> str:
    return gettext("A ticket has %(length)d letters and digits.", length=RECOVERY_LENGTH)


def no_long_code() -> str:
    return gettext(
        "Recovery codes, temporary codes and tickets have %(length)d letters and digits.",
        length=RECOVERY_LENGTH,
    )


def no_proof() -> str:
    return gettext(
        "A code has %(least)d to %(most)d digits, and a recovery code %(length)d letters and digits.",
        least=min(CODE_LENGTHS),
        most=max(CODE_LENGTHS),
        length=RECOVERY_LENGTH,
    )


def _required(request: str, max_length: int) -> list[Any]:
    """Return the validators of a required field. `request` is the error of an empty field."""
    return [DataRequired(request), Length(max=max_length, message=lazy_gettext("This text is too long."))]


def answer_bytes(text: str | None) -> bytes:
    """Return `text`, a typed answer, as bytes. A lone surrogate, which UTF-8 cannot encode, becomes `?`, so that the
    answer is malformed.
    """
    return (text or "").encode("utf-8", "replace")


def _is_code(answer: Answer) -> bool:
    return answer.codes(CODE_LENGTHS) is not None


def _is_recovery_code(answer: Answer) -> bool:
    return answer.recovery_code is not None


def _is_either(answer: Answer) -> bool:
    return answer.is_well_formed


def _answer(request: str, has_shape: Callable[[Answer], bool], otherwise: Callable[[], str]) -> list[Any]:
    """Return the validators of a field for an answer. `otherwise` returns the error for an answer of another shape."""

    def check(_: FlaskForm, field: Field) -> None:
        if not has_shape(Answer.parse(answer_bytes(field.data))):
            raise ValidationError(otherwise())

    return [*_required(request, MAX_ANSWER), check]


def _is_printable(_: FlaskForm, field: Field) -> None:
    """Raise ValidationError if a record would refuse the name."""
    if fields.text(field.data) is not None:
        raise ValidationError(texts.of_problem(Problem(field.name, Reason.INVALID_NAME)))


def _trimmed(text: str | None) -> str | None:
    """Return `text`, a typed name, without the white space and the invisible characters around it."""
    return None if text is None else text.strip(_AROUND)


class SignInForm(FlaskForm):  # type: ignore[misc]
    user = StringField(
        lazy_gettext("User name"),
        _required(lazy_gettext("Enter your user name."), MAX_TEXT),
        filters=[_trimmed],
        render_kw={"autocomplete": "username", "autocapitalize": "off", "spellcheck": "false"},
    )
    # InputRequired is omitted, because a blank and a wrong password must get the same page after the same time.
    password = PasswordField(
        lazy_gettext("Password"),
        [Length(max=MAX_ANSWER, message=lazy_gettext("This text is too long."))],
        render_kw={"autocomplete": "current-password", "required": True},
    )


class CodeForm(FlaskForm):  # type: ignore[misc]
    proof = StringField(
        lazy_gettext("One-time code"),
        _answer(lazy_gettext("Enter the code."), _is_either, no_code),
        description=lazy_gettext("From your phone app or key fob. Two codes in a row also work."),
        render_kw=_CODE,
    )


class RecoveryCodeForm(FlaskForm):  # type: ignore[misc]
    """The form for a recovery code. Its field selects a full keyboard, because a recovery code has letters."""

    proof = StringField(
        lazy_gettext("Recovery code"),
        _answer(lazy_gettext("Enter the recovery code."), _is_recovery_code, no_recovery_code),
        description=lazy_gettext(
            "One of the recovery codes that you saved. Each works once. A temporary code of your help desk works, too."
        ),
        render_kw=_TEXT,
    )


class TicketForm(FlaskForm):  # type: ignore[misc]
    """The form that begins the guided enrolment with a ticket."""

    proof = StringField(
        lazy_gettext("Enrolment ticket"),
        _answer(lazy_gettext("Enter the ticket."), _is_recovery_code, no_ticket),
        description=lazy_gettext("The letters and digits that your administrator or help desk gave you."),
        render_kw=_TEXT,
    )


class LostPhoneForm(FlaskForm):  # type: ignore[misc]
    """The form that begins the guided enrolment of a user with a token. `lost` is the name of the lost token."""

    lost = RadioField(lazy_gettext("What have you lost?"), validate_choice=False)
    proof = StringField(
        lazy_gettext("Recovery code, temporary code or ticket"),
        _answer(lazy_gettext("Enter one of these codes."), _is_recovery_code, no_long_code),
        description=lazy_gettext(
            "One of the recovery codes that you saved, or what your administrator or help desk gave you."
        ),
        render_kw=_TEXT,
    )

    def offer(self, names: list[str]) -> None:
        """Offer `names`, and all of them, as choices of `lost`. Remove the field if there are fewer than 2 names."""
        if len(names) < 2:
            del self.lost
            return
        self.lost.choices = [(name, name) for name in names] + [(EVERYTHING, gettext("All of them"))]
        if self.lost.data not in [value for value, _ in self.lost.choices]:
            self.lost.data = names[0]


EVERYTHING = ""  # the choice of all tokens; no token has this name


class FirstCodeForm(FlaskForm):  # type: ignore[misc]
    """The form of the guided enrolment for the first code of the new token."""

    code = StringField(
        lazy_gettext("The code that the app shows"),
        _answer(lazy_gettext("Enter the code that the app shows."), _is_code, no_code),
        render_kw=_CODE,
    )

    def fit(self, *, is_fob: bool, by_button: bool, is_next: bool) -> None:
        """Set the label and the hint. `is_next` is True if the first of two codes has arrived."""
        if is_next:
            self.code.label.text = gettext("The next code")
            self.code.description = NEXT_HINT[by_button]
        elif is_fob:
            self.code.label.text = gettext("The code that the key fob shows")
            self.code.description = gettext("Press the button of the key fob.") if by_button else ""


class FormWithProof(FlaskForm):  # type: ignore[misc]
    """A form that asks for a code from a token that the user already has."""

    proof = StringField(
        lazy_gettext("A code from a token that you already use"),
        _answer(lazy_gettext("Enter a code."), _is_either, no_proof),
        render_kw=_CODE_WITH_LETTERS,
    )

    def remove_proof(self) -> None:
        """Remove the field `proof`, for a user without a token."""
        del self.proof


class NameForm(FlaskForm):  # type: ignore[misc]
    name = StringField(
        lazy_gettext("Name"),
        [*_required(lazy_gettext("Enter a name."), MAX_TEXT), _is_printable],
        filters=[_trimmed],
        description=lazy_gettext("Choose a new name, such as “phone” or “old phone”."),
        render_kw=_TEXT,
    )


class ScanForm(FormWithProof):
    code = StringField(
        lazy_gettext("The code that the app shows"),
        _answer(lazy_gettext("Enter the code that the app shows."), _is_code, no_code),
        render_kw=_CODE,
    )


class Kind(StrEnum):
    """The kinds of key fobs that users can add by their key."""

    BUTTON = "at every press"
    EVERY_30_SECONDS = "every 30 seconds"
    EVERY_60_SECONDS = "every 60 seconds"

    @property
    def period(self) -> int | None:
        """Return the period of the codes in seconds, or None for a key fob with a button."""
        return {Kind.EVERY_30_SECONDS: 30, Kind.EVERY_60_SECONDS: 60}.get(self)


KINDS = {
    Kind.BUTTON: lazy_gettext("at every press"),
    Kind.EVERY_30_SECONDS: lazy_gettext("every 30 seconds"),
    Kind.EVERY_60_SECONDS: lazy_gettext("every 60 seconds"),
}


def _choice(value: str, label: str) -> Any:
    """Return a choice of a SelectField. WTForms before version 3.3 takes pairs."""
    make = getattr(wtforms.fields, "SelectChoice", None)
    return (value, label) if make is None else make(value, label)


class HardwareTokenForm(FormWithProof):
    serial = StringField(
        lazy_gettext("Serial number"),
        [*_required(lazy_gettext("Enter the serial number."), MAX_TEXT), _is_printable],
        filters=[_trimmed],
        description=lazy_gettext("On the back of the key fob."),
        render_kw=_TEXT,
    )
    codes = StringField(
        lazy_gettext("Two codes in a row"),
        _answer(lazy_gettext("Enter two codes."), _is_code, no_code),
        description=lazy_gettext(
            "Enter a code and then the next code, in this field or one after the other. For the next code, press the"
            " button again, or wait if there is no button."
        ),
        render_kw=_CODE,
    )
    kind = SelectField(
        lazy_gettext("A new code appears"),
        choices=[_choice(str(kind), text) for kind, text in KINDS.items()],
        default=str(Kind.BUTTON),
        description=lazy_gettext("For a key fob with a clock, one code is enough instead of two in a row."),
    )
    digits = SelectField(lazy_gettext("Digits of a code"), choices=[str(n) for n in sorted(CODE_LENGTHS)], default="6")
    algorithm = SelectField(lazy_gettext("Algorithm"), choices=list(ALGORITHMS), default="SHA1")
    key = StringField(
        lazy_gettext("Key"),
        [Optional(), Length(max=MAX_ANSWER, message=lazy_gettext("This text is too long."))],
        description=lazy_gettext("In Base32, or in hexadecimal with “hex:” in front."),
        render_kw=_TEXT,
    )


FIRST_HINT = {  # by_button -> the hint of the field for both codes
    True: lazy_gettext(
        "Enter a code, press the button again, and enter the new code too, in this field or one after the other."
    ),
    False: lazy_gettext(
        "Enter a code, wait for the next code, and enter this code too, in this field or one after the other."
    ),
}
NEXT_HINT = {  # by_button -> the hint of the field for the second code
    True: lazy_gettext("The first code has arrived. Now press the button again, and enter the new code."),
    False: lazy_gettext("The first code has arrived. Now wait for the next code, and enter that code."),
}


class ResyncForm(FlaskForm):  # type: ignore[misc]
    codes = StringField(
        lazy_gettext("Two codes in a row"),
        _answer(lazy_gettext("Enter two codes."), _is_code, no_code),
        render_kw=_CODE,
    )

    def fit(self, *, by_button: bool, is_next: bool) -> None:
        """Set the label and the hint for the kind of the token. `is_next` is True if the first code has arrived."""
        if is_next:
            self.codes.label.text = gettext("The next code")
        self.codes.description = (NEXT_HINT if is_next else FIRST_HINT)[by_button]


class NextCodeForm(FlaskForm):  # type: ignore[misc]
    codes = StringField(
        lazy_gettext("The next code"),
        _answer(lazy_gettext("Enter the next code."), _is_code, no_code),
        description=lazy_gettext(
            "The first code has arrived. Press the button again, or wait for the next code if there is no button."
        ),
        render_kw=_CODE,
    )


def is_single_code(text: str | None) -> bool:
    """Return True if `text` is one code, not codes in a row."""
    return len(Answer.parse(answer_bytes(text)).codes(CODE_LENGTHS) or ()) == 1


def _valid_for(times: Mapping[str, Any], default: str) -> SelectField:
    """Return the field for the time until a code or a ticket expires. `times` has the text of each value."""
    choices = [_choice(value, text) for value, text in times.items()]
    return SelectField(lazy_gettext("Valid for"), choices=choices, default=default)


class TemporaryForm(FormWithProof):
    valid = _valid_for(
        {
            "1": lazy_gettext("1 hour"),
            "4": lazy_gettext("4 hours"),
            "8": lazy_gettext("8 hours"),
            "24": lazy_gettext("24 hours"),
        },
        default="4",
    )


class NewTicketForm(FormWithProof):
    valid = _valid_for(
        {
            "1": lazy_gettext("1 day"),
            "7": lazy_gettext("7 days"),
            "14": lazy_gettext("14 days"),
            "30": lazy_gettext("30 days"),
        },
        default="7",
    )


class AssignForm(FormWithProof):
    serial = StringField(
        lazy_gettext("Serial number"),
        [*_required(lazy_gettext("Enter the serial number."), MAX_TEXT), _is_printable],
        filters=[_trimmed],
        description=lazy_gettext("On the back of the key fob."),
        render_kw=_TEXT,
    )


class ReplaceForm(FormWithProof):
    serial = StringField(
        lazy_gettext("Serial number of the new key fob"),
        [*_required(lazy_gettext("Enter the serial number."), MAX_TEXT), _is_printable],
        filters=[_trimmed],
        description=lazy_gettext("On the back of the key fob."),
        render_kw=_TEXT,
    )
    lost = SelectField(
        lazy_gettext("The old key fob"),
        choices=[
            _choice("no", lazy_gettext("came back: put it into the stock")),
            _choice("yes", lazy_gettext("is lost: remove it")),
        ],
        default="no",
    )


class ProofForm(FormWithProof):
    """A form with the proof as its only field."""
