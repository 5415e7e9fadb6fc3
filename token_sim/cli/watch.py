"""watch: print the code of each press by another client or a user."""

from __future__ import annotations

import argparse

from token_sim.cli.command_line import Commands, add_command
from token_sim.cli.press import add_code_options, print_codes


def add_to(commands: Commands) -> None:
    examples = ("watch --port /tmp/fob", "watch --port socket://127.0.0.1:4000 -n 3 --lcd")
    parser = add_command(commands, "watch", run, "print the code of every press", *examples)
    add_code_options(parser, count=None, timeout=3600.0)


def run(options: argparse.Namespace) -> None:
    print_codes(options, lambda client: client.wait_code())
