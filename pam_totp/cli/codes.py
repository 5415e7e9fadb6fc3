"""verify, resync, unlock: what a user's codes are worth."""

from __future__ import annotations

import argparse
import os
import signal
import sys

from pam_totp.cli.common import (
    DONE,
    INTERRUPTED,
    OUT_OF_REACH,
    REFUSED,
    WRONG_USAGE,
    CommandError,
    Commands,
    add_config,
    ask,
    change,
    command,
    named_token,
    not_enrolled,
    now,
    open_store,
    print_json,
    read,
    site_file,
    user_of,
)
from pam_totp.cli.progress import Bar
from pam_totp.core.answer import CODE_LENGTHS, Answer
from pam_totp.core.settings import settings
from pam_totp.core.verify import Outcome
from pam_totp.operations import audit_log
from pam_totp.operations.authenticate import decide, log
from pam_totp.operations.resync import Moved, NotInStep, bring_back
from pam_totp.pam.login_session import read_site
from pam_totp.store import NotThere
from pam_totp.system.extras import how_to_get

DEFAULT_SEARCH = 100_000  # counters or steps
MOST_SEARCH = 10_000_000
SERVICE = "pam-totp"  # in the log


def add_to(commands: Commands) -> None:
    check = command(
        commands, "verify", run_verify, "check an answer as a login would; it counts, and uses the code up", data=True
    )
    check.add_argument("user")
    check.add_argument(
        "code", nargs="*", default=[], help="one code, codes in a row, or a recovery code; asked for where missing"
    )
    add_config(check)

    resync = command(commands, "resync", run_resync, "bring a token back into step by codes in a row", data=True)
    resync.add_argument("user")
    resync.add_argument("code", nargs="*", default=[], help="two or three codes in a row; asked for where missing")
    resync.add_argument("--token", metavar="NAME", help="only this one of the user's tokens")
    resync.add_argument("--port", metavar="DEVICE", help="read the codes from a serial device while it is pressed")
    resync.add_argument("--search", type=int, default=DEFAULT_SEARCH, metavar="N", help="how far to look (%(default)s)")

    unlock = command(commands, "unlock", run_unlock, "forget a user's wrong answers, and lift the lock")
    unlock.add_argument("user")


def run_verify(args: argparse.Namespace) -> int:
    policy = settings(SERVICE, (), read_site(site_file(args))).policy
    store = open_store(args)
    user = user_of(args)
    lengths = " or ".join(map(str, sorted({token.digits for token in read(store, user).tokens}))) or "6 to 8"
    typed = " ".join(args.code) or ask("code: ", hidden=True)
    answer = Answer.parse(typed.encode("utf-8", "surrogateescape"))

    decision = decide(store, user, answer, policy, now)
    log(audit_log.to_syslog, SERVICE, user, decision)
    accepted, reason = decision.outcome.accepted, decision.outcome.value
    if args.json:
        print_json({"user": user, "accepted": accepted, "reason": reason, "token": decision.token})
    elif accepted:
        print(f"accepted: {reason}" + (f" of {decision.token}" if decision.token else ""))
    else:
        answers = f"a code of {lengths} digits, two or three codes in a row, or a recovery code"
        print(f"refused: {reason}" + (f"; an answer is {answers}" if decision.outcome is Outcome.MALFORMED else ""))
    return DONE if accepted else REFUSED


def run_resync(args: argparse.Namespace) -> int:
    if not 1 <= args.search <= MOST_SEARCH:
        raise CommandError(f"--search takes 1 … {MOST_SEARCH}", WRONG_USAGE)
    typed = list(args.code)
    if args.port and typed:
        raise CommandError("codes from the port, or from the command line: one or the other", WRONG_USAGE)
    port = _open_port(args.port) if args.port else None  # by name, and so before the privileges go
    store = open_store(args)
    user = user_of(args)
    record = read(store, user)
    if args.token:
        named_token(record, args.token)
    if port is not None:
        from pam_totp.cli import serial_port  # an extra

        with port:
            try:
                print(f"press the button of {user}'s token twice", file=sys.stderr, flush=True)
                typed = list(serial_port.read_codes(port, 2))
            except KeyboardInterrupt:
                raise CommandError(INTERRUPTED, 128 + signal.SIGINT) from None
    text = " ".join(typed) or ask("two codes in a row: ", hidden=True)
    codes = Answer.parse(text.encode("utf-8", "surrogateescape")).codes(CODE_LENGTHS)
    if codes is None or len(codes) < 2:
        raise CommandError("resync takes two or three codes of one token in a row", WRONG_USAGE)

    tokens = [t for t in record.tokens if args.token in (None, t.name)]
    try:
        token = bring_back(
            store,
            user,
            tokens,
            codes,
            reach=args.search,
            now=now,
            progress=lambda token: Bar(f"searching {token.name}").show,
        )
    except NotThere:
        raise not_enrolled(user) from None
    except Moved:
        raise CommandError("the token was used or changed in the meantime; try again with new codes") from None
    except NotInStep:
        raise CommandError(
            f"these codes are not in a row within {args.search} of where the token should be (see --search);"
            " nothing was changed"
        ) from None
    audit_log.write(audit_log.to_syslog, SERVICE, "accepted", user=user, by="resync", token=token.name)
    facts = {n: getattr(token, n) for n in ("counter", "last_step", "drift") if n in token._fields}
    if args.json:
        print_json({"user": user, "token": token.name, "type": token.type} | facts)
    else:
        print(f"{user}'s {token.name} is back in step ({', '.join(f'{k} {v}' for k, v in facts.items())})")
    return DONE


def _open_port(device: str):  # type: ignore[no-untyped-def]
    try:
        from pam_totp.cli import serial_port  # an extra

        return serial_port.opened(device)
    except OSError as e:  # pyserial's own text is a repr
        why = os.strerror(e.errno).lower() if e.errno else str(e)
        raise CommandError(f"{device} cannot be opened: {why}; is the token plugged in?", OUT_OF_REACH) from None
    except ImportError:
        raise CommandError(f"--port needs pyserial ({how_to_get('pyserial')})", OUT_OF_REACH) from None


def run_unlock(args: argparse.Namespace) -> int:
    store = open_store(args)
    user = user_of(args)
    change(store, user, lambda record: (record.unlocked(), None))
    audit_log.write(audit_log.to_syslog, SERVICE, "accepted", user=user, by="unlock")
    print(f"{user}'s wrong answers are forgotten")
    return DONE
