"""member radius: make FreeRADIUS of this host a member of a fleet, and add clients of FreeRADIUS."""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence

from pam_totp.cli.command_line import DONE, OUT_OF_REACH, REFUSED, WRONG_USAGE, CommandError
from pam_totp.cli.join import join_with_line
from pam_totp.cli.printing import format_time, print_json
from pam_totp.cli.prompts import confirm
from pam_totp.pam.login_session import read_site
from pam_totp.pam.privileges import acting_as_root
from pam_totp.system import radius as pack
from pam_totp.system.sshd import SYSTEMD

INSTALL, CLIENT = "install", "client"
USAGE = "the command is 'pam-totp member radius install' or 'pam-totp member radius client NAME ADDRESS'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `member radius`."""
    parser.add_argument("--folder", metavar="FOLDER", help=f"radius: folder of the configuration ({pack.FOLDER})")
    parser.add_argument(
        "--no-challenge", action="store_true", help="radius client: send no second prompt to this client"
    )


def radius(args: argparse.Namespace, words: Sequence[str]) -> int:
    """Run `install` or `client`. Return the exit status."""
    folder = os.path.abspath(args.folder or pack.FOLDER)
    if list(words[:1]) == [CLIENT] and len(words) == 3:
        return _client(args, folder, *words[1:])
    if list(words) == [INSTALL]:
        return _install(args, folder)
    raise CommandError(USAGE, WRONG_USAGE)


# ---- install


def _install(args: argparse.Namespace, folder: str) -> int:
    """Join with a line, unless FreeRADIUS is a member already, and write the configuration. Return the exit status."""
    _require_root()
    if missing := pack.missing():
        raise CommandError(f"{missing[0]}: not found (run 'apt-get install {pack.PACKAGES}')", OUT_OF_REACH)
    is_host = folder == pack.FOLDER
    if is_host and not os.path.exists(pack.DROP_IN):
        confirm("let FreeRADIUS of this host serve pam_totp alone, instead of /etc/freeradius?", args)
    _make_folders(folder)
    member = os.path.join(folder, pack.MEMBER)
    site = read_site(member)
    facts: dict[str, object] = {"folder": folder}
    if site.member is None:
        args.config, args.credentials = member, os.path.join(folder, pack.TLS)
        joined = join_with_line(args, site, member)
        facts |= {"member": joined.member, "ends": joined.ends}
    with acting_as_root():
        authorities = _authorities(member)
        _write_all(folder, pack.configuration(authorities, folder))
        if (problem := pack.problem(folder)) is not None:
            raise CommandError(f"FreeRADIUS does not accept the configuration: {problem}", REFUSED)
        timer = _install_units(folder) if is_host else False
    args.audit.changed("radius-install", folder=folder, authorities=",".join(authorities))
    if args.json:
        print_json(facts | {"authorities": list(authorities), "timer": timer})
        return DONE
    if "ends" in facts:
        print(f"joined as {joined.member}, with a certificate until {format_time(joined.ends)}")
    print(f"written: {folder}/{pack.CONFIGURATION}; FreeRADIUS asks {', '.join(authorities)}")
    if is_host:
        print(f"the certificate is renewed each week by {pack.TIMER}" + ("" if timer else " (start it)"))
    print("next: 'pam-totp member radius client NAME ADDRESS', then 'systemctl restart freeradius'")
    return DONE


def _require_root() -> None:
    if os.geteuid() != 0:
        raise CommandError("permission denied (run the command as root)", OUT_OF_REACH)


def _make_folders(folder: str) -> None:
    """Create the configuration's folder, owned by root, and below it the credentials' folder, owned by FreeRADIUS."""
    account = pwd.getpwnam(pack.ACCOUNT)
    if not os.path.isdir(folder):
        os.mkdir(folder)
        os.chmod(folder, 0o755)  # noqa: S103  under any umask; FreeRADIUS enters it
    tls = os.path.join(folder, pack.TLS)
    if not os.path.isdir(tls):
        os.mkdir(tls, 0o700)
        os.chown(tls, account.pw_uid, account.pw_gid)


def _authorities(member: str) -> tuple[str, ...]:
    settings = read_site(member).member
    assert settings is not None
    return settings.authorities


def _write_all(folder: str, configuration: str) -> None:
    _write(os.path.join(folder, pack.CONFIGURATION), configuration)
    for path, text in pack.once(folder).items():
        if not os.path.exists(path):
            _write(path, text)


def _write(path: str, text: str, *, is_public: bool = False) -> None:
    """Replace a file durably. FreeRADIUS can read the file, and every account can if `is_public` is True."""
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        if is_public:
            os.fchmod(file.fileno(), 0o644)
        else:
            os.fchown(file.fileno(), -1, pwd.getpwnam(pack.ACCOUNT).pw_gid)
            os.fchmod(file.fileno(), 0o640)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def _install_units(folder: str) -> bool:
    """Write the files of systemd, and start the timer. Return False if systemd does not run, or systemctl fails."""
    for path, text in pack.units(shutil.which("pam-totp") or "/usr/bin/pam-totp", folder).items():
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        _write(path, text, is_public=True)
    if not os.path.isdir(SYSTEMD):
        return False
    for words in (["daemon-reload"], ["enable", "--now", pack.TIMER]):
        try:
            subprocess.run(["/usr/bin/systemctl", *words], capture_output=True, timeout=pack.CHECK_TIME, check=True)
        except (OSError, subprocess.SubprocessError):
            return False
    return True


# ---- client


def _client(args: argparse.Namespace, folder: str, name: str, address: str) -> int:
    """Add a client, and print its secret. Return the exit status."""
    _require_root()
    path = os.path.join(folder, pack.CLIENTS)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:  # comments may have another encoding
            old = file.read()
    except FileNotFoundError:
        raise CommandError(f"{path}: not found (run 'pam-totp member radius install')", OUT_OF_REACH) from None
    service = _service_of(args)
    if name in (client.name for client in pack.clients(old)):
        raise CommandError(f"{name}: already in {path} (change it there)", REFUSED)
    try:
        added, secret = pack.new_client(name, address, service, has_challenge=not args.no_challenge)
    except ValueError as e:
        raise CommandError(str(e), WRONG_USAGE) from None
    new = pack.clients(added)[0]
    if twins := [client.name for client in pack.clients(old) if client.address == new.address]:
        raise CommandError(f"{address}: another client has this address: {twins[0]}", REFUSED)
    _write(path, old + added)
    if (problem := pack.problem(folder)) is not None:
        _write(path, old)
        raise CommandError(f"FreeRADIUS does not accept the client: {problem}", REFUSED)
    args.audit.changed("radius-client", client=name, address=address, service=service)
    shown: Mapping[str, str] = {"client": name, "address": address, "service": service, "secret": secret}
    if args.json:
        print_json(dict(shown))
    else:
        print(secret)
        what = f"this is the secret of {name}; enter it on the client, and demand a Message-Authenticator"
        print(f"pam-totp: {what}; then run 'systemctl restart freeradius' here", file=sys.stderr)
    return DONE


def _service_of(args: argparse.Namespace) -> str:
    """Return the name of the service of a new client."""
    given = args.service or ["radius"]
    if len(given) > 1:
        raise CommandError("--service must be given at most once", WRONG_USAGE)
    return str(given[0])
