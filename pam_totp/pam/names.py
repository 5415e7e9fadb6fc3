"""Names of accounts, and the accounts that a lookup finds without a server."""

from __future__ import annotations

import os
import pwd

_ID_LIMIT = 1 << 32


def passwd_name(user: str) -> str:
    """Return the name in the user's passwd entry, or `user` if there is no entry."""
    try:
        return pwd.getpwnam(user).pw_name
    except (KeyError, ValueError):  # ValueError: a name with NUL
        return user


def account_name(user: str) -> str | None:
    """Return the name in the user's passwd entry, or None if there is no entry."""
    try:
        return pwd.getpwnam(user).pw_name
    except (KeyError, ValueError):
        return None


def similar_account(user: str) -> str | None:
    """Return the account whose name differs from `user` only in case, or by @host or DOMAIN\\, or None.

    Look up `user` without the domain and in lower case. Then search all accounts of the name service, regardless of
    case.
    """
    plain = user.rpartition("\\")[2].partition("@")[0]
    for name in (plain, user.lower(), plain.lower()):
        if name and name != user and (found := account_name(name)) is not None:
            return found
    for entry in pwd.getpwall() if plain else ():
        if entry.pw_name != user and entry.pw_name.partition("@")[0].casefold() == plain.casefold():
            return entry.pw_name
    return None


def name_of_uid(user: str) -> str | None:
    """Return the name in the passwd entry of the user's uid, or None if the user or the uid has no entry.

    This name can differ from `passwd_name` if the name service has several names for an account.
    """
    try:
        return pwd.getpwuid(pwd.getpwnam(user).pw_uid).pw_name
    except (KeyError, ValueError):
        return None


def is_member(user: str, group: str) -> bool:
    """Return True if the user is a member of the group. Return False if the user or the group has no entry."""
    import grp  # imported here because few logins need it

    try:
        entry, wanted = pwd.getpwnam(user), grp.getgrnam(group)
    except (KeyError, ValueError):
        return False
    return wanted.gr_gid in os.getgrouplist(entry.pw_name, entry.pw_gid)


def has_passwd_entry(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


class LocalAccounts:
    """The accounts in the file `passwd`, if the C library reads this file first: a lookup of them needs no server.

    `have` returns False while the socket of nscd(8) exists, because the C library then asks nscd.
    """

    def __init__(
        self, passwd: str = "/etc/passwd", nsswitch: str = "/etc/nsswitch.conf", nscd: str = "/run/nscd/socket"
    ) -> None:
        self._path = passwd if asks_files_first(nsswitch) else os.devnull
        self._nscd = nscd
        # The version of the file that was read, its uids by name, and its names by uid.
        self._known: tuple[tuple[int, ...], dict[str, int], dict[int, str]] = (), {}, {}

    def have(self, *accounts: str | int) -> bool:
        """Return True if the file has all `accounts` (names and uids). Read the file again if it has changed."""
        try:
            if _version(os.stat(self._path)) != self._known[0]:
                self._read()
        except OSError:
            return False
        _, uids, names = self._known
        known = all(account in uids or account in names for account in accounts)
        return known and not os.access(self._nscd, os.F_OK)

    def account_name(self, user: str) -> str | None:
        """Return the name in the user's passwd entry, or None if there is no entry. Read /etc/passwd first."""
        return user if self.have(user) else account_name(user)

    def name_of_uid(self, user: str) -> str | None:
        """Return the name in the passwd entry of the user's uid, like the function `name_of_uid`."""
        is_local = self.have(user)
        _, uids, names = self._known
        return names[uids[user]] if is_local and user in uids else name_of_uid(user)

    def _read(self) -> None:
        """Read the file. Use the first line of each name and uid, like the C library."""
        uids, names = dict[str, int](), dict[int, str]()
        with open(self._path, "rb") as file:
            version = _version(os.fstat(file.fileno()))
            for line in file:
                fields = line.removesuffix(b"\n").split(b":")
                if len(fields) == 7 and _is_name(fields[0]) and b"\0" not in line and _are_ids(fields[2:4]):
                    name, uid = fields[0].decode("utf-8", "surrogateescape"), int(fields[2])
                    uids.setdefault(name, uid)
                    names.setdefault(uid, name)
        self._known = version, uids, names  # one assignment, because other threads can read the value meanwhile


def _is_name(text: bytes) -> bool:
    """Return True if glibc uses a line with the name `text`. glibc ignores other lines, and asks the next service."""
    return text[:1].strip() not in (b"", b"#", b"+", b"-")


def _are_ids(texts: list[bytes]) -> bool:
    return all(text.isdigit() and len(text) <= 10 and int(text) < _ID_LIMIT for text in texts)


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def asks_files_first(path: str) -> bool:
    """Return True if the line `passwd` of nsswitch.conf(5) begins with `files`, and no action follows `files`.

    Return True if the file or the line is missing, because glibc then uses `files`.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.partition("#")[0].partition(":") for line in file]
    except FileNotFoundError:
        return True
    except OSError:
        return False
    values = [value.replace("[", " [").split() for name, _, value in lines if name.strip() == "passwd"]
    return all(words[:1] == ["files"] and not "".join(words[1:2]).startswith("[") for words in values)
