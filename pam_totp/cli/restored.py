"""restored: after a restored backup of the store, bring its records forward from the log."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import signal
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO

from pam_totp.cli.command_line import DONE, OUT_OF_REACH, CommandError, Commands, add_command
from pam_totp.cli.printing import Table, count, print_json_stream
from pam_totp.cli.prompts import confirm
from pam_totp.cli.store_access import OWN_FILE, logged_changes, now, open_store, uses_own_file
from pam_totp.core.record import Token, UserRecord
from pam_totp.core.settings import DEFAULT_STORE
from pam_totp.operations.restored import Forwarded, Log, Span
from pam_totp.store import NotThere, Store, StoreError

_GZIP = b"\x1f\x8b"  # RFC 1952
_MAX_LINE = 65536  # bytes; a longer line is no line of pam_totp
HEADS = ("USER", "TOKEN", "RESULT")


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "restored",
        run,
        "bring a restored backup forward from the log, and void its recovery codes",
        "pam-totp restored --log /var/log/auth.log* --dry-run",
        "pam-totp restored --log journal.txt --yes",
        data=True,
    )
    parser.add_argument(
        "--log",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="logs since the backup, also gzip; - for standard input (default: none, so every key fob needs a row)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the result, and change nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask for a confirmation")


def run(args: argparse.Namespace) -> int:
    folder = OWN_FILE if uses_own_file(args) else os.path.abspath(args.store)  # as in the lines of changes
    log = Log(None if folder == DEFAULT_STORE else folder)
    spans = [(path, _read(log, path)) for path in args.log]  # as root, before the process drops its privileges
    store = open_store(args)
    if not args.dry_run:
        confirm("bring all records forward and void all recovery codes? do this once, directly after a restore", args)
    for path, span in spans:
        if span.lines == 0:
            print(f"pam-totp: warning: {path}: no line of pam_totp", file=sys.stderr)
    packed, status = _forward_all(args, log, store)
    records = map(json.loads, packed)
    if args.json:
        logs = [{"file": path, "lines": span.lines, "first": span.first, "last": span.last} for path, span in spans]
        print_json_stream({"dry_run": args.dry_run, "logs": logs, "records": records})
    else:
        _print_table(records, spans, dry_run=args.dry_run)
    return status


def _forward_all(args: argparse.Namespace, log: Log, store: Store) -> tuple[list[bytes], int]:
    """Bring all records forward. Return the facts about each user as JSON, which is compact, and the exit status.

    Nothing is printed before the last record is written, so that a closed pipe does not leave records behind.
    """
    users = sorted(store.users())
    packed: list[bytes] = []
    status = DONE
    try:
        for user in users:
            try:
                packed.append(_packed(user, _forward(args, log, store, user)))
            except NotThere:  # the user was removed meanwhile
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
        result = log.forward(UserRecord(user=user), now())
        if result.missing:
            packed.append(_packed(user, result))
    return packed, status


def _forward(args: argparse.Namespace, log: Log, store: Store, user: str) -> Forwarded:
    if args.dry_run:
        return log.forward(store.read(user), now())

    def change(record: UserRecord) -> tuple[UserRecord | None, tuple[Forwarded, bool]]:
        result = log.forward(record, now())
        return result.record, (result, result.record != record)

    with logged_changes(store) as held:
        result, is_changed = held.update(user, change)
        if is_changed:
            changed = sum(old != new for old, new, _ in result.tokens)
            args.audit.changed("restored", user, tokens=changed, codes=result.voided)
    return result


def _print_table(records: Iterable[dict[str, Any]], spans: list[tuple[str, Span]], *, dry_run: bool) -> None:
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
    for path, span in spans:
        print(f"{path}: {count(span.lines, 'line')} of pam_totp, from '{span.first}' to '{span.last}'")
    what = "would be changed" if dry_run else "changed"
    more = f", {count(missing, 'token')} not in the backup" if missing else ""
    print(f"{count(users, 'user')}: {count(tokens, 'token')} {what}, {count(voided, 'recovery code')} voided{more}")


def _packed(user: str, result: Forwarded) -> bytes:
    facts = {
        "user": user,
        "tokens": [_token_facts(old, new, notes) for old, new, notes in result.tokens],
        "recovery_voided": result.voided,
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


def _read(log: Log, path: str) -> Span:
    """Add a file to the log. Raise CommandError or OSError."""
    try:
        with ExitStack() as stack:
            file: BinaryIO = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb", 65536))
            if file.peek(2)[:2] == _GZIP:  # type: ignore[attr-defined]
                file = stack.enter_context(gzip.open(file))  # type: ignore[assignment]
            return log.read(_lines(file))
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise CommandError(f"{path}: damaged gzip file; nothing was changed") from None


def _lines(file: BinaryIO) -> Iterator[str]:
    while line := file.readline(_MAX_LINE):
        yield line.decode("ascii", "replace").rstrip("\r\n")
