"""export: write a user's tokens to a file for another program."""

from __future__ import annotations

import argparse
import sys

from pam_totp.cli.command_line import (
    DONE,
    OUT_OF_REACH,
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
)
from pam_totp.cli.export_all import check_usage, export_all
from pam_totp.cli.files_in import read_secret
from pam_totp.cli.key_output import add_output_option, key_output, writes_file
from pam_totp.cli.printing import count, print_json
from pam_totp.cli.store_access import named_token, open_store, read, user_of
from pam_totp.core.record import Token, UserRecord
from pam_totp.formats.format import Format
from pam_totp.formats.parsing import FormatError
from pam_totp.formats.registry import EXPORT_FORMATS, encrypted
from pam_totp.operations.audit_log import of_token
from pam_totp.system.extras import how_to_get


def add_to(commands: Commands) -> None:
    example = "pam-totp export alice --format json --output alice.json"
    parser = add_command(
        commands, "export", run, "write a user's tokens to a file for another program", example, data=True
    )
    parser.add_argument("user", nargs="?", help="owner of the tokens (without root: yourself)")
    parser.add_argument(
        "--format", choices=EXPORT_FORMATS, required=True, metavar="FORMAT", help=", ".join(EXPORT_FORMATS)
    )
    parser.add_argument("--token", metavar="NAME", help="only this token of the user")
    parser.add_argument(
        "--all", action="store_true", help="the tokens of all users, in a new file or folder that --output names"
    )
    add_output_option(parser, "the tokens")
    parser.add_argument(
        "--password-file", metavar="FILE", help=f"{encrypted(EXPORT_FORMATS)}: encrypt with the password in this file"
    )


def run(args: argparse.Namespace) -> int:
    chosen = EXPORT_FORMATS[args.format]
    if args.password_file and not chosen.has_secret:
        raise CommandError(f"--password-file requires --format {encrypted(EXPORT_FORMATS)}", WRONG_USAGE)
    if args.token and chosen.holds_whole_record:
        raise CommandError(f"--format {chosen.name} excludes --token: the file holds the whole record", WRONG_USAGE)
    if args.all:
        check_usage(args, chosen)
        load(chosen)
        return export_all(args, chosen)
    load(chosen)
    password = read_secret(args.password_file) if args.password_file else None
    user = user_of(args)
    if args.json and not writes_file(args):
        raise CommandError("--json requires --output FILE: standard output has the JSON", WRONG_USAGE)
    with key_output(args) as write:
        record = read(open_store(args, keep_root=writes_file(args)), user)
        tokens = [named_token(record, args.token)] if args.token else list(record.tokens)
        content = _written(chosen, record, tokens, password)
        for token in tokens:
            args.audit.revealed("export", user, **of_token(token), format=chosen.name, file=args.output)
        write(content)
    lost = {token.name: _lost(chosen, token) for token in tokens}
    if args.json:
        print_json({"user": user, "file": args.output, "tokens": [token.name for token in tokens], "not_in_it": lost})
        return DONE
    if writes_file(args):
        what = f"{count(len(tokens), 'token')} of {user} exported"
        print(f"{args.output}: {what}; any account that can read the file can generate the same codes", flush=True)
    for name, fields in lost.items():
        if fields:
            print(f"pam-totp: {chosen.name} cannot hold these fields of {name}: {', '.join(fields)}", file=sys.stderr)
    return DONE


def load(chosen: Format) -> None:
    """Load the packages of a format before the process drops its privileges."""
    try:
        chosen.load()
    except ImportError:
        raise missing_package(chosen) from None


def missing_package(chosen: Format) -> CommandError:
    """Return the error for a format whose package is not installed."""
    assert chosen.package is not None
    return CommandError(f"{chosen.name} needs {chosen.package} ({how_to_get(chosen.package)})", OUT_OF_REACH)


def _written(chosen: Format, record: UserRecord, tokens: list[Token], password: str | None) -> bytes:
    """Return the content of the exported file. Raise CommandError if the format cannot hold all tokens."""
    if chosen.holds_whole_record:
        return chosen.write(record, tokens, password)
    for token in tokens:
        reason = chosen.unwritable(token) if token.active else f"{chosen.name} cannot hold a disabled token"
        if reason is not None:
            raise CommandError(
                f"{record.user}'s {token.name}: {reason} (select other tokens with --token, or use --format json)"
            )
    if chosen.holds_one_token and len(tokens) != 1:
        raise CommandError(f"a {chosen.name} file must have exactly one token (select it with --token)", WRONG_USAGE)
    try:
        return chosen.write(record, tokens, password)
    except FormatError as e:
        raise CommandError(str(e)) from None


def _lost(chosen: Format, token: Token) -> list[str]:
    """Return the names of the token's fields, except `name`, that have a value and that the format cannot hold."""
    lost = chosen.lost_fields - {"name"}
    return sorted(field for field in lost if getattr(token, field, None) not in (None, 0))
