"""assign: assign a token in stock to a user.

Rules:
- Without `--confirm`, the token is unconfirmed. The user confirms the token later, by two codes in a row in the portal.
- `--confirm` reads the codes, and confirms the token in the same change. The option also confirms a token that was
  assigned before.
"""

from __future__ import annotations

import argparse

from pam_totp.cli.command_line import DONE, Commands, add_command
from pam_totp.cli.printing import print_json
from pam_totp.cli.stock_access import require_free, stock_error, with_codes
from pam_totp.cli.store_access import now, open_store, token_facts, warn_without_account
from pam_totp.operations import stock
from pam_totp.operations.audit_log import of_token
from pam_totp.operations.stock import Given, StockError
from pam_totp.pam.names import passwd_name
from pam_totp.store import Store, clock_of
from pam_totp.system.audit import signals_held


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "assign",
        run,
        "assign a token in stock to a user",
        "pam-totp assign T-1001 alice",
        "pam-totp assign T-1001 alice --confirm",
        data=True,
    )
    parser.add_argument("serial", help="serial number of the token")
    parser.add_argument("user", help="user who gets the token")
    parser.add_argument("--name", help="name of the token in the user's list (token)")
    parser.add_argument("--confirm", action="store_true", help="ask for a code of the token, and confirm it")


def run(args: argparse.Namespace) -> int:
    store, user = open_store(args), passwd_name(args.user)
    try:
        given = _give(args, store, user)
    except StockError as e:
        raise stock_error(e) from None
    if args.json:
        print_json(token_facts(user, given.token))
        return DONE
    state = "the token is confirmed" if given.token.confirmed else "the token is unconfirmed"
    confirm = f" (confirm it in the portal, or by 'pam-totp assign {args.serial} {user} --confirm')"
    hint = "" if given.token.confirmed else confirm
    print(f"{user} now has the token {given.token.serial} under the name {given.token.name}; {state}{hint}")
    return DONE


def _give(args: argparse.Namespace, store: Store, user: str) -> Given:
    """Assign the token, or confirm the token if the user has it already. Log the change, and return the result."""
    found, has_it = stock.find(store, args.serial), store.owner_of_serial(args.serial) == user
    clock = clock_of(store, now)
    if not (args.confirm and has_it):
        require_free(store, args.serial, found)
        warn_without_account(user)

    def change(codes: bytes | None) -> Given:
        with signals_held():
            if codes is not None and has_it:
                given, what = stock.confirm(store, args.serial, now=clock(), codes=codes), "confirm"
            else:
                given = stock.assign(store, args.serial, user, now=clock(), name=args.name, codes=codes)
                what = "assign"
            token = given.token
            fields = {"type": token.type, "serial": token.serial, "state": None if token.confirmed else "unconfirmed"}
            args.audit.changed(what, user, **of_token(token), **fields)
        return given

    if not args.confirm:
        return change(None)
    return with_codes(args.serial, found, change)
