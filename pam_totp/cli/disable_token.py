"""disable-token: refuse the codes of a token until it is enabled again."""

from __future__ import annotations

import argparse

from pam_totp.cli.command_line import Commands, add_command
from pam_totp.cli.enable_token import add_token_arguments, switch


def add_to(commands: Commands) -> None:
    summary = "refuse the codes of a token until it is enabled again"
    add_token_arguments(add_command(commands, "disable-token", run, summary, "pam-totp disable-token alice fob"))


def run(args: argparse.Namespace) -> int:
    return switch(args, enabled=False)
