"""import: tokens out of other programs' files, all of a file or nothing of it."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pam_totp import audit
from pam_totp.cli.codes import SERVICE
from pam_totp.cli.common import (
    DONE,
    REFUSED,
    WRONG_USAGE,
    CommandError,
    Commands,
    ask,
    command,
    count,
    now,
    open_store,
    own_file,
    own_name,
    print_json,
    print_table,
)
from pam_totp.cli.inputs import HomeFile, read_homes, read_named, read_secret
from pam_totp.cli.progress import Bar
from pam_totp.formats import csv_tokens, google_authenticator, migration, otpauth, pskc, record_json, users_oath
from pam_totp.formats.found import FormatError, Found
from pam_totp.formats.plan import Plan, Row, added, left_out
from pam_totp.pam.module import passwd_name
from pam_totp.record import UserRecord
from pam_totp.store import NotThere, Store
from pam_totp.store.batch import Change, update_many
from pam_totp.store.file import FileStore

Parse = Callable[[bytes, int], list[Found]]

PARSERS: dict[str, Parse] = {
    "google-authenticator": google_authenticator.parse,
    "users-oath": users_oath.parse,
    "otpauth": otpauth.parse,
    "migration": migration.parse,
    "csv": csv_tokens.parse,
    "json": record_json.parse,
}
FORMATS = (*PARSERS, "pskc")
SAYS_WHOSE = ("users-oath",)  # formats in which --user chooses lines, instead of saying whose they are
HOME_FILE = ".google_authenticator"
SHOWN = 100  # tokens that came in just so, in the table


def add_to(commands: Commands) -> None:
    imports = command(commands, "import", run_import, "take tokens over from another program's file", data=True)
    imports.add_argument("format", choices=FORMATS, metavar="FORMAT", help=", ".join(FORMATS))
    imports.add_argument("file", nargs="*", metavar="FILE", help="- is standard input; several parts for migration")
    imports.add_argument("--user", metavar="U", help="whose they are; for users-oath, take only this one's lines")
    imports.add_argument("--serial", metavar="S", help="take only the token of this serial")
    imports.add_argument("--map", metavar="FILE", help="whose they are, by serial: lines of serial,user")
    imports.add_argument("--homes", metavar="DIR", help="google-authenticator: the files of all homes in this folder")
    unlock = imports.add_mutually_exclusive_group()
    unlock.add_argument("--key-file", metavar="FILE", help="pskc: where its key is, in hexadecimal")
    unlock.add_argument("--password-file", metavar="FILE", help="pskc: where its password is")
    imports.add_argument("--dry-run", action="store_true", help="say what would come in, and change nothing")


def run_import(args: argparse.Namespace) -> int:
    if own_file(args) and not (args.user or args.map or args.homes):
        args.user = own_name()
    _check_usage(args)
    gc.disable()  # a hundred thousand small values that all live to the end: half the time went into looking at them
    unlock = _unlocker(args)
    files = [(path, read_named(path)) for path in args.file]
    homes = list(read_homes(args.homes, HOME_FILE, google_authenticator.MAX_FILE)) if args.homes else []
    users = _read_map(args.map) if args.map else None
    store = open_store(args, create=True)

    base: dict[str, UserRecord] = {}
    if args.homes:
        plan = _plan_homes(homes)
    else:
        plan = _plan_files(args, files, users, unlock)
        if args.format == "json":
            base = _whole_record(args, files)
    rows = sorted([*_carried_out(args, store, plan, base), *plan.left_out], key=lambda row: row.line)
    unused = sorted(users.keys() - {row.serial for row in rows}) if users is not None else []
    _show(args, rows, unused)
    return REFUSED if any(row.left_out is not None and not row.known for row in rows) or not rows else DONE


def _check_usage(args: argparse.Namespace) -> None:
    problem = None
    if args.homes and (args.format != "google-authenticator" or args.file or args.user or args.map or args.serial):
        problem = "--homes goes with google-authenticator, and with no file and no user"
    elif not args.homes and len(args.file) != 1 and not (args.file and args.format == "migration"):
        problem = "name one file"
    elif args.map and (args.user or args.serial):
        problem = "--map, or --user and --serial: one or the other"
    elif args.serial and not args.user:
        problem = "--serial needs --user: whose is it?"
    elif args.format == "google-authenticator" and not args.homes and not args.user:
        problem = "google-authenticator's file does not say whose it is: give --user"
    elif (args.key_file or args.password_file) and args.format != "pskc":
        problem = "--key-file and --password-file go with pskc"
    elif [args.map, args.key_file, args.password_file, *args.file].count("-") > 1:
        problem = "standard input can be one thing only"
    if problem:
        raise CommandError(problem, WRONG_USAGE)
    if args.format == "pskc" and importlib.util.find_spec("pskc") is None:
        raise CommandError("pskc needs python-pskc (pip install python-pskc, or apt-get install python3-pskc)")


def _unlocker(args: argparse.Namespace) -> pskc.Unlock:
    """Where the key or the password of an encrypted file comes from; python-pskc is loaded on the way, as root can."""
    if args.format == "pskc":
        pskc.load()
    said = {"key": args.key_file, "password": args.password_file}
    known = {what: read_secret(path) for what, path in said.items() if path}

    def unlock(what: str) -> str:
        if known and what not in known:
            raise CommandError(f"the file is encrypted with a {what}: give --{what}-file")
        return known[what] if known else ask(f"{what} of the file: ", hidden=True)

    return unlock


def _read_map(path: str) -> dict[str, str]:
    try:
        return csv_tokens.parse_map(read_named(path))
    except FormatError as e:
        raise CommandError(f"{path}: {e}; nothing was imported") from None


def _plan_files(
    args: argparse.Namespace, files: Sequence[tuple[str, bytes]], users: dict[str, str] | None, unlock: pskc.Unlock
) -> Plan:
    plan = Plan(entries={}, left_out=[])
    chosen = False
    for found in _parsed(args.format, files, unlock):
        if args.serial and found.serial != args.serial:
            continue
        user: str | None = found.user
        missing = "the file does not say whose it is (see --user and --map)"
        if users is not None:
            user, missing = users.get(found.serial or ""), "its serial is not in the map"
        elif args.user and args.format in SAYS_WHOSE:
            if passwd_name(found.user or "") != passwd_name(args.user):
                continue
        elif args.user:
            user = args.user
        chosen = True
        plan.add(f"line {found.line}", found, None if user is None else passwd_name(user), missing)
    if not chosen and (args.serial or args.user):
        what = f"no token with the serial {args.serial}" if args.serial else f"nothing for {args.user}"
        raise CommandError(f"{', '.join(path for path, _ in files)}: there is {what} in it")
    return plan


def _parsed(name: str, files: Sequence[tuple[str, bytes]], unlock: pskc.Unlock) -> list[Found]:
    """All that the file describes; the parts of a migration are one file."""
    path, data = files[0]
    try:
        if name == "migration":
            parts = []
            for path, data in files:  # noqa: B007  the path is said where one fails
                parts.append(migration.read_picture(data) if migration.is_picture(data) else data)
            return migration.parse(b"\n".join(parts), now())
        if name == "pskc":
            return pskc.parse(data, now(), unlock)
        return PARSERS[name](data, now())
    except FormatError as e:
        raise CommandError(f"{path}: {e}; nothing was imported") from None


def _plan_homes(homes: Sequence[HomeFile]) -> Plan:
    """Every home's file is a file of its own: one that cannot be read keeps none of the others out."""
    plan = Plan(entries={}, left_out=[])
    nothing = Found(line=1, kind="totp")
    for home in homes:
        problem = home.problem
        if problem is None:
            try:
                for found in google_authenticator.parse(home.data, now()):
                    plan.add(home.path, found, passwd_name(home.user or ""), "")
            except FormatError as e:
                problem = str(e)
        if problem is not None:
            plan.left_out.append(left_out(home.path, nothing, home.user, problem))
    return plan


def _whole_record(args: argparse.Namespace, files: Sequence[tuple[str, bytes]]) -> dict[str, UserRecord]:
    """For a user who is not there yet: what the exported record holds besides its tokens, recovery codes above all."""
    record = record_json.whole_record(files[0][1])
    user = passwd_name(args.user or record.user)
    return {user: record.bare(user)}


def _carried_out(args: argparse.Namespace, store: Store, plan: Plan, base: dict[str, UserRecord]) -> list[Row]:
    """Do it, or say what would be done."""
    at = now()

    def change(user: str) -> Callable[[UserRecord], tuple[UserRecord, list[Row]]]:
        def changed(record: UserRecord) -> tuple[UserRecord, list[Row]]:
            start = base[user] if user in base and record == UserRecord(user=user) else record
            after, rows = added(start, plan.entries[user], at)
            return (after if any(row.left_out is None for row in rows) else record), rows

        return changed

    changes = {user: change(user) for user in plan.entries}
    if args.dry_run:
        done = {user: changes[user](_read(store, user))[1] for user in changes}
    else:
        done = _update(store, changes)
        came_in = [row for rows in done.values() for row in rows if row.left_out is None]
        if came_in:
            audit.write(audit.to_syslog, SERVICE, "accepted", by="import", format=args.format, tokens=len(came_in))
    return [row for rows in done.values() for row in rows]


def _update(store: Store, changes: Mapping[str, Change[list[Row]]]) -> dict[str, list[Row]]:
    """All of it or nothing. One's own file holds one record, and so needs no more than that one is changed."""
    if type(store) is FileStore:
        try:
            return update_many(store, changes, Bar("importing").show)
        except KeyboardInterrupt:  # which has undone what was done
            raise CommandError("interrupted; nothing was changed", 128 + signal.SIGINT) from None
    for user in changes:
        _read(store, user)  # raises for whoever's file it is not
    return {user: store.update(user, change, create=True) for user, change in changes.items()}


def _read(store: Store, user: str) -> UserRecord:
    try:
        return store.read(user)
    except NotThere:
        return UserRecord(user=user)


def _show(args: argparse.Namespace, rows: Sequence[Row], unused: Sequence[str]) -> None:
    came_in = [row for row in rows if row.left_out is None]
    out = [row for row in rows if row.left_out is not None]
    if args.json:
        print_json(
            {
                "dry_run": args.dry_run,
                "imported": [_facts(row) for row in came_in],
                "left_out": [_facts(row) | {"reason": row.left_out, "there_already": row.known} for row in out],
                "not_in_the_file": list(unused),
            }
        )
        return
    word = "would come in" if args.dry_run else "came in"
    unremarkable = [row for row in came_in if not row.remarks]
    many = set(map(id, unremarkable[SHOWN:]))
    shown = [row for row in rows if id(row) not in many]
    if shown:
        heads = ("WHERE", "USER", "TOKEN", "TYPE", "SERIAL", "WHAT BECAME OF IT")
        print_table(heads, [_cells(row, word) for row in shown])
    if many:
        print(f"and {len(many)} more that {word} (--json lists them all)")
    for row in shown:
        for remark in row.remarks:
            print(f"{row.place}: {remark}")
    for serial in unused:
        print(f"the map's serial {serial} is not in the file")
    tokens, users = count(len(came_in), "token"), count(len({row.user for row in came_in}), "user")
    print(f"{tokens} of {users} {word}, {len(out)} did not", file=sys.stderr)


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
