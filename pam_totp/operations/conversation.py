"""The interface between a dialogue, its user and its driver: prompts, texts and pauses.

Rules:
1. A dialogue yields each wait to its driver: the service, the helper or a test.
2. A prompt gets at most one answer. A text gets no answer.
"""

from __future__ import annotations

from pam_totp.core.lean import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import Any, TypeAlias, TypeVar

    from pam_totp.operations.verifier import UseStore

    R = TypeVar("R")

Typed = bytes | bytearray
Log: TypeAlias = "Callable[..., None]"  # verb, fields
Waits: TypeAlias = "Generator[Any, Any, R]"  # yields waits, and returns R


class Pause:
    """A wait until `seconds` have passed since the last answer. The reply is None."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds


class Conversation(Protocol):
    """The interface to the user."""

    def ask(self, prompt: str, *, echo: bool, meanwhile: UseStore | None) -> Waits[Typed | None]:
        """Show a prompt, and return the answer or None. The driver runs `meanwhile` while the user types."""

    def first_pass(self) -> Waits[Typed | None]:
        """Return the answer to the prompt of an earlier module, or None."""

    def show(self, text: str, *, error: bool) -> None:
        """Show a text, as an error or as information."""

    def hand_on(self, password: memoryview) -> None:
        """Pass `password` to later modules, as the user's answer."""
