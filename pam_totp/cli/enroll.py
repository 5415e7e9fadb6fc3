"""enroll: give a user a new token (a phone app or a key fob), or redeem the caller's own ticket (--ticket)."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Any

from pam_totp.cli.command_line import DONE, WRONG_USAGE, CommandError, Commands, add_command
from pam_totp.cli.printing import print_json
from pam_totp.cli.prompts import ask
from pam_totp.cli.qr_output import (
    NONE,
    TERMINAL,
    KeyDisplay,
    add_qr_options,
    key_display,
    token_uri,
    warn_about,
    writes_new_file,
)
from pam_totp.cli.store_access import (
    ONESELF,
    OWN_FILE,
    logged_changes,
    now,
    open_store,
    require_free_name,
    require_free_serial,
    serial_errors,
    token_facts,
    user_of,
    warn_without_account,
)
from pam_totp.core.answer import Answer
from pam_totp.core.oath import ALGORITHMS, DEFAULT_PERIOD
from pam_totp.core.record import DEFAULT_NAMES, NEW_SECRET, Token, TotpToken, UserRecord
from pam_totp.formats.otpauth import from_uri, typed_secret
from pam_totp.operations.audit_log import of_token
from pam_totp.operations.enroll import new_token, verify_first_code
from pam_totp.store import NotThere

MAX_TRIES = 3  # attempts to enter the first code
DEFAULTS = {"type": "totp", "digits": 6, "algorithm": "SHA1", "period": DEFAULT_PERIOD}
OLD_TOKENS = "as the old token"  # the default of an option of `replace`, in help texts

Group = Any  # argparse's type of a group of mutually exclusive options is private


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "enroll",
        run,
        "give a user a new token",
        "pam-totp enroll alice",
        "pam-totp enroll alice --type hotp --name fob --secret-stdin < key.txt",
        "pam-totp enroll --ticket",
        data=True,
    )
    parser.add_argument("user", nargs="?", help=f"owner of the token ({ONESELF}, with the file {OWN_FILE})")
    parser.add_argument("--name", help="name of the token (default: phone for totp, token for hotp)")
    parser.add_argument(
        "--ticket",
        action="store_true",
        help="redeem your own enrolment ticket through the service, without root, and replace your old tokens",
    )
    first = add_token_options(parser, defaults=DEFAULTS)
    first.add_argument(
        "--later",
        action="store_true",
        help="store the token as unconfirmed: its owner confirms it in the portal (requires --serial and a key)",
    )


def add_token_options(parser: argparse.ArgumentParser, defaults: Mapping[str, Any]) -> Group:
    """Add the options of a new token. `defaults` has their default values; None means the old token's value.

    Return the group of options that replace the prompt for a first code.
    """

    def add(option: str, text: str, **settings: Any) -> None:
        default = defaults[option]
        shown = OLD_TOKENS if default is None else default
        parser.add_argument(f"--{option}", default=default, help=f"{text} ({shown})", **settings)

    add("type", "totp has a clock, hotp has a counter and a button", choices=("totp", "hotp"))
    add("digits", "digits of a code", type=int, choices=(6, 7, 8))
    text = "hash function of the token; many apps support SHA1 only"
    add("algorithm", text, choices=ALGORITHMS, type=str.upper)
    add("period", "totp: seconds between two codes", type=int, metavar="S")
    parser.add_argument("--counter", type=int, metavar="C", help="hotp: counter of the next code, if it is known")
    parser.add_argument("--serial", help="serial number on the back of the token")
    add_qr_options(parser)
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--secret-stdin", action="store_true", help="read the key from standard input: base32, or hex:...")
    key.add_argument("--uri-stdin", action="store_true", help="read an otpauth:// URI from standard input")
    first = parser.add_mutually_exclusive_group()
    first.add_argument("--yes", action="store_true", help="do not ask for a first code")
    return first


def run(args: argparse.Namespace) -> int:
    if args.ticket:
        from pam_totp.cli.redeem import redeem  # imported here: few calls need this module

        return redeem(args)
    is_new_key = has_new_key(args)
    require_counter_of_hotp(args)
    if args.later and not args.serial:
        raise CommandError("--later requires --serial: the owner enters the serial number in the portal", WRONG_USAGE)
    if args.later and is_new_key:
        what = "--later requires the key of the token"
        raise CommandError(f"{what} (give --secret-stdin or --uri-stdin)", WRONG_USAGE)
    with key_display(args, TERMINAL if is_new_key else NONE, has_key=is_new_key) as display:
        token = new_token_of(args, args.name)
        store = open_store(args, create=True, keep_root=writes_new_file(args))
        user = user_of(args)
        try:
            record = store.read(user)
        except NotThere:
            record = UserRecord(user=user)
        require_free_name(record, token.name, "choose another name with --name")
        record.with_token(token)  # report a duplicate key before the user scans the QR code
        require_free_serial(store, user, token)
        warn_without_account(user)
        warn_about(token, is_scanned=is_new_key or args.qr is not None)
        uri = token_uri(token, user, args.issuer)
        display.show(token, uri)
        if not args.later:
            token = token.confirmed_without_code() if args.yes else first_code(args, token, display)
        facts = token_facts(user, token) | ({"uri": uri} if is_new_key else {})
        display.save_json(facts)
        with serial_errors(), logged_changes(store) as store:
            store.update(user, lambda record: (record.with_token(token), None), create=True)
            state = None if token.confirmed else "unconfirmed"
            args.audit.changed("enroll", user, **of_token(token), type=token.type, serial=token.serial, state=state)
    if not args.json:
        inactive = "" if token.confirmed else "; it is unconfirmed until its owner enters two codes in the portal"
        print(f"{user} now has the {token.type} token {token.name}{inactive}")
    elif not display.has_file:
        print_json(facts)
    return DONE


def require_counter_of_hotp(args: argparse.Namespace) -> None:
    if args.counter is not None and args.type != "hotp" and not args.uri_stdin:
        raise CommandError("--counter requires --type hotp", WRONG_USAGE)


def has_new_key(args: argparse.Namespace) -> bool:
    """Return True if the command generates the key. Otherwise, the user enters it."""
    return not (args.secret_stdin or args.uri_stdin)


def new_token_of(args: argparse.Namespace, name: str | None) -> Token:
    """Return the unconfirmed token that the options and standard input describe. Raise CommandError."""
    try:
        if args.uri_stdin:
            uri = ask("otpauth URI: ", hidden=True, missing="missing URI on standard input; nothing was changed")
            token = from_uri(uri.strip(), name or "token", now()).with_serial(args.serial)
            return token.renamed(name or DEFAULT_NAMES[token.type])
        if args.secret_stdin:
            key = typed_secret(ask("key: ", hidden=True, missing="missing key on standard input; nothing was changed"))
        else:
            key = secrets.token_bytes(NEW_SECRET)
        token = new_token(
            args.type,
            name=name or DEFAULT_NAMES[args.type],
            secret=key,
            algorithm=args.algorithm,
            digits=args.digits,
            now=now(),
            counter=args.counter or 0,
            period=args.period,
        )
        return token.with_serial(args.serial)
    except ValueError as e:
        raise CommandError(str(e), WRONG_USAGE) from None


def first_code(args: argparse.Namespace, token: Token, display: KeyDisplay) -> Token:
    """Ask for the first codes, and return the confirmed token. Raise CommandError after MAX_TRIES wrong answers."""
    codes_needed = 2 if args.type == "hotp" and args.secret_stdin and args.counter is None else 1
    required = f"{'a code' if codes_needed == 1 else 'two codes in a row'} from"
    question = display.question() if has_new_key(args) else f"{required} {token.name}: "
    for _ in range(MAX_TRIES):
        answer = Answer.parse(ask(question).encode("utf-8", "surrogateescape"))
        confirmed = verify_first_code(token, answer, now(), codes_needed=codes_needed)
        if confirmed is not None:
            return confirmed
        print(f"wrong answer (enter {required} this token)", file=sys.stderr)
    hint = ""
    if isinstance(token, TotpToken):
        hint = f" (check the phone's clock: it is now {time.strftime('%H:%M:%S', time.gmtime(now()))} UTC)"
    raise CommandError(f"enrolment failed: {MAX_TRIES} answers were wrong; nothing was changed{hint}")
