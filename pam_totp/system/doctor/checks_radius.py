"""Checks of FreeRADIUS as a member of a fleet: its configuration, its clients, and its authorities.

Rules:
- Only a host with a FreeRADIUS that `pam-totp member radius install` has set up has findings.
- FreeRADIUS itself checks the configuration (`-C`), and then exits. The checks change nothing.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator

from pam_totp.core.settings import MemberSettings, SettingsError
from pam_totp.pam.login_session import read_site
from pam_totp.system import radius as pack
from pam_totp.system.doctor.checks_member import DAY, LEAST_DAYS
from pam_totp.system.doctor.context import Context, Fact
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding, Severity, names
from pam_totp.system.radius import FOLDER

CHECK = "radius"
LEAST_VERSION = (3, 2, 0)  # older versions were not tested
_INSTALL = "run 'pam-totp member radius install'"


def radius(context: Context) -> Iterator[Finding]:
    """Check FreeRADIUS, if it is a member."""
    if not os.path.exists(os.path.join(FOLDER, pack.CONFIGURATION)):
        return
    if os.geteuid() != 0:
        what = "the checks of FreeRADIUS require root"
        yield _finding(NOTE, Code.RADIUS_NOT_CHECKED, what, "run this command as root")
        return
    try:
        settings = read_site(os.path.join(FOLDER, pack.MEMBER)).member
    except SettingsError as e:
        what = f"every login over FreeRADIUS is refused: {e}"
        yield _finding(ERROR, Code.RADIUS_CONFIGURATION, what, f"delete {FOLDER}/{pack.MEMBER}, then {_INSTALL}")
        return
    if missing := pack.missing():
        what = f"FreeRADIUS does not start: {missing[0]} not found"
        yield _finding(ERROR, Code.RADIUS_CONFIGURATION, what, f"run 'apt-get install {pack.PACKAGES}'")
    elif settings is None:
        what = f"FreeRADIUS has no authority: [member] is missing in {FOLDER}/{pack.MEMBER}"
        yield _finding(ERROR, Code.RADIUS_CONFIGURATION, what, _INSTALL)
    else:
        yield from _configuration(context, settings)
        yield from _clients()
        yield from _authorities(context, settings)


def _finding(severity: Severity, code: Code, what: str, remedy: str) -> Finding:
    return Finding(severity, CHECK, code, what, remedy)


def _read(name: str) -> str:
    """Return the text of a file in FOLDER, or "" if the file cannot be read: FreeRADIUS reports this error."""
    try:
        with open(os.path.join(FOLDER, name), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _configuration(context: Context, settings: MemberSettings) -> Iterator[Finding]:
    version = pack.version()
    if version is not None:
        text = ".".join(map(str, version))
        context.facts.append(Fact("freeradius", text, f"FreeRADIUS: version {text}"))
        if version < LEAST_VERSION:
            what = f"pam_totp was not tested with FreeRADIUS {text}"
            yield _finding(WARNING, Code.RADIUS_VERSION, what, "upgrade to Debian 12 or a later version")
    if _read(pack.CONFIGURATION) != pack.configuration(settings.authorities, FOLDER):
        what = f"FreeRADIUS may refuse right codes, or accept forged packets: {FOLDER}/{pack.CONFIGURATION} differs "
        what += "from the configuration of this version for these authorities"
        yield _finding(WARNING, Code.RADIUS_CONFIGURATION, what, f"{_INSTALL}, then 'systemctl restart freeradius'")
    if (problem := pack.problem(FOLDER)) is not None:
        what = f"FreeRADIUS does not accept its configuration: {problem}"
        remedy = f"run '{pack.PROGRAM} -C -d {FOLDER} -l stdout', and correct the file that it names"
        yield _finding(ERROR, Code.RADIUS_CONFIGURATION, what, remedy)


def _clients() -> Iterator[Finding]:
    path = os.path.join(FOLDER, pack.CLIENTS)
    clients = [client for name in (pack.CLIENTS, pack.RADSEC) for client in pack.clients(_read(name))]
    if not clients:
        what = f"FreeRADIUS answers no request: {path} lacks clients"
        yield _finding(NOTE, Code.RADIUS_WITHOUT_CLIENTS, what, "run 'pam-totp member radius client NAME ADDRESS'")
    if unsafe := [client.name for client in clients if not pack.is_safe(client)]:
        what = f"{path}: replies to these clients can be forged (CVE-2024-3596), or their secrets guessed: "
        remedy = "set require_message_authenticator = yes, and a secret of at least "
        remedy += f"{pack.LEAST_SECRET} characters; or connect the client by RadSec"
        yield _finding(WARNING, Code.RADIUS_CLIENT_UNSAFE, what + names(unsafe), remedy)
    if os.path.exists(path) and stat.S_IMODE(os.stat(path).st_mode) & 0o007:
        what = f"{path}: every account can read the secrets of the clients"
        yield _finding(WARNING, Code.RADIUS_CLIENT_UNSAFE, what, f"run 'chmod 0640 {path}', and change the secrets")


def _authorities(context: Context, settings: MemberSettings) -> Iterator[Finding]:
    from pam_totp.system import fleet_member  # imported here: few hosts run FreeRADIUS

    state = fleet_member.state_of(settings)
    if state.problem is not None:
        what = f"every login over FreeRADIUS is refused: {state.problem}"
        yield _finding(ERROR, Code.RADIUS_CREDENTIALS, what, f"delete {FOLDER}/{pack.MEMBER}, then {_INSTALL}")
    elif state.ends is not None and state.ends - time.time() < LEAST_DAYS * DAY:
        days = int(state.ends - time.time()) // DAY
        expiry = f"expires in {days} days" if days >= 0 else f"expired {-days} days ago"
        what = f"{settings.certificate}: {expiry}, and {pack.TIMER} has not renewed it"
        remedy = f"run 'pam-totp join --renew --config {FOLDER}/{pack.MEMBER}', and see 'systemctl status {pack.TIMER}'"
        yield _finding(ERROR if days < 0 else WARNING, Code.RADIUS_CREDENTIALS, what, remedy)
    decides = any(seen.problem is None for seen in state.answers)
    for seen in state.answers:
        if seen.problem is None:
            text = f"authority {seen.authority}: answers FreeRADIUS in {1000 * seen.seconds:.1f} ms, as {seen.member}"
            value = {"milliseconds": round(1000 * seen.seconds, 1), "member": seen.member}
            context.facts.append(Fact(f"radius {seen.authority}", value, text))
            continue
        effect = "logins use the other authorities" if decides else "FreeRADIUS gives no reply"
        what = f"{seen.authority} does not answer FreeRADIUS: {seen.problem}; {effect}"
        remedy = "check that host, and 'pam-totp member list' there"
        yield _finding(WARNING if decides else ERROR, Code.RADIUS_AUTHORITY, what, remedy)
