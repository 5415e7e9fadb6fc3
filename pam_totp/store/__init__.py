"""The interface of a store, which holds the records of all users.

Rules:
1. `update` applies a function to one user's record. Two updates of the same record never overlap.
2. The new record is durable before `update` returns.
3. NotThere means that the store was read and has no record of the user. Every other error is a StoreError, and the
   login is denied.
4. Two users never have tokens with the same serial number (`core.serials`): `update` raises SerialTaken.
5. Except in `HomeStore`, `update_decoy` does the same work for an unknown user as `update` for an enrolled user.
"""

from __future__ import annotations

from pam_totp.core.lean import TYPE_CHECKING, Protocol
from pam_totp.core.record import UNKNOWN_USER, UserRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeVar

    from pam_totp.store.batch import Change, Changes, Progress

    R = TypeVar("R")


class StoreError(Exception):
    """The store cannot be used, for example because the disk is full or a file is not valid."""


class DamagedFile(StoreError):
    """A file has an invalid content or mode. Without its lock, a reader may find content that is being written."""


class LockBusy(StoreError):
    """The lock was not acquired in time. Nothing has changed, so the call can be repeated."""


class SerialTaken(StoreError):
    """Another user, `owner`, has a token with this serial number. Nothing has changed."""

    def __init__(self, serial: str, owner: str) -> None:
        super().__init__(f"{owner} has the token with the serial number {serial}")
        self.serial, self.owner = serial, owner


class NotThere(Exception):
    """The store was read, and has no record of that user."""


class NoAccount(NotThere):
    """No account was found for the user name, so the path of the user's file is unknown.

    The user may still be enrolled: if the name service cannot be reached, no account is found either.
    """


class Store(Protocol):
    """A store with at most one record for each user. Every method may raise StoreError."""

    def read(self, user: str) -> UserRecord:
        """Return the record of `user`. Raise NotThere if there is none."""

    def update(
        self,
        user: str,
        change: Callable[[UserRecord], tuple[UserRecord | None, R]],
        *,
        create: bool = False,
        decoy: bool = False,
    ) -> R:
        """Replace the record of `user` by the first value that `change` returns, and return the second value.

        `change` gets the old record. An unchanged record is not written; with `decoy`, a decoy is written instead,
        under the same lock. If `change` returns None, the record is deleted. If `user` has no record, `change` gets an
        empty record if `create` is True; otherwise raise NotThere. A SharedStore may call `change` more than once; the
        last call counts.
        """

    def update_decoy(self, user: str, search: Callable[[], object]) -> None:
        """Do the work of an `update` with `search` in place of `change`, but change no record.

        Callers use it if a record is missing: the time of an answer and a full disk must not reveal this.
        """

    def users(self) -> Iterator[str]:
        """Yield the names of all users with a record, in any order."""

    def owner_of_serial(self, serial: str) -> str | None:
        """Return the owner of the token with this serial number, or None. It takes less than 50 ms."""


class SharedStore:
    """A store that several hosts use. Decisions use its clock, because the clocks of the hosts may differ."""

    def now(self) -> int:
        """Return the time in Unix seconds, by the clock that was read with the last record."""
        raise NotImplementedError

    def read_many(self, users: Sequence[str]) -> Iterator[tuple[str, UserRecord | StoreError]]:
        """Yield the users with a record, in the given order, each with the record or the error of its reading."""
        raise NotImplementedError

    def update_many(
        self, changes: Changes[R], progress: Progress, taken: Callable[[Change[R], SerialTaken], R] | None = None
    ) -> list[R]:
        """Do the same as `batch.update_many`."""
        raise NotImplementedError


def clock_of(store: Store | SharedStore, now: Callable[[], int]) -> Callable[[], int]:
    """Return the clock for decisions on records of `store`: its own clock, or `now` if it has none."""
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
    """Return the record of `user`, or UNKNOWN_USER if there is none. Raise StoreError."""
    try:
        return store.read(user)
    except NotThere:
        return UNKNOWN_USER
