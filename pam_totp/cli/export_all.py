"""export --all: write the tokens of all users in the format of another program.

Rules:
- `--output` names the new file, or the new folder for a format with one file for each user. The option is required.
- The export skips a token that the format cannot represent, and reports the reason. The exit status is then 1,
  or 3 if a record cannot be read.
- The command removes an incomplete file or folder after an error, Ctrl-C, SIGTERM or SIGHUP.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pam_totp.cli.command_line import DONE, OUT_OF_REACH, REFUSED, WRONG_USAGE, CommandError
from pam_totp.cli.files_out import new_file, new_folder
from pam_totp.cli.printing import count, print_json
from pam_totp.cli.store_access import open_store
from pam_totp.core.record import Token, UserRecord
from pam_totp.formats.format import Format
from pam_totp.formats.parsing import FormatError
from pam_totp.formats.registry import EXPORT_FORMATS
from pam_totp.operations.audit_log import of_token
from pam_totp.store import Store, StoreError, read_each
from pam_totp.store.file import file_name
from pam_totp.system.audit import MAX_LINES

_MAX_NAMED = 20  # skipped tokens that the output names; the other skipped tokens are only counted
HINTS = {
    "users-oath": "auth required pam_oath.so usersfile={path} window=10 digits=6",
    "google-authenticator": "auth required pam_google_authenticator.so secret={path}/${{USER}} user=root",
}
_NO_FILE = "the other program requires a file with the user's name, and this name cannot be a file name"


@dataclass(slots=True)
class _Export:
    """The content of each user's part, by user, and the skipped tokens: the user, the token or None, and the reason."""

    parts: dict[str, bytes] = field(default_factory=dict)
    tokens: list[tuple[str, Token]] = field(default_factory=list)
    left_out: list[tuple[str, str | None, str]] = field(default_factory=list)
    is_damaged: bool = False


def check_usage(args: argparse.Namespace, chosen: Format) -> None:
    """Raise CommandError for an option that --all excludes, and for a missing option."""
    supported = [name for name, each in EXPORT_FORMATS.items() if each.all_users is not None]
    problem = None
    if args.user or args.token:
        problem = "--all excludes USER and --token"
    elif chosen.all_users is None:
        problem = f"--all requires one of the formats {', '.join(supported)}"
    elif args.output in (None, "-"):
        what = "file" if chosen.all_users == "file" else "folder, which gets a file for each user"
        problem = f"--all requires --output: the name of a new {what}"
    if problem:
        raise CommandError(problem, WRONG_USAGE)


def export_all(args: argparse.Namespace, chosen: Format) -> int:
    """Export the tokens of all users, and return the exit status."""
    if chosen.all_users == "folder":
        with new_folder(args.output) as folder:
            export = _read(open_store(args, keep_root=True), chosen)
            _log(args, export, chosen)
            folder.write((file_name(user), content) for user, content in export.parts.items())
    else:
        with new_file(args.output) as file:
            export = _read(open_store(args, keep_root=True), chosen)
            _log(args, export, chosen)
            file.write(b"".join(export.parts.values()))
    _report(args, export, chosen)
    if export.is_damaged:
        return OUT_OF_REACH
    return REFUSED if export.left_out else DONE


def _read(store: Store, chosen: Format) -> _Export:
    export = _Export()
    for user, record in read_each(store, sorted(store.users())):
        if isinstance(record, StoreError):
            export.is_damaged = True
            export.left_out.append((user, None, str(record)))
        else:
            _add(export, record, chosen)
    if not export.parts:
        _print_left_out(export)
        status = OUT_OF_REACH if export.is_damaged else REFUSED
        raise CommandError("nothing was written: the export requires a token that the format can represent", status)
    return export


def _add(export: _Export, record: UserRecord, chosen: Format) -> None:
    """Add the part of one user, and the skipped tokens with the reasons."""
    if chosen.holds_whole_record:
        tokens = list(record.tokens)
    else:
        tokens = []
        for token in record.tokens:
            reason = chosen.unwritable(token) if token.active else f"{chosen.name} cannot hold a disabled token"
            if reason is None:
                tokens.append(token)
            else:
                export.left_out.append((record.user, token.name, reason))
    if chosen.name in HINTS and chosen.all_users == "folder" and file_name(record.user) != record.user:
        export.left_out.append((record.user, None, _NO_FILE))
    elif chosen.holds_one_token and len(tokens) > 1:
        reason = f"a {chosen.name} file has one token, and the user has {len(tokens)} (select a token with --token)"
        export.left_out.append((record.user, None, reason))
    elif tokens:
        try:
            export.parts[record.user] = chosen.write(record, tokens)
            export.tokens += [(record.user, token) for token in tokens]
        except FormatError as e:
            export.left_out.append((record.user, None, str(e)))


def _log(args: argparse.Namespace, export: _Export, chosen: Format) -> None:
    """Log the export before it writes keys: a line for each of MAX_LINES tokens, and the number of the other tokens."""
    where = {"format": chosen.name, "file": args.output}
    for user, token in islice(export.tokens, MAX_LINES):
        args.audit.revealed("export", user, **of_token(token), **where)
    if len(export.tokens) > MAX_LINES:
        args.audit.revealed("export", None, omitted=len(export.tokens) - MAX_LINES, **where)


def _report(args: argparse.Namespace, export: _Export, chosen: Format) -> None:
    if args.json:
        print_json(
            {
                "output": args.output,
                "users": len(export.parts),
                "tokens": len(export.tokens),
                "left_out": [dict(zip(("user", "token", "reason"), each, strict=True)) for each in export.left_out],
                "not_in_it": sorted(chosen.lost_fields),
            }
        )
        return
    what = f"{count(len(export.tokens), 'token')} of {count(len(export.parts), 'user')} exported"
    print(f"{args.output}: {what}; any account that can read the output can generate the same codes", flush=True)
    if chosen.name in HINTS:
        print(f"for the stack: {HINTS[chosen.name].format(path=os.path.abspath(args.output))}", flush=True)
    _print_left_out(export)


def _print_left_out(export: _Export) -> None:
    for line in _lines_of(export):
        print(f"pam-totp: {line}", file=sys.stderr)


def _lines_of(export: _Export) -> Iterator[str]:
    """Yield lines about the skipped tokens: the first tokens by name, and the number of the others for each reason."""
    for user, token, reason in export.left_out[:_MAX_NAMED]:
        yield f"skipped: {user}{'' if token is None else f', {token}'}: {reason}"
    for reason, number in Counter[Any](reason for _, _, reason in export.left_out[_MAX_NAMED:]).items():
        yield f"skipped: {number} more: {reason}"
