"""stock: import hardware tokens into the stock, list them, and remove them from it."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pam_totp.cli.command_line import (
    DONE,
    OUT_OF_REACH,
    REFUSED,
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
    refuse_other_options,
)
from pam_totp.cli.export import load
from pam_totp.cli.files_in import read_named
from pam_totp.cli.import_ import LONG_FILE, MANY_TOKENS, format_error, parse, secret_source
from pam_totp.cli.import_format import NamedFile, named_format, recognised_format, show_understood
from pam_totp.cli.printing import Table, count, print_json, print_json_stream, shown
from pam_totp.cli.progress import Bar
from pam_totp.cli.prompts import confirm
from pam_totp.cli.stock_access import stock_error
from pam_totp.cli.store_access import now, open_store, token_facts
from pam_totp.core.record import HotpToken, Token, TotpToken
from pam_totp.formats.format import Format, ParseOptions
from pam_totp.formats.parsing import FormatError
from pam_totp.formats.registry import FORMATS, encrypted
from pam_totp.operations import stock
from pam_totp.operations.audit_log import of_token
from pam_totp.operations.stock import Added, AddStatus, Item, StockError
from pam_totp.store import StoreError
from pam_totp.store.stock import StockEntry
from pam_totp.system.audit import signals_held

IMPORT, LIST, REMOVE = "import", "list", "remove"
OPTIONS = {  # of each subcommand
    IMPORT: ("batch", "key_file", "password_file", "dry_run", "yes"),
    LIST: ("batch", "free"),
    REMOVE: ("yes",),
}
HEADS = ("SERIAL", "BATCH", "TYPE", "CODES", "STATE", "USER")
MAX_SKIPPED = 20  # skipped tokens that the output names; the others are counted by reason


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "stock",
        run,
        "manage the stock of hardware tokens: import, list and remove tokens",
        "pam-totp stock import pskc box.xml --password-file password --batch box-7",
        "pam-totp stock list --free --batch box-7",
        "pam-totp stock remove T-1001",
        data=True,
    )
    parser.add_argument("what", choices=OPTIONS, help="import [FORMAT] FILE, list, or remove SERIAL")
    parser.add_argument(
        "file",
        nargs="*",
        metavar="FILE",
        help=f"import: file to read, or - for standard input. FORMAT is recognised, or one of {', '.join(FORMATS)}. "
        "remove: the serial number",
    )
    parser.add_argument("--batch", metavar="B", help="import: name of the batch; list: only this batch")
    parser.add_argument("--free", action="store_true", help="list: only tokens in stock, not tokens of users")
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument("--key-file", metavar="FILE", help="import, pskc: file with the key, in hexadecimal")
    secret.add_argument("--password-file", metavar="FILE", help=f"import, {encrypted(FORMATS)}: file with the password")
    parser.add_argument("--dry-run", action="store_true", help="import: show the result, and change nothing")
    parser.add_argument("--yes", action="store_true", help="import, remove: do not ask for a confirmation")
    parser.set_defaults(homes=None)


def run(args: argparse.Namespace) -> int:
    refuse_other_options(args, OPTIONS)
    return {IMPORT: _import, LIST: _list, REMOVE: _remove}[args.what](args)


# ---- import


def _import(args: argparse.Namespace) -> int:
    if (requirement := StockEntry.RULES["batch"](args.batch)) is not None:
        raise CommandError(f"--batch {requirement}", WRONG_USAGE)
    if not args.file:
        raise CommandError(f"FILE is required; the formats are {', '.join(FORMATS)}", WRONG_USAGE)
    named = named_format(args)
    if not args.file:
        raise CommandError("FILE must be one file, or - for standard input", WRONG_USAGE)
    if [args.key_file, args.password_file, *args.file].count("-") > 1:
        raise CommandError("standard input must be used for at most one file", WRONG_USAGE)
    files = [(path, read_named(path)) for path in args.file]
    chosen = named or recognised_format(files)
    if len(files) != 1 and not chosen.several_files:
        raise CommandError("FILE must be one file, or - for standard input", WRONG_USAGE)
    if (args.key_file or args.password_file) and not chosen.has_secret:
        raise CommandError(f"--key-file and --password-file require {encrypted(FORMATS)}", WRONG_USAGE)
    load(chosen)
    results = _add(args, chosen, files)
    counted = Counter(each.status for each in results)
    if args.json:
        _print_json(args, results)
    else:
        _print_results(args, results, counted[AddStatus.ADDED])
    return DONE if counted.keys() <= {AddStatus.ADDED, AddStatus.ALREADY_ADDED} else REFUSED


def _add(args: argparse.Namespace, chosen: Format, files: list[NamedFile]) -> list[Added]:
    """Drop the privileges, add the tokens of the files to the stock, and return the result of each token."""
    bar = Bar("reading", long=chosen.is_slow and sum(len(data) for _, data in files) >= LONG_FILE)
    options = ParseOptions(now=now(), ask_secret=secret_source(args, chosen, bar))
    store = open_store(args, create=True, dry_run=args.dry_run)
    parsed = parse(chosen, files, options, bar)
    show_understood(args, ((files[0][0], text) for text in parsed.understood))
    try:
        tokens = list(parsed.tokens)
    except FormatError as e:
        raise format_error(chosen, *files[0], e) from None
    if not tokens:
        raise CommandError(f"{files[0][0]}: must contain a token; nothing was imported")
    bar = Bar("checking" if args.dry_run else "importing", long=len(tokens) >= MANY_TOKENS)
    with signals_held():
        results = stock.add(store, tokens, now=options.now, batch=args.batch, dry_run=args.dry_run, progress=bar.show)
        if not args.dry_run:
            added = sum(each.status is AddStatus.ADDED for each in results)
            args.audit.changed("stock-import", tokens=added, batch=args.batch, format=chosen.name)
    return results


def _print_results(args: argparse.Namespace, results: list[Added], added: int) -> None:
    skipped = [each for each in results if each.reason is not None]
    for each in skipped[:MAX_SKIPPED]:
        print(f"{_place(each)}: skipped: {shown(each.reason or '')}")
    for reason, number in Counter(each.reason for each in skipped[MAX_SKIPPED:]).items():
        print(f"{number} more skipped: {shown(reason or '')} (use --json to list all)")
    remarks = Counter(remark for each in results for remark in each.token.remarks)
    for remark, number in remarks.items():
        print(f"{count(number, 'token')}: {shown(remark)}")
    verb = "would be added to the stock" if args.dry_run else "added to the stock"
    sys.stdout.flush()  # keep the order if standard output and standard error are the same file
    print(f"{count(added, 'token')} {verb}, {len(skipped)} skipped", file=sys.stderr)


def _print_json(args: argparse.Namespace, results: list[Added]) -> None:
    print_json_stream(
        {
            "dry_run": args.dry_run,
            "batch": args.batch,
            "tokens": (
                {
                    "line": each.token.line,
                    "serial": each.token.serial,
                    "type": each.token.type,
                    "code": str(each.status),
                    "reason": each.reason,
                    "remarks": list(each.token.remarks),
                }
                for each in results
            ),
        }
    )


def _place(each: Added) -> str:
    return f"line {each.token.line}" + (f" ({shown(each.token.serial)})" if each.token.serial else "")


# ---- list


def _list(args: argparse.Namespace) -> int:
    if args.file:
        raise CommandError("pam-totp stock list takes no argument (--batch selects a batch)", WRONG_USAGE)
    statuses = {DONE}
    found = _items(args, statuses)
    if args.json:
        print_json_stream(_facts(item) for item in found)
        return max(statuses)
    states: Counter[str] = Counter()
    with Table(HEADS) as table:
        for item in found:
            states[item.state] += 1
            codes = "-" if item.token is None else _codes(item.token)
            kind = "-" if item.token is None else item.token.type
            table.add((item.serial, item.batch or "-", kind, codes, str(item.state), item.user or "-"))
    if table.rows:
        print(", ".join(f"{number} {state}" for state, number in sorted(states.items())), file=sys.stderr)
    elif max(statuses) == DONE:
        print("no token matches" if args.batch or args.free else "no tokens in stock (see 'pam-totp stock --help')")
    return max(statuses)


def _items(args: argparse.Namespace, statuses: set[int]) -> Iterator[Item]:
    """Yield the items. Print an error for each item that cannot be read, and add the exit status to `statuses`."""
    for item in stock.items(open_store(args), batch=args.batch, free=args.free):
        if isinstance(item, StoreError):
            print(f"pam-totp: {item}", file=sys.stderr)
            statuses.add(OUT_OF_REACH)
        else:
            yield item


def _codes(token: Token) -> str:
    assert isinstance(token, HotpToken | TotpToken)
    moving_factor = f"{token.period} s" if isinstance(token, TotpToken) else f"counter {token.counter}"
    row = ", codes in a row only" if token.row_needed else ""
    return f"{token.digits} digits, {token.algorithm}, {moving_factor}{row}"


def _facts(item: Item) -> dict[str, Any]:
    facts = {"serial": item.serial, "batch": item.batch, "state": str(item.state), "user": item.user}
    facts |= {"imported": item.imported, "returned": item.returned}  # type: ignore[dict-item]
    token = None if item.token is None else token_facts("", item.token)
    for name in () if token is None else ("user", "name", "serial", "confirmed", "last_used"):
        del token[name]  # type: ignore[union-attr]
    return {**facts, "token": token}


# ---- remove


def _remove(args: argparse.Namespace) -> int:
    if len(args.file) != 1:
        raise CommandError("pam-totp stock remove needs one serial number", WRONG_USAGE)
    (serial,) = args.file
    store = open_store(args)
    try:
        found = stock.find(store, serial)
        if found is not None and found.token is not None:
            confirm(f"remove {found.serial} from the stock, with its key?", args)
        with signals_held():
            token = stock.remove(store, serial)
            args.audit.changed("stock-remove", **of_token(token), type=token.type, serial=token.serial)
    except StockError as e:
        raise stock_error(e) from None
    if args.json:
        print_json({"serial": token.serial, "removed": True})
    else:
        print(f"{token.serial} removed from the stock")
    return DONE
