"""The search for users with a token in their own secret file (`secret=`), in a process that runs as each user.

Rules:
- Root reads no file in a home folder: a child process becomes the user first.
- The check waits at most `_WAIT` seconds for the file system of a home folder.
- A secret file that a login would refuse yields a `Problem`. The user of such a file counts as enrolled.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import signal
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pam_totp.pam.privileges import become_user
from pam_totp.store import NotThere, StoreError
from pam_totp.store.home import HomeStore, home_store

_WAIT = 3.0  # seconds to wait for one home folder
_MAX_ANSWER = 4096  # bytes: PIPE_BUF, the limit of an atomic write


@dataclass(frozen=True, slots=True)
class Problem:
    """The reason why logins with a user's file fail, and the remedy."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class HomeEnrolled:
    """The users with a confirmed token in their secret file, and the problems of other secret files by user."""

    users: frozenset[str]
    problems: Mapping[str, Problem]


_NO_ANSWER = Problem("the file system of the home folder does not answer", "check the file system of the home folder")


def find_home_enrolled(template: str, users: Iterable[str]) -> HomeEnrolled:
    """Return the users with a confirmed token in the file at the path `template`, and the problems of such files."""
    found = {user: _ask_child(template, user) for user in users}
    return HomeEnrolled(
        frozenset(user for user, answer in found.items() if answer is True),
        {user: answer for user, answer in found.items() if isinstance(answer, Problem)},
    )


def _ask_child(template: str, user: str) -> bool | Problem:
    """Run `_examine` in a process that runs as the user, and return its result."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer: tuple[bool, str, str] = (False, "the file could not be examined", "see the log of the next login")
        try:
            become_user(user)
            found = _examine(template, user)
            answer = (found, "", "") if isinstance(found, bool) else (False, found.what, found.remedy)
        finally:
            os.write(writing, json.dumps(answer).encode()[:_MAX_ANSWER])
            os._exit(0)
    os.close(writing)
    try:
        has_answer = bool(select.select([reading], [], [], _WAIT)[0])
        data = os.read(reading, _MAX_ANSWER) if has_answer else b""
    finally:
        os.close(reading)
    if has_answer:
        os.waitpid(child, 0)
    else:
        os.kill(child, signal.SIGKILL)  # the process ends when the file system answers
        return _NO_ANSWER
    enrolled, what, remedy = json.loads(data)
    return Problem(what, remedy) if what else bool(enrolled)


def _examine(template: str, user: str) -> bool | Problem:
    """Return True if the user's file has a confirmed token, or the problem if a login would refuse the file."""
    store = None
    try:
        store = home_store(template, user)
        enrolled = store.read(user).enrolled
    except NotThere:
        return False
    except (StoreError, OSError) as e:
        return Problem(str(e), _remedy(store))
    path = _path(store)
    for name in (path, path if os.path.exists(f"{path}.lock") else os.path.dirname(path)):
        if not os.access(name, os.R_OK | os.W_OK):
            return Problem(f"{name}: the user lacks write access", "grant this access, or remount the disk read-write")
    return enrolled


def _remedy(store: object) -> str:
    """Return the command that repairs owner or mode of the file or of its folder, or a general remedy."""
    path = _path(store)
    folder, uid = os.path.dirname(path), os.geteuid()
    try:
        of_folder, of_file = os.lstat(folder), os.lstat(path)
    except OSError:
        return "make that folder accessible to the user"
    if of_folder.st_uid not in (0, uid):
        return f"run 'chown {uid} {shlex.quote(folder)}'"
    if stat.S_IMODE(of_folder.st_mode) & 0o022:
        return f"run 'chmod go-w {shlex.quote(folder)}'"
    if of_file.st_uid != uid and stat.S_ISREG(of_file.st_mode):
        return f"run 'chown {uid} {shlex.quote(path)}'"
    if stat.S_ISREG(of_file.st_mode) and stat.S_IMODE(of_file.st_mode) != 0o600:
        return f"run 'chmod 0600 {shlex.quote(path)}'"
    return "restore the file from a backup, or move it aside and enrol the user again"


def _path(store: object) -> str:
    return os.path.join(store.folder, store.file_of(store.user)) if isinstance(store, HomeStore) else ""
