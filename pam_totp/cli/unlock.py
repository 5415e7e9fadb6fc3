"""unlock: clear a user's count of wrong answers."""

from __future__ import annotations

import argparse

from pam_totp.cli.command_line import DONE, Commands, add_command
from pam_totp.cli.store_access import ONESELF, open_store, update, user_of


def add_to(commands: Commands) -> None:
    summary = "clear a user's count of wrong answers, which also ends a lock"
    parser = add_command(commands, "unlock", run, summary, "pam-totp unlock alice")
    parser.add_argument("user", nargs="?", help=f"name of the user ({ONESELF})")


def run(args: argparse.Namespace) -> int:
    store = open_store(args)
    user = user_of(args)

    def log(failures: int) -> None:
        args.audit.changed("unlock", user, failures=failures)

    update(store, user, lambda record: (record.unlocked(), record.failures), log)
    print(f"{user}: the count of wrong answers is now 0")
    return DONE
