"""The search for users who are enrolled in the files of `secret=`, in a process that runs as each user.

Rules:
- Root reads no file in a home folder: a child process becomes the user first.
- A home on a file system that does not answer delays the check by a limited time.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable

from pam_totp.pam.privileges import become_user
from pam_totp.store import NotThere, StoreError
from pam_totp.store.home import home_store

_WAIT = 3.0  # seconds for one home
_YES, _NO = b"y", b"n"


def find_home_enrolled(template: str, users: Iterable[str]) -> frozenset[str]:
    """Return the users whose file at the path `template` has a confirmed token. Skip a home that does not answer."""
    return frozenset(user for user in users if _is_enrolled(template, user))


def _is_enrolled(template: str, user: str) -> bool:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer = _NO
        try:
            become_user(user)
            answer = _YES if home_store(template, user).read(user).enrolled else _NO
        except (NotThere, StoreError, OSError):
            pass
        finally:
            os.write(writing, answer)
            os._exit(0)
    os.close(writing)
    try:
        has_answer = bool(select.select([reading], [], [], _WAIT)[0])
        answer = os.read(reading, 1) if has_answer else _NO
    finally:
        os.close(reading)
    if has_answer:
        os.waitpid(child, 0)
    else:
        os.kill(child, signal.SIGKILL)  # the process ends when the file system answers
    return answer == _YES
