"""join: make this host a member of a fleet, or renew its certificate."""

from __future__ import annotations

import argparse
import os
import random
import stat
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from pam_totp.cli.command_line import (
    DONE,
    OUT_OF_REACH,
    REFUSED,
    CommandError,
    Commands,
    add_command,
    add_config,
)
from pam_totp.cli.printing import format_time, print_json
from pam_totp.cli.prompts import ask
from pam_totp.cli.store_access import create_store
from pam_totp.core.settings import CREDENTIALS, DEFAULT_STORE, SITE_FILE, MemberSettings, SettingsError, Site
from pam_totp.pam.login_session import MAX_SITE_FILE, read_site
from pam_totp.pam.privileges import act_as_owner_of, acting_as_root
from pam_totp.store.file import FileStore
from pam_totp.store.locations import notice
from pam_totp.system import service_network
from pam_totp.system.audit import signals_held
from pam_totp.system.site_edit import Value, with_member

PROMPT = "Join line (from 'pam-totp member add' on an authority): "
MIN_FREE, MIN_FREE_FILES = 1 << 20, 100  # bytes and files: enough for a new store with its decoys, too
FILES = {"certificate": "certificate.pem", "key": "key.pem", "ca": "ca.pem"}


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "join",
        run,
        "make this host a member of a fleet with the line of 'pam-totp member add', or renew its certificate",
        "pam-totp join",
        "pam-totp join --json < line.txt",
        "pam-totp join --renew",
        data=True,
        store=False,
    )
    parser.add_argument("--renew", action="store_true", help="renew the certificate; the service does so from day 60")
    parser.add_argument(
        "--credentials", metavar="FOLDER", help=f"folder of the key and the certificates ({CREDENTIALS})"
    )
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    file = args.config or SITE_FILE  # the file may be missing
    site = read_site(file)
    return _renew(args, site, file) if args.renew else _join(args, site, file)


# ---- renew


def _renew(args: argparse.Namespace, site: Site, file: str) -> int:
    if site.member is None:
        raise CommandError(f"this host is no member: [member] is missing in {file} (run 'pam-totp join')")
    from pam_totp.member.joining import DAY, renew

    args.audit.look_up()
    _act_as_owner_of(os.path.dirname(site.member.key))
    renewed = renew(site.member)
    args.audit.changed("member-renew", days=(renewed.end - int(time.time())) // DAY)
    if args.json:
        print_json({"certificate": site.member.certificate, "ends": renewed.end})
    else:
        print(f"{site.member.certificate}: renewed; valid until {format_time(renewed.end)}")
    return DONE


# ---- join


def _join(args: argparse.Namespace, site: Site, file: str) -> int:
    joined = join_with_line(args, site, file)
    with acting_as_root():
        restarted = joined.is_whole_host and service_network.restart()
    if args.json:
        facts = {"member": joined.member, "authorities": joined.authorities, "key": joined.key, "ends": joined.ends}
        print_json(facts | {"config": file, "restarted": restarted})
        return DONE
    print(f"joined as {joined.member}: {', '.join(joined.authorities)} decide on the codes of this host")
    print(f"certificate: {joined.certificate}, valid until {format_time(joined.ends)}; the service renews it")
    print(f"written: [member] in {file}" + (f", {service_network.DROP_IN}" if joined.is_unit_changed else ""))
    if not restarted:
        print("restart the service, if it runs")
    print("next: 'pam-totp enable sshd', unless a service asks for codes already (see 'pam-totp doctor')")
    return DONE


class JoinedHost(NamedTuple):
    """The result of a join. `ends` is the end of the host's certificate, in Unix seconds.

    `is_whole_host` is True if root joined with the host's own site file. `is_unit_changed` is True if the unit of the
    service was changed to allow network access.
    """

    member: str
    authorities: list[str]
    key: str
    certificate: str
    ends: int
    is_whole_host: bool
    is_unit_changed: bool


def join_with_line(args: argparse.Namespace, site: Site, file: str) -> JoinedHost:
    """Ask for a join line, and write the credentials, the drop-in and the site file, in this order. Return the result.

    On a host whose store was copied to a database, write the site file first, then unlink the file in place of the
    store.
    """
    from pam_totp.member.joining import JoinRefused, join, verify
    from pam_totp.member.wire import JoinLine, WireError

    paths = _paths(args, site)
    text = _read(file)
    _new_text(text, ["localhost:1"], paths, file)  # report errors before the join line is used up
    _require_rights(file)
    _require_space(os.path.dirname(paths["key"]))
    _require_space(os.path.dirname(os.path.abspath(file)))
    try:
        line = JoinLine.from_text(ask(PROMPT))
    except WireError as e:
        raise CommandError(f"the input must be a join line: {e} (copy the whole line)", REFUSED) from None
    args.audit.look_up()
    try:
        membership = join(line)
        health = verify(membership)
    except JoinRefused as e:
        raise CommandError(str(e), REFUSED) from None
    authorities = list(membership.joined.authorities)
    random.shuffle(authorities)  # a member asks in this order: random orders spread the members over the authorities
    new = _new_text(text, authorities, paths, file)
    is_whole_host = os.geteuid() == 0 and args.config is None  # --config may name a site file for a test
    with signals_held():
        if _has_copied_store(paths):
            # Write the authorities before a new store exists: an empty store lets all users in at a line with `nullok`.
            _write(file, new)
            os.unlink(DEFAULT_STORE)
        ends = _install(membership.key, membership.joined.certificate, membership.ca, paths)
        with acting_as_root():
            permitted = is_whole_host and service_network.permit()
            _write(file, new)
        args.audit.changed("member-join", member=health.member, authorities=",".join(authorities))
    return JoinedHost(health.member, authorities, paths["key"], paths["certificate"], ends, is_whole_host, permitted)


def _paths(args: argparse.Namespace, site: Site) -> dict[str, str]:
    """Return the paths of the credentials, by setting. The files of a member that joins again keep their paths."""
    if args.credentials is None and site.member is not None:
        return {name: str(getattr(site.member, name)) for name in FILES}
    folder = CREDENTIALS if args.credentials is None else os.path.abspath(str(args.credentials))
    return {name: os.path.join(folder, file) for name, file in FILES.items()}


def _has_copied_store(paths: Mapping[str, str]) -> bool:
    """Return True if the credentials belong in the default store, and `pam-totp store copy` has replaced that store."""
    return os.path.dirname(paths["key"]) == CREDENTIALS and notice(DEFAULT_STORE) is not None


def _require_rights(file: str) -> None:
    """Raise CommandError if the site file cannot be written: the join line would be used up."""
    place = os.path.dirname(os.path.abspath(file))
    if not os.access(place, os.W_OK):
        raise CommandError(f"{place}: permission denied (run the command as root)", OUT_OF_REACH)


def _require_space(folder: str) -> None:
    """Raise CommandError if the disk of a folder, which may be missing, is full: the join line would be used up."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = os.statvfs(folder)
    if free.f_bavail * free.f_frsize < MIN_FREE or (free.f_files and free.f_favail < MIN_FREE_FILES):
        raise CommandError(f"{folder}: the disk is full (free some space, then use the same line)", OUT_OF_REACH)


def _new_text(text: str, authorities: Sequence[str], paths: Mapping[str, str], file: str) -> str:
    """Return the new text of the site file. Raise CommandError if this text would be invalid."""
    values: dict[str, Value] = {"authorities": list(authorities)}
    values |= {name: path for name, path in paths.items() if path != getattr(MemberSettings, name)}
    try:
        return with_member(text, values)
    except SettingsError as e:
        raise CommandError(f"{file}: {e}") from None


def _install(key: str, certificate: str, ca: str, paths: Mapping[str, str]) -> int:
    """Write the credentials, as the account that owns the folder. Return the end of the certificate in Unix seconds."""
    from pam_totp.member.credentials import Credentials
    from pam_totp.member.joining import validity

    folder = os.path.dirname(paths["key"])
    is_new = folder == CREDENTIALS and not os.path.exists(DEFAULT_STORE)
    if is_new:
        create_store(DEFAULT_STORE)
    _act_as_owner_of(folder)
    if is_new:
        FileStore(DEFAULT_STORE).prepare()  # for the records of break-glass
    if not os.path.isdir(folder):
        os.mkdir(folder, 0o700)
    os.chmod(folder, 0o700)
    credentials = Credentials(**paths)
    with credentials.replacing():
        credentials.replace(key, certificate, ca)
    return validity(credentials.certificate).end


def _act_as_owner_of(folder: str) -> None:
    """As root, act as the account that may replace `folder`, because root must not follow a link of that account."""
    parent = os.path.dirname(folder)
    act_as_owner_of(folder if os.path.isdir(folder) and os.stat(parent).st_uid == 0 else parent)


def _read(file: str) -> str:
    """Return the text of the site file, or "" if the file does not exist."""
    try:
        with open(file, encoding="utf-8") as opened:
            return str(opened.read(MAX_SITE_FILE))
    except FileNotFoundError:
        return ""


def _write(file: str, text: str) -> None:
    """Replace the site file durably. Keep its mode, its owner, and a symbolic link to it."""
    path = os.path.realpath(file)
    old = os.stat(path) if os.path.exists(path) else None
    temporary = f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(descriptor, "w", encoding="utf-8") as opened:
        os.fchmod(descriptor, 0o644 if old is None else stat.S_IMODE(old.st_mode))
        if old is not None and (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, old.st_uid, old.st_gid)
        opened.write(text)
        opened.flush()
        os.fsync(descriptor)
    os.rename(temporary, path)
