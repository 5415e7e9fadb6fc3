"""return: take a used token back into the stock."""

from __future__ import annotations

import argparse

from pam_totp.cli.command_line import DONE, Commands, add_command
from pam_totp.cli.remove import CONSEQUENCE
from pam_totp.cli.store_access import open_store
from pam_totp.cli.unassign import confirm_last, take_back
from pam_totp.operations import stock


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "return",
        run,
        "take a used token back into the stock: used codes are refused for the next user, too",
        "pam-totp return T-1001",
        data=True,
    )
    parser.add_argument("serial", help="serial number of the token")
    parser.add_argument("--yes", action="store_true", help="do not ask for a confirmation")


def run(args: argparse.Namespace) -> int:
    store = open_store(args)
    confirm_last(args, store, CONSEQUENCE)
    take_back(args, store, "return", lambda at: stock.give_back(store, args.serial, now=at))
    return DONE
