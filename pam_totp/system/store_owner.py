"""A child process that works on files as their owner, such as the files of a store.

Rules:
- Root reads no key of a user, and only opens the keyring of a sealed store (`seal_key`). The child drops its privileges
  first, and sends names and errors, never a key.
- The child sends each report immediately, so a large store needs little memory.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial

from pam_totp.core.settings import is_database
from pam_totp.pam.privileges import become_account, become_owner_of
from pam_totp.store import Store, StoreError, seal_key
from pam_totp.store.locations import opened

ACCOUNT = "pam_totp"  # the account that reads a database for root
BROKEN = "broken"  # the kind of a report about a store or a record that cannot be read

Report = tuple[str, str]  # kind, text


def as_owner(location: str, work: Callable[[Store], Iterator[Report]]) -> Iterator[Report]:
    """Run `work` in a child process as the owner of the folder `location`, or as ACCOUNT for a database.

    Yield the reports of `work`, and a report BROKEN for an error.
    """
    seal_key.hold()
    return _from_child(lambda: _reports(location, work))


def as_owner_of(folder: str, work: Callable[[], Iterator[Report]]) -> Iterator[Report]:
    """Run `work` in a child process as the owner of `folder`. Yield the reports of `work`, and BROKEN for an error.

    The caller imports the modules of `work` before, because the owner may lack access to the files of these modules.
    """
    return _from_child(lambda: _reports_of(partial(become_owner_of, folder), work))


def as_account(account: str, work: Callable[[], Iterator[Report]]) -> Iterator[Report]:
    """Run `work` in a child process as `account`, or as the present account if `account` does not exist.

    Yield the reports of `work`, and BROKEN for an error.
    """
    return _from_child(lambda: _reports_of(partial(become_account, account), work))


def _reports_of(become: Callable[[], None], work: Callable[[], Iterator[Report]]) -> Iterator[Report]:
    try:
        become()
        yield from work()
    except (StoreError, OSError) as e:
        yield BROKEN, str(e)


def _from_child(reports: Callable[[], Iterator[Report]]) -> Iterator[Report]:
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            with open(writing, "w", encoding="ascii") as pipe:
                for report in reports():
                    pipe.write(json.dumps(report) + "\n")
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, encoding="ascii") as pipe:
        for line in pipe:
            if not line.endswith("\n"):
                break  # the child was killed while it wrote this line
            kind, text = json.loads(line)
            yield kind, text
    if os.waitpid(child, 0)[1] != 0:
        yield BROKEN, "the process that reads the records failed"


def _reports(location: str, work: Callable[[Store], Iterator[Report]]) -> Iterator[Report]:
    try:
        if is_database(location):
            store = opened(location)  # load psycopg while this process can still read any folder
            become_account(ACCOUNT)
        else:
            become_owner_of(location)
            store = opened(location)
        yield from work(store)
    except (StoreError, OSError) as e:
        yield BROKEN, str(e)
