"""authority restore, authority fence: make a restored database of a fleet safe, with the logs or without them.

Rules:
- The command reads the logs as root. Then it drops its privileges to the account of the service.
- The command rolls records and stock forward as `pam-totp restored` does. The last change is one transaction: members,
  groups and the new epoch. The command fails, and the epoch is unchanged, if a record was not rolled forward.
- The epoch of the site file is not required here, because a backup has a lower epoch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pam_totp.cli import times
from pam_totp.cli.command_line import DONE, WRONG_USAGE, CommandError
from pam_totp.cli.log_files import lines_of
from pam_totp.cli.printing import count, print_json_stream, print_table
from pam_totp.cli.prompts import confirm
from pam_totp.cli.restored import facts_of_logs, forward_all, forward_stock, print_evidence, print_stock, print_table_of
from pam_totp.cli.store_access import ACCOUNT, load_postgres, location, now, require_files
from pam_totp.core.settings import DATABASE, SITE_FILE, DatabaseSettings, Site, is_database
from pam_totp.operations.restored_fleet import (
    ALLOWED,
    ENROLLING,
    OFF,
    PUT,
    TICKET,
    FleetLog,
    MemberResult,
    PairsResult,
)
from pam_totp.pam.privileges import become_account
from pam_totp.store import seal_key

if TYPE_CHECKING:
    from pam_totp.store.postgres import PostgresStore
    from pam_totp.store.postgres_fence import MemberRow

RESTORE, FENCE = "restore", "fence"
COMPLETE = "give the logs of all authorities, or --complete if no login is missing in these logs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of both subcommands, except --log."""
    parser.add_argument(
        "--restored-at",
        type=times.time,
        metavar="TIME",
        help="restore: time before the first login with the restored database, such as 2026-11-28T14:00 "
        "(default: unknown, so every key fob needs codes in a row)",
    )
    parser.add_argument(
        "--complete", action="store_true", help="restore: the logs are complete, even if an authority has no line"
    )
    parser.add_argument(
        "--epoch-only", action="store_true", help="fence: keep all tokens valid, for a database that has lost no login"
    )
    parser.add_argument("--dry-run", action="store_true", help="restore, fence: show the result, and change nothing")
    parser.add_argument("--yes", action="store_true", help="restore, fence: do not ask for a confirmation")


def restore(args: argparse.Namespace, site: Site, file: str) -> int:
    """Roll the database forward from the logs, and begin a new epoch. Return the exit status."""
    if not args.log:
        raise CommandError(
            "authority restore requires --log FILE... (without a log, run 'pam-totp authority fence')", WRONG_USAGE
        )
    log = FleetLog(restored_at=args.restored_at, now=now())
    spans = [(path, log.read(lines_of(path))) for path in args.log]
    store = _open(args, site, file)
    print_evidence(spans, log, args.restored_at)
    if log.lines == 0:
        raise CommandError("no line of pam_totp in the logs (run 'pam-totp authority fence' if the logs are lost)")
    addresses = site.authority.addresses if site.authority is not None else ()
    needed = len(addresses)
    log.is_complete = log.count_authorities(addresses) >= needed or args.complete
    if needed:
        _say(f"authorities with lines in these logs: {', '.join(sorted(log.authorities)) or 'none'}")
    else:
        _say("give the logs of all hosts that use the database: the command cannot know their number")
    if not log.is_complete:
        _say(f"warning: every token needs codes in a row: {file} has {needed} authorities ({COMPLETE})")
    _warn_of_others(store)
    if not args.dry_run:
        confirm("roll all records forward and void all recovery codes? do this once, directly after a restore", args)
    facts = {"logs": facts_of_logs(spans), "authorities": sorted(log.authorities), "complete": log.is_complete}
    return _apply(args, site, log, store, facts)


def fence(args: argparse.Namespace, site: Site, file: str) -> int:
    """Demand codes in a row for all tokens, except with --epoch-only. Begin a new epoch. Return the exit status."""
    store = _open(args, site, file)
    _warn_of_others(store)
    if args.epoch_only:
        return _begin_epoch(args, site, store)
    log = FleetLog(restored_at=None, now=now())
    log.is_complete = False
    _say("every token needs codes in a row, because no log shows the used codes; tokens, members and permissions that")
    _say("were removed since the backup are valid again (see 'pam-totp list' and 'pam-totp member list')")
    if not args.dry_run:
        confirm("demand codes in a row for all tokens and void all recovery codes?", args)
    return _apply(args, site, log, store, {})


def _open(args: argparse.Namespace, site: Site, file: str) -> PostgresStore:
    url = location(args, site)
    if not is_database(url):
        raise CommandError(f'the store must be a database (set url = "{DATABASE}..." in [store] of {file})')
    load_postgres()
    args.audit.look_up()
    args.audit.store = url
    from pam_totp.store.postgres import PostgresStore

    seal_key.hold()
    become_account(ACCOUNT)
    require_files(url)
    how = site.database or DatabaseSettings(url=url)
    store = PostgresStore(url, pool=1, wait=how.wait, codec=seal_key.codec_of(url))
    if not args.dry_run:
        store.use(store.require_safe, reads_only=True)  # report an unsafe database once, not for each record
    return store


def _say(text: str) -> None:
    print(f"pam-totp: {text}", file=sys.stderr)


def _warn_of_others(store: PostgresStore) -> None:
    from pam_totp.store.postgres_fence import others

    if number := others(store):
        what = f"{count(number, 'other connection')} of pam_totp to the database"
        _say(f"warning: {what}: stop all authorities first, so that no used code is accepted meanwhile")


# ---- the change


def _apply(args: argparse.Namespace, site: Site, log: FleetLog, store: PostgresStore, facts: Mapping[str, Any]) -> int:
    from pam_totp.store import postgres_fence
    from pam_totp.store.postgres_members import Members

    rows, groups = postgres_fence.members(store), Members(store).groups()
    packed, status = forward_all(args, log, store)
    in_stock, status_of_stock = forward_stock(args, log, store)
    status = max(status, status_of_stock)
    members = [log.member(row) for row in rows]
    pairs = {
        ALLOWED: log.pairs(ALLOWED, ((group, name) for group, names in groups.may.items() for name in names)),
        PUT: log.pairs(PUT, ((group, user) for group, users in groups.users.items() for user in users)),
        ENROLLING: log.pairs(ENROLLING, ((group, TICKET) for group in groups.enrolling)),
    }
    missing = log.missing_members(row.name for row in rows)
    epoch = None
    if not args.dry_run:
        withdrawn = _withdrawn(rows, members, pairs)
        above = _least_epoch(site) if status == DONE else None
        epoch = postgres_fence.fence(store, withdrawn, above=above).epoch
        _log_withdrawn(args, withdrawn, pairs)
        if epoch is not None:
            args.audit.changed("fence", epoch=epoch)
    records = map(json.loads, packed)
    if args.json:
        fleet = {
            "members": [_facts_of(member) for member in members if member.notes],
            "members_missing": missing,
            "withdrawn": {kind: found.withdrawn for kind, found in pairs.items()},
            "given_since": {kind: found.lost for kind, found in pairs.items()},
        }
        start = {"dry_run": args.dry_run, "restored_at": args.restored_at, "epoch": epoch, **facts}
        print_json_stream({**start, "records": records, "stock": in_stock, **fleet})
    else:
        print_table_of(records, dry_run=args.dry_run)
        print_stock(in_stock, dry_run=args.dry_run)
        _print_fleet(members, missing, pairs)
        _print_epoch(epoch)
    if status != DONE:
        what = "the epoch is unchanged: some records were not rolled forward"
        raise CommandError(f"{what} (repair or remove these records, and run the command again)", status)
    return DONE


def _begin_epoch(args: argparse.Namespace, site: Site, store: PostgresStore) -> int:
    from pam_totp.store import postgres_fence

    epoch = None
    if not args.dry_run:
        confirm("begin a new epoch? all tokens remain valid, so do this only if the database has lost no login", args)
        epoch = postgres_fence.fence(store, above=_least_epoch(site), forget=False).epoch
        args.audit.changed("fence", epoch=epoch)
    if args.json:
        print_json_stream({"dry_run": args.dry_run, "epoch": epoch})
    else:
        _print_epoch(epoch)
    return DONE


def _least_epoch(site: Site) -> int:
    return 0 if site.database is None else site.database.epoch


def _withdrawn(rows: Iterable[MemberRow], members: Iterable[MemberResult], pairs: Mapping[str, PairsResult]) -> Any:
    from pam_totp.store.postgres_fence import Withdrawn
    from pam_totp.store.postgres_members import ENROLMENT

    both = [*zip(rows, members, strict=True)]
    return Withdrawn(
        revoke=[member.name for _, member in both if member.revoke],
        rejoin=[member.name for _, member in both if member.rejoin],
        limit=[
            (member.name, member.groups, member.services)
            for row, member in both
            if (member.groups, member.services) != (row.groups, row.services)
        ],
        deny=[*pairs[ALLOWED].withdrawn, *((group, ENROLMENT) for group, _ in pairs[ENROLLING].withdrawn)],
        take=pairs[PUT].withdrawn,
    )


def _log_withdrawn(args: argparse.Namespace, withdrawn: Any, pairs: Mapping[str, PairsResult]) -> None:
    """Log each change as the command for such a change does, so that a later restore repeats the change."""
    for name in withdrawn.revoke:
        args.audit.changed("member-revoke", member=name)
    for name, groups, services in withdrawn.limit:
        listed = None if services is None else ", ".join(services)
        args.audit.changed("member-add", member=name, groups=",".join(groups), services=listed)
    for kind, what in ((ALLOWED, "member-deny"), (PUT, "member-take")):
        for group, name in pairs[kind].withdrawn:
            args.audit.changed(what, group=group, names=name)
    for group, _ in pairs[ENROLLING].withdrawn:
        args.audit.changed("member-enroll", group=group, enroll=OFF)
    args.audit.finish("restored")


# ---- output


def _facts_of(member: MemberResult) -> dict[str, Any]:
    return {**member._asdict(), "notes": list(member.notes)}


def _print_fleet(members: Iterable[MemberResult], missing: Iterable[str], pairs: Mapping[str, PairsResult]) -> None:
    rows = [(member.name, note) for member in members for note in member.notes]
    rows += [(name, "not in the backup: add it again ('pam-totp member add')") for name in missing]
    for kind, given, text in (
        (ALLOWED, "allow", "may no longer ask about the users of {0}"),
        (PUT, "put", "{0} is no longer in this user group"),
        (ENROLLING, "enroll", "may no longer enrol users by tickets"),
    ):
        rows += [(group, text.format(name)) for group, name in pairs[kind].withdrawn]
        rows += [
            (group, f"--{given} since the backup: run 'pam-totp member groups {group} --{given} {name}'")
            for group, name in pairs[kind].lost
        ]
    if rows:
        print_table(("MEMBER OR GROUP", "RESULT"), iter(rows))


def _print_epoch(epoch: int | None) -> None:
    if epoch is not None:
        print(f"new epoch: {epoch}")
        print(f"next: set 'epoch = {epoch}' in [store] of {SITE_FILE} on every authority, which then refuses older")
        print("copies of the database; start the authorities")
