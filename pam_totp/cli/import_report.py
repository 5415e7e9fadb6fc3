"""The output of an import: its results as a table or as JSON."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from heapq import nsmallest
from typing import Any

from pam_totp.cli.command_line import DONE, REFUSED
from pam_totp.cli.printing import Table, count, print_json_stream
from pam_totp.cli.store_access import no_account
from pam_totp.core.serials import serial_key
from pam_totp.operations.import_tokens import Report, Result, Status
from pam_totp.pam.names import similar_account

HEADS = ("WHERE", "USER", "TOKEN", "TYPE", "SERIAL", "RESULT")
MAX_NAMED = 20  # users without an account that a message names
MAX_ALIKE = 3  # skipped tokens of one reason that the table lists; a single line counts a larger number
MAX_SHOWN = 100  # the table shows at most this number of imported tokens without remarks


def print_report(args: argparse.Namespace, report: Report, serials_of_map: Iterable[str]) -> int:
    """Print the results, and the serial numbers in `serials_of_map` that the file lacks. Return the exit status."""
    unused = {serial_key(serial): serial for serial in serials_of_map}
    for result in report if unused else ():
        unused.pop(serial_key(result.serial or ""), None)
    if args.json:
        _print_json(report, sorted(unused.values()), dry_run=args.dry_run)
    else:
        _print_table(report, sorted(unused.values()), "would be imported" if args.dry_run else "imported")
    return DONE if report.ok else REFUSED


def _print_json(report: Report, unused: list[str], *, dry_run: bool) -> None:
    skipped = (result for result in (report if report.skipped else ()) if result.status is not Status.IMPORTED)
    print_json_stream(
        {
            "dry_run": dry_run,
            "imported": (_facts(result) for result in report if result.status is Status.IMPORTED),
            "left_out": (_skipped_facts(result) for result in skipped),
            "not_in_the_file": unused,
            "without_account": _without_account(report),
        }
    )


def _without_account(report: Report) -> Iterator[dict[str, str | None]]:
    """Yield the first users without an account, each with an account of a similar name, or None."""
    named: dict[str, None] = {}
    for result in report:
        if not result.has_account and result.user is not None and len(named) < MAX_NAMED:
            named[result.user] = None
    for user in named:
        yield {"user": user, "similar": similar_account(user)}


def _warn_without_account(users: Sequence[str], total: int) -> None:
    for user in users:
        print(f"pam-totp: warning: {no_account(user)}", file=sys.stderr)
    if total > len(users):
        more = f"{total - len(users)} more users have no account on this host"
        print(f"pam-totp: warning: {more} (use --json to list all tokens)", file=sys.stderr)


def _print_table(report: Report, unused: Iterable[str], imported: str) -> None:
    users: set[str | None] = set()  # of imported tokens, with an account
    without_account: set[str | None] = set()  # users of imported tokens, if they have no account
    without_remarks = 0
    alike = _skipped_by_reason(report)
    with Table(HEADS) as table:
        for result in report:
            if result.reason is not None and alike[result.reason] > MAX_ALIKE and not result.remarks:
                continue
            if result.status is Status.IMPORTED:
                (users if result.has_account else without_account).add(result.user)
                without_remarks += not result.remarks
                if not result.remarks and without_remarks > MAX_SHOWN:
                    continue
            table.add(_cells(result, imported))
            for remark in result.remarks:
                table.remark(f"{result.place}: {remark}")
    if without_remarks > MAX_SHOWN:
        print(f"{without_remarks - MAX_SHOWN} more {imported} (use --json to list all)")
    for reason, number in alike.items():
        if number > MAX_ALIKE:
            print(f"{number} skipped: {reason} (use --json to list all)")
    for serial in unused:
        print(f"serial number {serial} of the map is not in the file")
    sys.stdout.flush()  # keep the order if standard output and standard error are the same file
    owners = count(len(users) + len(without_account), "user")
    summary = f"{count(report.imported, 'token')} of {owners} {imported}, {report.skipped} skipped"
    _warn_without_account(nsmallest(MAX_NAMED, filter(None, without_account)), len(without_account))
    print(summary, file=sys.stderr)


def _skipped_by_reason(report: Report) -> Counter[str]:
    """Return the numbers of skipped tokens without remarks, by their reasons."""
    skipped = (result for result in (report if report.skipped else ()) if not result.remarks)
    return Counter(result.reason for result in skipped if result.reason is not None)


def _cells(result: Result, imported: str) -> tuple[str, ...]:
    what = imported if result.status is Status.IMPORTED else f"skipped: {result.reason}"
    return result.place, result.user or "-", result.token or "-", result.type, result.serial or "-", what


def _facts(result: Result) -> dict[str, Any]:
    return {
        "place": result.place,
        "user": result.user,
        "token": result.token,
        "type": result.type,
        "serial": result.serial,
        "account": result.has_account,
        "remarks": list(result.remarks),
    }


def _skipped_facts(result: Result) -> dict[str, Any]:
    already = result.status is Status.ALREADY_IMPORTED
    return _facts(result) | {"code": str(result.status), "reason": result.reason, "there_already": already}
