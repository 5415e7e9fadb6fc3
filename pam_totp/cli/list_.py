"""list: show users and their tokens."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pam_totp.cli.command_line import DONE, OUT_OF_REACH, Commands, add_command
from pam_totp.cli.durations import duration
from pam_totp.cli.printing import Table, count, format_time, print_json_stream, print_table
from pam_totp.cli.store_access import OWN_FILE, now, open_store, read, token_facts, user_of, uses_own_file
from pam_totp.core.record import HotpToken, RecentLogin, Token, TotpToken, UserRecord
from pam_totp.core.serials import serial_key
from pam_totp.operations.recent_logins import newest_first, words
from pam_totp.store import SharedStore, Store, StoreError, read_each

if TYPE_CHECKING:
    from pam_totp.operations.desk import RecentChange

HEADS = ("USER", "TOKEN", "TYPE", "SERIAL", "CODES", "STATE", "LAST USED")
CHANGE_HEADS = ("CHANGE BY THE DESK", "WHAT", "TOKEN", "BY")
RECENT_HEADS = ("RECENT LOGIN", "OUTCOME", "SERVICE", "FROM")
STATES = ("active", "disabled", "unconfirmed")

Shown = tuple[UserRecord, Sequence[Token]]  # a record, and its tokens that the filters select
SortKey = Callable[[Token], tuple[object, ...]]

# The orders of --sort other than `user`. Tokens without a value are first.
SORT_KEYS: dict[str, SortKey] = {
    "last-used": lambda token: (token.last_used is not None, token.last_used or 0),
    "created": lambda token: (token.created,),
    "serial": lambda token: (token.serial is not None, serial_key(token.serial or "")),
    "state": lambda token: (_state(token),),
}


def add_to(commands: Commands) -> None:
    examples = ("pam-totp list", "pam-totp list --unused 90d --sort last-used", "pam-totp list alice --json")
    parser = add_command(commands, "list", run, "show users and their tokens", *examples, data=True)
    parser.add_argument("user", nargs="?", help="show only this user's tokens")
    parser.add_argument("--serial", metavar="S", help="only the token with this serial number")
    parser.add_argument(
        "--unused", type=duration, metavar="TIME", help="only tokens that were not used during this time, such as 90d"
    )
    parser.add_argument("--without-recovery", action="store_true", help="only users with no valid recovery code")
    parser.add_argument("--state", choices=STATES, help="only tokens in this state")
    parser.add_argument(
        "--sort", choices=("user", *SORT_KEYS), default="user", help="order of the tokens (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    store = open_store(args)
    statuses = {DONE}
    selected = read(store, user_of(args)) if args.user else None
    records = _records(store, args, statuses) if selected is None else iter([selected])
    found = _sorted(_selected(records, args), args.sort)
    if args.json:
        print_json_stream(_record_facts(record, tokens) for record, tokens in found)
        return max(statuses)
    remarked: set[str] = set()  # users with a printed remark: an order may separate the tokens of one user
    with Table(HEADS) as table:
        for record, tokens in found:
            for token in tokens:
                table.add(_cells(record, token))
            if record.user not in remarked:
                for remark in _remarks(record):
                    table.remark(f"{record.user}: {remark}")
            if args.sort != "user":
                remarked.add(record.user)
    if not table.rows and max(statuses) == DONE:
        print(_no_token(args))
    if selected is not None and selected.recent and not _is_filtered(args):
        print()
        print_table(RECENT_HEADS, map(_recent_cells, newest_first(selected)))
    if selected is not None and selected.changes and not _is_filtered(args):
        print()
        print_table(CHANGE_HEADS, map(_change_cells, _changes(selected)))
    return max(statuses)


def _no_token(args: argparse.Namespace) -> str:
    if _is_filtered(args):
        return "no token matches"
    if uses_own_file(args):
        where = "the portal shows your tokens in the host's store; only root can list them"
        return f"no tokens found in {OWN_FILE} ({where})"
    return "no tokens found (see 'pam-totp enroll --help')"


def _selected(records: Iterator[UserRecord], args: argparse.Namespace) -> Iterator[Shown]:
    """Yield the records with the tokens that the filters select. Also yield empty records if no filter is set."""
    serial = None if args.serial is None else serial_key(args.serial)
    latest = None if args.unused is None else now() - args.unused
    for record in records:
        if args.without_recovery and record.recovery:
            continue
        tokens = [
            token
            for token in record.tokens
            if (serial is None or serial_key(token.serial or "") == serial)
            and (latest is None or _last_sign(token) <= latest)
            and args.state in (None, _state(token))
        ]
        if tokens or not _is_filtered(args):
            yield record, tokens


def _is_filtered(args: argparse.Namespace) -> bool:
    return args.without_recovery or any(value is not None for value in (args.serial, args.unused, args.state))


def _last_sign(token: Token) -> int:
    """Return the time of the last use of a token, or of its enrolment if the token was never used."""
    return token.created if token.last_used is None else token.last_used


def _sorted(found: Iterator[Shown], order: str) -> Iterator[Shown]:
    """Yield the tokens in the order `order`. Hold all tokens in memory, except for the order by user.

    In the other orders, each token has its own entry, because the tokens of a user may be far apart.
    """
    if order == "user":
        return found
    key = SORT_KEYS[order]
    single = [(record, (token,)) for record, tokens in found for token in tokens]
    single.sort(key=lambda shown: key(shown[1][0]))
    return iter(single)


def _records(store: Store, args: argparse.Namespace, statuses: set[int]) -> Iterator[UserRecord]:
    """Yield the records, sorted by user name. Hold only the names and some records in memory.

    With --serial, yield only the record of the owner that the store's index of serial numbers names. Yield all records
    if the index of a folder names no owner.

    Print an error for a record that cannot be read, and add the exit status to `statuses`.
    """
    owner = None if args.serial is None else store.owner_of_serial(args.serial)
    if owner is not None:
        users = [owner]
    elif args.serial is not None and isinstance(store, SharedStore):
        users = []  # a database has an index of all serial numbers
    else:
        users = sorted(store.users())
    for _, record in read_each(store, users):
        if isinstance(record, StoreError):
            print(f"pam-totp: {record}", file=sys.stderr)
            statuses.add(OUT_OF_REACH)
        else:
            yield record


def _cells(record: UserRecord, token: Token) -> tuple[str, ...]:
    assert isinstance(token, HotpToken | TotpToken)
    moving_factor = f"{token.period} s" if isinstance(token, TotpToken) else f"counter {token.counter}"
    codes = f"{token.digits} digits, {token.algorithm}, {moving_factor}"
    state = _state(token) + (", codes in a row only" if token.row_needed else "")
    return record.user, token.name, token.type, token.serial or "-", codes, state, format_time(token.last_used)


def _state(token: Token) -> str:
    """Return the state of a token, one of STATES."""
    return "disabled" if not token.enabled else "active" if token.confirmed else "unconfirmed"


def _recent_cells(login: RecentLogin) -> tuple[str, ...]:
    return format_time(login.at), words(login), login.service, login.rhost or "-"


def _changes(record: UserRecord) -> tuple[RecentChange, ...]:
    """Return the last changes by the desk, the newest first."""
    from pam_totp.operations.desk import recent_changes  # imported here: few records have changes

    return recent_changes(record)[::-1] if record.changes else ()


def _change_cells(change: RecentChange) -> tuple[str, ...]:
    return format_time(change.at), change.what, change.token or "-", change.by


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


def _record_facts(record: UserRecord, tokens: Sequence[Token]) -> dict[str, Any]:
    failures, _ = record.failures_now(now())
    return {
        "user": record.user,
        "tokens": [token_facts(record.user, token) for token in tokens],
        "recovery_left": len(record.recovery),
        "failures": failures,
        "refused": record.refused,
        "recent": [
            {
                "at": login.at,
                "accepted": login.accepted,
                "outcome": login.outcome,
                "service": login.service,
                "rhost": login.rhost,
            }
            for login in newest_first(record)
        ],
        "changes": [
            {"at": change.at, "what": change.what, "token": change.token, "by": change.by}
            for change in _changes(record)
        ],
    }
