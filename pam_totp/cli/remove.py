"""remove: remove a token, or all tokens of a user."""

from __future__ import annotations

import argparse

from pam_totp.cli.command_line import DONE, Commands, add_command
from pam_totp.cli.enable_token import add_token_arguments
from pam_totp.cli.printing import count
from pam_totp.cli.prompts import confirm
from pam_totp.cli.store_access import named_token, open_store, read, update, user_and_token
from pam_totp.core.record import Token, UserRecord
from pam_totp.operations.audit_log import of_token

CONSEQUENCE = "logins that require a code will be refused"


def add_to(commands: Commands) -> None:
    examples = ("pam-totp remove alice old-phone", "pam-totp remove alice --all")
    parser = add_command(commands, "remove", run, "remove a token", *examples)
    add_token_arguments(parser)
    parser.add_argument("--all", action="store_true", help="remove all tokens and recovery codes")
    parser.add_argument("--yes", action="store_true", help="do not ask for a confirmation")


def run(args: argparse.Namespace) -> int:
    store = open_store(args)
    user, chosen = user_and_token(args, store)
    record = read(store, user)

    def log_all(tokens: tuple[Token, ...]) -> None:
        args.audit.changed_many("remove", map(of_token, tokens) if tokens else [{}], user=user)

    if args.all:
        confirm(f"remove all tokens and recovery codes of {user}? {CONSEQUENCE}", args)
        update(store, user, lambda record: (None, record.tokens), log_all)
        print(f"{user}: all tokens and recovery codes removed")
        return DONE
    name = named_token(record, chosen).name
    if len(record.tokens) == 1:
        more = f" and {count(len(record.recovery), 'recovery code')}" if record.recovery else ""
        confirm(f"remove the last token{more} of {user}? {CONSEQUENCE}", args)

    def change(record: UserRecord) -> tuple[UserRecord | None, tuple[Token, ...]]:
        token = named_token(record, name)
        rest = record.without_token(name)
        return (rest if rest.tokens else None), (token,)

    update(store, user, change, log_all)
    print(f"{user}: token '{name}' removed")
    return DONE
