"""Who is enrolled, asked by a child that has become the store's owner: no key comes back, and root reads none.

The child says what it finds as it finds it, so that of a large store nothing is held but what was asked for.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from pam_totp.pam.privileges import become_owner_of
from pam_totp.store import NotThere, StoreError
from pam_totp.store.file import FileStore

_USER, _BROKEN = "user", "broken"
_MOST_BROKEN = 100  # records: who has more has one cause for all of them


@dataclass(frozen=True, slots=True)
class Enrolled:
    """Those of the users asked about who have a confirmed token, and what is wrong with the records that cannot be
    read."""

    users: frozenset[str]
    broken: tuple[str, ...]


def enrolled(folder: str, among: Collection[str]) -> Enrolled:
    """Look through the store at `folder`, for `among` and for records that cannot be read."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            with open(writing, "w", encoding="ascii") as pipe:
                for said in _look(folder, among):
                    pipe.write(json.dumps(said) + "\n")
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    users: list[str] = []
    broken: list[str] = []
    more = 0
    with open(reading, encoding="ascii") as pipe:
        for line in pipe:
            if not line.endswith("\n"):
                break  # it was killed while it said that
            what, text = json.loads(line)
            if what == _USER:
                users.append(text)
            elif len(broken) < _MOST_BROKEN:
                broken.append(text)
            else:
                more += 1
    if os.waitpid(child, 0)[1] != 0:
        broken.append("cannot be looked through")
    if more:
        broken.append(f"and {more} records more that cannot be read")
    return Enrolled(frozenset(users), tuple(broken))


def _look(folder: str, among: Collection[str]) -> Iterator[tuple[str, str]]:
    try:
        become_owner_of(folder)
        store = FileStore(folder)
        for user in store.users():
            try:
                if store.read(user).enrolled and user in among:
                    yield _USER, user
            except NotThere:  # removed meanwhile
                continue
            except StoreError as e:
                yield _BROKEN, str(e)
    except (StoreError, OSError) as e:
        yield _BROKEN, str(e)
