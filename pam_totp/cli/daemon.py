"""serve: the service behind the socket."""

from __future__ import annotations

import argparse
import os

from pam_totp import audit
from pam_totp.cli.common import DONE, WRONG_USAGE, CommandError, Commands, command
from pam_totp.pam.service import serve
from pam_totp.settings import SITE_FILE

MOST_WORKERS = 64


def add_to(commands: Commands) -> None:
    service = command(commands, "serve", run_serve, "answer the PAM module over a socket, until it is told to end")
    service.add_argument("--socket", metavar="PATH", help="where to listen; not needed under a systemd socket unit")
    service.add_argument("--config", metavar="FILE", default=SITE_FILE, help="site settings (%(default)s)")
    service.add_argument(
        "--workers",
        metavar="N",
        type=int,
        default=1,
        help="processes that share the logins; one answers a thousand a second (%(default)s)",
    )
    service.add_argument(
        "--log", choices=("syslog", "stderr"), default="syslog", help="where decisions go (%(default)s)"
    )


def run_serve(args: argparse.Namespace) -> int:
    if not 1 <= args.workers <= MOST_WORKERS:
        raise CommandError(f"--workers takes 1 … {MOST_WORKERS}", WRONG_USAGE)
    sink = audit.to_syslog if args.log == "syslog" else audit.to_stderr
    serve(args.socket, os.path.abspath(args.store), args.config, sink, args.workers)
    return DONE
