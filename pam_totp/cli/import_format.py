"""The format of an import: named by the first word, or recognised by the content of the files.

Rules:
- The first word is the format if it names a format, even if a file has this name (write ./csv for the file).
- Files of one import have one format. A file that fits no format, or several formats, requires the name of its format.
- Before the import, the command shows the recognised format and the meaning of each column.
- The caller must confirm the users that labels name: the author of a QR code may write `root` into its label.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence

from pam_totp.cli.command_line import REFUSED, WRONG_USAGE, CommandError
from pam_totp.cli.import_report import MAX_NAMED
from pam_totp.cli.printing import shown
from pam_totp.cli.prompts import confirm
from pam_totp.formats.format import Format
from pam_totp.formats.google_authenticator import GoogleAuthenticator
from pam_totp.formats.registry import FORMATS, sniff
from pam_totp.operations.import_tokens import Candidate, Result

NamedFile = tuple[str, bytes]  # path and content


def named_format(args: argparse.Namespace) -> Format | None:
    """Return the format that the first word names, or None. Remove this word from the files.

    --homes without FILE implies google-authenticator, the only format of files in home folders.
    """
    if args.file and args.file[0] in FORMATS:
        return FORMATS[args.file.pop(0)]
    if args.homes and not args.file:
        return FORMATS[GoogleAuthenticator.name]
    if not args.file:
        raise CommandError(f"FILE is required; the formats are {', '.join(FORMATS)}", WRONG_USAGE)
    if args.file[0] != "-" and not os.path.lexists(args.file[0]):
        what = f"{args.file[0]}: must be an existing file or a format (the formats are {', '.join(FORMATS)})"
        raise CommandError(what, WRONG_USAGE)
    return None


def recognised_format(files: Sequence[NamedFile]) -> Format:
    """Return the format of all files, and print its name. Raise CommandError."""
    names = {sniff(data) for _, data in files}
    name = next(iter(names))
    if name is None or len(names) != 1:
        path = next((path for path, data in files if sniff(data) is None), files[0][0])
        hint = f"name the format first, as in 'pam-totp import csv {path}'; the formats are {', '.join(FORMATS)}"
        raise CommandError(f"{path}: unknown or ambiguous format; nothing was imported ({hint})", REFUSED)
    _say(files[0][0], f"recognised as {name}")
    return FORMATS[name]


def show_understood(args: argparse.Namespace, understood: Iterable[tuple[str, str]]) -> None:
    """Print the meaning of the columns, as pairs of path and text. On a terminal, ask for a confirmation."""
    lines = list(understood)
    for path, text in lines:
        _say(path, text)
    if lines and sys.stdin.isatty() and not args.dry_run:
        confirm("Import these tokens?", args)


def confirm_users(args: argparse.Namespace, path: str, selected: Iterable[Candidate | Result]) -> None:
    """On a terminal, show the users that labels name, and ask for a confirmation before the import."""
    if has_owner(args) or not sys.stdin.isatty():
        return
    users = sorted({each.user for each in selected if isinstance(each, Candidate)})
    if not users:
        return
    names = ", ".join(f"'{user}'" for user in users[:MAX_NAMED])
    more = f", and {len(users) - MAX_NAMED} more" if len(users) > MAX_NAMED else ""
    _say(path, f"the labels name the users {names}{more} (--user names another user)")
    confirm("Import these tokens?", args)


def has_owner(args: argparse.Namespace) -> bool:
    """Return True if the options name or confirm the owners of the tokens, or if the command only shows the result."""
    return bool(args.user or args.map or args.yes or args.dry_run)


def _say(path: str, text: str) -> None:
    print(shown(f"{path}: {text}"), file=sys.stderr, flush=True)
