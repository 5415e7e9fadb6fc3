"""portal: serve the self-service pages."""

from __future__ import annotations

import argparse
import grp
import socket
import sys
from functools import partial

from pam_totp.cli.command_line import (
    DONE,
    OUT_OF_REACH,
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
    add_config,
    add_log,
    log_sink,
    site_file,
)
from pam_totp.cli.store_access import (
    ACCOUNT,
    load_postgres,
    location,
    opened_database,
    opened_folder,
    refuse_on_member,
)
from pam_totp.client import DEFAULT_SOCKET
from pam_totp.core.settings import Site, is_database, settings
from pam_totp.formats.otpauth import DEFAULT_ISSUER, check_issuer
from pam_totp.operations.desk import desk_settings
from pam_totp.pam.login_session import read_site
from pam_totp.pam.privileges import become_account, become_owner_of
from pam_totp.store import Store, seal_key

DEFAULT_LISTEN = "127.0.0.1:8443"
DEFAULT_PER_ADDRESS = 60  # sign-ins a minute
LOOPBACK_NAMES = ("127.0.0.1", "::1", "localhost")
GET_WEB = "install the package pam-totp-portal, or run 'make install EXTRAS=web' in the sources"
OFF, TICKET, PASSWORD = (
    "off",
    "ticket",
    "password",
)  # the values of --first-token, as in web.portal.FirstToken, whose import requires the extra `web`
SHADOW = "shadow"  # the group that can read the hashes of the system's passwords


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "portal",
        run,
        "serve the pages on which users manage their own tokens",
        "pam-totp portal",
        "pam-totp portal --behind-tls-proxy --host login.example.org",
    )
    parser.add_argument(
        "--listen", metavar="ADDRESS:PORT", default=DEFAULT_LISTEN, help="address and port to listen on (%(default)s)"
    )
    parser.add_argument(
        "--behind-tls-proxy",
        metavar="ADDRESS",
        nargs="?",
        const="127.0.0.1",
        help="a web server at ADDRESS (127.0.0.1) terminates TLS; without this option, only loopback is allowed",
    )
    parser.add_argument(
        "--host",
        metavar="NAME",
        action="append",
        help="answer requests for this host name or address only, in any spelling and with any port; may be repeated",
    )
    parser.add_argument(
        "--path",
        default="/",
        help="the path of the portal in URLs, if it shares a host name with other sites, such as /otp (%(default)s)",
    )
    parser.add_argument(
        "--issuer",
        default=socket.gethostname() or DEFAULT_ISSUER,
        help="the name that apps show for this site, without a colon (%(default)s)",
    )
    parser.add_argument(
        "--socket",
        metavar="PATH",
        nargs="?",
        const=DEFAULT_SOCKET,
        help="only check codes, through the service at PATH; such a portal runs under any account",
    )
    parser.add_argument(
        "--first-token",
        choices=(OFF, TICKET, PASSWORD),
        default=TICKET,
        help="requirement for a user's first token: an administrator (off), an enrolment ticket (ticket), or the"
        " password alone (password) (%(default)s)",
    )
    parser.add_argument(
        "--app",
        metavar="NAME=URL",
        action="append",
        help="an authenticator app that new users are advised to install, and its https address; may be repeated",
    )
    parser.add_argument(
        "--per-address",
        type=int,
        default=DEFAULT_PER_ADDRESS,
        metavar="N",
        help="sign-ins a minute from one address (%(default)s); raise this limit if many users share a network",
    )
    add_config(parser)
    add_log(parser)


def run(args: argparse.Namespace) -> int:
    try:
        import waitress  # noqa: F401  imported first, so that the error names a missing package

        from pam_totp.system.passwords import PasswordsUnavailable, SystemPasswords
        from pam_totp.system.portal_table import appearance
        from pam_totp.web import host_header, server, url_path  # need optional packages
        from pam_totp.web.app import create_app
        from pam_totp.web.portal import SERVICE, App, Config, FirstToken
    except ImportError as e:
        raise CommandError(f"the portal needs {e.name} ({GET_WEB})", OUT_OF_REACH) from None

    if args.per_address < 1:
        raise CommandError("--per-address must be 1 or more", WRONG_USAGE)
    sink, proxy = log_sink(args), args.behind_tls_proxy
    try:
        address = server.Address.parse(args.listen)
        server.check_exposure(address, proxy)
        hosts = tuple(map(host_header.canonical, args.host or (() if proxy else LOOPBACK_NAMES)))
        path = url_path.canonical(args.path)
        check_issuer(args.issuer)
        apps = tuple(map(App.parse, args.app or ()))
    except ValueError as e:
        raise CommandError(str(e), WRONG_USAGE) from None
    site = read_site(site_file(args))
    policy, shown = settings(SERVICE, (), site).policy, appearance(site)
    desk = desk_settings(site)
    store = None if args.socket else _open_store(args, site)
    try:
        app = create_app(
            Config(
                store=store,
                socket=args.socket,
                passwords=SystemPasswords(SERVICE, sink),
                policy=policy,
                issuer=args.issuer,
                appearance=shown,
                apps=apps,
                tls=proxy is not None,
                hosts=hosts,
                path=path,
                first_token=FirstToken(args.first_token),
                per_address=args.per_address,
                desk=desk,
                sink=sink,
            )
        )
        ready = partial(_print_address, path=path, tls=proxy is not None)
        server.serve(app, address, proxy=proxy, path=path, ready=ready)
    except PasswordsUnavailable as e:
        raise CommandError(str(e), OUT_OF_REACH) from None
    return DONE


def _open_store(args: argparse.Namespace, site: Site) -> Store:
    refuse_on_member(args, site)
    where = location(args, site)
    seal_key.hold()
    if is_database(where):
        load_postgres()
        become_account(ACCOUNT, also=_shadow())
    else:
        become_owner_of(where, also=_shadow())
    store = opened_database(where, site) if is_database(where) else opened_folder(where)
    next(store.users(), None)  # read the store once, so that an error occurs before a user signs in
    return store


def _shadow() -> tuple[int, ...]:
    try:
        return (grp.getgrnam(SHADOW).gr_gid,)
    except KeyError:
        return ()


def _print_address(address: object, *, path: str, tls: bool) -> None:
    how = "behind TLS" if tls else "without TLS: for this machine only"
    print(f"pam-totp: the portal is at http://{address}{path}/ ({how})", file=sys.stderr, flush=True)
