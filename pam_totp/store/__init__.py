"""Where records live. A store runs one function on one user's record atomically, and durably before it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from pam_totp.core.record import UserRecord

R = TypeVar("R")


class StoreError(Exception):
    """The store is out of reach: a lock not had in time, a full disk, a file that is not as it should be."""


class NotThere(Exception):
    """The store is in order, and has no record of that user."""


class NoAccount(NotThere):
    """There is no account whose file could have been looked for: not what proves that somebody is not enrolled, as a
    name service that is out of reach says the same."""


class Store(Protocol):
    """One record a user. Every method may raise StoreError."""

    def read(self, user: str) -> UserRecord:
        """The record as it is now. Raises NotThere."""

    def update(
        self, user: str, change: Callable[[UserRecord], tuple[UserRecord | None, R]], *, create: bool = False
    ) -> R:
        """Replace the record by what `change` makes of it, and return the other half of what it returns.

        No two changes of one user's record overlap, and the new record is durable before this returns. One that
        `change` returns as it was is not written; None deletes it. Raises NotThere, unless `create` starts an empty
        one.
        """

    def update_nobody(self, user: str) -> None:
        """Do the work of an `update` of `user`, where there is no such record or nothing to change in it, so that
        neither time nor a full disk tells of that."""

    def users(self) -> Iterator[str]:
        """The names of those who have a record, in no order."""
