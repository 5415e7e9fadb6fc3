"""Who may ask the service for whom, by the kernel's word (SO_PEERCRED).

The law: root for anyone; an account listed under `[clients]` for anyone, under its one service name; every other
account for itself only. Whoever is not root chooses prompt and echo, and nothing else: site policy alone applies, and
no login goes without a code. Where a login comes from is for root and the listed to say: others could have any address
shut out by whatever reads the log.
"""

from __future__ import annotations

import pwd
import socket
import struct

from pam_totp.core.settings import Site
from pam_totp.pam.pam_handle import Hello

_UCRED = struct.Struct("iII")  # pid, uid, gid: unix(7)


def peer_uid(sock: socket.socket) -> int:
    """The effective uid of who connected, as of then."""
    _, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def admit(uid: int, hello: Hello, *, client: bool) -> Hello | None:
    """The hello as far as `uid`, a `client` that is `listed` or not, may have its way; None where it may not ask."""
    if uid == 0:
        return hello
    if not client:
        if _uid_of(hello.user) != uid:
            return None
        hello = hello.from_nowhere()
    mine = tuple(a for a in hello.arguments if a == "echo" or a.startswith("prompt="))
    return hello.asking((*mine, "grace_period=0"))  # the address would be whatever the client says


def listed(uid: int, hello: Hello, site: Site) -> bool:
    """Whether it is a client of `[clients]` that asks, under its own service name."""
    return any(_uid_of(account) == uid and hello.service == service for account, service in site.clients.items())


def _uid_of(account: str) -> int | None:
    try:
        return pwd.getpwnam(account).pw_uid
    except (KeyError, ValueError):
        return None
