"""Admission: the decision whether an account may ask the service about a user. The kernel names the account
(SO_PEERCRED).

Rules:
1. Root may ask about every user.
2. An account listed under `[clients]` may ask about every user, under its one service name.
3. Every other account may ask only about its own user.
4. An account that is not root chooses only prompt, echo and the second prompt. All other settings, including
   `forward_pass`, come from the site file, and grace is off. A second prompt must be requested, because most
   programs expect one prompt.
5. An account may redeem a ticket for its own user (`settings.REDEEM_SERVICE`), even if the user has tokens.
6. Only root and listed accounts may name the remote host. Otherwise another account could cause a program that reads
   the log to ban any address.
"""

from __future__ import annotations

import pwd
from _socket import SO_PEERCRED, SOL_SOCKET

from pam_totp.core.lean import TYPE_CHECKING, Struct
from pam_totp.core.settings import Site
from pam_totp.pam.protocol import Hello

if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Sequence

_UCRED = Struct("iII")  # pid, uid, gid: unix(7)


def peer_uid(sock: socket) -> int:
    """Return the effective uid of the peer process at the time of its connection."""
    _, uid, _ = _UCRED.unpack(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, _UCRED.size))
    return int(uid)


def admit(uid: int, hello: Hello, *, client: bool) -> Hello | None:
    """Return the part of `hello` that `uid` may choose; None if `uid` may not ask about the user.

    `client` is True for a listed account (see `is_listed`).
    """
    if uid == 0:
        return hello
    if not client:
        if _uid_of(hello.user) != uid:
            return None
        hello = hello.without_origin()
    return hello.with_arguments(arguments_of_others(hello.arguments))


def may_choose(argument: str) -> bool:
    """Return True if a module argument also applies to the logins of accounts that are not root (rule 4)."""
    return argument in ("echo", "second_prompt") or argument.startswith("prompt=")


def arguments_of_others(arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the module arguments that apply if the account that asks the service is not root."""
    chosen = tuple(filter(may_choose, arguments))
    return _with_one_prompt((*chosen, "grace_period=0"))  # no grace: a client could name any address


def only_with_second_prompt(hello: Hello) -> Hello:
    """Return the hello of an account that is not root. The second prompt is off unless an argument requests it."""
    return hello.with_arguments(_with_one_prompt(hello.arguments))


def _with_one_prompt(arguments: tuple[str, ...]) -> tuple[str, ...]:
    chooses = bool({"second_prompt", "no_second_prompt"} & set(arguments))
    return arguments if chooses else (*arguments, "no_second_prompt")


def is_listed(uid: int, hello: Hello, site: Site) -> bool:
    """Return True if `uid` is an account of `[clients]` that asks under its own service name."""
    return any(_uid_of(account) == uid for account in client_accounts(hello, site))


def client_accounts(hello: Hello, site: Site) -> list[str]:
    """Return the accounts of `[clients]` that may ask under the service name of `hello`."""
    return [account for account, service in site.clients.items() if service == hello.service]


def _uid_of(account: str) -> int | None:
    try:
        return pwd.getpwnam(account).pw_uid
    except (KeyError, ValueError):
        return None
