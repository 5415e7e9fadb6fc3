"""restored: roll the records of a restored backup forward from the log."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterable
from typing import Any

from pam_totp.cli import times
from pam_totp.cli.command_line import DONE, OUT_OF_REACH, CommandError, Commands, add_command
from pam_totp.cli.log_files import lines_of
from pam_totp.cli.printing import Table, count, format_time, print_json_stream
from pam_totp.cli.prompts import confirm
from pam_totp.cli.store_access import OWN_FILE, location, logged_changes, now, open_store, uses_own_file
from pam_totp.core.record import Token, UserRecord
from pam_totp.core.settings import DEFAULT_STORE, is_database
from pam_totp.operations import stock
from pam_totp.operations.restored import Forwarded, Log, Span
from pam_totp.operations.stock import StockError
from pam_totp.pam.login_session import read_site
from pam_totp.store import NotThere, SerialTaken, Store, StoreError
from pam_totp.store.claims import bring_in
from pam_totp.store.file import FileStore
from pam_totp.store.upkeep import created_at, rewrite

HEADS = ("USER", "TOKEN", "RESULT")


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "restored",
        run,
        "roll a restored backup forward from the log, and void its recovery codes",
        "pam-totp restored --store /var/lib/pam_totp.new --log auth.log* --dry-run",
        "pam-totp restored --store /var/lib/pam_totp.new --log journal.txt",
        data=True,
    )
    parser.add_argument(
        "--log",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="logs from before the backup until now, plain or gzip, or - for standard input "
        "(default: none, so every key fob needs codes in a row)",
    )
    parser.add_argument(
        "--restored-at",
        type=times.time,
        metavar="TIME",
        help="time before the first login with the restored store, such as 2026-11-28T14:00 "
        "(default: the time at which the store's folder was created)",
    )
    parser.add_argument(
        "--replaces",
        metavar="DIR",
        help="the store that the restored store will replace: the command also repeats the logged changes of DIR "
        f"(default: the store of --store, and {DEFAULT_STORE})",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the result, and change nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask for a confirmation")


def run(args: argparse.Namespace) -> int:
    is_own = uses_own_file(args)
    folder = OWN_FILE if is_own else location(args, read_site())  # as the log names the store
    if is_database(folder):
        raise CommandError("the store is a database (run 'pam-totp authority restore' with the same options)")
    restored_at = _folder_created_at(folder) if args.restored_at is None and not is_own else args.restored_at
    stores = {folder} if args.replaces is None else {folder, os.path.abspath(args.replaces)}
    log = Log(stores, restored_at=restored_at, now=now())
    spans = [(path, log.read(lines_of(path))) for path in args.log]  # as root, before the process drops its privileges
    store = open_store(args)
    print_evidence(spans, log, restored_at)
    if not args.dry_run:
        confirm("roll all records forward and void all recovery codes? do this once, directly after a restore", args)
    packed, status = forward_all(args, log, store)
    in_stock, status_of_stock = forward_stock(args, log, store)
    records = map(json.loads, packed)
    if args.json:
        facts = {"restored_at": restored_at, "restored_before": log.last_restored, "logs": facts_of_logs(spans)}
        print_json_stream({"dry_run": args.dry_run, **facts, "records": records, "stock": in_stock})
    else:
        print_table_of(records, dry_run=args.dry_run)
        print_stock(in_stock, dry_run=args.dry_run)
    return max(status, status_of_stock)


def _folder_created_at(folder: str) -> int | None:
    try:
        return created_at(folder)
    except OSError:  # `open_store` reports this error
        return None


def print_evidence(spans: list[tuple[str, Span]], log: Log, restored_at: int | None) -> None:
    """Print the extent of each log, and warnings about missing evidence. Call this before the confirmation."""

    def say(text: str) -> None:
        print(f"pam-totp: {text}", file=sys.stderr)

    for path, span in spans:
        if span.lines == 0:
            say(f"warning: {path}: no line of pam_totp")
        else:
            times = f", from '{span.first}' to '{span.last}'" if span.first else ""
            say(f"{path}: {count(span.lines, 'line')} of pam_totp{times}")
    if log.lines == 0:
        say("warning: no lines of a log: counters and steps are unchanged, and every key fob needs codes in a row")
    elif restored_at is None:
        say("warning: the time of the restore is unknown: every key fob needs codes in a row (give --restored-at)")
    else:
        say(f"only lines before {format_time(restored_at)} show that the log covers a key fob (see --restored-at)")
    if log.last_restored is not None:
        again = "a second run for the same restore also voids the recovery codes created since then"
        say(f"warning: 'pam-totp restored' ran at {format_time(log.last_restored)}: {again}")


def facts_of_logs(spans: list[tuple[str, Span]]) -> list[dict[str, Any]]:
    """Return the extent of each log, for --json."""
    return [{"file": path, "lines": span.lines, "first": span.first, "last": span.last} for path, span in spans]


def forward_all(args: argparse.Namespace, log: Log, store: Store) -> tuple[list[bytes], int]:
    """Roll all records forward. Return the facts about each user as JSON, which is compact, and the exit status.

    This function prints only errors, so that a closed pipe cannot end the command before the last record.
    """
    users = sorted(store.users())
    packed: list[bytes] = []
    status = DONE
    try:
        for user in users:
            try:
                packed.append(_packed(user, _forward(args, log, store, user)))
            except NotThere:  # another process has removed the user
                continue
            except StoreError as e:
                print(f"pam-totp: {e}", file=sys.stderr)
                status = OUT_OF_REACH
    except KeyboardInterrupt:
        what = "nothing was changed" if args.dry_run else "run the command again"
        text = f"interrupted after {len(packed)} of {count(len(users), 'record')}; {what}"
        raise CommandError(text, 128 + signal.SIGINT) from None
    finally:
        args.audit.finish("restored")
    for user in sorted(set(log.users()) - set(users)):
        result = log.forward(UserRecord(user=user))
        if result.missing:
            packed.append(_packed(user, result))
    return packed, status


def _forward(args: argparse.Namespace, log: Log, store: Store, user: str) -> Forwarded:
    if args.dry_run:
        return log.forward(store.read(user))

    def change(record: UserRecord) -> tuple[UserRecord | None, tuple[Forwarded, bool]]:
        result = log.forward(record)
        return result.record, (result, result.record != record)

    with logged_changes(store) as held:
        result, is_changed = held.update(user, change)
        if not is_changed and isinstance(store, FileStore):
            rewrite(store, user)  # so that `pam-totp doctor` no longer reports this record
        if type(store) is FileStore:  # a file in a home folder has no claims
            _claim_serials(store, user)
        changed = sum(old != new for old, new, _ in result.tokens)
        args.audit.changed("restored", user, tokens=changed, codes=result.void_codes)
    return result


def forward_stock(args: argparse.Namespace, log: Log, store: Store) -> tuple[list[dict[str, Any]], int]:
    """Roll the tokens in stock forward. Return the facts about each changed token, and the exit status."""
    changed: list[dict[str, Any]] = []
    status = DONE
    try:
        for item in () if args.audit.store == OWN_FILE else stock.items(store, free=True):
            if isinstance(item, StoreError):
                print(f"pam-totp: {item}", file=sys.stderr)
                status = OUT_OF_REACH
            elif item.token is not None:
                token, notes = log.forward_stock(item.token)
                if token != item.token:
                    if not args.dry_run:
                        stock.set_token(store, item.serial, token)
                    facts = {"next_before": item.token.next_factor, "next": token.next_factor, "notes": notes}
                    changed.append({"serial": item.serial, **facts})
    except (StoreError, StockError) as e:  # StockError: a token was assigned or removed meanwhile
        print(f"pam-totp: {e}; tokens in stock may be unchanged", file=sys.stderr)
        status = OUT_OF_REACH
    finally:
        if changed and not args.dry_run:
            args.audit.changed("restored", stock=len(changed))
    return changed, status


def print_stock(changed: list[dict[str, Any]], *, dry_run: bool) -> None:
    for token in changed:
        if token["next"] != token["next_before"]:
            print(f"in stock: {token['serial']}: {', '.join(token['notes'])}")
    if changed:
        verb = "would be changed" if dry_run else "changed"
        print(f"stock: {count(len(changed), 'token')} {verb}; key fobs need codes in a row when they are assigned")


def _claim_serials(store: FileStore, user: str) -> None:
    """Claim the serial numbers of a record that another program has written to the store."""
    try:
        bring_in(store, user)
    except SerialTaken as e:
        other = "the stock" if e.owner is None else e.owner
        print(
            f"pam-totp: warning: {user} has a token with a serial number of {other} (see 'pam-totp doctor')",
            file=sys.stderr,
        )


def print_table_of(records: Iterable[dict[str, Any]], *, dry_run: bool) -> None:
    users = tokens = voided = missing = 0
    with Table(HEADS) as table:
        for record in records:
            user, lost = record["user"], record["not_in_the_backup"]
            users += len(record["tokens"]) > 0
            voided += record["recovery_voided"]
            missing += len(lost)
            for token in record["tokens"]:
                tokens += token["changed"]
                if token["notes"]:
                    table.add((user, token["token"], ", ".join(token["notes"])))
            for name in lost:
                table.add((user, name, "not in the backup: enrol it again"))
            if record["recovery_voided"] or record["recovery_made"] is not None:
                table.add((user, "-", _of_recovery(record["recovery_made"])))
    verb = "would be " if dry_run else ""
    more = f", {count(missing, 'token')} not in the backup" if missing else ""
    codes = f"{count(voided, 'recovery code')} {verb}voided"
    print(f"{count(users, 'user')}: {count(tokens, 'token')} {verb}changed, {codes}{more}")


def _of_recovery(made: int | None) -> str:
    when = "" if made is None else f", also the codes created {format_time(made)}"
    return f"recovery codes void{when}: create new codes"


def _packed(user: str, result: Forwarded) -> bytes:
    facts = {
        "user": user,
        "tokens": [_token_facts(old, new, notes) for old, new, notes in result.tokens],
        "recovery_voided": result.void_codes,
        "recovery_made": result.recovery_made,
        "not_in_the_backup": result.missing,
    }
    return json.dumps(facts).encode("ascii")


def _token_facts(old: Token, new: Token | None, notes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "token": old.name,
        "type": old.type,
        "changed": old != new,
        "removed": new is None,
        "enabled": new is not None and new.enabled,
        "row_needed": new is not None and new.row_needed,
        "next_before": old.next_factor,
        "next": None if new is None else new.next_factor,
        "notes": notes,
    }
