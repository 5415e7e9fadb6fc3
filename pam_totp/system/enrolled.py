"""Find the enrolled users of a store, in a process that runs as the store's owner."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pam_totp.store import NotThere, StoreError
from pam_totp.store.file import FileStore
from pam_totp.system.store_owner import BROKEN, Report, as_owner

_USER = "user"  # the kind of a report
_MAX_BROKEN = 100  # messages about records that cannot be read; the others are only counted


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The result of `find_enrolled`: the enrolled users, and the messages about records that cannot be read."""

    users: frozenset[str]
    broken: tuple[str, ...]


def find_enrolled(folder: str, among: Collection[str]) -> Enrolled:
    """Read the store at `folder`. Return the users in `among` who are enrolled, and messages about bad records."""

    def read(store: FileStore) -> Iterator[Report]:
        for user in store.users():
            try:
                if store.read(user).enrolled and user in among:
                    yield _USER, user
            except NotThere:  # the record was removed meanwhile
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
