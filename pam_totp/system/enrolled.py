"""Find the enrolled users of a store, as the store's owner."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pam_totp.store import NotThere, StoreError
from pam_totp.store.file import FileStore
from pam_totp.system.store_owner import BROKEN, Report, as_owner

_USER = "user"  # the kind of a report
_MAX_BROKEN = 100  # records: a larger number has a common cause


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The enrolled users among the given ones, and the problems of records that cannot be read."""

    users: frozenset[str]
    broken: tuple[str, ...]


def find_enrolled(folder: str, among: Collection[str]) -> Enrolled:
    """Read the store at `folder`. Return the enrolled users in `among`, and every record that cannot be read."""

    def read(store: FileStore) -> Iterator[Report]:
        for user in store.users():
            try:
                if store.read(user).enrolled and user in among:
                    yield _USER, user
            except NotThere:  # removed in the meantime
                continue
            except StoreError as e:
                yield BROKEN, str(e)

    users: list[str] = []
    broken: list[str] = []
    more = 0
    for kind, text in as_owner(folder, read):
        if kind == _USER:
            users.append(text)
        elif len(broken) < _MAX_BROKEN:
            broken.append(text)
        else:
            more += 1
    if more:
        broken.append(f"{more} more records cannot be read")
    return Enrolled(frozenset(users), tuple(broken))
