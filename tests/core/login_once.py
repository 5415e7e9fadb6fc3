"""A program that makes one change to a file store, for tests that interrupt the program at a system call:

/usr/bin/python3 -I -S login_once.py FOLDER ANSWER      prints the outcome's name
/usr/bin/python3 -I -S login_once.py FOLDER CHANGE      prints CHANGE: a name in `CHANGES`, or 'decoy'
"""

import os
import sys
from collections.abc import Callable

if __name__ == "__main__":  # tests import `CHANGES`
    sys.dont_write_bytecode = True
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from pam_totp.core.answer import Answer
from pam_totp.core.policy import Policy
from pam_totp.core.record import HotpToken, UserRecord
from pam_totp.core.verify import verify
from pam_totp.store import StoreError
from pam_totp.store.file import FileStore

NOW = 1_700_000_010


def one_token(record: UserRecord) -> UserRecord:
    """Return the record with an additional token."""
    return record.with_token(HotpToken(name="added", secret=b"a key that was added", created=0))


def many_codes(record: UserRecord) -> UserRecord:
    """Return the record with recovery codes, which need a larger file."""
    return record.with_recovery("00" * 16, tuple(f"{number:064x}" for number in range(100)))


def another_token(record: UserRecord) -> UserRecord:
    """Return the record with another token instead of its first token."""
    return one_token(record).without_token("fob")


def nothing(record: UserRecord) -> None:
    """Return None, which deletes the record."""


CHANGES: dict[str, Callable[[UserRecord], UserRecord | None]] = {
    "add": one_token,
    "grow": many_codes,
    "replace": another_token,
    "remove": nothing,
}


def main(folder: str, word: str) -> str:
    def change(record: UserRecord) -> tuple[UserRecord, str]:
        decision = verify(record, Answer.parse(word.encode()), NOW, Policy())
        return decision.record, decision.outcome.value

    store = FileStore(folder)
    try:
        if word == "decoy":
            store.update_decoy("zoe", int)
            return "decoy"
        if word in CHANGES:
            return store.update("alice", lambda record: (CHANGES[word](record), word), create=word == "add")
        return store.update("alice", change)
    except StoreError as e:
        return f"unavailable: {e}"


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2]), flush=True)
