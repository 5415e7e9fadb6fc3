"""The store of one user: a file that the user owns, usually in the home folder (module argument `secret=`).

Rules:
1. The process that opens the file runs as that user, without further privileges.
2. The file is a regular file with mode 0600, owned by the user. The file must not be a symbolic link.
3. The user or root owns the folder, and no other account may write to it.
4. The lock file and the temporary file are in the same folder. `update_decoy` writes no file.
5. A file of version 1 keeps its path. The first line of a file contains the version. Every update of an existing file
   also acquires the lock of version 1, on the same lock file.
"""

from __future__ import annotations

import os
import pwd
import stat

from pam_totp.core.lean import TYPE_CHECKING, suppress
from pam_totp.core.record import UserRecord
from pam_totp.store import NoAccount, NotThere, Store, StoreError
from pam_totp.store.file import LOCK_WAIT, FileStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from pam_totp.store import R


def home_store(template: str, user: str, lock_wait: float = LOCK_WAIT) -> Store:
    """Return the store of `user`: the file at the path `template`.

    The home folder replaces `~` or `${HOME}` at the start of the path, and the user name replaces `${USER}`.
    `lock_wait` is in seconds. Raise StoreError unless the path is absolute and this process runs as the user.
    """
    try:
        entry = pwd.getpwnam(user)
    except (KeyError, ValueError):
        return _NoAccountStore()
    if os.geteuid() != entry.pw_uid:
        raise StoreError(f"this process must run as uid {entry.pw_uid}, but runs as uid {os.geteuid()}")
    if entry.pw_name in ("", ".", "..") or "/" in entry.pw_name:
        raise StoreError("the user name must be a valid file name")
    home = next((home for home in ("~", "${HOME}") if template.startswith(f"{home}/")), None)
    path = template.removeprefix(home or "").replace("${USER}", entry.pw_name)
    path = path if home is None else entry.pw_dir + path
    if not path.startswith("/"):
        raise StoreError("the home folder must be an absolute path")
    return HomeStore(path, entry.pw_name, lock_wait)


class HomeStore(FileStore):
    """The store in the file `path`, an absolute path. The file has only the record of `user`."""

    def __init__(self, path: str, user: str, lock_wait: float = LOCK_WAIT) -> None:
        folder, self._name = os.path.split(path)
        super().__init__(folder, lock_wait)
        self.user = user

    def update_decoy(self, user: str, search: Callable[[], object]) -> None:
        """Call `search` only, because pam_totp writes only to the home folders of enrolled users."""
        search()

    def users(self) -> Iterator[str]:
        try:
            self.read(self.user)
        except NotThere:
            return
        yield self.user

    def owner_of_serial(self, serial: str) -> str | None:
        """Return None, because the store cannot read the files of other users."""
        return None

    def file_of(self, user: str) -> str:
        if user != self.user:
            raise StoreError(f"{self.folder}/{self._name}: has only the record of {self.user}")
        return self._name

    def _lock_name(self) -> str:
        return f"{self._name}.lock"

    def temporary(self, name: str) -> str:
        return f".{name}.tmp"

    def _version_1(self, name: str) -> str:
        return name

    def _lock_of_version_1(self, name: str) -> str:
        return self._lock_name()

    def _leftovers(self, name: str) -> list[str]:
        return [self.temporary(name)]

    def _prepare(self, folder: int) -> None:
        """Do nothing, because this store has no decoys."""

    def _use_decoy(self, folder: int) -> None:
        """Do nothing, like `_prepare`."""

    def _claims(self, folder: int, name: str, old: UserRecord, new: UserRecord) -> AbstractContextManager[None]:
        """Claim nothing, because this store has a single record."""
        return suppress()

    def _check_folder(self, status: os.stat_result) -> None:
        if status.st_uid not in (0, os.geteuid()):
            raise StoreError(f"{self.folder}: must be owned by uid {os.geteuid()} or root")
        if stat.S_IMODE(status.st_mode) & 0o022:
            raise StoreError(f"{self.folder}: must not be writable by other accounts")


class _NoAccountStore:
    """The store for a user name without an account. Every read and update fails: the home folder is unknown."""

    def read(self, user: str) -> UserRecord:
        raise NoAccount

    def update(
        self,
        user: str,
        change: Callable[[UserRecord], tuple[UserRecord | None, R]],
        *,
        create: bool = False,
        decoy: bool = False,
    ) -> R:
        raise NoAccount

    def update_decoy(self, user: str, search: Callable[[], object]) -> None:
        search()

    def users(self) -> Iterator[str]:
        return iter(())

    def owner_of_serial(self, serial: str) -> str | None:
        return None
