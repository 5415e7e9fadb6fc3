"""A program that verifies one answer against a file store, for tests that interrupt it at a system call.

/usr/bin/python3 -I -S login_once.py FOLDER ANSWER      prints the outcome's name
"""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from pam_totp.core.answer import Answer  # noqa: E402  after the change of sys.path
from pam_totp.core.policy import Policy  # noqa: E402
from pam_totp.core.record import UserRecord  # noqa: E402
from pam_totp.core.verify import Outcome, verify  # noqa: E402
from pam_totp.store import StoreError  # noqa: E402
from pam_totp.store.file import FileStore  # noqa: E402

NOW = 1_700_000_010


def main(folder: str, answer: str) -> str:
    def change(record: UserRecord) -> tuple[UserRecord, Outcome]:
        decision = verify(record, Answer.parse(answer.encode()), NOW, Policy())
        return decision.record, decision.outcome

    store = FileStore(folder)
    try:
        if answer == "decoy":
            store.update_decoy("zoe")
            return "decoy"
        return store.update("alice", change).value
    except StoreError as e:
        return f"unavailable: {e}"


print(main(sys.argv[1], sys.argv[2]), flush=True)
