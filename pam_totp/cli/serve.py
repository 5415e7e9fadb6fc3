"""serve: run the service that answers the PAM module over a socket."""

from __future__ import annotations

import argparse
import os
import pwd

from pam_totp.cli.command_line import (
    DONE,
    OUT_OF_REACH,
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
    add_config,
    add_log,
    add_metrics,
    log_sink,
    site_file,
)
from pam_totp.cli.store_access import load_postgres, location
from pam_totp.core.settings import DEFAULT_STORE, SettingsError, Site, is_database
from pam_totp.pam.login_session import read_site
from pam_totp.pam.service import serve

MAX_WORKERS = 64


def add_to(commands: Commands) -> None:
    example = "pam-totp serve --socket /run/pam_totp/socket --log stderr"
    parser = add_command(
        commands, "serve", run, "run the service that answers the PAM module, until a signal ends it", example
    )
    parser.add_argument("--socket", metavar="PATH", help="socket to create; optional under a systemd socket unit")
    add_config(parser)
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        default=1,
        help="number of processes; each serves at least a thousand logins a second (%(default)s)",
    )
    add_log(parser)
    add_metrics(parser)


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.workers <= MAX_WORKERS:
        raise CommandError(f"--workers must be 1 to {MAX_WORKERS}", WRONG_USAGE)
    file = site_file(args)
    store = location(args, _site_at_start(args, file))
    if is_database(store):
        load_postgres()
    else:
        _require_owner(store)
    serve(args.socket, store, file, log_sink(args), args.workers, metrics_path=args.metrics)
    return DONE


def _require_owner(store: str) -> None:
    """Raise CommandError if another account owns the store, because every login would fail.

    Accept a missing store, because a command may create it later.
    """
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
    remedy = f"runuser -u {name} -- pam-totp serve ..."
    if store == DEFAULT_STORE:
        remedy += ", or systemctl start pam_totp.socket"
    raise CommandError(f"{store} belongs to {name}: that account must run the service ({remedy})", OUT_OF_REACH)


def _site_at_start(args: argparse.Namespace, file: str) -> Site:
    """Return the content of the site file. With --store, the service starts even if the file is invalid.

    The service then refuses each login with the reason, until the file is correct.
    """
    try:
        return read_site(file)
    except SettingsError:
        if args.store == DEFAULT_STORE:
            raise  # the file may name a database
        return Site.NONE
