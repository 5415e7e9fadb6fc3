"""invite: create enrolment tickets, with which users enrol themselves.

Rules:
- A ticket is shown once: on the terminal, or in a new file of mode 0600. The file is complete before the first change.
- A new ticket replaces the earlier ticket of the user.
- The ticket of an enrolled user replaces the old tokens when it is redeemed. The old tokens are valid until then. A
  login does not accept such a ticket, so the command and the sheet name the portal and `enroll --ticket`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

from pam_totp.cli.command_line import DONE, OUT_OF_REACH, WRONG_USAGE, CommandError, Commands, add_command
from pam_totp.cli.durations import duration
from pam_totp.cli.files_in import read_named
from pam_totp.cli.key_output import add_output_option, key_output, require_destination, writes_file
from pam_totp.cli.printing import count, format_time, json_text, shown
from pam_totp.cli.progress import Bar
from pam_totp.cli.prompts import confirm
from pam_totp.cli.qr_output import add_issuer_option, token_uri
from pam_totp.cli.store_access import logged_changes, named_token, now, open_store, uses_own_file, warn_without_account
from pam_totp.core.record import DAY, RecordError, Ticket, Token, UserRecord
from pam_totp.formats import qr
from pam_totp.operations.audit_log import of_token
from pam_totp.operations.tickets import MAX_TICKET, TICKET_DAYS, new_phone, new_ticket, shows_key, with_ticket
from pam_totp.pam.names import passwd_name
from pam_totp.store import NotThere, Store

MAX_SHOWN = 40  # characters of an invalid name in a message
PAGE_END = "\f"  # between two sheets
SHEET = """\
ENROLMENT TICKET FOR {user}

    {ticket}

Valid until {ends}, for one enrolment.

1. {first}
2. {enter}{portal}
3. {key}
   Enter the code that the {device} shows.
4. Write down the recovery codes, and keep them in a safe place.

Anybody with this ticket can enrol in your place: do not forward it.
"""
PHONE = ("Install an authenticator app on your phone.", "Enter the shown key in the app, or scan the QR code.", "app")
AT_LOGIN = "Log in as usual. Enter the ticket at the prompt for a one-time code."
IN_SESSION = """\
Log in with a code or a recovery code. Then run: pam-totp enroll --ticket
   (The login itself does not accept the ticket, because you have a token.)"""
FOB = ("Have your key fob ready.", "Press the button of the key fob.", "key fob")


class Invitation(NamedTuple):
    """The ticket of one user. `ticket_text` is the ticket as text, and `enrolled` is True if tokens are in use."""

    user: str
    enrolled: bool
    token: Token
    ticket: Ticket
    ticket_text: str

    def facts(self) -> dict[str, object]:
        facts = {"user": self.user, "ticket": self.ticket_text, "ends": self.ticket.ends, "token": self.token.name}
        return facts | {"serial": self.token.serial}


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "invite",
        run,
        "create enrolment tickets, with which users enrol themselves",
        "pam-totp invite alice",
        "pam-totp invite --from staff.txt --valid 14d --sheet --output tickets.txt",
        "pam-totp invite bob --token fob",
        data=True,
    )
    parser.add_argument("user", nargs="*", metavar="USER", help="a user who gets a ticket")
    parser.add_argument("--from", dest="source", metavar="FILE", help="read user names from this file, one name a line")
    default = f"{TICKET_DAYS}d"
    parser.add_argument(
        "--valid",
        type=duration,
        default=default,
        metavar="TIME",
        help="how long the tickets are valid (%(default)s)",
    )
    parser.add_argument("--token", metavar="NAME", help="an assigned token to confirm, instead of a new phone app")
    parser.add_argument("--sheet", action="store_true", help="print a page with instructions for each user")
    parser.add_argument("--portal", metavar="URL", help="address of the portal, for the sheets")
    add_issuer_option(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask for a confirmation")
    add_output_option(parser, "the tickets")


def run(args: argparse.Namespace) -> int:
    _check_usage(args)
    users, ends = _users(args), now() + args.valid
    with key_output(args) as write:
        store = open_store(args, create=True, keep_root=writes_file(args))
        records = [_read(store, user) for user in users]
        for user in users:
            warn_without_account(user)
        _confirm(records, args)
        invitations = [_invitation(record, ends, args) for record in records]
        text = _text(invitations, args)
        if writes_file(args):
            write(text)  # before the changes: a ticket without its sheet would be lost
        bar = Bar("tickets", long=len(users) > 1000)
        for done, invitation in enumerate(invitations, 1):
            _store(store, invitation, args)
            bar.show(done, len(invitations))
        if not args.json:
            they = "it is" if len(users) == 1 else "they are"
            where = f"only in {args.output}" if writes_file(args) else "shown only now"
            print(f"{count(len(users), 'ticket')}, valid until {format_time(ends)}; {they} {where}", file=sys.stderr)
            _warn_enrolled(records)
        if not writes_file(args):
            write(text)
    return DONE


def _check_usage(args: argparse.Namespace) -> None:
    problem = None
    if not args.user and args.source is None:
        problem = f"missing USER argument (see '{args.parser.prog} --help')"
    elif args.valid > MAX_TICKET:
        problem = f"--valid must be at most {MAX_TICKET // DAY}d"
    elif args.portal is not None and not args.sheet:
        problem = "--portal requires --sheet"
    elif args.sheet and args.json:
        problem = "--sheet excludes --json"
    if problem:
        raise CommandError(problem, WRONG_USAGE)
    if uses_own_file(args):
        raise CommandError("permission denied: only root can invite users", OUT_OF_REACH)
    require_destination(args)


def _users(args: argparse.Namespace) -> list[str]:
    """Return the users of the command line and of --from by the names in the passwd entries, each user once."""
    named = list(args.user)
    if args.source is not None:
        try:
            lines = read_named(args.source).decode("utf-8").splitlines()
        except UnicodeDecodeError:
            raise CommandError(f"{args.source}: must be UTF-8 text") from None
        words = (line.partition("#")[0].strip() for line in lines)
        named += [word for word in words if word]
        if not named:
            raise CommandError(f"{args.source}: must contain a user name")
    for name in named:
        if (requirement := UserRecord.RULES["user"](name)) is not None:
            raise CommandError(f"user name '{shown(name[:MAX_SHOWN])}' {requirement}; nothing was changed")
    return list(dict.fromkeys(passwd_name(name) for name in named))


def _read(store: Store, user: str) -> UserRecord:
    try:
        return store.read(user)
    except NotThere:
        return UserRecord(user=user)


def _confirm(records: Sequence[UserRecord], args: argparse.Namespace) -> None:
    """Ask for a confirmation if a ticket will replace tokens in use."""
    if names := _enrolled(records):
        confirm(f"{names}: the ticket will replace the tokens in use when it is redeemed. Make it?", args)


def _warn_enrolled(records: Sequence[UserRecord]) -> None:
    """Print how enrolled users redeem their tickets."""
    if names := _enrolled(records):
        where = "the user enters it in the portal, or at 'pam-totp enroll --ticket' after a login"
        print(f"{names}: a login accepts no ticket of a user with a token; {where}", file=sys.stderr)


def _enrolled(records: Sequence[UserRecord]) -> str:
    """Return the names of the first enrolled users and the number of the others, or an empty string."""
    enrolled = [record.user for record in records if record.enrolled]
    return ", ".join(enrolled[:3]) + (f" and {len(enrolled) - 3} more" if len(enrolled) > 3 else "")


def _invitation(record: UserRecord, ends: int, args: argparse.Namespace) -> Invitation:
    if args.token is None:
        token = new_phone(record, now())
    else:
        token = named_token(record, args.token)
        if token.confirmed:
            raise CommandError(f"{record.user}: token '{token.name}' is confirmed already; nothing was changed")
    token_uri(token, record.user, args.issuer)  # report an invalid issuer before a change
    picture = qr.packed(token, record.user, args.issuer) if shows_key(token) else None
    ticket, shown = new_ticket(token, ends, picture)
    try:
        with_ticket(record, token, ticket)  # before the first change, which would replace an earlier ticket
    except RecordError as e:
        raise CommandError(f"{record.user}: {e}; nothing was changed") from None
    return Invitation(record.user, record.enrolled, token, ticket, shown)


def _store(store: Store, invitation: Invitation, args: argparse.Namespace) -> None:
    user, _, token, ticket, _ = invitation

    def change(record: UserRecord) -> tuple[UserRecord, None]:
        if args.token is not None and record.token(token.name) != token:
            raise CommandError(f"{user} gets no ticket: another command has changed the token '{token.name}'")
        return with_ticket(record, token, ticket), None

    with logged_changes(store) as held:
        held.update(user, change, create=True)
        args.audit.changed("invite", user, **of_token(token), type=token.type, serial=token.serial, ends=ticket.ends)


def _text(invitations: Sequence[Invitation], args: argparse.Namespace) -> str:
    if args.json:
        return json_text([invitation.facts() for invitation in invitations])
    if args.sheet:
        return PAGE_END.join(_sheet(invitation, args.portal) for invitation in invitations)
    width = max(len(invitation.user) for invitation in invitations)
    return "".join(f"{invitation.user:{width}}  {invitation.ticket_text}\n" for invitation in invitations)


def _sheet(invitation: Invitation, portal: str | None) -> str:
    first, key, device = PHONE if shows_key(invitation.token) else FOB
    return SHEET.format(
        user=invitation.user,
        ticket=invitation.ticket_text,
        ends=format_time(invitation.ticket.ends),
        enter=IN_SESSION if invitation.enrolled else AT_LOGIN,
        first=first,
        key=key,
        device=device,
        portal="" if portal is None else f"\n   Or open {portal} and sign in there.",
    )
