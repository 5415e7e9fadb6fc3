"""Find and mend what is out of order in a store, as the store's owner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pam_totp.store import upkeep
from pam_totp.store.file import FileStore
from pam_totp.system.store_owner import BROKEN, Report, as_owner

_MENDABLE, _FOR_A_PERSON, _MENDED = "mendable", "for a person", "mended"  # the kinds of reports
_MOST = 100  # reports: more than that have a common cause


@dataclass(frozen=True, slots=True)
class Disorder:
    """What is out of order in a store. `pam-totp doctor --repair` mends what is in `mendable`."""

    mendable: tuple[str, ...]
    others: tuple[str, ...]


def find_disorder(folder: str) -> Disorder:
    """Examine the store at `folder`. What cannot be read is left to `find_enrolled`."""

    def examine(store: FileStore) -> Iterator[Report]:
        for trouble in upkeep.examine(store):
            yield _MENDABLE if trouble.mend else _FOR_A_PERSON, trouble.what

    reports = [report for report in as_owner(folder, examine) if report[0] != BROKEN]
    mendable = [text for kind, text in reports if kind == _MENDABLE]
    if len(mendable) > _MOST:
        mendable[_MOST:] = [f"and {len(mendable) - _MOST} more"]
    return Disorder(tuple(mendable), tuple(text for kind, text in reports if kind == _FOR_A_PERSON))


def mend(folder: str) -> tuple[list[str], list[str]]:
    """Mend the store at `folder`. Return what was mended, and what went wrong."""

    def repair(store: FileStore) -> Iterator[Report]:
        for what in upkeep.repair(store):
            yield _MENDED, what

    reports = list(as_owner(folder, repair))
    return [text for kind, text in reports if kind == _MENDED], [text for kind, text in reports if kind == BROKEN]
