"""enroll, list, remove: which tokens a user has."""

from __future__ import annotations

import argparse
import secrets
import sys
from typing import Any

from pam_totp import qr
from pam_totp.cli.common import (
    DONE,
    WRONG_USAGE,
    CommandError,
    Commands,
    ask,
    change,
    command,
    confirm,
    named_token,
    now,
    open_store,
    print_json,
    print_table,
    read,
    user_of,
    when,
)
from pam_totp.enroll import grouped_key, new_token, proved, warnings
from pam_totp.formats.otpauth import from_uri, to_uri, typed_secret
from pam_totp.oath import ALGORITHMS
from pam_totp.record import NEW_SECRET, Token, TotpToken, UserRecord
from pam_totp.store import NotThere

CONFIRMATIONS = 3  # tries
DEFAULT_NAMES = {"totp": "phone", "hotp": "token"}


def add_to(commands: Commands) -> None:
    enroll = command(commands, "enroll", run_enroll, "give a user a new token", data=True)
    enroll.add_argument("user", nargs="?", help="not needed without root: then it is you, and ~/.pam_totp.json")
    enroll.add_argument("--type", choices=("totp", "hotp"), default="totp", help="by time, or by button (%(default)s)")
    enroll.add_argument("--name", help="what to call the token (phone, token)")
    enroll.add_argument("--digits", type=int, choices=(6, 7, 8), default=6)
    enroll.add_argument("--algorithm", choices=ALGORITHMS, default="SHA1", type=str.upper)
    enroll.add_argument("--period", type=int, default=30, metavar="S", help="seconds, for totp (%(default)s)")
    enroll.add_argument("--counter", type=int, default=0, metavar="C", help="of the next code, for hotp (%(default)s)")
    enroll.add_argument("--serial", help="what is printed on its back")
    enroll.add_argument("--issuer", default="pam_totp", help="what an app shows beside the name (%(default)s)")
    given = enroll.add_mutually_exclusive_group()
    given.add_argument("--secret-stdin", action="store_true", help="read its key: base32, or hex:…")
    given.add_argument("--uri-stdin", action="store_true", help="read its otpauth:// URI")
    enroll.add_argument("--yes", action="store_true", help="do not ask for a first code")

    listing = command(commands, "list", run_list, "show who has which tokens", data=True)
    listing.add_argument("user", nargs="?", help="only this one's")

    remove = command(commands, "remove", run_remove, "take a token away")
    remove.add_argument("user")
    remove.add_argument("token", nargs="?", help="its name; not needed where there is one only")
    remove.add_argument("--all", action="store_true", help="all tokens, and the recovery codes")
    remove.add_argument("--yes", action="store_true", help="do not ask")


def run_enroll(args: argparse.Namespace) -> int:
    token = _described(args)
    store = open_store(args, create=True)
    user = user_of(args)
    try:
        existing = store.read(user)
    except NotThere:
        existing = UserRecord(user=user)
    existing.with_token(token)  # a name or a key that is there already is said before anybody scans anything
    for warning in warnings(token):
        print(f"pam-totp: warning: {warning}", file=sys.stderr)
    made_here = not (args.secret_stdin or args.uri_stdin)
    uri = to_uri(token, user, args.issuer)
    if made_here and not args.json:
        _show(token, uri)
    token = token.taken_on_trust() if args.yes else _confirmed(token)
    store.update(user, lambda record: (record.with_token(token), None), create=True)
    if args.json:
        print_json(_facts(user, token) | ({"uri": uri} if made_here else {}))
    else:
        print(f"{user} now has the {token.type} token {token.name}")
    return DONE


def _described(args: argparse.Namespace) -> Token:
    """The token that the options and standard input describe, unconfirmed."""
    try:
        if args.uri_stdin:
            token = from_uri(ask("otpauth URI: ", hidden=True).strip(), args.name or DEFAULT_NAMES["hotp"], now())
            return token.renamed(args.name or DEFAULT_NAMES[token.type])
        key = typed_secret(ask("key: ", hidden=True)) if args.secret_stdin else secrets.token_bytes(NEW_SECRET)
        token = new_token(
            args.type,
            name=args.name or DEFAULT_NAMES[args.type],
            secret=key,
            algorithm=args.algorithm,
            digits=args.digits,
            now=now(),
            counter=args.counter,
            period=args.period,
        )
        return token.with_serial(args.serial)
    except ValueError as e:
        raise CommandError(str(e), WRONG_USAGE) from None


def _show(token: Token, uri: str) -> None:
    try:
        print(qr.terminal(uri), end="")
    except ImportError:
        print("(no QR code: install segno)")
    print(f"\nkey: {grouped_key(token)}")
    kind = f"every {token.period} seconds" if isinstance(token, TotpToken) else "by counter"
    print(f"     {token.type}, {kind}, {token.digits} digits, {token.algorithm}\n")


def _confirmed(token: Token) -> Token:
    for _ in range(CONFIRMATIONS):
        answer = ask(f"a code of {token.name} (or two in a row): ")
        proof = proved(token, answer.encode("utf-8", "surrogateescape"), now())
        if proof is not None:
            return proof
        print("that is no code of this token", file=sys.stderr)
    raise CommandError("not enrolled: no code was right; nothing was changed")


def run_list(args: argparse.Namespace) -> int:
    store = open_store(args)
    records = [read(store, user_of(args))] if args.user else [store.read(u) for u in sorted(store.users())]
    if args.json:
        print_json([_record_facts(r) for r in records])
        return DONE
    rows = [_row(record, token) for record in records for token in record.tokens]
    if not rows:
        print("nobody has a token yet (see 'pam-totp enroll --help')")
        return DONE
    print_table(("USER", "TOKEN", "TYPE", "CODES", "STATE", "LAST USED"), rows)
    for record in records:
        for remark in _remarks(record):
            print(f"{record.user}: {remark}")
    return DONE


def _row(record: UserRecord, token: Token) -> tuple[str, ...]:
    kind = f"{token.period} s" if isinstance(token, TotpToken) else f"counter {token.counter}"  # type: ignore[attr-defined]
    codes = f"{token.digits} digits, {token.algorithm}, {kind}"
    state = "disabled" if not token.enabled else "active" if token.confirmed else "unconfirmed"
    return record.user, token.name, token.type, codes, state, when(token.last_used)


def _remarks(record: UserRecord) -> list[str]:
    failures, _ = record.failures_now(now())
    found = []
    if record.recovery:
        found.append(f"{len(record.recovery)} recovery codes left")
    if failures:
        found.append(f"{failures} wrong answers are counted (see 'pam-totp unlock {record.user}')")
    return found


def _record_facts(record: UserRecord) -> dict[str, Any]:
    failures, _ = record.failures_now(now())
    return {
        "user": record.user,
        "tokens": [_facts(record.user, t) for t in record.tokens],
        "recovery_left": len(record.recovery),
        "failures": failures,
        "refused": record.refused,
    }


def _facts(user: str, token: Token) -> dict[str, Any]:
    """What may be shown of a token: all but its key."""
    shown = {n: getattr(token, n) for n in token._fields if n != "secret"}
    return {"user": user, "type": token.type} | shown


def run_remove(args: argparse.Namespace) -> int:
    store = open_store(args)
    user = user_of(args)
    record = read(store, user)
    if args.all:
        confirm(f"remove all that {user} has? logins that need a code will be refused", args)
        change(store, user, lambda _: (None, None))
        print(f"{user} has no tokens now")
        return DONE
    name = args.token
    if name is None:
        if len(record.tokens) != 1:
            raise CommandError(f"say which (see 'pam-totp list {user}')", WRONG_USAGE)
        name = record.tokens[0].name
    named_token(record, name)
    if len(record.tokens) == 1:
        confirm(f"remove the last token of {user}? logins that need a code will be refused", args)

    def without(found: UserRecord) -> tuple[UserRecord | None, None]:
        named_token(found, name)
        left = found.without_token(name)
        return (left if left.tokens else None), None

    change(store, user, without)
    print(f"{user} no longer has the token {name}")
    return DONE
