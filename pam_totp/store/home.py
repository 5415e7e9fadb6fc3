"""The store of one user: a file of their own (`secret=` among the module's arguments), for a process of theirs to open.

The law:
- whoever opens it is that user already, with no other privilege left: what they could not read, nor can we;
- the file is theirs, regular, 0600, and its name is no link; the lock and the copy written aside are beside it;
- the folder is theirs or root's, and nobody else can write there.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Callable, Iterator

from pam_totp.core.record import UserRecord
from pam_totp.store import NoAccount, NotThere, R, Store, StoreError
from pam_totp.store.file import FileStore


def home_store(template: str, user: str) -> Store:
    """The store of `user` at the path that `template` stands for: `~` and `${HOME}` are the home folder, `${USER}` the
    name. Raises StoreError where that is no path, or where we are somebody else."""
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):
        return _NoAccountStore()
    if os.geteuid() != entry.pw_uid:
        raise StoreError(f"a file of uid {entry.pw_uid} is not for uid {os.geteuid()} to open")
    if entry.pw_name in ("", ".", "..") or "/" in entry.pw_name:
        raise StoreError("a user name that is no file name")
    home = next((home for home in ("~", "${HOME}") if template.startswith(f"{home}/")), None)
    path = template.removeprefix(home or "").replace("${USER}", entry.pw_name)
    path = path if home is None else entry.pw_dir + path
    if not path.startswith("/"):
        raise StoreError("a home folder that is no absolute path")
    return HomeStore(path, entry.pw_name)


class HomeStore(FileStore):
    """The store at `path` (absolute), which holds the record of `user` and no other."""

    def __init__(self, path: str, user: str) -> None:
        folder, self._name = os.path.split(path)
        super().__init__(folder)
        self._user = user

    def update_decoy(self, user: str) -> None:
        """Nothing: who is not enrolled is not to find our files in their home folder."""

    def users(self) -> Iterator[str]:
        try:
            self.read(self._user)
        except NotThere:
            return
        yield self._user

    def file_of(self, user: str) -> str:
        if user != self._user:
            raise StoreError(f"{self.folder}/{self._name}: is {self._user}'s alone")
        return self._name

    def _check_folder(self, status: os.stat_result) -> None:
        if status.st_uid not in (0, os.geteuid()):
            raise StoreError(f"{self.folder}: belongs to uid {status.st_uid}, not to {os.geteuid()} who asks")
        if stat.S_IMODE(status.st_mode) & 0o022:
            raise StoreError(f"{self.folder}: others can write there")


class _NoAccountStore:
    """The store of somebody who has no account, and so no home folder."""

    def read(self, user: str) -> UserRecord:
        raise NoAccount

    def update(
        self, user: str, change: Callable[[UserRecord], tuple[UserRecord | None, R]], *, create: bool = False
    ) -> R:
        raise NoAccount

    def update_decoy(self, user: str) -> None:
        """Nothing."""

    def users(self) -> Iterator[str]:
        return iter(())
