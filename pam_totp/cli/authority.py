"""authority: create the certificates of an authority, run the authority, and make a restored database safe."""

from __future__ import annotations

import argparse
import asyncio
import grp
import os
import socket
import stat
import sys
from contextlib import ExitStack
from functools import partial

from pam_totp.cli import authority_restore
from pam_totp.cli.authority_restore import FENCE, RESTORE
from pam_totp.cli.command_line import (
    DONE,
    OUT_OF_REACH,
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
    add_config,
    add_metrics,
    log_sink,
    site_file,
)
from pam_totp.cli.printing import print_json
from pam_totp.cli.store_access import ACCOUNT, database_settings, load_postgres, location, require_files
from pam_totp.core.address import host_and_port
from pam_totp.core.settings import DATABASE, AuthoritySettings, Site, is_database
from pam_totp.operations import audit_log
from pam_totp.pam.login_session import read_site
from pam_totp.pam.privileges import become_account
from pam_totp.store import seal_key
from pam_totp.system import seal_files, service_network
from pam_totp.system.extras import how_to_get

INIT, SERVE = "init", "serve"
OPTIONS = {  # the options of each subcommand, in addition to the common options
    INIT: ("json", "no_seal"),
    SERVE: ("log", "metrics"),
    RESTORE: ("json", "log", "restored_at", "complete", "dry_run", "yes"),
    FENCE: ("json", "epoch_only", "dry_run", "yes"),
}
LOGS = ("syslog", "stderr")
KEY_MODE = 0o640  # the service runs in the group of its account
CA_NAME = "pam_totp"  # the name in the CA's certificate
NO_KEY = (
    "the secrets are not sealed on this host (in a sealed fleet, run 'pam-totp seal export FILE' on another authority, "
    "then 'pam-totp seal init --key FILE' here)"
)
MISSING = "[authority] is missing in {0} (see pam_totp.toml(5))"


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "authority",
        run,
        "run an authority, which decides for the members of a fleet; create its certificates, or make a restored "
        "database safe",
        "pam-totp authority init",
        "pam-totp authority serve --log stderr",
        "pam-totp authority restore --log otp1.txt otp2.txt --dry-run",
        "pam-totp authority fence",
        data=True,
    )
    parser.add_argument(
        "what",
        choices=OPTIONS,
        help="init: create missing keys and certificates; serve: run; restore: roll a restored database forward from "
        "the logs; fence: demand codes in a row for all tokens, without logs",
    )
    parser.add_argument("--no-seal", action="store_true", help="init: do not seal the secrets of a new fleet")
    add_config(parser)
    parser.add_argument(
        "--log",
        nargs="+",
        action="extend",
        metavar="LOG",
        help="serve: destination of the audit log, syslog or stderr (syslog); restore: logs of all "
        "authorities from before the backup until now, plain or gzip, or - for standard input",
    )
    add_metrics(parser)
    authority_restore.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    for option in {option for options in OPTIONS.values() for option in options}.difference(OPTIONS[args.what]):
        if getattr(args, option) not in (None, False):
            users = " and ".join(
                f"'pam-totp authority {what}'" for what, options in OPTIONS.items() if option in options
            )
            raise CommandError(f"--{option.replace('_', '-')} is an option of {users}", WRONG_USAGE)
    file = site_file(args)
    site = read_site(file)
    if args.what == RESTORE:
        return authority_restore.restore(args, site, file)
    if args.what == FENCE:
        return authority_restore.fence(args, site, file)
    if site.authority is None:
        raise CommandError(MISSING.format(file))
    if not site.authority.addresses:
        raise CommandError(f"authority.addresses is missing in {file} (list the addresses that members connect to)")
    try:
        if args.what == INIT:
            return _init(args, site, site.authority)
        return _serve(args, site, file, site.authority)
    except OSError as e:
        raise CommandError(f"{e.filename or 'authority'}: {(e.strerror or str(e)).lower()}", OUT_OF_REACH) from None


# ---- init


def _init(args: argparse.Namespace, site: Site, settings: AuthoritySettings) -> int:
    from pam_totp.authority import certificates
    from pam_totp.authority.certificates import CertificateError, Issuer

    args.audit.look_up()
    made: list[str] = []
    modes = {settings.ca_key: KEY_MODE, settings.ca: 0o644, settings.key: KEY_MODE, settings.certificate: 0o644}
    kept = [path for path in modes if os.path.exists(path)]

    def put(path: str, text: str) -> None:
        _put(path, text, modes[path])
        made.append(path)

    permitted = {path for path in kept if _permit(path, modes[path])}
    try:
        if settings.ca not in kept:
            key = certificates.read(settings.ca_key) if settings.ca_key in kept else certificates.make_key()
            if settings.ca_key not in kept:
                put(settings.ca_key, key)
            put(settings.ca, certificates.make_ca(key, CA_NAME))
        if settings.certificate not in kept:
            if not os.path.exists(settings.ca_key):
                raise CommandError(
                    f"{settings.ca_key}: not found (copy it from another authority, then run init again)"
                )
            key = certificates.read(settings.key) if settings.key in kept else certificates.make_key()
            if settings.key not in kept:
                put(settings.key, key)
            hosts = [found[0] for address in settings.addresses if (found := host_and_port(address)) is not None]
            signed = Issuer(settings.ca, settings.ca_key).sign_authority(certificates.make_request(key), hosts)
            put(settings.certificate, signed)
        pin = certificates.fingerprint(certificates.read(settings.ca)).hex()
    except CertificateError as e:
        raise CommandError(str(e), OUT_OF_REACH) from None
    for path in made:
        args.audit.changed("authority-init", path=path)
    if args.config is None and _permit_network(site):
        made.append(service_network.DROP_IN)
    sealed = _seal(args, site, settings, made)
    if args.json:
        print_json({"made": made, "kept": kept, "pin": pin, "seal": sealed})
        return DONE
    for path in made:
        why = ", so that logins at this host reach the database" if path == service_network.DROP_IN else ""
        print(f"created: {path}{why}")
    for path in kept:
        print(f"kept: {path}{', which the service may read now' if path in permitted else ''}")
    if sealed is not None:
        print(sealed)
    print(f"fingerprint of the CA: {pin}")
    for line in _next_steps(settings, made):
        print(line)
    return DONE


def _next_steps(settings: AuthoritySettings, new_files: list[str]) -> list[str]:
    """Return the administrator's next steps, after `new_files` were created."""
    if settings.ca in new_files:
        return [
            "next: 'pam-totp store init URL' once for the database, 'systemctl enable --now pam_totp-authority' on",
            "each authority, and 'pam-totp member add HOST --group GROUP' for each member",
        ]
    if settings.key in new_files:
        return ["next: 'systemctl enable --now pam_totp-authority' on this host"]
    if settings.certificate in new_files:
        return ["next: 'systemctl reload pam_totp-authority' on this host"]
    return []


def _permit_network(site: Site) -> bool:
    """As root, let the service of this host reach the database. Return True if a drop-in was written."""
    if os.geteuid() != 0 or site.database is None or not service_network.permit():
        return False
    service_network.restart()
    return True


def _seal(args: argparse.Namespace, site: Site, settings: AuthoritySettings, made: list[str]) -> str | None:
    """Seal the database of a new fleet, unless --no-seal is set. Return a line about the result, or None."""
    if args.no_seal or args.config is not None or os.geteuid() != 0 or site.database is None:
        return None  # the seal protects the store that the host's own site file names
    if settings.ca not in made:
        return NO_KEY if settings.key in made and not seal_files.has_keyring() else None
    from pam_totp.cli.seal import init_for_authority  # imported here: few commands need this module

    return init_for_authority(args, site.database.url)


def _put(path: str, text: str, mode: int) -> None:
    """Create a file durably. As root, give the file to the group of the service, with `mode`."""
    folder = os.path.dirname(path)
    group = _group()
    if not os.path.isdir(folder):
        os.makedirs(folder, 0o755)
        os.chmod(folder, 0o750 if group is not None else 0o700)
        if group is not None:
            os.chown(folder, -1, group)
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(text)
        if group is not None:
            os.fchown(file.fileno(), -1, group)
            os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def _permit(path: str, mode: int) -> bool:
    """As root, let the group of the service read a file. Return True if the file was changed."""
    group, status = _group(), os.stat(path)
    if group is None or status.st_mode & stat.S_IROTH or (status.st_gid == group and status.st_mode & stat.S_IRGRP):
        return False
    os.chown(path, -1, group)
    os.chmod(path, mode)
    return True


def _group() -> int | None:
    """Return the gid of the service's account; None if this process is not root, or the account is missing."""
    if os.geteuid() != 0:
        return None
    try:
        return grp.getgrnam(ACCOUNT).gr_gid
    except KeyError:
        return None


# ---- serve


def _serve(args: argparse.Namespace, site: Site, file: str, settings: AuthoritySettings) -> int:
    args.log, *more = args.log or LOGS[:1]
    if more or args.log not in LOGS:
        raise CommandError(f"--log must be {' or '.join(LOGS)}", WRONG_USAGE)
    url = location(args, site)
    if not is_database(url):
        raise CommandError(f'an authority requires a database (set url = "{DATABASE}..." in [store] of {file})')
    load_postgres()
    try:
        from pam_totp.authority.server import Server  # needs aiohttp
    except ImportError as e:
        if e.name is None or e.name.startswith("pam_totp"):
            raise
        raise CommandError(f"an authority needs aiohttp ({how_to_get('aiohttp')})", OUT_OF_REACH) from None
    from pam_totp.authority.answers import Answers
    from pam_totp.authority.certificates import CertificateError
    from pam_totp.metrics import counters
    from pam_totp.metrics.counters import Metrics
    from pam_totp.metrics.endpoint import Endpoint
    from pam_totp.store.postgres import PostgresStore

    seal_key.hold()
    become_account(ACCOUNT)
    require_files(url)
    metrics = Metrics()
    how, sink = database_settings(url, site), metrics.sink(log_sink(args))
    store = PostgresStore(url, pool=how.pool, wait=how.wait, epoch=how.epoch, codec=seal_key.codec_of(url))
    try:
        server = Server(settings, Answers(store, lambda: read_site(file), sink, metrics=metrics), sink, how.pool)
    except CertificateError as e:
        raise CommandError(f"{e} (run 'pam-totp authority init')", OUT_OF_REACH) from None
    with ExitStack() as stack:
        if args.metrics is not None:
            endpoint = Endpoint(args.metrics, metrics, counters.AUTHORITY, partial(_log, sink))
            endpoint.open()
            stack.callback(endpoint.close)
        asyncio.run(server.run(_report_ready))
    return DONE


def _log(sink: audit_log.Sink, problem: str) -> None:
    audit_log.write(sink, "authority", "error", problem=problem)


def _report_ready(addresses: list[str]) -> None:
    print(f"pam-totp: the authority listens on {', '.join(addresses)}", file=sys.stderr, flush=True)
    notified = os.environ.pop("NOTIFY_SOCKET", "")  # the socket of systemd, which waits for a datagram: sd_notify(3)
    if notified:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(b"READY=1", "\0" + notified[1:] if notified.startswith("@") else notified)
