"""oracle: print the token's hidden state."""

from __future__ import annotations

import argparse

from token_sim.cli import owner
from token_sim.cli.command_line import Commands, add_command, add_owned_token, print_reply


def add_to(commands: Commands) -> None:
    summary = "print the hidden state: true counter, true time, last code"
    add_owned_token(add_command(commands, "oracle", run, summary, "oracle fob.token"))


def run(options: argparse.Namespace) -> None:
    print_reply(options, owner.ask(options, {"do": "oracle"}))
