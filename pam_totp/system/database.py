"""The state of a store's database, read in a process that runs as the account of the service."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pam_totp.core.settings import DatabaseSettings
from pam_totp.store import Store, StoreError
from pam_totp.store.locations import notice, postgres
from pam_totp.store.postgres_schema import NONE, REPLICATION, SYNCHRONOUS, VERSION
from pam_totp.system.store_owner import BROKEN, Report, as_owner

__all__ = [
    "NONE",
    "REPLICATION",
    "SYNCHRONOUS",
    "VERSION",
    "State",
    "copied",
    "has_password",
    "missing_library",
    "state_of",
]

State = Mapping[str, Any]  # the fields of `store.postgres_state.State`
_STATE = "state"  # the kind of a report that has the state as JSON


def copied(folder: str) -> str | None:
    """Return a text with the URL if the records of `folder` were copied to a database, or None."""
    return notice(folder)


def missing_library() -> str | None:
    """Return the reason if psycopg or libpq is missing, or None."""
    try:
        postgres()
    except StoreError as e:
        return str(e)
    return None


def has_password(url: str) -> bool:
    """Return True if the URL contains a password. psycopg must be present (`missing_library`)."""
    from pam_totp.store.postgres_connection import has_password as has

    return has(url)


def state_of(url: str, how: DatabaseSettings | None) -> tuple[State | None, str]:
    """Return the state of the database at `url`, or None and the reason.

    psycopg must be present (`missing_library`).
    """
    from pam_totp.store.postgres_state import state_of as state

    wait = (how or DatabaseSettings(url=url)).wait

    def read(store: Store) -> Iterator[Report]:
        yield _STATE, json.dumps(state(url, wait).as_json())

    found, reason = None, ""
    for kind, text in as_owner(url, read):
        if kind == BROKEN:
            found, reason = None, text
        else:
            found = json.loads(text)
    return found, reason
