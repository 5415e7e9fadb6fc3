"""stats: show the statistics of the log and of the store, or write metrics for Prometheus."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pam_totp.cli import textfile, times
from pam_totp.cli.command_line import DONE, OUT_OF_REACH, WRONG_USAGE, CommandError, Commands, add_command
from pam_totp.cli.durations import duration
from pam_totp.cli.log_files import lines_of
from pam_totp.cli.log_journal import journal_lines
from pam_totp.cli.printing import print_json
from pam_totp.cli.stats_drawing import draw, draw_note
from pam_totp.cli.store_access import location, now, open_store, uses_own_file
from pam_totp.core.record import DAY, UserRecord
from pam_totp.core.settings import DEFAULT_STORE
from pam_totp.metrics.log_statistics import LogStatistics
from pam_totp.metrics.store_statistics import StoreStatistics
from pam_totp.operations.restored import parse_with_service, written_at
from pam_totp.pam.login_session import read_site
from pam_totp.store import Store, StoreError, read_each

DEFAULT_SPAN = 7 * DAY
MEMBER = (
    "this host is a member: only its authorities know tokens, users, skipped codes and drift (run the command there)"
)


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "stats",
        run,
        "show statistics: logins, tokens, skipped codes of key fobs, drift of clocks",
        "pam-totp stats",
        "pam-totp stats --since 30d --json",
        "pam-totp stats --log /var/log/auth.log*",
        f"pam-totp stats --textfile {textfile.EXAMPLE}",
        data=True,
    )
    parser.add_argument(
        "--since",
        type=_since,
        metavar="TIME",
        help="only lines of the log since TIME, such as 30d or 2026-11-28T14:00 (default: 7d; with --log, all lines)",
    )
    parser.add_argument(
        "--log",
        nargs="+",
        action="extend",
        metavar="FILE",
        help="read these logs, also gzip, in place of the journal; - for standard input",
    )
    parser.add_argument(
        "--prefix",
        type=int,
        metavar="N",
        help="group key fobs by the first N characters of their serial numbers (default: all but the last 4)",
    )
    parser.add_argument(
        "--textfile", metavar="FILE", help="write the metrics for node_exporter to FILE, in place of the output"
    )


def _since(text: str) -> int:
    """Return a time, or the time before now by a duration, as Unix seconds."""
    with suppress(argparse.ArgumentTypeError):
        return now() - duration(text)
    return times.time(text)


def run(args: argparse.Namespace) -> int:
    if args.prefix is not None and args.prefix < 1:
        raise CommandError("--prefix must be at least 1", WRONG_USAGE)
    if args.textfile is not None:
        return _write_textfile(args)
    if uses_own_file(args):
        raise CommandError("permission denied: only root can read the statistics of all users", OUT_OF_REACH)
    log = LogStatistics()
    since = now() - DEFAULT_SPAN if args.since is None and args.log is None else args.since
    store_location = location(args, read_site())
    for at, line in _lines(args.log, since, store_location):  # as root, before the process drops its privileges
        if (parsed := parse_with_service(line)) is not None:
            log.add(at, *parsed)
    store = None if _is_member(args) else _of_store(open_store(args))
    if args.json:
        print_json(_facts(log, store, since, args.prefix))
    else:
        draw(log, store, since, args.prefix, "the journal" if args.log is None else "the log")
        if store is None:
            draw_note(MEMBER)
    return DONE if store is None or not store.unreadable else OUT_OF_REACH


def _is_member(args: argparse.Namespace) -> bool:
    return read_site().member is not None and bool(args.store == DEFAULT_STORE)


def _lines(files: list[str] | None, since: int | None, store: str) -> Iterator[tuple[int | None, str]]:
    """Yield the lines of pam_totp since a time, each with its time, or None if the line has no time."""
    if files is None:
        assert since is not None
        yield from journal_lines(since, store)
        return
    at_most = now()
    for line in itertools.chain.from_iterable(map(lines_of, files)):
        at = written_at(line, at_most)
        if since is None or (at is not None and at >= since):
            yield at, line


def _of_store(store: Store) -> StoreStatistics:
    statistics, at = StoreStatistics(), now()
    for _, record in read_each(store, sorted(store.users())):
        if isinstance(record, UserRecord):
            statistics.add(record, at)
        else:
            statistics.unreadable += 1
    return statistics


def _write_textfile(args: argparse.Namespace) -> int:
    """Write the metrics of the store and of the running services. Return the exit status.

    Write `pam_totp_store_up 0` and the metrics of the services if the store cannot be read.
    """
    if args.json or args.since is not None or args.log is not None or args.prefix is not None:
        raise CommandError("--textfile excludes all options except --store", WRONG_USAGE)
    with textfile.replaced(args.textfile) as write:
        services = textfile.of_services()  # as root, before the process drops its privileges
        store, problem = None, None
        if not _is_member(args):
            try:
                store = _of_store(open_store(args, keep_root=True))
            except (StoreError, CommandError, OSError) as e:
                problem = e
        write(textfile.text(services, store, is_expected=not _is_member(args)))
    if problem is not None:
        raise problem
    return DONE


def _facts(log: LogStatistics, store: StoreStatistics | None, since: int | None, length: int | None) -> dict[str, Any]:
    known = {} if store is None else store.known
    return {
        "since": since,
        "first": log.first,
        "last": log.last,
        "lines": log.lines,
        "answers": [
            {"service": service, "outcome": outcome, "reason": reason, "count": count}
            for (service, outcome, reason), count in sorted(log.answers.items())
        ],
        "errors": log.errors,
        "store": None if store is None else _store_facts(store),
        "ahead": [
            {"prefix": prefix, "tokens": tokens, "codes": of.codes, "mean": round(of.mean, 3), "most": of.most}
            for prefix, tokens, of in log.prefixes(known, length)
        ],
        "drift": [
            {
                "user": clock.user,
                "token": clock.token,
                "serial": None if clock.facts is None else clock.facts.serial,
                "period": None if clock.facts is None else clock.facts.period,
                "codes": clock.drift.codes,
                "mean": round(clock.drift.mean, 3),
                "least": clock.drift.least,
                "most": clock.drift.most,
            }
            for clock in log.clocks(known)
        ],
    }


def _store_facts(store: StoreStatistics) -> dict[str, Any]:
    return {
        "users": store.users,
        "enrolled": store.enrolled,
        "unreadable": store.unreadable,
        "without_recovery_codes": store.without_recovery,
        "failures": store.failures,
        "tokens": [
            {"type": kind, "state": state, "count": count} for (kind, state), count in sorted(store.tokens.items())
        ],
    }
