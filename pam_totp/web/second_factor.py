"""The second step of a sign-in: by the store, where the portal is its owner, or by the service on this host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pam_totp import client
from pam_totp.operations.authenticate import remarks
from pam_totp.operations.self_service import Asking, Factors


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether a code was accepted, and what the person is told then."""

    accepted: bool
    remarks: tuple[str, ...] = ()


class SecondStep(Protocol):
    """Where codes are looked at."""

    def needed(self, user: str) -> bool:
        """Whether the password alone is not enough."""

    def answer(self, asking: Asking) -> Answer:
        """Look at a code, and use it up."""


class ByStore:
    """A code is needed by those who have a token."""

    def __init__(self, factors: Factors) -> None:
        self._factors = factors

    def needed(self, user: str) -> bool:
        return self._factors.of(user).enrolled

    def answer(self, asking: Asking) -> Answer:
        decision = self._factors.answer(asking)
        return Answer(decision.outcome.accepted, tuple(remarks(decision)))


class ByService:
    """A code is needed by everybody: who has a token is not for us to know. Raises client.ClientError."""

    def __init__(self, service: str, path: str) -> None:
        self._service = service
        self._path = path

    def needed(self, user: str) -> bool:
        return True

    def answer(self, asking: Asking) -> Answer:
        outcome = client.verify(asking.user, asking.proof, service=self._service, rhost=asking.rhost, path=self._path)
        return Answer(outcome.accepted, outcome.messages)
