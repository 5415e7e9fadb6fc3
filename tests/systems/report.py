"""The report at the end of `make systems`: a table, the failed tests by name, and the reasons for skipped tests."""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

_HEAD = ("system", "user", "step", "", "exit", "seconds", "packages", "passed", "failed", "skipped")
_LEFT = 4  # number of text columns, which are aligned left; the other columns contain numbers


class Results(NamedTuple):
    """The results of a run of pytest."""

    passed: int
    failed: tuple[str, ...]
    skipped: tuple[str, ...]  # the reason for each skipped test


class Row(NamedTuple):
    """A step and its result."""

    system: str
    user: str
    step: str
    is_good: bool
    status: int
    seconds: float
    packages: int  # number of packages that the step installed
    tests: Results | None = None


def read_junit(file: Path) -> Results:
    """Return the results from a file of pytest's --junitxml."""
    passed, failed, skipped = 0, [], []
    for case in ElementTree.parse(file).iter("testcase"):  # noqa: S314  # pytest wrote it
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name', '')}"
        found = {child.tag: child for child in case}
        if "failure" in found or "error" in found:
            failed.append(name)
        elif "skipped" in found:
            skipped.append(found["skipped"].get("message") or "no reason given")
        else:
            passed += 1
    return Results(passed, tuple(failed), tuple(skipped))


def table(rows: Iterable[Row]) -> str:
    """Return the table, with a line for each step."""
    lines = [_HEAD, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column < _LEFT else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    tests = ("", "", "")
    if row.tests is not None:
        tests = (str(row.tests.passed), str(len(row.tests.failed)), str(len(row.tests.skipped)))
    numbers = (str(row.status), f"{row.seconds:.0f}", str(row.packages))
    return (row.system, row.user, row.step, "ok" if row.is_good else "FAILED", *numbers, *tests)


def line(row: Row) -> str:
    """Return the line for the end of a step."""
    tests = ""
    if row.tests is not None:
        tests = f"; {row.tests.passed} passed, {len(row.tests.failed)} failed, {len(row.tests.skipped)} skipped"
    mark = "ok" if row.is_good else "FAILED"
    return f"  {row.step}: {mark}, exit {row.status}, {row.seconds:.0f} s, {row.packages} packages{tests}"


def failed_and_skipped(rows: Iterable[Row]) -> str:
    """Return lines with the names of the failed tests, then each reason for skipped tests with its count."""
    lines = []
    for row in rows:
        if row.tests is None:
            continue
        where = f"{row.system}, {row.user}"
        lines += [f"{where}: failed: {name}" for name in row.tests.failed]
        reasons = collections.Counter(map(_without_paths, row.tests.skipped))
        lines += [f"{where}: {count} skipped: {reason}" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def _without_paths(reason: str) -> str:
    """Return the reason with … in place of each path, so that reasons that differ only in a path are equal."""
    return re.sub(r"/\S+", "…", re.sub(r"\s+", " ", reason)).strip()
