"""Find the enrolled users of a store, in a child process that runs as the store's owner.

Rules:
- Root reads no key: the child drops its privileges first, and sends back names and errors, never a key.
- The child reports each user immediately, so a large store needs little memory.
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

_USER, _BROKEN = "user", "broken"  # the kinds of report
_MAX_BROKEN = 100  # messages about records that cannot be read; the others are only counted


@dataclass(frozen=True, slots=True)
class Enrolled:
    """The result of `find_enrolled`: the enrolled users, and the messages about records that cannot be read."""

    users: frozenset[str]
    broken: tuple[str, ...]


def find_enrolled(folder: str, among: Collection[str]) -> Enrolled:
    """Read the store at `folder`. Return the users in `among` who are enrolled, and messages about bad records."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            with open(writing, "w", encoding="ascii") as pipe:
                for report in _read_store(folder, among):
                    pipe.write(json.dumps(report) + "\n")
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
                break  # the child was killed while it wrote this line
            kind, text = json.loads(line)
            if kind == _USER:
                users.append(text)
            elif len(broken) < _MAX_BROKEN:
                broken.append(text)
            else:
                more += 1
    if os.waitpid(child, 0)[1] != 0:
        broken.append("the process that reads the records failed")
    if more:
        broken.append(f"{more} more records cannot be read")
    return Enrolled(frozenset(users), tuple(broken))


def _read_store(folder: str, among: Collection[str]) -> Iterator[tuple[str, str]]:
    try:
        become_owner_of(folder)
        store = FileStore(folder)
        for user in store.users():
            try:
                if store.read(user).enrolled and user in among:
                    yield _USER, user
            except NotThere:  # the record was removed meanwhile
                continue
            except StoreError as e:
                yield _BROKEN, str(e)
    except (StoreError, OSError) as e:
        yield _BROKEN, str(e)
