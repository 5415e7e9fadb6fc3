"""What import says of its tokens in the end: a table, or JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from pam_totp.cli.common import DONE, REFUSED, count
from pam_totp.cli.import_work import Rows
from pam_totp.cli.printing import Table, print_json_pieces
from pam_totp.operations.import_plan import Row

HEADS = ("WHERE", "USER", "TOKEN", "TYPE", "SERIAL", "WHAT BECAME OF IT")
SHOWN = 100  # tokens that came in just so, in the table


def report(args: argparse.Namespace, rows: Rows, mapped: Iterable[str]) -> int:
    """Say what became of every token, and of the serials that were `mapped`; returns the exit status."""
    unused = set(mapped)
    unused.difference_update(row.serial for row in (rows if unused else ()) if row.serial is not None)
    if args.json:
        _json(rows, sorted(unused), dry_run=args.dry_run)
    else:
        _table(rows, sorted(unused), "would come in" if args.dry_run else "came in")
    return DONE if rows.good and rows.came_in + rows.left_out else REFUSED


def _json(rows: Rows, unused: list[str], *, dry_run: bool) -> None:
    left_out = (row for row in (rows if rows.left_out else ()) if row.left_out is not None)
    print_json_pieces(
        {
            "dry_run": dry_run,
            "imported": (_facts(row) for row in rows if row.left_out is None),
            "left_out": (_facts(row) | {"reason": row.left_out, "there_already": row.known} for row in left_out),
            "not_in_the_file": unused,
        }
    )


def _table(rows: Rows, unused: Iterable[str], word: str) -> None:
    users: set[str | None] = set()
    unremarkable = 0
    with Table(HEADS) as table:
        for row in rows:
            if row.left_out is None:
                users.add(row.user)
                unremarkable += not row.remarks
                if not row.remarks and unremarkable > SHOWN:
                    continue
            table.add(_cells(row, word))
            for remark in row.remarks:
                table.remark(f"{row.place}: {remark}")
    if unremarkable > SHOWN:
        print(f"and {unremarkable - SHOWN} more that {word} (--json lists them all)")
    for serial in unused:
        print(f"the map's serial {serial} is not in the file")
    sys.stdout.flush()  # where both go to one place, this comes last
    print(
        f"{count(rows.came_in, 'token')} of {count(len(users), 'user')} {word}, {rows.left_out} did not",
        file=sys.stderr,
    )


def _cells(row: Row, word: str) -> tuple[str, ...]:
    what = word if row.left_out is None else f"left out: {row.left_out}"
    return row.place, row.user or "-", row.token or "-", row.type, row.serial or "-", what


def _facts(row: Row) -> dict[str, Any]:
    return {
        "place": row.place,
        "user": row.user,
        "token": row.token,
        "type": row.type,
        "serial": row.serial,
        "remarks": list(row.remarks),
    }
