"""member: on an authority, manage the hosts of the fleet and their groups; on a member, break-glass and FreeRADIUS."""

from __future__ import annotations

import argparse
import re
import secrets
import sys
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

from pam_totp.cli import member_radius
from pam_totp.cli.command_line import (
    DONE,
    OUT_OF_REACH,
    REFUSED,
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
    add_config,
    refuse_other_options,
    site_file,
)
from pam_totp.cli.member_break_glass import add_arguments, break_glass
from pam_totp.cli.printing import format_time, print_json, print_table
from pam_totp.cli.prompts import confirm
from pam_totp.cli.store_access import ACCOUNT, database_settings, load_postgres, location, require_files
from pam_totp.core.settings import DATABASE, Site, is_database
from pam_totp.member import wire
from pam_totp.pam.login_session import read_site
from pam_totp.pam.privileges import become_account

if TYPE_CHECKING:
    from pam_totp.store.postgres_members import Groups, Member, Members

ADD, LIST, REVOKE, GROUPS, BREAK_GLASS, RADIUS = "add", "list", "revoke", "groups", "break-glass", "radius"
OPTIONS = {  # of each subcommand
    ADD: ("group", "service"),
    LIST: (),
    REVOKE: ("yes",),
    GROUPS: ("allow", "deny", "put", "take", "enroll"),
    BREAK_GLASS: ("yes", "count", "output"),
    RADIUS: ("yes", "service", "folder", "no_challenge"),
}
GROUP = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
NO_DATABASE = 'a fleet requires a database (set url = "{0}..." in [store] of {1})'


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "member",
        run,
        "on an authority: manage the hosts of the fleet and their user groups; "
        "on a member: create recovery codes for break-glass, or set up FreeRADIUS",
        "pam-totp member add web1.example.org --group web",
        "pam-totp member groups web --allow all",
        "pam-totp member groups staff --put alice",
        "pam-totp member groups db --allow staff",
        "pam-totp member groups web --enroll ticket",
        "pam-totp member revoke web1.example.org",
        "pam-totp member break-glass alice bob --output codes.txt",
        "pam-totp member radius install",
        "pam-totp member radius client vpn1 192.0.2.1 --service openvpn",
        data=True,
    )
    parser.add_argument(
        "what", choices=OPTIONS, help="add HOST, list, revoke HOST, groups [GROUP], break-glass USER..., or radius"
    )
    parser.add_argument(
        "name",
        nargs="*",
        help="name of the host, in lower case; groups: the group to change; break-glass: users; "
        "radius: install, or client NAME ADDRESS",
    )
    parser.add_argument("--group", metavar="GROUP", action="append", help="add: group of the member; may be repeated")
    parser.add_argument(
        "--service",
        metavar="SERVICE",
        action="append",
        help="add: PAM service of the member (all); may be repeated. radius client: name of the service (radius)",
    )
    parser.add_argument(
        "--allow",
        metavar="GROUP",
        action="append",
        help="groups: user group that members may ask about; all: every user",
    )
    parser.add_argument("--deny", metavar="GROUP", action="append", help="groups: the opposite of --allow")
    parser.add_argument("--put", metavar="USER", action="append", help="groups: add a user to this user group")
    parser.add_argument("--take", metavar="USER", action="append", help="groups: remove a user from this user group")
    parser.add_argument(
        "--enroll",
        choices=("ticket", "off"),
        help="groups: let members enrol users by tickets, so that they see the new keys (off)",
    )
    parser.add_argument("--yes", action="store_true", help="revoke, break-glass, radius: do not ask for a confirmation")
    add_arguments(parser)
    member_radius.add_arguments(parser)
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    refuse_other_options(args, OPTIONS)
    if args.what == BREAK_GLASS:
        return break_glass(args, args.name)
    if args.what == RADIUS:
        return member_radius.radius(args, args.name)
    if len(args.name) > 1:
        raise CommandError(f"pam-totp member {args.what} takes at most one name", WRONG_USAGE)
    args.name = args.name[0] if args.name else None
    if (args.name is None) != (args.what == LIST) and not (args.what == GROUPS and not _changes(args)):
        needs = "takes no name" if args.what == LIST else "needs a name"
        raise CommandError(f"pam-totp member {args.what} {needs}", WRONG_USAGE)
    file = site_file(args)
    site = read_site(file)
    return {ADD: _add, LIST: _list, REVOKE: _revoke, GROUPS: _groups}[args.what](args, site, file)


def _open(args: argparse.Namespace, site: Site, file: str) -> Members:
    if site.member is not None:
        raise CommandError("this host is a member (run the command on an authority)")
    url = location(args, site)
    if not is_database(url):
        raise CommandError(NO_DATABASE.format(DATABASE, file))
    load_postgres()
    args.audit.look_up()
    args.audit.store = url
    from pam_totp.store.postgres import PostgresStore
    from pam_totp.store.postgres_members import Members

    become_account(ACCOUNT)
    require_files(url)
    how = database_settings(url, site)
    return Members(PostgresStore(url, pool=1, wait=how.wait, epoch=how.epoch))


def _add(args: argparse.Namespace, site: Site, file: str) -> int:
    """Add a member, and print its join line. Return the exit status."""
    if (rule := wire.host_name(args.name)) is not None:
        raise CommandError(f"the name {rule}", WRONG_USAGE)
    if not args.group:
        raise CommandError("pam-totp member add needs --group GROUP", WRONG_USAGE)
    _require_groups(args.group)
    for service in args.service or ():
        if not service.isprintable() or not 0 < len(service.encode()) <= wire.MAX_NAME:
            raise CommandError(f"--service must be 1 to {wire.MAX_NAME} bytes of printable text", WRONG_USAGE)
    authorities, pin = _authorities(site, file)
    members = _open(args, site, file)
    from pam_totp.store.postgres_members import JOIN_SECONDS

    token = secrets.token_bytes(wire.TOKEN_BYTES)
    groups = sorted(set(args.group))
    was_joined = members.add(args.name, groups, args.service, sha256(token).digest(), JOIN_SECONDS)
    args.audit.changed("member-add", member=args.name, groups=",".join(groups), services=_joined(args.service))
    line = wire.JoinLine(authorities=authorities, pin=pin, token=token.hex()).to_text()
    mute = [group for group in groups if not members.groups().may.get(group)]
    if args.json:
        print_json({"member": args.name, "line": line, "seconds": JOIN_SECONDS, "joined_before": was_joined})
    else:
        print(line)
        again = "; until then the host's present certificate remains valid" if was_joined else ""
        note(f"on {args.name}, run 'pam-totp join' within an hour, and enter this line{again}")
    for group in mute:
        note(f"members of {group} may ask about no user yet (run 'pam-totp member groups {group} --allow all')")
    return DONE


def _authorities(site: Site, file: str) -> tuple[tuple[str, ...], str]:
    """Return the addresses of the authorities, and the fingerprint of the CA."""
    from pam_totp.authority import certificates

    if site.authority is None or not site.authority.addresses:
        raise CommandError(f"authority.addresses is missing in {file} (list the addresses that members connect to)")
    try:
        pin = certificates.fingerprint(certificates.read(site.authority.ca)).hex()
    except certificates.CertificateError as e:
        raise CommandError(f"{e} (run 'pam-totp authority init')", OUT_OF_REACH) from None
    return site.authority.addresses, pin


def _list(args: argparse.Namespace, site: Site, file: str) -> int:
    found = _open(args, site, file).all()
    if args.json:
        print_json([member._asdict() for member in found])
    elif not found:
        print("no members (see 'pam-totp member add --help')")
    else:
        heads = ("MEMBER", "GROUPS", "SERVICES", "STATE", "SINCE", "CERTIFICATE ENDS")
        print_table(heads, (_cells(member) for member in found))
    return DONE


def _cells(member: Member) -> tuple[str, ...]:
    state, since = "added", member.added
    if member.joined is not None:
        state, since = "joined", member.joined
    if member.revoked is not None:
        state, since = "revoked", member.revoked
    services, ends = _joined(member.services) or "all", "-" if member.ends is None else format_time(member.ends)
    return member.name, ", ".join(member.groups), services, state, format_time(since), ends


def _revoke(args: argparse.Namespace, site: Site, file: str) -> int:
    confirm(f"revoke {args.name}, so that no user can log in there with a code?", args)
    if not _open(args, site, file).revoke(args.name):
        raise CommandError(f"{args.name}: member not found (see 'pam-totp member list')", REFUSED)
    args.audit.changed("member-revoke", member=args.name)
    if args.json:
        print_json({"member": args.name, "revoked": True})
    else:
        print(f"{args.name}: revoked; all authorities refuse it from now on")
    return DONE


def _groups(args: argparse.Namespace, site: Site, file: str) -> int:
    if args.name is not None:
        _require_groups([args.name, *(args.allow or ()), *(args.deny or ())])
    members = _open(args, site, file)
    changes = {"allow": members.allow, "deny": members.deny, "put": members.put, "take": members.take}
    for option, change in changes.items():
        if given := getattr(args, option):
            change(args.name, given)
            for name in sorted(set(given)):  # a line for each, because a log truncates long fields
                args.audit.changed(f"member-{option}", group=args.name, names=name)
    if args.enroll is not None:
        done = members.permit_enrolment(args.name, permitted=args.enroll != "off")
        args.audit.changed("member-enroll", group=args.name, enroll=args.enroll, changed=done)
    groups = members.groups()
    names = [args.name] if args.name is not None else sorted({*groups.may, *groups.users, *groups.enrolling})
    if args.json:
        facts = {n: {"may": groups.may.get(n, ()), "users": groups.users.get(n, ())} for n in names}
        print_json([{"group": n, **facts[n], "enroll": _enroll(groups, n)} for n in names])
    elif not names:
        print("no groups (see 'pam-totp member groups --help')")
    else:
        may, users = ({n: ", ".join(found.get(n, ())) or "-" for n in names} for found in (groups.may, groups.users))
        rows = ((n, may[n], _enroll(groups, n), users[n]) for n in names)
        print_table(("GROUP", "ITS MEMBERS MAY ASK FOR", "ENROLMENT", "ITS USERS"), rows)
    return DONE


def _enroll(groups: Groups, name: str) -> str:
    return "ticket" if name in groups.enrolling else "off"


def _changes(args: argparse.Namespace) -> bool:
    return any(getattr(args, option) for option in OPTIONS[GROUPS])


def _require_groups(names: Sequence[str]) -> None:
    for name in names:
        if not GROUP.fullmatch(name):
            what = "must be 1 to 64 of a-z, 0-9, '.', '_', '-', and begin with a letter or a digit"
            raise CommandError(f"{name!r}: the name of a group {what}", WRONG_USAGE)


def _joined(texts: Sequence[str] | None) -> str | None:
    return None if texts is None else ", ".join(texts)


def note(text: str) -> None:
    """Print a remark on standard error, so that standard output has only the join line."""
    print(f"pam-totp: {text}", file=sys.stderr)
