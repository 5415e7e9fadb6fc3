"""import: tokens out of other programs' files, all of a file or nothing of it."""

from __future__ import annotations

import argparse
import gc
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence

from pam_totp.cli.codes import SERVICE
from pam_totp.cli.common import (
    OUT_OF_REACH,
    WRONG_USAGE,
    CommandError,
    Commands,
    ask,
    command,
    now,
    open_store,
    own_file,
    own_name,
)
from pam_totp.cli.files_in import HomeFile, read_homes, read_named, read_secret
from pam_totp.cli.import_report import report
from pam_totp.cli.import_work import Again, Rows, Tokens, taken, tried
from pam_totp.cli.progress import Bar
from pam_totp.core.record import UserRecord
from pam_totp.formats import csv_tokens, google_authenticator, migration, otpauth, pskc, record_json, users_oath
from pam_totp.formats.imported_token import FormatError, Found
from pam_totp.operations import audit_log
from pam_totp.operations.import_plan import Entry, Row, left_out, planned
from pam_totp.pam.module import passwd_name
from pam_totp.system.extras import how_to_get

PARSERS: dict[str, Callable[[bytes, int], list[Found]]] = {
    "google-authenticator": google_authenticator.parse,
    "json": record_json.parse,
}
BY_THE_LINE: dict[str, Callable[[bytes, int], Iterator[Found]]] = {
    "users-oath": users_oath.each,
    "otpauth": otpauth.each,
    "csv": csv_tokens.each,
}
FORMATS = ("google-authenticator", "users-oath", "otpauth", "migration", "csv", "json", "pskc")
SAYS_WHOSE = ("users-oath",)  # formats in which --user chooses lines, instead of saying whose they are
HOME_FILE = ".google_authenticator"
LONG = 1024 * 1024  # bytes of PSKC, which take a second or more


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
    users = _read_map(args.map) if args.map else None
    rows = _carried_out(args, users)
    return report(args, rows, users or ())


def _check_usage(args: argparse.Namespace) -> None:
    problem = None
    if args.homes and (args.format != "google-authenticator" or args.file or args.user or args.map or args.serial):
        problem = "--homes goes with google-authenticator, and with no file and no user"
    elif not args.homes and len(args.file) != 1 and not (args.file and args.format == "migration"):
        problem = "name one file, or - for standard input"
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
        raise CommandError(f"pskc needs python-pskc ({how_to_get('python-pskc')})", OUT_OF_REACH)


def _carried_out(args: argparse.Namespace, users: dict[str, str] | None) -> Rows:
    """Do it, or say what would be done. The content of the files is held until then, for it is read more than once."""
    unlock = _unlocker(args)
    files = [(path, read_named(path)) for path in args.file]
    homes = list(read_homes(args.homes, HOME_FILE, google_authenticator.MAX_FILE)) if args.homes else []
    store = open_store(args, create=True)
    at = now()
    base: dict[str, UserRecord] = {}
    plan: Iterable[Entry | Row]
    if args.homes:
        plan, number = list(_plan_homes(homes, at)), len(homes)
    else:
        found, number = _found(args.format, files, at, unlock)
        plan = Again(lambda: _plan_files(args, found, users))
        if args.format == "json":
            base = _whole_record(args, files)
    tokens = Tokens(plan, number, base, at)
    try:
        rows = tokens.rows((tried if args.dry_run else taken)(store, tokens))
    except FormatError as e:  # in a line that was come to by then
        raise CommandError(f"{files[0][0]}: {e}; nothing was imported") from None
    if rows.came_in and not args.dry_run:
        audit_log.write(audit_log.to_syslog, SERVICE, "accepted", by="import", format=args.format, tokens=rows.came_in)
    if (args.serial or args.user) and not rows.came_in + rows.left_out:
        what = f"no token with the serial {args.serial}" if args.serial else f"nothing for {args.user}"
        raise CommandError(f"{', '.join(path for path, _ in files)}: there is {what} in it")
    return rows


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


def _found(name: str, files: Sequence[tuple[str, bytes]], at: int, unlock: pskc.Unlock) -> tuple[Iterable[Found], int]:
    """All that the file describes, and how many tokens that may be at most. What is read by the line raises FormatError
    when one comes to it. The parts of a migration are one file."""
    path, data = files[0]
    if name in BY_THE_LINE:
        return Again(lambda: BY_THE_LINE[name](data, at)), data.count(b"\n") + 1
    try:
        if name == "migration":
            parts = []
            for path, data in files:  # noqa: B007  the path is said where one fails
                parts.append(migration.read_picture(data) if migration.is_picture(data) else data)
            found = migration.parse(b"\n".join(parts), at)
        elif name == "pskc":
            found = _pskc(data, at, unlock)
        else:
            found = PARSERS[name](data, at)
    except FormatError as e:
        raise CommandError(f"{path}: {e}; nothing was imported") from None
    return found, len(found)


def _pskc(data: bytes, at: int, unlock: pskc.Unlock) -> list[Found]:
    gc.disable()  # python-pskc makes many small values that all live to the end: half the time would go into looking
    bar = Bar("reading", long=len(data) >= LONG)

    def asked(what: str) -> str:
        bar.leave()
        return unlock(what)

    bar.show(0, 1)
    found = pskc.parse(data, at, asked)
    bar.show(1, 1)
    return found


def _plan_files(
    args: argparse.Namespace, tokens: Iterable[Found], users: dict[str, str] | None
) -> Iterator[Entry | Row]:
    missing = "the file does not say whose it is (see --user and --map)"
    whose = passwd_name(args.user) if args.user else None
    for found in tokens:
        if args.serial and found.serial != args.serial:
            continue
        user = found.user
        if users is not None:
            user, missing = users.get(found.serial or ""), "its serial is not in the map"
        elif args.format in SAYS_WHOSE and whose is not None and passwd_name(user or "") != whose:
            continue
        else:
            user = whose or user
        name = user if user in (None, whose) else passwd_name(user)
        yield planned(f"line {found.line}", found, name, missing)


def _plan_homes(homes: Sequence[HomeFile], at: int) -> Iterator[Entry | Row]:
    """Every home's file is a file of its own: one that cannot be read keeps none of the others out."""
    nothing = Found(line=1, kind="totp")
    for home in homes:
        problem = home.problem
        if problem is None:
            try:
                for found in google_authenticator.parse(home.data, at):
                    yield planned(home.path, found, passwd_name(home.user or ""), "")
            except FormatError as e:
                problem = str(e)
        if problem is not None:
            yield left_out(home.path, nothing, home.user, problem)


def _whole_record(args: argparse.Namespace, files: Sequence[tuple[str, bytes]]) -> dict[str, UserRecord]:
    """For a user who is not there yet: what the exported record holds besides its tokens, recovery codes above all."""
    record = record_json.whole_record(files[0][1])
    user = passwd_name(args.user or record.user)
    return {user: record.without_tokens(user)}
