"""sshd's Match blocks: the logins to check. If possible, each block applies to at least one of these logins.

Rules:
- The real sshd decides whether a block applies to a login (sshd -T -C). This module only finds logins that may fit.
- A block that names users or groups yields a login of each user whom it fits, for at most _MAX_USERS users. Any other
  block yields one login.
- A block is skipped if its patterns fit none of the addresses, hosts and ports that this module tries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from pam_totp.system.sshd_files import lines

_ALONE = ("all", "invalid-user")  # criteria without a value
_MAX_USERS = 20  # logins to check for each block

_HOSTS = ("localhost", "host.example.org")
_PORTS = ("22", "2222", "1")
# Documentation, private and loopback addresses, for patterns such as "*,!10.0.0.0/8".
_ADDRESSES = (
    *("127.0.0.1", "192.0.2.1", "198.51.100.1", "203.0.113.1", "10.0.0.1", "172.16.0.1", "192.168.0.1"),
    *("::1", "2001:db8::1", "fd00::1"),
)
_FILLS = ("1", "1.1", "1.1.1", ":1", "1:1", "0:1", "host")  # texts to try for * in a pattern


@dataclass(frozen=True, slots=True)
class Place:
    """The addresses and names of a connection to sshd."""

    host: str = _HOSTS[0]
    address: str = _ADDRESSES[0]
    local_address: str = _ADDRESSES[0]
    local_port: str = _PORTS[0]

    def __str__(self) -> str:
        """Return the parts that differ from a local login, as text for a finding."""
        parts = {"from": self.address, "from host": self.host, "to": self.local_address, "to port": self.local_port}
        usual = (_ADDRESSES[0], _HOSTS[0], _ADDRESSES[0], _PORTS[0])
        return "".join(f" {w} {p}" for (w, p), u in zip(parts.items(), usual, strict=True) if p != u)


LOCAL = Place()


def logins(
    texts: Iterable[str], people: Sequence[str], groups_of: Callable[[str], Iterable[str]]
) -> list[tuple[str, Place]]:
    """Return the logins to check: of every user at LOCAL, then for each Match block of the users that it may fit."""
    found = [(name, LOCAL) for name in people]
    for criteria in (_criteria(words) for text in texts for keyword, words in lines(text) if keyword == "match"):
        place = _place(criteria)
        if place is not None:
            found += [(name, place) for name in _users(criteria, people, groups_of)]
    return list(dict.fromkeys(found))


def fits(value: str, patterns: str) -> bool:
    """Return True if a value fits a list of patterns: see PATTERNS in ssh_config(5)."""
    words = patterns.split(",")
    if any(_fits_one(value, word[1:]) for word in words if word.startswith("!")):
        return False
    return any(_fits_one(value, word) for word in words if not word.startswith("!"))


def _criteria(words: Iterable[str]) -> dict[str, str]:
    """Return the patterns of a Match line by lower-case criterion."""
    pairs = iter([word for word in words if word.lower() not in _ALONE])
    return {name.lower(): patterns for name, patterns in zip(pairs, pairs, strict=False)}


def _place(criteria: dict[str, str]) -> Place | None:
    """Return a connection that fits the criteria, or None."""
    values = (
        _example(criteria.get("host"), _HOSTS, lambda value: True),
        _example(criteria.get("address"), _ADDRESSES, _is_address),
        _example(criteria.get("localaddress"), _ADDRESSES, _is_address),
        _example(criteria.get("localport"), _PORTS, str.isdecimal),
    )
    return None if None in values else Place(*(value for value in values if value is not None))


def _example(patterns: str | None, usual: Sequence[str], is_valid: Callable[[str], bool]) -> str | None:
    """Return a value that fits the patterns, or None. Return the first usual value if `patterns` is None."""
    if patterns is None:
        return usual[0]
    positive = [word for word in patterns.split(",") if not word.startswith("!")]
    written = [word.partition("/")[0] for word in positive if not set("*?") & set(word)]
    filled = [word.replace("?", "1").replace("*", fill) for word in positive for fill in _FILLS]
    candidates = (*written, *(filled if "*" not in positive else ()), *usual)
    return next((value for value in candidates if is_valid(value) and fits(value, patterns)), None)


def _users(criteria: dict[str, str], people: Sequence[str], groups_of: Callable[[str], Iterable[str]]) -> list[str]:
    """Return the users to check: those that the block names, and those in `people` that fit its patterns."""
    users, groups = criteria.get("user"), criteria.get("group")
    if users is None and groups is None:
        return [next((name for name in people if name != "root"), "root")]
    spelt = [word for word in (users or "").split(",") if word and not set("!*?") & set(word)]
    found = [name for name in people if users is None or fits(name, users)]
    if groups is not None:
        found = [name for name in found if any(fits(group, groups) for group in groups_of(name))]
        spelt = []
    return list(dict.fromkeys([*spelt, *found]))[:_MAX_USERS]


def _fits_one(value: str, pattern: str) -> bool:
    if "/" in pattern:
        try:
            return ip_address(value) in ip_network(pattern, strict=False)
        except ValueError:
            return False
    signs = {"*": ".*", "?": "."}
    return re.fullmatch("".join(signs.get(c) or re.escape(c) for c in pattern), value, re.IGNORECASE) is not None


def _is_address(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return True
