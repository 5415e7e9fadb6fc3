"""The second step of a sign-in: the portal checks the code in its own store, or asks the service on this host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pam_totp import client
from pam_totp.core.verify import Decision, Earlier, Outcome
from pam_totp.operations.authenticate import recovery_left
from pam_totp.operations.self_service import Asking, Factors
from pam_totp.web.texts import gettext, ngettext


@dataclass(frozen=True, slots=True)
class CodeResult:
    """The result of a check. `messages` are for the user, after an accepted code.

    `earlier` are the refused answers for the check of the next answer, so that two answers can be codes in a row.
    `is_ticket` is True for the user's ticket, which is not accepted: its owner must confirm the token.
    """

    accepted: bool
    messages: tuple[str, ...] = ()
    earlier: Earlier = Earlier.NONE
    is_ticket: bool = False


class SecondFactor(Protocol):
    """The interface for checking the second factor, a code."""

    def is_required(self, user: str) -> bool:
        """Return True if the user must also enter a code."""

    def verify(self, asking: Asking, earlier: Earlier) -> CodeResult:
        """Check a code after the `earlier` answers of this sign-in, use up a right code, and return the result."""


class StoreFactor:
    """The check of codes in the portal's own store. A user with a token needs a code."""

    def __init__(self, factors: Factors) -> None:
        self._factors = factors

    def is_required(self, user: str) -> bool:
        return self._factors.of(user).enrolled

    def verify(self, asking: Asking, earlier: Earlier) -> CodeResult:
        decision, following = self._factors.answer(asking, earlier)
        is_ticket = decision.outcome is Outcome.TICKET
        return CodeResult(decision.outcome.accepted, tuple(_remarks(decision)), following, is_ticket)


def _remarks(decision: Decision) -> Iterator[str]:
    """Yield the messages of operations.authenticate.remarks, as sentences in the user's language."""
    if decision.outcome is Outcome.TEMPORARY:
        yield gettext("You signed in with a temporary code, which is used up now.")
    left = recovery_left(decision)
    if left is not None:
        yield gettext("Recovery code used, %(left)d left.", left=left)
    if decision.refused_before:
        yield ngettext(
            "%(num)d answer was refused since the last login.",
            "%(num)d answers were refused since the last login.",
            decision.refused_before,
        )


class ServiceFactor:
    """The check of codes through the service. Every user needs a code, because the portal cannot list the enrolled
    users.

    `verify` raises client.ClientError if the service cannot check the code. Codes in a row must be in one answer,
    because the service keeps the answers of one connection only.
    """

    def __init__(self, service: str, path: str) -> None:
        self._service = service
        self._path = path

    def is_required(self, user: str) -> bool:
        return True

    def verify(self, asking: Asking, earlier: Earlier) -> CodeResult:
        outcome = client.verify(asking.user, asking.proof, service=self._service, rhost=asking.rhost, path=self._path)
        return CodeResult(outcome.accepted, tuple(map(_sentence, outcome.messages)))


def _sentence(text: str) -> str:
    """Return a message of the service, in English, as a sentence: with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
