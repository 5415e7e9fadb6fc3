"""serve: the service behind the socket."""

from __future__ import annotations

import argparse
import os
import pwd

from pam_totp.cli.common import DONE, OUT_OF_REACH, WRONG_USAGE, CommandError, Commands, add_config, command, site_file
from pam_totp.core.settings import DEFAULT_STORE
from pam_totp.operations import audit_log
from pam_totp.pam.service import serve

MOST_WORKERS = 64


def add_to(commands: Commands) -> None:
    service = command(commands, "serve", run_serve, "answer the PAM module over a socket, until it is told to end")
    service.add_argument("--socket", metavar="PATH", help="where to listen; not needed under a systemd socket unit")
    add_config(service)
    service.add_argument(
        "--workers",
        metavar="N",
        type=int,
        default=1,
        help="processes that share the logins; one answers about a thousand a second (%(default)s)",
    )
    service.add_argument(
        "--log", choices=("syslog", "stderr"), default="syslog", help="where decisions go (%(default)s)"
    )


def run_serve(args: argparse.Namespace) -> int:
    if not 1 <= args.workers <= MOST_WORKERS:
        raise CommandError(f"--workers takes 1 … {MOST_WORKERS}", WRONG_USAGE)
    sink = audit_log.to_syslog if args.log == "syslog" else audit_log.to_stderr
    file, store = site_file(args), os.path.abspath(args.store)
    _demand_own(store)
    serve(args.socket, store, file, sink, args.workers)
    return DONE


def _demand_own(store: str) -> None:
    """A store of somebody else's would be refused at every login. One that cannot be looked at may come to be ours."""
    try:
        owner = os.stat(store).st_uid
    except OSError:
        return
    if owner == os.geteuid():
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"#{owner}"
    remedy = f"runuser -u {name} -- pam-totp serve …"
    if store == DEFAULT_STORE:
        remedy += ", or systemctl start pam_totp.socket"
    raise CommandError(f"{store} belongs to {name}, who has to run the service: {remedy}", OUT_OF_REACH)
