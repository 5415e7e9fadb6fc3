"""The search for the enrolled users of a store, in a process that runs as the store's owner."""

from __future__ import annotations

import pwd
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pam_totp.store import NotThere, SharedStore, Store, StoreError
from pam_totp.system.store_owner import BROKEN, Report, as_owner

_USER, _INVITED, _UNREADABLE, _STRAY, _END = "user", "invited", "unreadable", "stray", "end"  # kinds of reports
_MAX_LOOKUPS = 1000  # queries of the name service, each for a name that is missing in the list of accounts
_MAX_BROKEN = 100  # messages about unreadable records; further messages are only counted


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The result of `find_enrolled`.

    - `users`: the enrolled users.
    - `broken`: the messages about unreadable records.
    - `strays`: the names of records without an account of exactly that name.
    - `unreadable`: the users with an unreadable record.
    - `invited`: the users who are not enrolled, and have a ticket that is valid now.
    - `is_complete`: False if the store itself cannot be read.
    """

    users: frozenset[str]
    broken: tuple[str, ...]
    strays: tuple[str, ...] = ()
    unreadable: frozenset[str] = frozenset()
    is_complete: bool = True
    invited: frozenset[str] = frozenset()


def find_enrolled(location: str, among: Collection[str]) -> Enrolled:
    """Read the store at `location`. Return the users in `among` who are enrolled, and the records with a problem.

    In a database, read only the records of these users.
    """
    listed = frozenset(entry.pw_name for entry in pwd.getpwall())

    def read(store: Store) -> Iterator[Report]:
        lookups = 0
        is_shared = isinstance(store, SharedStore)
        first = next(store.users(), None)  # report an unreachable store once
        for user in among if is_shared and first is not None else store.users():
            if user not in among and user not in listed and lookups < _MAX_LOOKUPS:
                lookups += 1
                if not _has_account(user):
                    yield _STRAY, user
            try:
                record = store.read(user)
                if record.enrolled and user in among:
                    yield _USER, user
                elif user in among and record.is_invited(int(time.time())):
                    yield _INVITED, user
            except NotThere:  # another process has removed the record
                continue
            except StoreError as e:
                yield BROKEN, str(e)
                if user in among:
                    yield _UNREADABLE, user
        yield _END, ""

    users: list[str] = []
    invited: list[str] = []
    unreadable: list[str] = []
    is_complete = False
    broken: list[str] = []
    strays: list[str] = []
    more = 0
    for kind, text in as_owner(location, read):
        if kind == _USER:
            users.append(text)
        elif kind == _INVITED:
            invited.append(text)
        elif kind == _STRAY:
            strays.append(text)
        elif kind == _UNREADABLE:
            unreadable.append(text)
        elif kind == _END:
            is_complete = True
        elif len(broken) < _MAX_BROKEN:
            broken.append(text)
        else:
            more += 1
    if more:
        broken.append(f"{more} more records cannot be read")
    return Enrolled(
        frozenset(users),
        tuple(broken),
        tuple(sorted(strays)),
        frozenset(unreadable),
        is_complete,
        frozenset(invited),
    )


def _has_account(user: str) -> bool:
    """Return True if `user` is the name in a passwd entry. A login under another spelling uses this name."""
    try:
        return pwd.getpwnam(user).pw_name == user
    except (KeyError, ValueError):
        return False
