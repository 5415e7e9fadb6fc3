"""recovery: create recovery codes, which replace a code if the token is lost."""

from __future__ import annotations

import argparse
import sys

from pam_totp.cli.command_line import DONE, WRONG_USAGE, CommandError, Commands, add_command
from pam_totp.cli.printing import count, print_json
from pam_totp.cli.prompts import confirm
from pam_totp.cli.store_access import not_enrolled, open_store, read, update, user_of
from pam_totp.core.record import MAX_RECOVERY_CODES, UserRecord
from pam_totp.operations.enroll import new_recovery_codes

DEFAULT_COUNT = 10


def add_to(commands: Commands) -> None:
    summary = "create recovery codes for a user, which replace the old codes"
    parser = add_command(commands, "recovery", run, summary, "pam-totp recovery alice", data=True)
    parser.add_argument("user", help="owner of the recovery codes")
    parser.add_argument("--count", type=int, default=DEFAULT_COUNT, metavar="N", help="number of codes (%(default)s)")
    parser.add_argument("--yes", action="store_true", help="do not ask for a confirmation")


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.count <= MAX_RECOVERY_CODES:
        raise CommandError(f"--count must be 1 to {MAX_RECOVERY_CODES}", WRONG_USAGE)
    store = open_store(args)
    user = user_of(args)
    unused = len(read(store, user).recovery)
    if unused:
        confirm(f"replace {count(unused, 'unused recovery code')} of {user}?", args)

    def renew(record: UserRecord) -> tuple[UserRecord, list[str]]:
        if not record.enrolled:
            raise not_enrolled(user)
        return new_recovery_codes(record, args.count)

    codes = update(store, user, renew, lambda codes: args.audit.changed("recovery", user, codes=len(codes)))
    if args.json:
        print_json({"user": user, "recovery": codes})
        return DONE
    print(f"recovery codes of {user}: each works once, in place of a code; they are shown only now", file=sys.stderr)
    print("\n".join(codes))
    return DONE
