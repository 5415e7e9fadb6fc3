"""unassign: take an unconfirmed token back into the stock."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from pam_totp.cli.command_line import DONE, Commands, add_command
from pam_totp.cli.printing import print_json
from pam_totp.cli.prompts import confirm
from pam_totp.cli.stock_access import stock_error
from pam_totp.cli.store_access import now, open_store
from pam_totp.operations import stock
from pam_totp.operations.audit_log import of_token
from pam_totp.operations.stock import StockError, Taken
from pam_totp.store import NotThere, Store, clock_of
from pam_totp.system.audit import signals_held


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "unassign",
        run,
        "take a token that its user has not confirmed back into the stock",
        "pam-totp unassign T-1001",
        data=True,
    )
    parser.add_argument("serial", help="serial number of the token")


def run(args: argparse.Namespace) -> int:
    store = open_store(args)
    take_back(args, store, "unassign", lambda at: stock.unassign(store, args.serial, now=at))
    return DONE


def take_back(args: argparse.Namespace, store: Store, what: str, take: Callable[[int], Taken]) -> None:
    """Call `take` with the time, log the change as `what`, and print the result. Raise CommandError."""
    try:
        with signals_held():
            taken = take(clock_of(store, now)())
            token = taken.token
            args.audit.changed(what, taken.user, **of_token(token), type=token.type, serial=token.serial)
    except StockError as e:
        raise stock_error(e) from None
    if args.json:
        print_json({"user": taken.user, "serial": token.serial})
    else:
        print(f"{taken.user} no longer has the token {token.serial}; it is in stock")


def confirm_last(args: argparse.Namespace, store: Store, consequence: str) -> None:
    """Ask for a confirmation if the token is the user's last token."""
    user = store.owner_of_serial(args.serial)
    if user is None:
        return
    try:
        record = store.read(user)
    except NotThere:
        return
    if len(record.tokens) == 1:
        codes = " and all recovery codes" if record.recovery else ""
        confirm(f"take the last token{codes} of {user}? {consequence}", args)
