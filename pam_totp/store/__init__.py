"""Stores: the records of all users.

Rules:
1. A store runs one function on one user's record. No two changes of one record overlap.
2. The new record is durable before the change returns.
3. NotThere means that the store was reached and has no such record. Every other trouble is a StoreError, which denies.
4. A store does the same work for an unknown user as for an enrolled one (`update_decoy`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from pam_totp.core.record import UNKNOWN_USER, UserRecord

R = TypeVar("R")


class StoreError(Exception):
    """The store cannot be reached: the lock was not acquired in time, the disk is full, a file is not valid."""


class NotThere(Exception):
    """The store was reached, and has no record of that user."""


class NoAccount(NotThere):
    """There is no account of that name, so there is no file to look for.

    This does not prove that the user is not enrolled: a name service that cannot be reached gives the same result.
    """


class Store(Protocol):
    """One record for each user. Every method may raise StoreError."""

    def read(self, user: str) -> UserRecord:
        """Return the record. Raise NotThere."""

    def update(
        self, user: str, change: Callable[[UserRecord], tuple[UserRecord | None, R]], *, create: bool = False
    ) -> R:
        """Store the record that `change` returns, and return the result that it returns.

        `change` gets the record and returns another and a result. An unchanged record is not written; None deletes it.
        Raise NotThere, unless `create` is True: then the first record is empty.
        """

    def update_decoy(self, user: str) -> None:
        """Do the work of an `update`, if `user` has no record or its record does not change.

        Then neither time nor a full disk shows that.
        """

    def users(self) -> Iterator[str]:
        """Yield the names of the users who have a record, in no order."""


def read_or_unknown(store: Store, user: str) -> UserRecord:
    """Return the record of `user`; UNKNOWN_USER if there is none. Raise StoreError."""
    try:
        return store.read(user)
    except NotThere:
        return UNKNOWN_USER
