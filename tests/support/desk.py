"""A host with accounts and groups, for tests of the desk."""

from __future__ import annotations

from collections.abc import Callable


class Host:
    """The accounts of a host, which a test changes. `passwd` maps names to (uid, gid), `groups` to (gid, members)."""

    def __init__(self) -> None:
        self.passwd = {
            "root": (0, 0),
            "toor": (0, 0),
            "alice": (1001, 1001),
            "bob": (1002, 1002),
            "dora": (1010, 1010),
            "dieter": (1011, 1011),
            "dieter-2": (1011, 1011),
            "prima": (1012, 500),
            "admin": (1013, 1013),
        }
        self.groups = {"helpdesk": (500, {"dora", "dieter"}), "sudo": (27, {"admin"}), "staff": (501, {"alice"})}
        self.spellings: dict[str, str] = {}
        self.before: Callable[[], None] = lambda: None  # called before each look-up of a group

    def account(self, name: str) -> tuple[str, int] | None:
        name = self.spellings.get(name, name)
        return (name, self.passwd[name][0]) if name in self.passwd else None

    def names_of(self, uid: int) -> set[str]:
        return {next(name for name, ids in self.passwd.items() if ids[0] == uid)}

    def groups_of(self, name: str) -> set[int]:
        primary = {self.passwd[name][1]} if name in self.passwd else set()
        return primary | {gid for gid, members in self.groups.values() if name in members}

    def group(self, name: str) -> tuple[int, set[str]] | None:
        self.before()
        return self.groups.get(name)
