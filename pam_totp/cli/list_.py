"""list: show users and their tokens."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from pam_totp.cli.command_line import DONE, OUT_OF_REACH, Commands, add_command
from pam_totp.cli.printing import Table, count, format_time, print_json_stream
from pam_totp.cli.store_access import now, open_store, read, token_facts, user_of
from pam_totp.core.record import HotpToken, Token, TotpToken, UserRecord
from pam_totp.store import NotThere, Store, StoreError

HEADS = ("USER", "TOKEN", "TYPE", "CODES", "STATE", "LAST USED")


def add_to(commands: Commands) -> None:
    examples = ("pam-totp list", "pam-totp list alice --json")
    parser = add_command(commands, "list", run, "show users and their tokens", *examples, data=True)
    parser.add_argument("user", nargs="?", help="show only this user's tokens")


def run(args: argparse.Namespace) -> int:
    store = open_store(args)
    statuses = {DONE}
    records = iter([read(store, user_of(args))]) if args.user else _records(store, statuses)
    if args.json:
        print_json_stream(_record_facts(record) for record in records)
        return max(statuses)
    with Table(HEADS) as table:
        for record in records:
            for token in record.tokens:
                table.add(_cells(record, token))
            for remark in _remarks(record):
                table.remark(f"{record.user}: {remark}")
    if not table.rows and max(statuses) == DONE:
        print("no tokens found (see 'pam-totp enroll --help')")
    return max(statuses)


def _records(store: Store, statuses: set[int]) -> Iterator[UserRecord]:
    """Yield the records, sorted by user name. Hold only the names and one record in memory.

    Print an error for a record that cannot be read, and add the exit status to `statuses`.
    """
    for user in sorted(store.users()):
        try:
            yield store.read(user)
        except NotThere:  # the user was removed meanwhile
            continue
        except StoreError as e:
            print(f"pam-totp: {e}", file=sys.stderr)
            statuses.add(OUT_OF_REACH)


def _cells(record: UserRecord, token: Token) -> tuple[str, ...]:
    assert isinstance(token, HotpToken | TotpToken)
    moving_factor = f"{token.period} s" if isinstance(token, TotpToken) else f"counter {token.counter}"
    codes = f"{token.digits} digits, {token.algorithm}, {moving_factor}"
    state = "disabled" if not token.enabled else "active" if token.confirmed else "unconfirmed"
    state += ", codes in a row only" if token.row_needed else ""
    return record.user, token.name, token.type, codes, state, format_time(token.last_used)


def _remarks(record: UserRecord) -> list[str]:
    failures, _ = record.failures_now(now())
    remarks = []
    if record.recovery:
        remarks.append(count(len(record.recovery), "unused recovery code"))
    elif record.salt is not None:
        remarks.append(f"all recovery codes are used (see 'pam-totp recovery {record.user}')")
    if failures:
        remarks.append(f"{count(failures, 'wrong answer')} counted (see 'pam-totp unlock {record.user}')")
    return remarks


def _record_facts(record: UserRecord) -> dict[str, Any]:
    failures, _ = record.failures_now(now())
    return {
        "user": record.user,
        "tokens": [token_facts(record.user, token) for token in record.tokens],
        "recovery_left": len(record.recovery),
        "failures": failures,
        "refused": record.refused,
    }
