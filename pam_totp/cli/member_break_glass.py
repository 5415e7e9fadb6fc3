"""member break-glass: recovery codes of this host, which are accepted only while no authority decides."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from pam_totp.cli.command_line import DONE, OUT_OF_REACH, WRONG_USAGE, CommandError
from pam_totp.cli.key_output import add_output_option, key_output, writes_file
from pam_totp.cli.printing import count, json_text
from pam_totp.cli.prompts import confirm
from pam_totp.cli.store_access import open_store, uses_own_file, warn_without_account
from pam_totp.core.record import MAX_RECOVERY_CODES, UserRecord
from pam_totp.core.settings import SITE_FILE
from pam_totp.operations.enroll import new_recovery_codes
from pam_totp.pam.login_session import read_site
from pam_totp.pam.names import passwd_name
from pam_totp.store import Store, read_or_unknown

DEFAULT_COUNT = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `member break-glass`."""
    parser.add_argument(
        "--count", type=int, metavar="N", help=f"break-glass: number of codes of each user ({DEFAULT_COUNT})"
    )
    add_output_option(parser, "break-glass: the codes")


def break_glass(args: argparse.Namespace, users: Sequence[str]) -> int:
    """Replace the recovery codes of `users` on this host, and print the new codes. Return the exit status."""
    number = DEFAULT_COUNT if args.count is None else args.count
    if not 1 <= number <= MAX_RECOVERY_CODES:
        raise CommandError(f"--count must be 1 to {MAX_RECOVERY_CODES}", WRONG_USAGE)
    if not users:
        raise CommandError("missing USER argument (see 'pam-totp member --help')", WRONG_USAGE)
    site = read_site(args.config or SITE_FILE)
    if site.member is None:
        file = args.config or SITE_FILE
        raise CommandError(f"break-glass requires a member: [member] is missing in {file} (see 'pam-totp recovery')")
    if uses_own_file(args):
        raise CommandError("permission denied (run the command as root)", OUT_OF_REACH)
    names = list(dict.fromkeys(passwd_name(user) for user in users))
    with key_output(args) as write:
        store = open_store(args, create=True, keep_root=writes_file(args), break_glass=True)
        _confirm(store, names, args)
        made = {name: new_recovery_codes(UserRecord(user=name), number) for name in names}
        codes = {name: list(found) for name, (_, found) in made.items()}
        if args.json:
            text = json_text([{"user": name, "recovery": found} for name, found in codes.items()])
        else:
            text = "".join(f"{name}  {code}\n" for name, found in codes.items() for code in found)
        if writes_file(args):
            write(text)  # before the change, so that an error voids no code
        for name, (record, _) in made.items():
            store.update(name, _replacing(record), create=True)
            args.audit.changed("break-glass", name, codes=number)
        if not args.json:
            where = f"the codes are only in {args.output}" if writes_file(args) else "the codes are shown only now"
            print(f"each code works once, while no authority decides; {where}", file=sys.stderr)
        if not site.member.allows_break_glass:
            remedy = f'set centre_down = "break-glass" in [member] of {args.config or SITE_FILE}'
            print(f"pam-totp: warning: these codes are not accepted yet ({remedy})", file=sys.stderr)
        if not writes_file(args):
            write(text)
    return DONE


def _confirm(store: Store, names: Sequence[str], args: argparse.Namespace) -> None:
    """Ask for a confirmation before codes are replaced. Raise CommandError for a user whose record has tokens."""
    unused = 0
    for name in names:
        record = read_or_unknown(store, name)
        if record.tokens:
            raise _has_tokens(name)
        unused += len(record.recovery)
        warn_without_account(name)
    if unused:
        confirm(f"replace {count(unused, 'unused recovery code')} of {', '.join(names)}?", args)


def _replacing(new: UserRecord) -> Callable[[UserRecord], tuple[UserRecord, None]]:
    def change(record: UserRecord) -> tuple[UserRecord, None]:
        if record.tokens:
            raise _has_tokens(record.user)
        assert new.salt is not None
        return record.with_recovery(new.salt, new.recovery), None

    return change


def _has_tokens(user: str) -> CommandError:
    what = f"{user} has tokens in the store of this host, which no login on a member uses"
    return CommandError(f"{what} (enrol the user at an authority, then delete {user}.record here)")
