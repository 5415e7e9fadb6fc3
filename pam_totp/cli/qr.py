"""qr: show the QR code of an enrolled token again."""

from __future__ import annotations

import argparse

from pam_totp.cli.command_line import DONE, Commands, add_command
from pam_totp.cli.enable_token import add_token_arguments
from pam_totp.cli.printing import json_text
from pam_totp.cli.prompts import confirm
from pam_totp.cli.qr_output import TERMINAL, add_qr_options, key_display, token_uri, warn_about, writes_new_file
from pam_totp.cli.store_access import named_token, open_store, read, token_facts, user_and_token
from pam_totp.operations.audit_log import of_token


def add_to(commands: Commands) -> None:
    examples = ("pam-totp qr alice", "pam-totp qr alice phone --qr png=alice.png")
    parser = add_command(commands, "qr", run, "show the QR code of an enrolled token", *examples, data=True)
    add_token_arguments(parser)
    add_qr_options(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask for a confirmation")


def run(args: argparse.Namespace) -> int:
    with key_display(args, TERMINAL) as display:
        store = open_store(args, keep_root=writes_new_file(args))
        user, name = user_and_token(args, store)
        token = named_token(read(store, user), name)
        confirm(f"show the key of {user}'s {token.name}? any person who sees the key can generate the same codes", args)
        warn_about(token, is_scanned=True)
        uri = token_uri(token, user, args.issuer)
        args.audit.revealed("qr", user, **of_token(token))
        display.show(token, uri)
        if args.json and display.write is not None:
            display.write(json_text(token_facts(user, token) | {"uri": uri}))
    return DONE
