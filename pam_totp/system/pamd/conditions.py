"""The results of modules that depend on the account: pam_succeed_if, pam_localuser, pam_usertype. Pure.

Rules:
- `result_for` returns None for a condition that depends on more than the account and the PAM service.
- `result_for` returns None for unsupported arguments.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pam_totp.system.pamd.modules import ROOT_MODULE
from pam_totp.system.pamd.stack import Rule

_FIRST_REGULAR, _OVERFLOW = 1000, 65534  # uids: UID_MIN in login.defs, and the overflow uid
_FLAGS = ("debug", "quiet", "quiet_fail", "quiet_success", "audit")
_TRIPLE = 3  # words of a test of pam_succeed_if: field, operator, value


@dataclass(frozen=True, slots=True)
class Account:
    """An account, with the names of its groups. `is_local` is True if /etc/passwd contains the account."""

    name: str
    uid: int
    gid: int
    groups: frozenset[str]
    home: str = "/"
    shell: str = "/bin/sh"
    is_local: bool = True


def result_for(rule: Rule, account: Account, service: str) -> str | None:
    """Return the result of the module in `rule` for a login of `account` to `service`, or None if it is unknown."""
    decide = _DECISIONS.get(rule.module)
    return None if decide is None else decide(rule.arguments, account, service)


def _succeed_if(arguments: tuple[str, ...], account: Account, service: str) -> str | None:
    words = [w for w in arguments if w not in _FLAGS]
    if not words or len(words) % _TRIPLE:
        return None
    tests = [words[i : i + _TRIPLE] for i in range(0, len(words), _TRIPLE)]
    results = [_test(field, operator, value, account, service) for field, operator, value in tests]
    if False in results:
        return "auth_err"
    return None if None in results else "success"


def _test(field: str, operator: str, value: str, account: Account, service: str) -> bool | None:
    """Return the result of one test of pam_succeed_if(8), or None if the result is unknown."""
    fields = {
        "user": account.name,
        "uid": str(account.uid),
        "gid": str(account.gid),
        "shell": account.shell,
        "home": account.home,
        "service": service,
    }
    if operator in _ON_GROUPS:
        is_member = bool(account.groups & set(value.split(":")))
        return is_member == _ON_GROUPS[operator] if field == "user" else None
    if field not in fields:
        return None
    if operator in _ON_TEXT:
        return _ON_TEXT[operator](fields[field], value)
    if operator in _ON_NUMBERS and fields[field].isdecimal() and value.isascii() and value.isdecimal():
        return _ON_NUMBERS[operator](int(fields[field]), int(value))
    return None


def _local_user(arguments: tuple[str, ...], account: Account, _service: str) -> str | None:
    if any(a.startswith("file=") for a in arguments):
        return None
    return "success" if account.is_local else "perm_denied"


def _user_type(arguments: tuple[str, ...], account: Account, _service: str) -> str | None:
    is_regular = account.uid >= _FIRST_REGULAR and account.uid != _OVERFLOW
    wanted = {"isregular": True, "issystem": False}
    asked = [wanted[a] for a in arguments if a in wanted]
    if len(asked) != 1 or "use_uid" in arguments:
        return None
    return "success" if asked[0] == is_regular else "perm_denied"


_ON_GROUPS = {"ingroup": True, "notingroup": False}
_ON_TEXT: Mapping[str, Callable[[str, str], bool]] = {
    "=": lambda found, value: found == value,
    "!=": lambda found, value: found != value,
    "=~": fnmatch.fnmatchcase,
    "!~": lambda found, value: not fnmatch.fnmatchcase(found, value),
    "in": lambda found, value: found in value.split(":"),
    "notin": lambda found, value: found not in value.split(":"),
}
_ON_NUMBERS: Mapping[str, Callable[[int, int], bool]] = {
    **dict.fromkeys(("<", "lt"), int.__lt__),
    **dict.fromkeys(("<=", "le"), int.__le__),
    **dict.fromkeys((">", "gt"), int.__gt__),
    **dict.fromkeys((">=", "ge"), int.__ge__),
    "eq": int.__eq__,
    "ne": int.__ne__,
}
_DECISIONS: Mapping[str, Callable[[tuple[str, ...], Account, str], str | None]] = {
    ROOT_MODULE: lambda *_: "auth_err",  # root needs no login to become another user
    "pam_succeed_if.so": _succeed_if,
    "pam_localuser.so": _local_user,
    "pam_usertype.so": _user_type,
}
