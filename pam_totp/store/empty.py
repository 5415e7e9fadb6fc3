"""A store without records, for a dry run on a missing store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NoReturn

from pam_totp.store import NotThere, StoreError
from pam_totp.store.file import file_name


class EmptyStore:
    """A store without records, which refuses every change."""

    def read(self, user: str) -> NoReturn:
        file_name(user)  # raises StoreError for a name that no store accepts
        raise NotThere

    def update(self, user: str, change: object, *, create: bool = False, decoy: bool = False) -> NoReturn:
        raise StoreError("the store does not exist")

    def update_decoy(self, user: str, search: Callable[[], object]) -> NoReturn:
        raise StoreError("the store does not exist")

    def users(self) -> Iterator[str]:
        return iter(())

    def owner_of_serial(self, serial: str) -> None:
        return None
