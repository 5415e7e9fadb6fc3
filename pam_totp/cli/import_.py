"""import: import tokens from another program's file; an error or an interrupt changes nothing."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

from pam_totp.cli.command_line import INTERRUPTED, WRONG_USAGE, CommandError, Commands, add_command
from pam_totp.cli.export import load, missing_package
from pam_totp.cli.files_in import read_homes, read_named, read_secret
from pam_totp.cli.import_format import (
    NamedFile,
    confirm_users,
    has_owner,
    named_format,
    recognised_format,
    show_understood,
)
from pam_totp.cli.import_report import MAX_NAMED, print_report
from pam_totp.cli.progress import Bar
from pam_totp.cli.prompts import ask
from pam_totp.cli.store_access import caller_name, no_account, now, open_store, uses_own_file
from pam_totp.core.record import UserRecord
from pam_totp.formats.csv_tokens import parse_map, understood_map
from pam_totp.formats.format import AskSecret, Format, ParsedFile, ParseOptions
from pam_totp.formats.google_authenticator import HOME_FILE, MAX_FILE, GoogleAuthenticator
from pam_totp.formats.parsing import FormatError
from pam_totp.formats.registry import FORMATS, encrypted, sniff
from pam_totp.operations.import_tokens import (
    AccountName,
    Candidate,
    Interrupted,
    Report,
    Selected,
    SelectedTokens,
    Selection,
    Status,
    import_tokens,
    select_user_files,
)
from pam_totp.pam.names import LocalAccounts, passwd_name
from pam_totp.system.audit import MAX_LINES, Fields, signals_held

LONG_FILE = 1024 * 1024  # bytes: from this size on, parsing a slow format takes a second or more
_KEPT_ACCOUNTS = 1000  # results of lookups: consecutive tokens often have the same user
MANY_TOKENS = 5000  # tokens: from this number on, an import takes a second or more


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "import",
        run,
        "import tokens from another program's file",
        "pam-totp import tokens.csv --map serials.csv",
        "pam-totp import pskc box.xml --password-file password --map serials.csv",
        "pam-totp import google-authenticator --homes /home --dry-run",
        data=True,
    )
    parser.usage = f"{parser.prog} [option ...] [FORMAT] FILE ..."
    parser.add_argument(
        "file",
        nargs="*",
        metavar="FILE",
        help=f"file to read, or - for standard input; FORMAT is recognised, or one of {', '.join(FORMATS)}",
    )
    parser.add_argument("--user", metavar="U", help="owner of the tokens; users-oath: import only this user's lines")
    parser.add_argument("--serial", metavar="S", help="only the token with this serial number")
    parser.add_argument("--map", metavar="FILE", help="file with the owners by serial number: lines of serial,user")
    parser.add_argument(
        "--homes", metavar="DIR", help=f"google-authenticator: read {HOME_FILE} in all home folders within DIR"
    )
    parser.add_argument(
        "--home-file", metavar="NAME", help=f"with --homes: path of the file in each home folder ({HOME_FILE})"
    )
    parser.add_argument("--strict", action="store_true", help="import only if every user has an account on this host")
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument("--key-file", metavar="FILE", help="pskc: file with the key, in hexadecimal")
    secret.add_argument("--password-file", metavar="FILE", help=f"{encrypted(FORMATS)}: file with the password")
    parser.add_argument("--dry-run", action="store_true", help="show the result, and change nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask for a confirmation")


def run(args: argparse.Namespace) -> int:
    named = named_format(args)
    if uses_own_file(args) and not (args.user or args.map or args.homes):
        args.user = caller_name()
    _check_usage(args, named)
    files = [(path, read_named(path)) for path in args.file]
    chosen = named or recognised_format(files)
    _check_format_usage(args, chosen)
    load(chosen)
    users_by_serial, understood = _read_map(args.map) if args.map else (None, [])
    report = _import(args, chosen, files, users_by_serial, understood)
    return print_report(args, report, users_by_serial or ())


def _check_usage(args: argparse.Namespace, explicit: Format | None) -> None:
    """Check the options before the files are read. `explicit` is the format that the user named, or None."""
    problem = None
    excluded = args.file or args.user or args.map or args.serial
    if args.homes and (excluded or not isinstance(explicit, GoogleAuthenticator)):
        problem = "--homes requires google-authenticator, and excludes FILE, --user, --map and --serial"
    elif args.home_file is not None and (not args.homes or not _is_inside(args.home_file)):
        problem = "--home-file requires --homes, and must be a path without .. inside a home folder"
    elif args.map and (args.user or args.serial):
        problem = "--map excludes --user and --serial"
    elif args.serial and not args.user:
        problem = "--serial requires --user"
    elif [args.map, args.key_file, args.password_file, *args.file].count("-") > 1:
        problem = "standard input must be used for at most one file"
    if problem:
        raise CommandError(problem, WRONG_USAGE)
    if explicit is not None:
        _check_format_usage(args, explicit)


def _is_inside(path: str) -> bool:
    return not os.path.isabs(path) and not {"", ".", ".."} & set(path.split("/"))


def _check_format_usage(args: argparse.Namespace, chosen: Format) -> None:
    problem = None
    if not args.homes and len(args.file) != 1 and not (args.file and chosen.several_files):
        problem = "FILE must be one file, or - for standard input"
    elif not chosen.names_users and not args.homes and not args.user:
        problem = f"--user is required: a {chosen.name} file names no user"
    elif chosen.labels_name_users and not has_owner(args) and not sys.stdin.isatty():
        problem = "--user, --map or --yes is required without a terminal: the file's labels would name the users"
    elif (args.key_file or args.password_file) and not chosen.has_secret:
        problem = f"--key-file and --password-file require {encrypted(FORMATS)}"
    if problem:
        raise CommandError(problem, WRONG_USAGE)


def _import(
    args: argparse.Namespace,
    chosen: Format,
    files: Sequence[NamedFile],
    users_by_serial: dict[str, str] | None,
    understood: list[tuple[str, str]],
) -> Report:
    """Drop the privileges, import the tokens of the files, and return the report.

    `understood` describes the columns of the map.
    """
    bar = Bar("reading", long=chosen.is_slow and sum(len(data) for _, data in files) >= LONG_FILE)
    options = ParseOptions(now=now(), ask_secret=secret_source(args, chosen, bar))
    homes = list(read_homes(args.homes, args.home_file or HOME_FILE, MAX_FILE)) if args.homes else []
    store = open_store(args, create=True, dry_run=args.dry_run)
    account = functools.lru_cache(_KEPT_ACCOUNTS)(LocalAccounts().account_name)
    selected: Selected
    new_record = None
    if args.homes:
        selected = select_user_files(homes, chosen, options, account)
    else:
        parsed = parse(chosen, files, options, bar)
        show_understood(args, [*understood, *((files[0][0], text) for text in parsed.understood)])
        selected = SelectedTokens(parsed, _selection(args, chosen, account, users_by_serial))
        new_record = _new_record(args, parsed)
    bar = Bar("checking" if args.dry_run else "importing", long=len(selected) >= MANY_TOKENS)
    try:
        if args.strict:
            _require_accounts(selected)
        if chosen.labels_name_users:
            confirm_users(args, files[0][0], selected)
        report = import_tokens(
            store, selected, now=options.now, new_record=new_record, dry_run=args.dry_run, progress=bar.show
        )
    except FormatError as e:  # some formats are parsed line by line, each time that the tokens are read
        raise format_error(chosen, *files[0], e) from None
    except Interrupted as e:
        unfinished = "interrupted during the roll-back; the next command completes it"
        raise CommandError(INTERRUPTED if e.rolled_back else unfinished, 128 + signal.SIGINT) from None
    if not args.dry_run:
        with signals_held():
            logged, more = islice(_imported(report), MAX_LINES), max(0, report.imported - MAX_LINES)
            args.audit.changed_many("import", logged, more=more, format=chosen.name)
    if not report.imported + report.skipped:
        raise CommandError(_nothing_found(args, files))
    return report


def _nothing_found(args: argparse.Namespace, files: Sequence[NamedFile]) -> str:
    if args.homes:
        name = args.home_file or HOME_FILE
        what = f"{args.homes}: nothing was imported: {name} not found in the home folders"
        return f"{what} (--home-file gives another name)"
    what = "must contain a token"
    if args.serial:
        what += f" with the serial number {args.serial}"
    elif args.user:
        what += f" of {args.user}"
    return f"{', '.join(path for path, _ in files)}: {what}; nothing was imported"


def _imported(report: Report) -> Iterator[Fields]:
    """Yield the fields of the log for each imported token."""
    for result in report:
        if result.status is Status.IMPORTED:
            token = {"token": result.token, "created": result.created, "next": result.next}
            yield {"user": result.user, **token, "type": result.type, "serial": result.serial}


def secret_source(args: argparse.Namespace, chosen: Format, bar: Bar) -> AskSecret | None:
    """Return a function that returns the key or password of a file, or None for a format that is always plain text."""
    if not chosen.has_secret:
        return None
    paths = {"key": args.key_file, "password": args.password_file}
    secrets = {what: read_secret(path) for what, path in paths.items() if path}

    def ask_secret(what: Literal["key", "password"]) -> str:
        bar.end_line()
        if secrets and what not in secrets:
            raise CommandError(f"--{what}-file is required: the file is encrypted with a {what}")
        missing = f"--{what}-file is required: the file is encrypted with a {what}; nothing was imported"
        return secrets[what] if secrets else ask(f"{what} of the file: ", hidden=True, missing=missing)

    return ask_secret


def _read_map(path: str) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the users by serial number, and the meaning of the map's heading as pairs of path and text."""
    data = read_named(path)
    try:
        users, text = parse_map(data), understood_map(data)
        return users, [] if text is None else [(path, text)]
    except FormatError as e:
        raise CommandError(f"{path}: {e}; nothing was imported") from None


def parse(chosen: Format, files: Sequence[NamedFile], options: ParseOptions, bar: Bar) -> ParsedFile:
    """Return the tokens of the files, which are the parts of one export."""
    path, data = files[0]
    bar.show(0, 1)
    try:
        parts = []
        for path, data in files:  # noqa: B007  the error names the last file
            parts.append(chosen.decode(data))
        parsed = chosen.parse(b"\n".join(parts), options)
    except FormatError as e:
        raise format_error(chosen, path, data, e) from None
    except ImportError:  # only an encrypted file needs the package
        raise missing_package(chosen) from None
    bar.show(1, 1)
    return parsed


def format_error(chosen: Format, path: str, data: bytes, error: FormatError) -> CommandError:
    """Return the error for a file, with a hint if the file looks like another format."""
    name = sniff(data)
    hint = f" (it looks like {name}: try 'pam-totp import {name}')" if name not in (None, chosen.name) else ""
    return CommandError(f"{path}: {error}; nothing was imported{hint}")


def _require_accounts(selected: Selected) -> None:
    """Raise CommandError if a user has no account on this host."""
    missing = {each.user for each in selected if isinstance(each, Candidate) and not each.has_account}
    if missing:
        remedy = "create the missing accounts, or omit --strict"
        texts = [no_account(user) for user in islice(sorted(missing), MAX_NAMED)]
        more = [f"and {len(missing) - MAX_NAMED} more"] if len(missing) > MAX_NAMED else []
        raise CommandError(f"nothing was imported: {', '.join(texts + more)}; {remedy}")


def _selection(
    args: argparse.Namespace, chosen: Format, account: AccountName, users_by_serial: dict[str, str] | None
) -> Selection:
    return Selection(
        account=account,
        user=passwd_name(args.user) if args.user else None,
        serial=args.serial,
        users_by_serial=users_by_serial,
        user_selects=chosen.user_selects_tokens,
    )


def _new_record(args: argparse.Namespace, parsed: ParsedFile) -> UserRecord | None:
    """Return the file's record with the user name on this host and an empty list of tokens. Return None for a file of
    tokens only.
    """
    if parsed.record is None:
        return None
    return parsed.record.without_tokens(passwd_name(args.user or parsed.record.user))
