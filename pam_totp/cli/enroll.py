"""enroll, qr: from a key to a phone or a button that shows codes."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pam_totp.cli.common import (
    DONE,
    OUT_OF_REACH,
    WRONG_USAGE,
    CommandError,
    Commands,
    ask,
    command,
    confirm,
    named_token,
    new_name,
    now,
    one_token,
    open_store,
    print_json,
    read,
    token_facts,
    user_of,
    warn_of_no_account,
)
from pam_totp.cli.files_out import new_file
from pam_totp.core.answer import Answer
from pam_totp.core.oath import ALGORITHMS, DEFAULT_PERIOD
from pam_totp.core.record import DEFAULT_NAMES, NEW_SECRET, Token, TotpToken, UserRecord
from pam_totp.formats import qr
from pam_totp.formats.otpauth import DEFAULT_ISSUER, from_uri, to_uri, typed_secret
from pam_totp.operations.enroll import grouped_key, new_token, proved, warnings
from pam_totp.store import NotThere
from pam_totp.system.extras import how_to_get

CONFIRMATIONS = 3  # tries
PICTURES = ("png", "svg")

Draw = Callable[[Token, str], None]  # shows a token, and its URI


def add_to(commands: Commands) -> None:
    enroll = command(commands, "enroll", run_enroll, "give a user a new token", data=True)
    enroll.add_argument("user", nargs="?", help="not needed without root: then it is you, and ~/.pam_totp.json")
    enroll.add_argument("--type", choices=("totp", "hotp"), default="totp", help="by time, or by button (%(default)s)")
    enroll.add_argument("--name", help="what to call the token (phone, token)")
    enroll.add_argument("--digits", type=int, choices=(6, 7, 8), default=6, help="of a code (%(default)s)")
    enroll.add_argument(
        "--algorithm",
        choices=ALGORITHMS,
        default="SHA1",
        type=str.upper,
        help="of the token; many apps know no other than SHA1 (%(default)s)",
    )
    enroll.add_argument("--period", type=int, default=DEFAULT_PERIOD, metavar="S", help="seconds, totp (%(default)s)")
    enroll.add_argument("--counter", type=int, metavar="C", help="of the next code, where that is known (hotp)")
    enroll.add_argument("--serial", help="what is printed on its back")
    _add_shown(enroll)
    given = enroll.add_mutually_exclusive_group()
    given.add_argument("--secret-stdin", action="store_true", help="read its key: base32, or hex:…")
    given.add_argument("--uri-stdin", action="store_true", help="read its otpauth:// URI")
    first = enroll.add_mutually_exclusive_group()
    first.add_argument("--yes", action="store_true", help="do not ask for a first code")
    first.add_argument(
        "--later",
        action="store_true",
        help="not in use until its holder enters two codes in the portal (with --serial)",
    )

    show = command(commands, "qr", run_qr, "show the QR code of a token that is there", data=True)
    show.add_argument("user")
    show.add_argument("token", nargs="?", help="its name; not needed where there is one only")
    _add_shown(show)
    show.add_argument("--yes", action="store_true", help="do not ask")


def _add_shown(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--issuer", default=DEFAULT_ISSUER, help="what an app shows beside the name (%(default)s)")
    parser.add_argument("--qr", metavar="HOW", help="terminal, png=FILE, svg=FILE or none")


def run_enroll(args: argparse.Namespace) -> int:
    made_here = not (args.secret_stdin or args.uri_stdin)
    if args.counter is not None and args.type != "hotp" and not args.uri_stdin:
        raise CommandError("--counter is for tokens with a button: say --type hotp too", WRONG_USAGE)
    if args.later and not args.serial:
        raise CommandError("--later takes --serial, by which its holder names it in the portal", WRONG_USAGE)
    with _drawing(args, default="terminal" if made_here else "none") as draw:
        token = _described(args)
        codes_needed = 2 if args.type == "hotp" and args.secret_stdin and args.counter is None else 1
        store = open_store(args, create=True)
        user = user_of(args)
        try:
            existing = store.read(user)
        except NotThere:
            existing = UserRecord(user=user)
        new_name(existing, token.name, "give the new one another with --name")
        existing.with_token(token)  # a name or a key that is there already is said before anybody scans anything
        warn_of_no_account(user)
        _warn(token, scanned=made_here or args.qr is not None)
        uri = _uri(token, user, args.issuer)
        draw(token, uri)
        if not args.later:
            token = token.confirmed_without_code() if args.yes else _confirmed(token, codes_needed)
        store.update(user, lambda record: (record.with_token(token), None), create=True)
    if args.json:
        print_json(token_facts(user, token) | ({"uri": uri} if made_here else {}))
    else:
        waiting = "" if token.confirmed else ", which is not in use until two codes of it are entered in the portal"
        print(f"{user} now has the {token.type} token {token.name}{waiting}")
    return DONE


def run_qr(args: argparse.Namespace) -> int:
    with _drawing(args, default="terminal") as draw:
        store = open_store(args)
        user = user_of(args)
        record = read(store, user)
        token = named_token(record, args.token) if args.token else one_token(record)
        confirm(f"show the key of {user}'s {token.name}? whoever sees it can make the same codes", args)
        _warn(token, scanned=True)
        uri = _uri(token, user, args.issuer)
        draw(token, uri)
    if args.json:
        print_json(token_facts(user, token) | {"uri": uri})
    return DONE


def _not_there(what: str) -> str:
    return f"no {what} on standard input; nothing was changed"


def _described(args: argparse.Namespace) -> Token:
    """The token that the options and standard input describe, unconfirmed."""
    try:
        if args.uri_stdin:
            token = from_uri(
                ask("otpauth URI: ", hidden=True, missing=_not_there("URI")).strip(), args.name or "token", now()
            )
            return token.renamed(args.name or DEFAULT_NAMES[token.type])
        if args.secret_stdin:
            key = typed_secret(ask("key: ", hidden=True, missing=_not_there("key")))
        else:
            key = secrets.token_bytes(NEW_SECRET)
        token = new_token(
            args.type,
            name=args.name or DEFAULT_NAMES[args.type],
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


def _uri(token: Token, user: str, issuer: str) -> str:
    try:
        return to_uri(token, user, issuer)
    except ValueError as e:
        raise CommandError(str(e), WRONG_USAGE) from None


@contextmanager
def _drawing(args: argparse.Namespace, default: str) -> Iterator[Draw]:
    """What --qr asks for. A picture's file is opened here, and is gone again where the block does not end well."""
    how, _, path = (args.qr or default).partition("=")
    if (how in PICTURES) != bool(path) or how not in ("terminal", "none", *PICTURES):
        raise CommandError("--qr takes terminal, png=FILE, svg=FILE or none", WRONG_USAGE)
    if how == "none" or (how == "terminal" and args.json):
        yield lambda token, uri: None
        return
    try:
        qr.load()
    except ImportError:
        if how != "terminal":
            raise CommandError(f"--qr {how} needs segno ({how_to_get('segno')})", OUT_OF_REACH) from None
    if how == "terminal":
        yield _show
        return
    with new_file(path) as file:
        yield lambda token, uri: _write(file.write, qr.picture(uri, how))


def _write(write: Callable[[bytes], int], data: bytes) -> None:
    write(data)


def _show(token: Token, uri: str) -> None:
    """The key above, the code below: on 80×24 the code and the question that follows it fill the screen."""
    kind = f"every {token.period} seconds" if isinstance(token, TotpToken) else "by counter"
    print(f"key: {grouped_key(token)}\n     {token.type}, {kind}, {token.digits} digits, {token.algorithm}")
    try:
        print(qr.terminal(uri, colour=sys.stdout.isatty()), end="", flush=True)
    except ImportError:
        print(f"(no QR code: {how_to_get('segno')})")


def _warn(token: Token, *, scanned: bool) -> None:
    for warning in warnings(token, scanned=scanned):
        print(f"pam-totp: warning: {warning}", file=sys.stderr)


def _confirmed(token: Token, codes_needed: int) -> Token:
    wanted = "a code of" if codes_needed == 1 else "two codes in a row of"
    for _ in range(CONFIRMATIONS):
        answer = Answer.parse(ask(f"{wanted} {token.name}: ").encode("utf-8", "surrogateescape"))
        proof = proved(token, answer, now(), codes_needed=codes_needed)
        if proof is not None:
            return proof
        print(f"that is not {wanted} this token", file=sys.stderr)
    hint = ""
    if isinstance(token, TotpToken):
        hint = f"; is the phone's clock right? here it is {time.strftime('%H:%M:%S', time.gmtime(now()))} UTC"
    raise CommandError(f"not enrolled: no code was right; nothing was changed{hint}")
