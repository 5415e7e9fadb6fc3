"""The search for defects of a store, and their repair, in a process that runs as the store's owner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pam_totp.store import Store, upkeep
from pam_totp.store.file import FileStore
from pam_totp.system.store_owner import BROKEN, Report, as_owner

_REPAIRABLE, _OTHER, _PUT_BACK, _REPAIRED = "repairable", "other", "put back", "repaired"  # the kinds of reports
_MAX_REPORTS = 100  # a larger number has a common cause


@dataclass(frozen=True, slots=True)
class Defects:
    """The defects of a store. `pam-totp doctor --repair` repairs the defects in `repairable`.

    `put_back` is the number of records that another program put into the store.
    """

    repairable: tuple[str, ...]
    others: tuple[str, ...]
    put_back: int


def find_defects(folder: str) -> Defects:
    """Return the defects of the store at `folder`. `find_enrolled` reports records that cannot be read."""

    def examine(store: Store) -> Iterator[Report]:
        assert isinstance(store, FileStore)
        for defect in upkeep.examine(store):
            yield _REPAIRABLE if defect.repair else _OTHER, defect.text
        for name in upkeep.put_back(store):
            yield _PUT_BACK, name

    reports = [report for report in as_owner(folder, examine) if report[0] != BROKEN]
    repairable = [text for kind, text in reports if kind == _REPAIRABLE]
    if len(repairable) > _MAX_REPORTS:
        repairable[_MAX_REPORTS:] = [f"and {len(repairable) - _MAX_REPORTS} more"]
    others = tuple(text for kind, text in reports if kind == _OTHER)
    return Defects(tuple(repairable), others, sum(kind == _PUT_BACK for kind, _ in reports))


def repair(folder: str) -> tuple[list[str], list[str]]:
    """Repair the store at `folder`. Return the repaired defects, and the errors."""

    def repaired(store: Store) -> Iterator[Report]:
        assert isinstance(store, FileStore)
        for text in upkeep.repair(store):
            yield _REPAIRED, text

    reports = list(as_owner(folder, repaired))
    return [text for kind, text in reports if kind == _REPAIRED], [text for kind, text in reports if kind == BROKEN]
