"""enable-token: accept the codes of a token again."""

from __future__ import annotations

import argparse

from pam_totp.cli.command_line import DONE, Commands, add_command
from pam_totp.cli.store_access import ONESELF, named_token, open_store, update, user_and_token
from pam_totp.core.record import Token, UserRecord
from pam_totp.operations.audit_log import of_token


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands, "enable-token", run, "accept the codes of a token again", "pam-totp enable-token alice fob"
    )
    add_token_arguments(parser)


def add_token_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments USER and TOKEN."""
    parser.add_argument("user", nargs="?", help=f"owner of the token ({ONESELF})")
    parser.add_argument("token", nargs="?", help="name of the token; optional if the user has only one token")


def run(args: argparse.Namespace) -> int:
    return switch(args, enabled=True)


def switch(args: argparse.Namespace, *, enabled: bool) -> int:
    """Enable or disable a token. Return the exit status."""
    store = open_store(args)
    user, name = user_and_token(args, store)

    def change(record: UserRecord) -> tuple[UserRecord, Token]:
        token = named_token(record, name)
        return record.with_changed(token, token.switched(enabled)), token

    what = "enable-token" if enabled else "disable-token"
    token = update(store, user, change, lambda token: args.audit.changed(what, user, **of_token(token)))
    print(f"{user}: token '{token.name}' {'enabled' if enabled else 'disabled: its codes are refused'}")
    return DONE
