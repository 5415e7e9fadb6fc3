"""recovery: create recovery codes, which replace a code if the token is lost."""

from __future__ import annotations

import argparse
import sys

from pam_totp.cli.command_line import DONE, WRONG_USAGE, CommandError, Commands, add_command
from pam_totp.cli.key_output import add_output_option, key_output, writes_file
from pam_totp.cli.printing import count, json_text
from pam_totp.cli.prompts import confirm
from pam_totp.cli.store_access import ONESELF, not_enrolled, open_store, read, update, user_of
from pam_totp.core.record import MAX_RECOVERY_CODES, UserRecord
from pam_totp.operations.enroll import new_recovery_codes

DEFAULT_COUNT = 10


def add_to(commands: Commands) -> None:
    summary = "create recovery codes for a user, which replace the old codes"
    examples = ("pam-totp recovery alice", "pam-totp recovery alice --output codes.txt")
    parser = add_command(commands, "recovery", run, summary, *examples, data=True)
    parser.add_argument("user", nargs="?", help=f"owner of the recovery codes ({ONESELF})")
    parser.add_argument("--count", type=int, default=DEFAULT_COUNT, metavar="N", help="number of codes (%(default)s)")
    parser.add_argument("--yes", action="store_true", help="do not ask for a confirmation")
    add_output_option(parser, "the codes")


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.count <= MAX_RECOVERY_CODES:
        raise CommandError(f"--count must be 1 to {MAX_RECOVERY_CODES}", WRONG_USAGE)
    with key_output(args) as write:
        store = open_store(args, keep_root=writes_file(args))
        user = user_of(args)
        record = read(store, user)
        if record.recovery:
            confirm(f"replace {count(len(record.recovery), 'unused recovery code')} of {user}?", args)
        new_record, codes = new_recovery_codes(record, args.count)
        text = json_text({"user": user, "recovery": codes}) if args.json else "".join(f"{code}\n" for code in codes)
        if writes_file(args):
            write(text)  # before the change, so that the old codes are valid after an error

        def renew(record: UserRecord) -> tuple[UserRecord, None]:
            if not record.enrolled:
                raise not_enrolled(user)
            assert new_record.salt is not None
            return record.with_recovery(new_record.salt, new_record.recovery), None

        update(store, user, renew, lambda _: args.audit.changed("recovery", user, codes=len(codes)))
        if not args.json:
            where = f"they are only in {args.output}" if writes_file(args) else "they are shown only now"
            print(
                f"recovery codes of {user}: each is valid for one login, in place of a code; {where}", file=sys.stderr
            )
        if not writes_file(args):
            write(text)
    return DONE
