"""export: a user's tokens in another program's format, into a file of mode 0600."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pam_totp.cli.codes import SERVICE
from pam_totp.cli.common import (
    DONE,
    OUT_OF_REACH,
    WRONG_USAGE,
    CommandError,
    Commands,
    command,
    count,
    named_token,
    open_store,
    print_json,
    read,
    user_of,
)
from pam_totp.cli.files_in import read_secret
from pam_totp.cli.files_out import new_file
from pam_totp.core.record import Token, UserRecord
from pam_totp.core.secretfile import serialize
from pam_totp.formats import google_authenticator, otpauth, pskc, users_oath
from pam_totp.operations import audit_log
from pam_totp.store.file import file_name
from pam_totp.system.extras import how_to_get


@dataclass(frozen=True, slots=True)
class _Format:
    """How a format's file is called after its user, why a token cannot be in it, and what of a token it loses."""

    suffix: str
    unwritable: Callable[[Token], str | None] = lambda token: None
    loses: frozenset[str] = frozenset()


_TIMES = frozenset({"last_used"})
FORMATS = {
    "otpauth": _Format("otpauth.txt", loses=_TIMES | {"name", "serial", "last_step", "drift"}),
    "pskc": _Format("pskc.xml", loses=_TIMES),
    "google-authenticator": _Format(
        "google_authenticator", google_authenticator.unwritable, _TIMES | {"name", "serial"}
    ),
    "users-oath": _Format("users.oath", users_oath.unwritable, frozenset({"name", "serial", "drift"})),
    "json": _Format("json"),
}


def add_to(commands: Commands) -> None:
    exports = command(commands, "export", run_export, "write a user's tokens to a file for another program", data=True)
    exports.add_argument("user", nargs="?", help="not needed without root: then it is you")
    exports.add_argument("--format", choices=FORMATS, required=True, metavar="FORMAT", help=", ".join(FORMATS))
    exports.add_argument("--token", metavar="NAME", help="only this one of the user's tokens")
    exports.add_argument("--output", metavar="FILE", help="the file, which must not be there (USER.… in this folder)")
    exports.add_argument("--password-file", metavar="FILE", help="pskc: encrypt it with this file's password")


def run_export(args: argparse.Namespace) -> int:
    chosen = FORMATS[args.format]
    if args.password_file and args.format != "pskc":
        raise CommandError("--password-file goes with pskc", WRONG_USAGE)
    if args.format == "json" and args.token:
        raise CommandError("json holds the whole record: leave --token out", WRONG_USAGE)
    if args.format == "pskc":
        if importlib.util.find_spec("pskc") is None:
            raise CommandError(f"pskc needs python-pskc ({how_to_get('python-pskc')})", OUT_OF_REACH)
        pskc.load()
    password = read_secret(args.password_file) if args.password_file else None
    user = user_of(args)
    if args.output == "-":
        raise CommandError("keys go to a file of mode 0600, never to standard output: name one", WRONG_USAGE)
    path = args.output or f"{file_name(user)}.{chosen.suffix}"
    with new_file(path) as file:
        record = read(open_store(args), user)
        tokens = [named_token(record, args.token)] if args.token else list(record.tokens)
        file.write(_written(args.format, record, tokens, password))
    lost = {token.name: _lost(token, chosen) for token in tokens}
    audit_log.write(
        audit_log.to_syslog, SERVICE, "accepted", user=user, by="export", format=args.format, tokens=len(tokens)
    )
    if args.json:
        print_json({"user": user, "file": path, "tokens": [t.name for t in tokens], "not_in_it": lost})
        return DONE
    print(f"{path} holds {count(len(tokens), 'token')} of {user}; whoever reads it can make the same codes", flush=True)
    for name, fields in lost.items():
        if fields:
            print(f"pam-totp: not in it, of {name}: {', '.join(fields)}", file=sys.stderr)
    return DONE


def _written(name: str, record: UserRecord, tokens: list[Token], password: str | None) -> bytes:
    if name == "json":
        return serialize(record)
    for token in tokens:
        reason = FORMATS[name].unwritable(token) if token.active else f"disabled, which {name} has no way to say"
        if reason is not None:
            raise CommandError(f"{record.user}'s {token.name}: {reason} (choose with --token, or export json)")
    if name == "google-authenticator":
        if len(tokens) != 1:
            raise CommandError("google-authenticator's file holds one token: choose with --token", WRONG_USAGE)
        return google_authenticator.write(tokens[0])
    if name == "pskc":
        return pskc.write(record.user, tokens, password)
    try:
        return (otpauth.write if name == "otpauth" else users_oath.write)(record.user, tokens)
    except ValueError as e:
        raise CommandError(str(e)) from None


def _lost(token: Token, chosen: _Format) -> list[str]:
    """What of this token the file does not hold."""
    return sorted(name for name in chosen.loses if name != "name" and getattr(token, name, None) not in (None, 0))
