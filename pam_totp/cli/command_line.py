"""Shared code of the command modules: exit statuses, CommandError, and common options.

Rules:
- A command module has `add_to`, which adds its parser, and `run`, which returns the exit status.
- A command that prints data accepts --json. A command that uses one store accepts --store, except `desk`.
- A CommandError is one line: the error, the reason and the remedy.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pam_totp.core.settings import DEFAULT_STORE, SITE_FILE
from pam_totp.operations import audit_log

DONE, REFUSED, WRONG_USAGE, OUT_OF_REACH = range(4)

INTERRUPTED = "interrupted; nothing was changed"

Commands = Any  # argparse's type of subparsers is private


class CommandError(Exception):
    """An error that ends the command: a message for the user, and the exit status."""

    def __init__(self, text: str, status: int = REFUSED) -> None:
        super().__init__(text)
        self.status = status


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    *examples: str,
    data: bool = False,
    store: bool = True,
) -> argparse.ArgumentParser:
    """Add the parser of a command, and return it. `data` adds the option --json; `store` adds --store."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog="\n  ".join(("examples:", *examples)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    if store:
        parser.add_argument(
            "--store", metavar="STORE", default=DEFAULT_STORE, help="folder or database of the records (%(default)s)"
        )
    if data:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def refuse_other_options(args: argparse.Namespace, options: Mapping[str, Sequence[str]]) -> None:
    """Raise CommandError for an option of another subcommand. `options` has the options by subcommand."""
    for option in dict.fromkeys(option for each in options.values() for option in each):
        if option not in options[args.what] and getattr(args, option) not in (None, False):
            name = option.replace("_", "-")
            raise CommandError(f"unexpected option of '{args.parser.prog} {args.what}': --{name}", WRONG_USAGE)


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help=f"site file ({SITE_FILE})")


def site_file(args: argparse.Namespace) -> str:
    """Return the path of the site file. The default file may be missing.

    Raise OSError if --config names a missing file.
    """
    if args.config is None:
        return SITE_FILE
    os.stat(args.config)
    return str(args.config)


def add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log", choices=("syslog", "stderr"), default="syslog", help="destination of the audit log (%(default)s)"
    )


def add_metrics(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--metrics", metavar="PATH", help="Unix socket for Prometheus to create (default: none)")


def log_sink(args: argparse.Namespace) -> audit_log.Sink:
    return audit_log.to_syslog if args.log == "syslog" else audit_log.to_stderr
