"""resync: resynchronise a token by codes in a row."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import TYPE_CHECKING

from pam_totp.cli.command_line import (
    DONE,
    INTERRUPTED,
    OUT_OF_REACH,
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
    add_config,
    site_file,
)
from pam_totp.cli.printing import print_json
from pam_totp.cli.progress import Bar
from pam_totp.cli.prompts import ask
from pam_totp.cli.store_access import (
    ONESELF,
    logged_changes,
    named_token,
    not_enrolled,
    now,
    open_store,
    read,
    token_name_in,
    user_before,
)
from pam_totp.core.answer import CODE_LENGTHS, Answer
from pam_totp.core.oath import MAX_DIGITS, MIN_DIGITS
from pam_totp.core.settings import settings
from pam_totp.operations.audit_log import of_token
from pam_totp.operations.resync import NotConsecutive, TokenChanged, resynchronise
from pam_totp.pam.login_session import read_site
from pam_totp.store import NotThere, clock_of
from pam_totp.system.audit import SERVICE
from pam_totp.system.extras import how_to_get

if TYPE_CHECKING:
    from serial import Serial

DEFAULT_SEARCH = 100_000  # counters or steps
MAX_SEARCH = 10_000_000
REQUIRED = (
    f"the answer must be two or three codes in a row from one token, of {MIN_DIGITS} to {MAX_DIGITS} digits each "
    "(give --token NAME, or omit the codes)"
)


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "resync",
        run,
        "resynchronise a token by codes in a row",
        "pam-totp resync alice 755224 287082",
        "pam-totp resync alice --token fob --port /dev/ttyUSB0",
        data=True,
    )
    parser.add_argument("user", nargs="?", help=f"owner of the token ({ONESELF})")
    parser.add_argument("code", nargs="*", default=[], help="two or three codes in a row (default: prompt for them)")
    parser.add_argument("--token", metavar="NAME", help="resynchronise only this token of the user")
    parser.add_argument(
        "--port", metavar="DEVICE", help="read the codes from a serial device while you press the token's button"
    )
    parser.add_argument(
        "--search", type=int, default=DEFAULT_SEARCH, metavar="N", help="counters or steps to search (%(default)s)"
    )
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.search <= MAX_SEARCH:
        raise CommandError(f"--search must be 1 to {MAX_SEARCH}", WRONG_USAGE)
    if args.port and args.code:
        raise CommandError("--port excludes codes on the command line", WRONG_USAGE)
    policy = settings(SERVICE, (), read_site(site_file(args))).policy
    port = _open_port(args.port) if args.port else None  # open the port before the process drops its privileges
    store = open_store(args)
    user, word = user_before(args, store, token=False)
    words = ([] if word is None else [word]) + args.code
    record = read(store, user)
    if args.token:
        named_token(record, args.token)
    name = token_name_in(record, words)
    if name is not None:
        raise CommandError(f"'{name}' is a token, not a code (select it by --token {name})", WRONG_USAGE)
    typed = _codes_from(port, user) if port is not None else words
    text = " ".join(typed) or ask("two codes in a row: ", hidden=True)
    codes = Answer.parse(text.encode("utf-8", "surrogateescape")).codes(CODE_LENGTHS)
    if codes is None or len(codes) < 2:
        raise CommandError(REQUIRED, WRONG_USAGE)

    tokens = [token for token in record.tokens if args.token in (None, token.name)]
    try:
        with logged_changes(store) as held:
            token = resynchronise(
                held,
                user,
                tokens,
                codes,
                reach=args.search,
                policy=policy,
                now=clock_of(store, now),
                progress=lambda token: Bar(f"searching {token.name}").show,
            )
            args.audit.changed("resync", user, **of_token(token))
    except NotThere:
        raise not_enrolled(user) from None
    except TokenChanged:
        what = "resynchronisation failed: the token was used, changed or removed meanwhile"
        raise CommandError(f"{what} (try again with new codes)") from None
    except NotConsecutive:
        required = f"the codes must be in a row, within {args.search} counters or steps of a token"
        raise CommandError(f"resynchronisation failed: {required} (see --search)") from None
    facts = {name: getattr(token, name) for name in ("counter", "last_step", "drift") if name in token._fields}
    if args.json:
        print_json({"user": user, "token": token.name, "type": token.type} | facts)
    else:
        print(f"{user}'s {token.name} is resynchronised ({', '.join(f'{k} {v}' for k, v in facts.items())})")
    return DONE


def _open_port(device: str) -> Serial:
    try:
        from pam_totp.cli import serial_port  # needs an optional package

        return serial_port.open_port(device)
    except OSError as e:  # prefer the text of the errno: pyserial's text is a repr
        why = os.strerror(e.errno).lower() if e.errno else str(e)
        raise CommandError(
            f"{device} cannot be opened: {why} (check that the token is plugged in)", OUT_OF_REACH
        ) from None
    except ImportError:
        raise CommandError(f"--port needs pyserial ({how_to_get('pyserial')})", OUT_OF_REACH) from None


def _codes_from(port: Serial, user: str) -> list[str]:
    """Read two codes from the port, close the port, and return the codes."""
    from pam_totp.cli import serial_port  # needs an optional package

    with port:
        try:
            print(f"press the button of {user}'s token twice", file=sys.stderr, flush=True)
            return list(serial_port.read_codes(port, 2))
        except KeyboardInterrupt:
            raise CommandError(INTERRUPTED, 128 + signal.SIGINT) from None
