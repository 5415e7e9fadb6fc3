"""The secrets of a store: seal all of them with the current key, or count them by their keys.

Rules:
1. The work runs as the store's owner, in a child process. Logins continue meanwhile.
2. `seal_all` first deletes the files that killed processes have left. An interrupted import must be rolled back before,
   and a running import must end, because the journal of an import has secrets too.
3. `seal_all` changes one record at a time. A second run completes the work after a kill or an error.
4. A key that is still in use must remain in the keyring.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from pam_totp.store import NotThere, SharedStore, Store, StoreError, journal, seal_key, upkeep
from pam_totp.store.file import JOURNAL, FileStore
from pam_totp.store.secret_file import exists
from pam_totp.store.stock import stock_of
from pam_totp.system.store_owner import BROKEN, Report, as_owner

OPEN = "open"  # counts of secrets that are not sealed
_SEALED, _KEYS = "sealed", "keys"  # kinds of reports
_MAX_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Sealed:
    """The result of `seal_all`: the number of changed records and entries, and the first problems."""

    changed: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Keys:
    """The number of documents by the identifier of the key that seals their secrets. OPEN counts unsealed secrets.

    `problem` is the reason of an error, or None.
    """

    by_key: dict[str, int]
    problem: str | None = None


def seal_all(location: str) -> Sealed:
    """Seal all records and the stock of the store at `location` with the current key. Return the result."""

    def work(store: Store) -> Iterator[Report]:
        assert isinstance(store, FileStore | SharedStore)
        if isinstance(store, FileStore):
            _clean_up(store)
        for user in store.users():
            try:
                if store.seal_again(user):
                    yield _SEALED, user
            except NotThere:  # another process has removed the user meanwhile
                continue
            except StoreError as e:
                yield BROKEN, str(e)
        yield from ((_SEALED, "") for _ in range(stock_of(store).seal_again()))

    reports = Counter[str]()
    problems: list[str] = []
    for kind, text in as_owner(location, work):
        reports[kind] += 1
        if kind == BROKEN and len(problems) < _MAX_PROBLEMS:
            problems.append(text)
    return Sealed(reports[_SEALED], tuple(problems))


def _clean_up(store: FileStore) -> None:
    """Delete the secrets that killed processes have left. Raise StoreError for an interrupted or a running import."""
    upkeep.delete_leftovers(store)
    with store.opened() as folder:
        if journal.is_left(folder):
            raise StoreError(f"{JOURNAL}: left by an interrupted import (run 'pam-totp doctor --repair' first)")
        if exists(folder, JOURNAL):
            raise StoreError("an import is running (try again when it has finished)")


def count_keys(location: str) -> Keys:
    """Count the documents of the store at `location` by the keys of their secrets. Open no secret."""

    def work(store: Store) -> Iterator[Report]:
        key_ids = seal_key.sealer().key_ids
        found = Counter[str]()
        assert isinstance(store, FileStore | SharedStore)
        for document in chain(store.documents(), stock_of(store).documents()):
            found.update({key or OPEN for key in key_ids(document)})
        yield _KEYS, json.dumps(found)

    by_key: dict[str, int] = {}
    problem = None
    for kind, text in as_owner(location, work):
        if kind == BROKEN:
            problem = text
        else:
            by_key = json.loads(text)
    return Keys(by_key, problem)
