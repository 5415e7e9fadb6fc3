"""desk: help users with their tokens, as a member of the site's desk group.

Rules:
- A desk member runs this command through sudo, by a rule for `pam-totp desk` alone. sudo names the desk member,
  who cannot choose a path or a store.
- The desk member signs in with a code. The code authorises one command, or a session of limited length.
- `operations.desk` has the rules for each change, and checks them again at each change.
"""

from __future__ import annotations

import argparse
import os
import select
import shlex
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import partial

from pam_totp.cli.command_line import DONE, OUT_OF_REACH, REFUSED, WRONG_USAGE, CommandError, Commands, add_command
from pam_totp.cli.durations import duration
from pam_totp.cli.printing import count, format_time, print_json, print_table, shown
from pam_totp.cli.prompts import ask, end_prompt_line, read_line
from pam_totp.cli.store_access import now, open_store
from pam_totp.core.settings import DEFAULT_STORE, SITE_FILE, Site, settings
from pam_totp.core.verify import Earlier
from pam_totp.formats import qr
from pam_totp.formats.otpauth import DEFAULT_ISSUER
from pam_totp.operations import audit_log
from pam_totp.operations.authenticate import REFUSED as REFUSED_CODE
from pam_totp.operations.desk import (
    DEFAULT_TEMPORARY,
    DEFAULT_TICKET,
    Desk,
    DeskError,
    DeskSettings,
    Handed,
    Person,
    TokenFacts,
    desk_settings,
)
from pam_totp.operations.recent_logins import words
from pam_totp.operations.self_service import Asking, Factors
from pam_totp.pam.login_session import read_site
from pam_totp.store import NotThere, Store, StoreError
from pam_totp.system.audit import SERVICE, signals_held
from pam_totp.system.desk_accounts import HostAccounts

NAME = "desk"
TRIES = 3  # codes of the desk member
IDLE, TOTAL = 15 * 60, 60 * 60  # seconds until a session ends: without input, and in total
PROMPT = "desk> "
QUIT = ("quit", "exit", "q")
HEADS = ("TOKEN", "KIND", "SERIAL", "STATE", "LAST USED")
STOCK_HEADS = ("SERIAL", "BATCH", "STATE")
# action -> its arguments, as in the help, and its options
ACTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "find": ("TEXT", ()),
    "show": ("USER", ()),
    "unlock": ("USER", ()),
    "temporary-code": ("USER", ("valid", "output")),
    "ticket": ("USER", ("valid", "token", "output")),
    "disable": ("USER", ("token", "all")),
    "enable": ("USER", ("token", "all")),
    "stock": ("", ()),
    "assign": ("SERIAL USER", ()),
    "replace": ("OLD NEW", ("lost",)),
}
FIRST_TICKET = "The user enters the ticket where a login asks for a code, or in the portal."
REPLACING_TICKET = """\
A login does not accept the ticket, because the user has a token. The user enters the ticket in the portal, under
"I have lost my phone", or at 'pam-totp enroll --ticket' after a login. Then the ticket replaces all tokens of the
user."""
LOOKS = ("find", "show", "stock")  # actions that only read: a signal may end them
HELP = """\
find TEXT                    users by name, part of a name or serial number
show USER                    tokens, wrong answers, recent logins
unlock USER                  clear the count of wrong answers
temporary-code USER          a code for one login; --valid 4h, at most 1d
ticket USER                  enrol a new phone; --token NAME: an assigned fob
disable USER --token NAME    refuse the codes of a token
disable USER --all           refuse every code, also recovery codes
enable USER --token NAME     accept the codes of a token again
stock                        tokens without a user
assign SERIAL USER           assign a token in stock to a user
replace OLD NEW              another token in stock; --lost: OLD is gone
quit                         end the session
"""


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        NAME,
        run,
        "help users with their tokens, as a member of the desk",
        "sudo pam-totp desk",
        "sudo pam-totp desk find alice",
        "sudo pam-totp desk temporary-code alice --valid 4h",
        "sudo pam-totp desk assign S-1001 bob",
        data=True,
        store=False,
    )
    actions = ", ".join(f"{action} {names}".strip() for action, (names, _) in ACTIONS.items())
    parser.add_argument(
        "what", nargs="?", choices=ACTIONS, metavar="ACTION", help=f"{actions}; without ACTION: a session"
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="the user, or the serial numbers")
    parser.add_argument(
        "--valid", type=duration, metavar="TIME", help="temporary-code (4h), ticket (7d): how long the code is valid"
    )
    parser.add_argument("--token", metavar="NAME", help="ticket: an assigned token; disable, enable: the token")
    parser.add_argument(
        "--all",
        action="store_true",
        help="disable, enable: all tokens; disable: also all other codes",
    )
    parser.add_argument("--lost", action="store_true", help="replace: remove the old token, which is lost")
    parser.add_argument(
        "--output", choices=("-",), help="temporary-code, ticket: print also if standard output is not a terminal"
    )


def run(args: argparse.Namespace) -> int:
    _check_usage(args)
    by = _member(args)
    site = read_site()
    of_desk = desk_settings(site)
    if of_desk is None:
        raise CommandError(f"this host has no desk (root writes the table [desk] into {SITE_FILE})", OUT_OF_REACH)
    args.store = DEFAULT_STORE
    with suppress(ImportError):  # only the QR code at a login requires segno
        qr.load()
    store = open_store(args)
    desk = _desk(store, of_desk, args, site)
    if not desk.is_member(by):
        raise CommandError(f"permission denied: {by} is not a member of the group {of_desk.group}", OUT_OF_REACH)
    _sign_in(desk, store, by)
    return _act(desk, by, args) if args.what is not None else _session(desk, store, by, args)


def _member(args: argparse.Namespace) -> str:
    """Return the name of the account that ran sudo. Raise CommandError for any other caller."""
    if os.getuid() != 0:
        raise CommandError("permission denied (run 'sudo pam-totp desk'; root writes the sudo rule)", OUT_OF_REACH)
    if args.audit.by_uid == 0:
        raise CommandError("root uses the other commands, such as 'pam-totp unlock' and 'pam-totp invite'", WRONG_USAGE)
    return str(args.audit.caller)


def _desk(store: Store, of_desk: DeskSettings, args: argparse.Namespace, site: Site) -> Desk:
    policy, sink = settings(SERVICE, (), site).policy, audit_log.to_syslog
    factors = Factors(store, policy=policy, service=SERVICE, sink=sink, now=now)
    return Desk(
        store,
        factors,
        settings=of_desk,
        accounts=HostAccounts(),
        service=SERVICE,
        sink=sink,
        now=now,
        issuer=socket.gethostname() or DEFAULT_ISSUER,
        fields=args.audit.origin(),
    )


def _sign_in(desk: Desk, store: Store, by: str) -> None:
    """Ask the desk member for a code. Raise CommandError if the code is refused."""
    try:
        is_enrolled = store.read(by).enrolled
    except NotThere:
        is_enrolled = False
    if not is_enrolled:
        raise CommandError(f"{by} has no token: a desk member signs in by a code (root enrols desk members)")
    earlier = Earlier.NONE
    for _ in range(TRIES):
        answer = ask(f"One-time code of {by}: ", hidden=True)
        with signals_held():
            accepted, earlier = desk.prove(Asking(by, None, answer.encode("utf-8", "surrogateescape")), earlier)
        if accepted:
            return
        print(f"pam-totp: {REFUSED_CODE}", file=sys.stderr)
        if not sys.stdin.isatty():
            break
    raise CommandError("the code was refused; nothing was changed")


# ---- one action


def _check_usage(args: argparse.Namespace) -> None:
    if args.what is None:
        return
    names, options = ACTIONS[args.what]
    if len(args.names) != len(names.split()):
        raise CommandError(f"desk {args.what} takes {names or 'no name'} (see 'pam-totp desk --help')", WRONG_USAGE)
    given = ("valid", "token", "all", "lost", "output")
    wrong = next((o for o in given if o not in options and getattr(args, o) not in (None, False)), None)
    if wrong is not None:
        raise CommandError(f"unexpected option of 'pam-totp desk {args.what}': --{wrong}", WRONG_USAGE)
    if "all" in options and (args.token is None) != args.all:
        raise CommandError(f"desk {args.what} requires --token NAME or --all", WRONG_USAGE)
    if "output" in options and args.output is None and not sys.stdout.isatty():
        raise CommandError("codes are printed only on a terminal (omit the pipe, or add '--output -')", WRONG_USAGE)


def _act(desk: Desk, by: str, args: argparse.Namespace) -> int:
    """Carry out one action, print its result, and return the exit status."""
    names = list(args.names)
    if ACTIONS[args.what][0].endswith("USER"):
        found = HostAccounts().account(names[-1])
        names[-1] = names[-1] if found is None else found[0]
    try:
        with nullcontext() if args.what in LOOKS else signals_held():
            result = _RUN[args.what](desk, by, names, args)
    except DeskError as e:
        raise CommandError(f"{shown(str(e))}; nothing was changed") from None
    if args.json:
        print_json(result.facts)
    else:
        result.show()
    return result.status


class _Result:
    """The result of an action: data for --json, and a function that prints the result as text."""

    def __init__(self, facts: object, show: Callable[[], None], status: int = DONE) -> None:
        self.facts, self.show, self.status = facts, show, status


def _find(desk: Desk, by: str, names: Sequence[str], args: argparse.Namespace) -> _Result:
    found = desk.find(by, names[0])
    facts = {"users": found.users, "token": None if found.item is None else asdict(found.item)}
    if len(found.users) == 1 and not args.json:
        return _show(desk, by, found.users, args)
    lines = [shown(user) for user in found.users]
    if found.item is not None and found.item.user is None:
        lines.append(f"token {shown(found.item.serial)}: in stock ({found.item.state})")
    status = DONE if lines else REFUSED
    return _Result(facts, partial(_print_lines, lines or ["no user or token found"]), status)


def _show(desk: Desk, by: str, names: Sequence[str], args: argparse.Namespace) -> _Result:
    person = desk.person(by, names[0])
    return _Result(_person_facts(person), partial(_print_person, person))


def _unlock(desk: Desk, by: str, names: Sequence[str], args: argparse.Namespace) -> _Result:
    failures = desk.unlock(by, names[0])
    return _done(f"{names[0]}: the count of wrong answers is now 0", user=names[0], failures=failures)


def _temporary_code(desk: Desk, by: str, names: Sequence[str], args: argparse.Namespace) -> _Result:
    handed = desk.temporary_code(by, names[0], DEFAULT_TEMPORARY if args.valid is None else args.valid)
    return _handed(handed, "temporary code", "The user enters the temporary code at one login, in place of a code.")


def _ticket(desk: Desk, by: str, names: Sequence[str], args: argparse.Namespace) -> _Result:
    handed = desk.ticket(by, names[0], DEFAULT_TICKET if args.valid is None else args.valid, args.token)
    return _handed(handed, "ticket", REPLACING_TICKET if handed.replaces else FIRST_TICKET)


def _handed(handed: Handed, what: str, how: str) -> _Result:
    facts = {"user": handed.user, "code": handed.code, "ends": handed.ends, "token": handed.token}
    lines = [f"{what} for {shown(handed.user)}, valid until {format_time(handed.ends)}:", "", f"    {handed.code}", ""]
    return _Result(facts, partial(_print_lines, [*lines, f"{how} The {what} is shown only now."]))


def _disable(desk: Desk, by: str, names: Sequence[str], args: argparse.Namespace) -> _Result:
    tokens = desk.disable(by, names[0], args.token)
    also = "; recovery codes, ticket and temporary code voided" if args.all else ""
    return _done(f"{names[0]}: disabled: {', '.join(tokens)}{also}", user=names[0], tokens=tokens)


def _enable(desk: Desk, by: str, names: Sequence[str], args: argparse.Namespace) -> _Result:
    tokens = desk.enable(by, names[0], args.token)
    return _done(f"{names[0]}: enabled: {', '.join(tokens)}", user=names[0], tokens=tokens)


def _stock(desk: Desk, by: str, names: Sequence[str], args: argparse.Namespace) -> _Result:
    items = desk.free(by)
    rows = [(item.serial, item.batch or "-", item.state) for item in items]
    show = partial(print_table, STOCK_HEADS, rows) if rows else partial(_print_lines, ["no token is in stock"])
    return _Result([asdict(item) for item in items], show)


def _assign(desk: Desk, by: str, names: Sequence[str], args: argparse.Namespace) -> _Result:
    serial, user = names
    token = desk.assign(by, serial, user)
    text = f"{user}: token '{token.name}' assigned ({serial}); the user confirms it by two codes in a row"
    return _done(text, user=user, token=asdict(token))


def _replace(desk: Desk, by: str, names: Sequence[str], args: argparse.Namespace) -> _Result:
    old, new = names
    user, token = desk.replace(by, old, new, lost=args.lost)
    where = "removed" if args.lost else "in stock again"
    text = f"{user}: token '{token.name}' is now {new}; {old} is {where}"
    return _done(text, user=user, token=asdict(token))


def _done(text: str, **facts: object) -> _Result:
    return _Result(facts, partial(_print_lines, [shown(text)]))


_RUN: dict[str, Callable[[Desk, str, Sequence[str], argparse.Namespace], _Result]] = {
    "find": _find,
    "show": _show,
    "unlock": _unlock,
    "temporary-code": _temporary_code,
    "ticket": _ticket,
    "disable": _disable,
    "enable": _enable,
    "stock": _stock,
    "assign": _assign,
    "replace": _replace,
}


# ---- a session


def _session(desk: Desk, store: Store, by: str, args: argparse.Namespace) -> int:
    """Read and carry out actions until the end of the input, `quit`, or the end of the session's time.

    Return the exit status. Raise CommandError if a token of the desk member is disabled, removed or replaced during the
    session.
    """
    if args.json:
        raise CommandError("--json requires an ACTION", WRONG_USAGE)
    end = time.monotonic() + TOTAL
    tokens = _active_tokens(store, by)
    print(f"Signed in as {by}. 'help' lists the actions, 'quit' ends the session.")
    while (line := _line(end)) is not None and line.strip() not in QUIT:
        if line.strip() in ("help", "?"):
            print(HELP, end="")
        elif line.strip():
            if not tokens <= _active_tokens(store, by):
                raise CommandError(f"this action was not carried out: the tokens of {by} have changed (sign in again)")
            with suppress(SystemExit):  # argparse has printed the error, or the help
                _act_on(desk, by, line)
    return DONE


def _active_tokens(store: Store, by: str) -> set[tuple[str, str, int]]:
    """Return the tokens with valid codes of the desk member: name, type and time of creation."""
    try:
        tokens = store.read(by).tokens
    except NotThere:
        return set()
    return {(token.name, token.type, token.created) for token in tokens if token.enabled and token.confirmed}


def _act_on(desk: Desk, by: str, line: str) -> None:
    """Carry out one line of a session. Print an error, and continue."""
    from pam_totp.cli import parse  # imported here: `pam_totp.cli` imports this module

    try:
        action = parse([NAME, *shlex.split(line)])
        action.output = None if action.what is None or "output" not in ACTIONS[action.what][1] else "-"
        _check_usage(action)
        if action.what is not None:
            _act(desk, by, action)
    except ValueError as e:
        print(f"pam-totp: {e}".lower(), file=sys.stderr)
    except (CommandError, StoreError) as e:
        print(f"pam-totp: {e}", file=sys.stderr)


def _line(end: float) -> str | None:
    """Return the next line, or None at the end of the input or of the session's time."""
    print(PROMPT, end="", flush=True)
    last = min(end, time.monotonic() + IDLE)
    is_over = sys.stdin.isatty() and not select.select([sys.stdin], [], [], max(last - time.monotonic(), 0))[0]
    line = "" if is_over else read_line()
    if is_over or time.monotonic() > last:  # a pipe may deliver a line after the end
        print()
        print("pam-totp: the session has ended (sign in again)", file=sys.stderr)
        return None
    if not line:
        end_prompt_line()
        return None
    return line


# ---- output


def _print_lines(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)


def _print_person(person: Person) -> None:
    print(shown(person.user) + ("" if person.enrolled else ": not enrolled"))
    if person.tokens:
        print_table(HEADS, (_cells(token) for token in person.tokens))
    for line in _remarks(person):
        print(line)
    for login in reversed(person.recent):
        where = shown(login.service) + ("" if login.rhost is None else f" from {shown(login.rhost)}")
        print(f"{format_time(login.at)}  {words(login)} ({where})")
    for change in reversed(person.changes):
        print(f"{format_time(change.at)}  {change.what}{_of_token(change.token)} by {shown(change.by)}")


def _of_token(token: str | None) -> str:
    return "" if token is None else f" '{shown(token)}'"


def _cells(token: TokenFacts) -> tuple[str, ...]:
    kind = "button" if token.period is None else f"every {token.period} s"
    state = token.state + (", codes in a row only" if token.row_needed else "")
    return token.name, kind, token.serial or "-", state, format_time(token.last_used)


def _remarks(person: Person) -> list[str]:
    lines = [f"{count(person.recovery_left, 'recovery code')} left; {count(person.failures, 'wrong answer')} counted"]
    if person.locked:
        lines.append("locked: only a recovery code or temporary code is accepted (see 'unlock')")
    if person.ticket_ends is not None:
        lines.append(f"ticket for '{shown(person.ticket or '')}', valid until {format_time(person.ticket_ends)}")
    if person.temporary_ends is not None:
        lines.append(f"temporary code, valid until {format_time(person.temporary_ends)}")
    if person.denied is not None:
        lines.append(str(DeskError(person.denied)))
    return lines


def _person_facts(person: Person) -> dict[str, object]:
    facts: dict[str, object] = {name: getattr(person, name) for name in Person.__slots__}
    return facts | {
        "denied": person.denied,
        "tokens": [asdict(token) | {"state": token.state} for token in person.tokens],
        "recent": [{name: getattr(login, name) for name in login._fields} for login in person.recent],
        "changes": [asdict(change) for change in person.changes],
    }
