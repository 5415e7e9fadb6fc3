"""A program that changes file stores, each time in a new process, for tests that interrupt this process.

/usr/bin/python3 -I -S login_once.py reads lines 'FOLDER<tab>WORD'. For each line, the program forks a
process and prints the process ID. The process waits for a further line, performs the change WORD, and prints:
- the name of the outcome, if WORD is an answer
- WORD, if WORD is 'decoy' or a name in `CHANGES`
Then the program prints 'exit' and the exit status. The program forks because a new Python for each change would be
slower.
"""

import ctypes
import os
import sys
import traceback
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
PR_SET_PTRACER, PR_SET_PTRACER_ANY = 0x59616D61, (1 << 64) - 1  # of <linux/prctl.h>


def one_token(record: UserRecord) -> UserRecord:
    """Return the record with an additional token."""
    return record.with_token(HotpToken(name="added", secret=b"a key that was added", created=0))


def many_codes(record: UserRecord) -> UserRecord:
    """Return the record with recovery codes, which need a larger file."""
    return record.with_recovery("00" * 16, tuple(f"{number:064x}" for number in range(100)))


def another_token(record: UserRecord) -> UserRecord:
    """Return the record with its first token replaced."""
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


def change_once(folder: str, word: str) -> None:
    """Let any process trace this child process, wait for a line, and print the result of `word`."""
    try:
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(PR_SET_PTRACER_ANY), 0, 0, 0)
        sys.stdin.readline()
        print(main(folder, word))
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    finally:
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            change_once(*line.rstrip("\n").split("\t"))
        print(child, flush=True)
        print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
