"""The interface of a store, which holds the records of all users.

Rules:
1. `update` applies a function to one user's record. Two updates of the same record never overlap.
2. The new record is durable before `update` returns.
3. NotThere means that the store was read and has no record of the user. Every other error is a StoreError, which denies
   the login.
4. A serial number belongs to the token of one user only (`core.serials`). `update` raises SerialTaken for a serial
   number that another user or the stock has.
5. `update_decoy` does the same work for an unknown user as `update` for an enrolled user, except in `HomeStore`.
"""

from __future__ import annotations

from pam_totp.core.lean import TYPE_CHECKING, Protocol
from pam_totp.core.record import UNKNOWN_USER, UserRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    from pam_totp.store.bulk import Change, Changes, Progress
    from pam_totp.store.stock import Stock

    R = TypeVar("R")


class StoreError(Exception):
    """The error of a failed use of the store, for example because the disk is full or a file is damaged."""


class DamagedFile(StoreError):
    """The error for a file with invalid content or mode. A write can cause this error in a reader without the lock."""


class LockBusy(StoreError):
    """The error for a lock that was not acquired in time. The caller can try again, because the store is unchanged."""


class SerialTaken(StoreError):
    """The error for a serial number of another user, `owner`, or of a token in stock (None). The store is unchanged."""

    def __init__(self, serial: str, owner: str | None) -> None:
        token = f"the token with the serial number {serial}"
        super().__init__(f"{token} is in stock" if owner is None else f"{owner} has {token}")
        self.serial, self.owner = serial, owner


class NotThere(Exception):
    """The error for a user without a record."""


class NoAccount(NotThere):
    """The error for a user name without an account. The path of the user's file is then unknown.

    The user might be enrolled nevertheless, because this error also occurs if the name service cannot be reached.
    """


class Codec(Protocol):
    """The seal of a store: it encrypts the secrets of each document that the store writes (`seal`).

    `owner` is the user, or `stock.owner_of` of a serial number.
    """

    def open(self, document: bytes, owner: str, source: str) -> bytes:
        """Return the document with readable secrets. Raise StoreError with a message that begins with `source`."""

    def seal(self, document: bytes, owner: str) -> bytes:
        """Return the document with sealed secrets. A secret keeps its sealed text until the key changes."""

    def is_current(self, document: bytes) -> bool:
        """Return True if all secrets are sealed with the current key."""

    def exercise(self) -> None:
        """Do the work of `open` and `seal` for one token, on behalf of an unknown user."""


class Store(Protocol):
    """A store with at most one record for each user. Every method may raise StoreError."""

    def read(self, user: str) -> UserRecord:
        """Return the record of `user`. Raise NotThere if it is missing."""

    def update(
        self,
        user: str,
        change: Callable[[UserRecord], tuple[UserRecord | None, R]],
        *,
        create: bool = False,
        decoy: bool = False,
    ) -> R:
        """Replace the record of `user` by the first value that `change` returns, and return the second value.

        The argument of `change` is the old record. Do not write an unchanged record; with `decoy`, write a decoy
        instead, under the same lock. Delete the record if the first value is None. Raise NotThere for a user
        without a record if `create` is False; otherwise call `change` with an empty record. A SharedStore may call
        `change` more than once, and uses the result of the last call.
        """

    def update_decoy(self, user: str, search: Callable[[], object]) -> None:
        """Do the work of an `update` with `search` in place of `change`, but leave all records unchanged. Callers use
        this method for a missing record, which the response time and a full disk must not reveal.
        """

    def users(self) -> Iterator[str]:
        """Yield the names of all users with a record, in any order."""

    def owner_of_serial(self, serial: str) -> str | None:
        """Return the owner of the token with the serial number `serial`, or None, within 50 ms."""


class SharedStore:
    """A store that several hosts use. Decisions use the store's clock, because the clocks of the hosts can differ.

    `codec` seals the secrets.
    """

    codec: Codec | None = None

    def now(self) -> int:
        """Return the time (Unix seconds) of the store's clock, which was read with the last record."""
        raise NotImplementedError

    def read_many(self, users: Sequence[str]) -> Iterator[tuple[str, UserRecord | StoreError]]:
        """Yield the users with a record, in the given order, each with the record or the error of its reading."""
        raise NotImplementedError

    def update_many(
        self, changes: Changes[R], progress: Progress, on_taken: Callable[[Change[R], SerialTaken], R] | None = None
    ) -> list[R]:
        """Do the same as `bulk.update_many`."""
        raise NotImplementedError

    def stock(self) -> Stock:
        """Return the stock of tokens."""
        raise NotImplementedError

    def seal_again(self, user: str) -> bool:
        """Do the same as `FileStore.seal_again`."""
        raise NotImplementedError

    def a_secret(self) -> bytes:
        """Return the document of any record with a secret; b"" if there is none."""
        raise NotImplementedError

    def documents(self) -> Iterator[bytes]:
        """Do the same as `FileStore.documents`."""
        raise NotImplementedError


def clock_of(store: Store | SharedStore, now: Callable[[], int]) -> Callable[[], int]:
    """Return the clock for decisions on records of `store`: the store's clock, or `now` if the store has no clock."""
    return store.now if isinstance(store, SharedStore) else now


def read_each(store: Store, users: Sequence[str]) -> Iterator[tuple[str, UserRecord | StoreError]]:
    """Yield the users with a record, in the given order, each with the record or the error of its reading."""
    if isinstance(store, SharedStore):
        yield from store.read_many(users)
        return
    for user in users:
        try:
            yield user, store.read(user)
        except NotThere:  # the user was removed meanwhile
            continue
        except StoreError as e:
            yield user, e


def read_or_unknown(store: Store, user: str) -> UserRecord:
    """Return the record of `user`, or UNKNOWN_USER if it is missing. Raise StoreError."""
    try:
        return store.read(user)
    except NotThere:
        return UNKNOWN_USER
