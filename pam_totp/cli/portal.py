"""portal: the self-service pages, on a port."""

from __future__ import annotations

import argparse
import grp
import os
import socket
import sys

from pam_totp.cli.common import DONE, OUT_OF_REACH, WRONG_USAGE, CommandError, Commands, add_config, command, site_file
from pam_totp.client import DEFAULT_SOCKET
from pam_totp.core.settings import settings
from pam_totp.operations import audit_log
from pam_totp.pam.login_session import read_site
from pam_totp.pam.privileges import become_owner_of
from pam_totp.store.file import FileStore

DEFAULT_LISTEN = "127.0.0.1:8443"
LOOPBACK_NAMES = ("127.0.0.1", "::1", "localhost")
GET_WEB = "make install EXTRAS=web, or pip install '.[web]' where the sources are"
SHADOW = "shadow"  # the group that may read the system's passwords


def add_to(commands: Commands) -> None:
    portal = command(commands, "portal", run_portal, "pages on which people look after their own tokens")
    portal.add_argument("--listen", metavar="ADDRESS:PORT", default=DEFAULT_LISTEN, help="(%(default)s)")
    portal.add_argument(
        "--behind-tls-proxy",
        metavar="ADDRESS",
        nargs="?",
        const="127.0.0.1",
        help="a web server at ADDRESS (127.0.0.1) ends TLS in front; without, loopback only and for trying it out",
    )
    portal.add_argument("--host", metavar="NAME", action="append", help="answer only when called by this name")
    portal.add_argument(
        "--issuer", default=socket.gethostname(), help="what an app shows beside the name (%(default)s)"
    )
    portal.add_argument(
        "--socket",
        metavar="PATH",
        nargs="?",
        const=DEFAULT_SOCKET,
        help="without the store, by any account: only say whether a code is right, through the service at PATH",
    )
    portal.add_argument("--no-first-token", action="store_true", help="an administrator adds everybody's first token")
    portal.add_argument(
        "--per-address",
        type=int,
        default=60,
        metavar="N",
        help="sign-ins a minute from one address (%(default)s); more where many people share one",
    )
    add_config(portal)
    portal.add_argument(
        "--log", choices=("syslog", "stderr"), default="syslog", help="where decisions go (%(default)s)"
    )


def run_portal(args: argparse.Namespace) -> int:
    try:
        import waitress  # noqa: F401  needed last, and missed first

        from pam_totp.system.passwords import Missing, SystemPasswords
        from pam_totp.web import server  # an extra
        from pam_totp.web.app import create_app
        from pam_totp.web.portal import SERVICE, Config
    except ImportError as e:
        raise CommandError(f"the portal needs {e.name} ({GET_WEB})", OUT_OF_REACH) from None

    if args.per_address < 1:
        raise CommandError("--per-address takes 1 or more", WRONG_USAGE)
    sink = audit_log.to_syslog if args.log == "syslog" else audit_log.to_stderr
    proxy = args.behind_tls_proxy
    try:
        address = server.Address.parse(args.listen)
        server.check(address, proxy)
    except server.ListenError as e:
        raise CommandError(str(e), WRONG_USAGE) from None
    policy = settings(SERVICE, (), read_site(site_file(args))).policy
    store = None if args.socket else _store(args)
    try:
        app = create_app(
            Config(
                store=store,
                socket=args.socket,
                passwords=SystemPasswords(SERVICE, sink),
                policy=policy,
                issuer=args.issuer,
                tls=proxy is not None,
                hosts=tuple(args.host or (() if proxy else LOOPBACK_NAMES)),
                first_token=not args.no_first_token,
                per_address=args.per_address,
                sink=sink,
            )
        )
        server.serve(app, address, proxy=proxy, ready=lambda bound: _say_where(bound, tls=proxy is not None))
    except Missing as e:
        raise CommandError(str(e), OUT_OF_REACH) from None
    return DONE


def _store(args: argparse.Namespace) -> FileStore:
    folder = os.path.abspath(args.store)
    become_owner_of(folder, also=_shadow())
    store = FileStore(folder)
    next(store.users(), None)  # one that is not ours to open is said now, not to the first who signs in
    return store


def _shadow() -> tuple[int, ...]:
    try:
        return (grp.getgrnam(SHADOW).gr_gid,)
    except KeyError:
        return ()


def _say_where(address: object, *, tls: bool) -> None:
    how = "behind TLS" if tls else "without TLS: for this machine alone"
    print(f"pam-totp: the portal is at http://{address}/ ({how})", file=sys.stderr, flush=True)
