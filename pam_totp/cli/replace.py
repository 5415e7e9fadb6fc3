"""replace: give a user a new key, or assign a token in stock, in place of a token that is lost, stolen or broken.

Rules:
- The old token is valid until the new token is confirmed. One change of the record then replaces the old token.
- The recovery codes, the other tokens and the count of failures are unchanged.
- The log has a line about each of the two tokens, so that `pam-totp restored` removes the old token from a restored
  store.
- With `--stock`, both arguments are serial numbers. Otherwise, the arguments are a user and the name of a token, even
  if both look like serial numbers.
"""

from __future__ import annotations

import argparse

from pam_totp.cli.command_line import DONE, WRONG_USAGE, CommandError, Commands, add_command
from pam_totp.cli.enable_token import add_token_arguments
from pam_totp.cli.enroll import add_token_options, first_code, has_new_key, new_token_of, require_counter_of_hotp
from pam_totp.cli.printing import print_json
from pam_totp.cli.qr_output import NONE, TERMINAL, key_display, token_uri, warn_about, writes_new_file
from pam_totp.cli.stock_access import require_free, stock_error, with_codes
from pam_totp.cli.store_access import (
    named_token,
    now,
    open_store,
    read,
    require_free_serial,
    serial_errors,
    token_facts,
    update,
    user_and_token,
)
from pam_totp.core.oath import DEFAULT_PERIOD
from pam_totp.core.record import Token, TotpToken, UserRecord
from pam_totp.operations import stock
from pam_totp.operations.audit_log import of_token
from pam_totp.operations.enroll import replaced
from pam_totp.operations.stock import Reason, Replaced, StockError
from pam_totp.store import clock_of
from pam_totp.system.audit import signals_held

OPTIONS = ("type", "digits", "algorithm", "period")  # their defaults are the values of the old token
NOT_WITH_STOCK = ("counter", "serial", "secret_stdin", "uri_stdin", "issuer", "qr", "output")


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "replace",
        run,
        "give a user a new key in place of a lost token",
        "pam-totp replace alice phone",
        "pam-totp replace alice fob --secret-stdin --serial S-2002 < key.txt",
        "pam-totp replace --stock T-1001 T-1002 --lost",
        data=True,
    )
    parser.usage = f"{parser.prog} [option ...] [user] [token]\n       {parser.prog} --stock [--lost] [--yes] OLD NEW"
    add_token_arguments(parser)
    add_token_options(parser, defaults=dict.fromkeys(OPTIONS))
    parser.add_argument(
        "--stock",
        action="store_true",
        help="the arguments are two serial numbers: of a user's token, and of the new token in stock",
    )
    parser.add_argument("--lost", action="store_true", help="--stock: do not take the old token into the stock")


def run(args: argparse.Namespace) -> int:
    if args.stock:
        return _from_stock(args)
    if args.lost:
        raise CommandError("--lost requires --stock", WRONG_USAGE)
    is_new_key = has_new_key(args)
    with key_display(args, TERMINAL if is_new_key else NONE, has_key=is_new_key) as display:
        store = open_store(args, keep_root=writes_new_file(args))
        user, name = user_and_token(args, store)
        record = read(store, user)
        old = named_token(record, name)
        _take_from(old, args)
        require_counter_of_hotp(args)
        token = new_token_of(args, old.name)
        replaced(record, old, token)  # report a duplicate key before the user scans the QR code
        require_free_serial(store, user, token)
        warn_about(token, is_scanned=is_new_key or args.qr is not None)
        uri = token_uri(token, user, args.issuer)
        display.show(token, uri)
        token = token.confirmed_without_code() if args.yes else first_code(args, token, display)
        facts = token_facts(user, token) | ({"uri": uri} if is_new_key else {})
        display.save_json(facts)

        def change(record: UserRecord) -> tuple[UserRecord, Token]:
            changed = replaced(record, old, token)
            if changed is None:
                what = f"{user}'s {old.name} was changed or removed meanwhile; nothing was changed"
                raise CommandError(f"{what} (see 'pam-totp list {user}')")
            return changed

        def log(last: Token) -> None:
            args.audit.changed("remove", user, **of_token(last))
            args.audit.changed("enroll", user, **of_token(token), type=token.type, serial=token.serial)

        with serial_errors():
            update(store, user, change, log)
    if not args.json:
        print(f"{user}: token '{old.name}' has a new key; codes of the old key are refused")
    elif not display.has_file:
        print_json(facts)
    return DONE


def _from_stock(args: argparse.Namespace) -> int:
    """Replace a user's token by a token in stock. The arguments are their serial numbers. Return the exit status."""
    for option in (*OPTIONS, *NOT_WITH_STOCK):
        if getattr(args, option) != args.parser.get_default(option):
            raise CommandError(f"--stock excludes --{option.replace('_', '-')}", WRONG_USAGE)
    old, new = args.user, args.token
    if old is None or new is None:
        raise CommandError("--stock requires two serial numbers: of the old and of the new token", WRONG_USAGE)
    store = open_store(args)
    clock = clock_of(store, now)

    def change(codes: bytes | None) -> Replaced:
        with signals_held():
            done = stock.replace(store, old, new, now=clock(), codes=codes, lost=args.lost)
            what = "remove" if args.lost else "return"
            args.audit.changed(what, done.user, **of_token(done.old), type=done.old.type, serial=done.old.serial)
            args.audit.changed("assign", done.user, **of_token(done.new), type=done.new.type, serial=done.new.serial)
        return done

    try:
        found = stock.find(store, new)
        if store.owner_of_serial(old) is None:
            raise StockError(Reason.NOT_ASSIGNED, old)
        require_free(store, new, found)
        done = change(None) if args.yes else with_codes(new, found, change)
    except StockError as e:
        raise stock_error(e) from None
    if args.json:
        print_json(token_facts(done.user, done.new) | {"old_serial": done.old.serial, "lost": args.lost})
    else:
        fate = "is removed, with its key" if args.lost else "is in stock"
        print(f"{done.user}: token '{done.new.name}' is now {done.new.serial}; {done.old.serial} {fate}")
    return DONE


def _take_from(old: Token, args: argparse.Namespace) -> None:
    """Give each omitted option the value of the old token."""
    period = old.period if isinstance(old, TotpToken) else DEFAULT_PERIOD
    values = {"type": old.type, "digits": old.digits, "algorithm": old.algorithm, "period": period}
    for option, value in values.items():
        if getattr(args, option) is None:
            setattr(args, option, value)
