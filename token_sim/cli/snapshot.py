"""snapshot and restore: copy a token to a file, and load the copy into another token, which becomes a clone."""

from __future__ import annotations

import argparse
import os

from token_sim.cli import owner
from token_sim.cli.command_line import Commands, add_command, add_owned_token, print_reply, print_result


def add_to(commands: Commands) -> None:
    copy = add_command(
        commands, "snapshot", run_snapshot, "copy the token to a new file", "snapshot fob.token monday.token"
    )
    restored = add_command(
        commands,
        "restore",
        run_restore,
        "load a copy into the token, which becomes a clone",
        "restore fob.token monday.token",
    )
    for parser, text in ((copy, "the new file"), (restored, "a file that snapshot created")):
        add_owned_token(parser)
        parser.add_argument("copy", metavar="COPY", help=text)


def run_snapshot(options: argparse.Namespace) -> None:
    reply = owner.ask(options, {"do": "snapshot", "to": _path(options)})
    print_result(options, reply, options.copy)


def run_restore(options: argparse.Namespace) -> None:
    print_reply(options, owner.ask(options, {"do": "restore", "from": _path(options)}))


def _path(options: argparse.Namespace) -> str:
    """Return the absolute path of the copy, because the working directory of a running token can be different."""
    return os.path.abspath(str(options.copy))
