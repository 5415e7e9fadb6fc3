"""unplug and plug: remove the token's port, and restore it."""

from __future__ import annotations

import argparse

from token_sim.cli import owner
from token_sim.cli.command_line import Commands, add_command, add_owned_token, print_reply


def add_to(commands: Commands) -> None:
    summary = "unplug the token, which removes its port"
    add_owned_token(add_command(commands, "unplug", run_unplug, summary, "unplug fob.token"))
    add_owned_token(add_command(commands, "plug", run_plug, "plug the token in again", "plug fob.token"))


def run_unplug(options: argparse.Namespace) -> None:
    print_reply(options, owner.ask(options, {"do": "unplug"}))


def run_plug(options: argparse.Namespace) -> None:
    print_reply(options, owner.ask(options, {"do": "plug"}))
