"""replace: give a user a new key in place of a token that is lost, stolen or broken.

Rules:
- The old token is valid until the new token is confirmed. One change of the record then replaces it.
- The recovery codes, the other tokens and the count of failures are unchanged.
- The log has a removal and an enrolment, so that `pam-totp restored` removes the old token from a restored store.
"""

from __future__ import annotations

import argparse

from pam_totp.cli.command_line import DONE, CommandError, Commands, add_command
from pam_totp.cli.enable_token import add_token_arguments
from pam_totp.cli.enroll import add_token_options, first_code, has_new_key, new_token_of, require_counter_of_hotp
from pam_totp.cli.printing import print_json
from pam_totp.cli.qr_output import NONE, TERMINAL, key_display, token_uri, warn_about, writes_new_file
from pam_totp.cli.store_access import (
    named_token,
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
from pam_totp.operations.audit_log import of_token
from pam_totp.operations.enroll import replaced

OPTIONS = ("type", "digits", "algorithm", "period")  # their defaults are the values of the old token


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "replace",
        run,
        "give a user a new key in place of a lost token",
        "pam-totp replace alice phone",
        "pam-totp replace alice fob --secret-stdin --serial S-2002 < key.txt",
        data=True,
    )
    add_token_arguments(parser)
    add_token_options(parser, defaults=dict.fromkeys(OPTIONS))


def run(args: argparse.Namespace) -> int:
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
        warn_about(token, scanned=is_new_key or args.qr is not None)
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


def _take_from(old: Token, args: argparse.Namespace) -> None:
    """Give each omitted option the value of the old token."""
    period = old.period if isinstance(old, TotpToken) else DEFAULT_PERIOD
    values = {"type": old.type, "digits": old.digits, "algorithm": old.algorithm, "period": period}
    for option, value in values.items():
        if getattr(args, option) is None:
            setattr(args, option, value)
