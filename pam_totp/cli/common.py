"""What the commands share: the store behind the privileges, prompts, tables, exit statuses."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import pwd
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pam_totp.cli import examples
from pam_totp.core.record import Token, UserRecord
from pam_totp.core.settings import DEFAULT_STORE, SITE_FILE
from pam_totp.pam.module import passwd_name
from pam_totp.pam.privileges import become_owner_of
from pam_totp.store import NotThere, R, Store
from pam_totp.store.file import JOURNAL, FileStore
from pam_totp.store.home import home_store

DONE, REFUSED, WRONG_USAGE, OUT_OF_REACH = range(4)
ACCOUNT = "pam_totp"  # owns the default store where it is installed
OWN_FILE = "~/.pam_totp.json"  # of whoever is not root

INTERRUPTED = "interrupted; nothing was changed"
NO_ANSWER = "no answer; nothing was changed"

Commands = Any  # argparse's subparsers have no public type


class CommandError(Exception):
    """A message for the person, and the exit status that goes with it."""

    def __init__(self, text: str, status: int = REFUSED) -> None:
        super().__init__(text)
        self.status = status


def command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    *,
    data: bool = False,
    store: bool = True,
) -> argparse.ArgumentParser:
    """Add a command. `data` says that it prints data, and so takes --json; `store` that it takes --store."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=examples.shown(name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, parser=parser)
    if store:
        parser.add_argument(
            "--store", metavar="DIR", default=DEFAULT_STORE, help="the folder of the secret files (%(default)s)"
        )
    if data:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help=f"site settings ({SITE_FILE})")


def site_file(args: argparse.Namespace) -> str:
    """The file of --config, which has to be there now where it was named; the default one need not."""
    if args.config is None:
        return SITE_FILE
    os.stat(args.config)
    return str(args.config)


def open_store(args: argparse.Namespace, *, create: bool = False) -> Store:
    """The store of --store; from here on this process is the store's owner, and no longer root. Whoever could not open
    the default store anyway gets their own file instead (`secret=~/.pam_totp.json` among the module's arguments)."""
    if own_file(args):
        return home_store(OWN_FILE, own_name())
    folder = os.path.abspath(args.store)
    if create and not os.path.exists(folder):
        os.mkdir(folder, 0o700)
        os.chmod(folder, 0o700)  # whatever the umask
        if os.geteuid() == 0 and folder == DEFAULT_STORE:
            try:
                account = pwd.getpwnam(ACCOUNT)
                os.chown(folder, account.pw_uid, account.pw_gid)
            except KeyError:
                pass  # not installed: root keeps it
    try:
        become_owner_of(folder)
        status = os.stat(folder)
    except FileNotFoundError:
        message = f"{folder} is not there ('pam-totp enroll' makes it; --store names another)"
        raise CommandError(message, OUT_OF_REACH) from None
    if status.st_uid == os.geteuid() and status.st_mode & 0o777 != 0o700:  # FileStore knows no remedy
        remedy = f"if it is the store, 'chmod 0700 {folder}'; if not, --store names another"
        raise CommandError(f"{folder}: its mode is not 0700: {remedy}", OUT_OF_REACH)
    store = FileStore(folder)
    if os.path.lexists(os.path.join(folder, JOURNAL)):
        _undo_what_was_interrupted(store)
    return store


def _undo_what_was_interrupted(store: FileStore) -> None:
    from pam_totp.store.journal import recover  # once in a blue moon

    undone = recover(store)
    if undone:
        print(f"pam-totp: an import was interrupted; what it had done to {undone} records is undone", file=sys.stderr)


def own_file(args: argparse.Namespace) -> bool:
    """Whether the command is about the caller's own file: no store was named, and the default one is not theirs."""
    if args.store != DEFAULT_STORE or os.geteuid() == 0:
        return False
    try:
        return os.stat(DEFAULT_STORE).st_uid != os.geteuid()
    except OSError:
        return True


def own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise CommandError("you have no account here", OUT_OF_REACH) from None


def has_account(user: str) -> bool:
    """Whether the host knows that name: somebody who mistyped it would wonder at the first login."""
    try:
        pwd.getpwnam(user)
    except (KeyError, ValueError):
        return False
    return True


def warn_of_no_account(user: str) -> None:
    if not has_account(user):
        print(f"pam-totp: warning: there is no account {user} on this host", file=sys.stderr)


def user_of(args: argparse.Namespace) -> str:
    """The name under which the user's record is kept: the passwd entry's, as at a login. With one's own file, nobody
    need be named."""
    if args.user is None and not own_file(args):
        raise CommandError("say whose", WRONG_USAGE)
    user = passwd_name(own_name() if args.user is None else args.user)
    if own_file(args) and user != own_name():
        raise CommandError(f"only root can do that for {user} (without root: your own ~/{OWN_FILE[2:]})", OUT_OF_REACH)
    return user


def read(store: Store, user: str) -> UserRecord:
    try:
        return store.read(user)
    except NotThere:
        raise not_enrolled(user) from None


def change(store: Store, user: str, change_it: Callable[[UserRecord], tuple[UserRecord | None, R]]) -> R:
    try:
        return store.update(user, change_it)
    except NotThere:
        raise not_enrolled(user) from None


def not_enrolled(user: str) -> CommandError:
    if has_account(user):
        return CommandError(f"{user} has no tokens (see 'pam-totp enroll {user}')")
    return CommandError(f"{user} has no tokens, nor an account on this host: is the name right? (see 'pam-totp list')")


def new_name(record: UserRecord, name: str, how: str) -> None:
    """Complain where one of the tokens has that name already; `how` says how to give another."""
    if record.token(name) is not None:
        what_to_do = f"{how}, or see 'pam-totp remove --help'"
        raise CommandError(f"{record.user} has a token named {name} already; nothing was changed: {what_to_do}")


def named_token(record: UserRecord, name: str) -> Token:
    token = record.token(name)
    if token is None:
        raise CommandError(f"{record.user} has no token named {name} (see 'pam-totp list {record.user}')")
    return token


def one_token(record: UserRecord) -> Token:
    """The only token of `record`, for commands that were told no name."""
    if len(record.tokens) != 1:
        raise CommandError(f"say which token (see 'pam-totp list {record.user}')", WRONG_USAGE)
    return record.tokens[0]


def token_facts(user: str, token: Token) -> dict[str, Any]:
    """What may be shown of a token: all but its key."""
    shown = {n: getattr(token, n) for n in token._fields if n != "secret"}
    return {"user": user, "type": token.type} | shown


def now() -> int:
    """The one place where commands read the clock: Unix seconds, UTC."""
    return int(time.time())


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """For as long as the terminal does not echo: who is told to end sets it right first."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ask(prompt: str, *, hidden: bool = False, missing: str = NO_ANSWER) -> str:
    """One line from the person, or the next line of standard input where that is no terminal. Every command asks before
    it changes anything. `missing` is said of a standard input that is no terminal and does not hold it."""
    try:
        if hidden and sys.stdin.isatty():
            with _ended_in_order():
                return getpass.getpass(prompt)
        if sys.stdin.isatty():
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        end_the_line()
        raise CommandError(INTERRUPTED, 128 + signal.SIGINT) from None
    except EOFError:  # what getpass makes of Ctrl-D
        line = ""
    if not line:
        end_the_line()
        raise CommandError(NO_ANSWER if sys.stdin.isatty() else missing)
    return line.rstrip("\r\n")


def end_the_line() -> None:
    """Behind a prompt on a terminal, where the next message would go on in the same line."""
    if sys.stdin.isatty():
        print(file=sys.stderr)


def confirm(question: str, args: argparse.Namespace) -> None:
    """Go on only after a yes; --yes has said so already."""
    if args.yes:
        return
    answer = ask(f"{question} [y/N] ", missing=f"{NO_ANSWER} (nobody is there to ask: say --yes)")
    if answer.strip().lower() not in ("y", "yes"):
        raise CommandError("not done")


def print_json(data: object) -> None:
    print(json.dumps(data, indent=1))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = [tuple(heads), *map(tuple, rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def count(number: int, what: str) -> str:
    """`1 token`, `2 tokens`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def when(seconds: int | None) -> str:
    """A time as the table shows it: UTC, to the minute."""
    if seconds is None:
        return "never"
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (OverflowError, OSError, ValueError):  # a clock that was far off, once
        return f"at {seconds}"
