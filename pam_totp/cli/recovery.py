"""recovery: codes for the day on which the token is lost."""

from __future__ import annotations

import argparse
import sys

from pam_totp.cli.common import (
    DONE,
    WRONG_USAGE,
    CommandError,
    Commands,
    change,
    command,
    confirm,
    not_enrolled,
    open_store,
    print_json,
    read,
    user_of,
)
from pam_totp.core.record import MAX_RECOVERY_CODES, UserRecord
from pam_totp.operations.enroll import new_recovery_codes

DEFAULT_COUNT = 10


def add_to(commands: Commands) -> None:
    recovery = command(
        commands, "recovery", run_recovery, "make a user's recovery codes; the old ones are void", data=True
    )
    recovery.add_argument("user")
    recovery.add_argument("--count", type=int, default=DEFAULT_COUNT, metavar="N", help="how many (%(default)s)")
    recovery.add_argument("--yes", action="store_true", help="do not ask")


def run_recovery(args: argparse.Namespace) -> int:
    if not 1 <= args.count <= MAX_RECOVERY_CODES:
        raise CommandError(f"--count takes 1 … {MAX_RECOVERY_CODES}", WRONG_USAGE)
    store = open_store(args)
    user = user_of(args)
    left = len(read(store, user).recovery)
    if left:
        confirm(f"{user} has {left} recovery codes left; make them void, and print new ones?", args)

    def renew(record: UserRecord) -> tuple[UserRecord, list[str]]:
        if not record.enrolled:
            raise not_enrolled(user)
        return new_recovery_codes(record, args.count)

    codes = change(store, user, renew)
    if args.json:
        print_json({"user": user, "recovery": codes})
        return DONE
    print(
        f"recovery codes of {user}: each is good for one login instead of a code, and is shown only now",
        file=sys.stderr,
    )
    print("\n".join(codes))
    return DONE
