"""rename: give a token another name."""

from __future__ import annotations

import argparse

from pam_totp.cli.command_line import DONE, Commands, add_command
from pam_totp.cli.store_access import ONESELF, named_token, open_store, require_free_name, update, user_of
from pam_totp.core.record import Token, UserRecord
from pam_totp.operations.audit_log import of_token


def add_to(commands: Commands) -> None:
    parser = add_command(commands, "rename", run, "give a token another name", "pam-totp rename alice phone old-phone")
    parser.add_argument("user", nargs="?", help=f"owner of the token ({ONESELF})")
    parser.add_argument("token", help="current name of the token")
    parser.add_argument("name", help="new name of the token")


def run(args: argparse.Namespace) -> int:
    store = open_store(args)
    user = user_of(args)

    def rename(record: UserRecord) -> tuple[UserRecord, Token]:
        token = named_token(record, args.token)
        if args.name != token.name:
            require_free_name(record, args.name, "choose another name")
        return record.with_changed(token, token.renamed(args.name)), token

    update(store, user, rename, lambda token: args.audit.changed("rename", user, **of_token(token), to=args.name))
    print(f"{user}: token '{args.token}' renamed to '{args.name}'")
    return DONE
