"""Stores: the records of all users.

Rules:
1. A store applies one function to one user's record. Changes of the same record never overlap.
2. The new record is durable before the change returns.
3. NotThere means that the store was read and has no such record. Every other error is a StoreError, which denies.
4. A store does the same work for an unknown user as for an enrolled one (`update_decoy`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from pam_totp.core.record import UNKNOWN_USER, UserRecord

R = TypeVar("R")


class StoreError(Exception):
    """The store cannot be used, for example because the disk is full or a file is not valid."""


class NotThere(Exception):
    """The store was read, and has no record of that user."""


class NoAccount(NotThere):
    """No account has that name, so the place of its file is unknown.

    The user may still be enrolled: an unreachable name service gives the same result.
    """


class Store(Protocol):
    """One record for each user. Every method may raise StoreError."""

    def read(self, user: str) -> UserRecord:
        """Return the record. Raise NotThere."""

    def update(
        self, user: str, change: Callable[[UserRecord], tuple[UserRecord | None, R]], *, create: bool = False
    ) -> R:
        """Store the record that `change` returns, and return the result that it returns.

        `change` gets the record, and returns the new record and a result. An unchanged record is not written; None
        deletes the file. If there is no record, raise NotThere or, if `create` is True, pass an empty record.
        """

    def update_decoy(self, user: str) -> None:
        """Do the same work as an `update`, for a user without a record or with an unchanged record.

        Then neither the time nor a full disk shows the difference.
        """

    def users(self) -> Iterator[str]:
        """Yield the names of the users with a record, in any order."""


def read_or_unknown(store: Store, user: str) -> UserRecord:
    """Return the record of `user`; UNKNOWN_USER if there is none. Raise StoreError."""
    try:
        return store.read(user)
    except NotThere:
        return UNKNOWN_USER
