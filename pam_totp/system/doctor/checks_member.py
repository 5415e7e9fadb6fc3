"""Checks of a member of a fleet: its files and its certificate, its authorities, break-glass, and its own store.

Rules:
- The check asks all authorities at once, for at most `fleet_member.WAIT` seconds.
- One authority that decides is enough if the others are out of reach, so a problem of some authorities is a warning.
- Only the authorities know the enrolled users, and no check asks for these users.
- Only a check that needs `system.fleet_member` imports it, because its imports take as long as many checks.
"""

from __future__ import annotations

import os
import pwd
import stat
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pam_totp.core.settings import CREDENTIALS, DEFAULT_STORE, SITE_FILE, MemberSettings
from pam_totp.system import probe, service_network
from pam_totp.system.doctor.context import ACCOUNT, Context, Fact
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding, Severity, names

if TYPE_CHECKING:
    from pam_totp.system.fleet_member import Codes, Seen

CHECK = "member"
DAY = 86_400  # seconds
LEAST_DAYS = 30  # the service renews a certificate 30 days before its end
CLOCK_OFF, CLOCK_WRONG = 300, DAY  # seconds: certificates are valid from a day before they were made
OLD_CODES = 365  # days
_JOIN = "run 'pam-totp member add' for this host on an authority, then 'pam-totp join' here"
_BREAK_GLASS = "run 'pam-totp member break-glass USER'"
_REFUSED = "every login is refused"


def member(context: Context) -> Iterator[Finding]:
    """Check a host whose site file has [member]. Other hosts have no findings."""
    settings = context.site().member
    if settings is None:
        return
    yield from _service(context)
    if os.geteuid() != 0 and os.geteuid() != _uid_of_owner(settings):
        what = "the checks of the authorities and of break-glass require root"
        yield _finding(NOTE, Code.MEMBER_NOT_CHECKED, what, "run this command as root")
        return
    files = list(_files(settings))
    yield from files
    if not files:
        yield from _authorities(context, settings)
    yield from _local(context, settings)


def _finding(severity: Severity, code: Code, what: str, remedy: str) -> Finding:
    return Finding(severity, CHECK, code, what, remedy)


def _service(context: Context) -> Iterator[Finding]:
    obstacle = service_network.obstacle()
    if obstacle is not None:
        what = f"the service reaches no authority: the unit {service_network.UNIT} blocks the network ({obstacle})"
        is_used = any(os.path.exists(path) and probe.service(path) is None for path in context.sockets())
        yield _finding(ERROR if is_used else WARNING, Code.SERVICE_WITHOUT_NETWORK, what, service_network.REMEDY)


# ---- files


def _uid_of_owner(settings: MemberSettings) -> int | None:
    """Return the uid that must own the credentials, or None if their folder is missing."""
    folder = os.path.dirname(settings.key)
    if folder == CREDENTIALS:
        try:
            return pwd.getpwnam(ACCOUNT).pw_uid
        except KeyError:
            pass
    try:
        return os.stat(folder).st_uid
    except OSError:
        return None


def _files(settings: MemberSettings) -> Iterator[Finding]:
    """Check the owner and the mode of each file, as `member.credentials` requires them."""
    folder, owner = os.path.dirname(settings.key), _uid_of_owner(settings)
    places = {folder: 0o700, settings.key: 0o600, settings.certificate: None, settings.ca: None}
    for path, mode in places.items():
        try:
            status = os.lstat(path)
        except OSError as e:
            what = f"{path}: {(e.strerror or str(e)).lower()}; {_outage(settings)}"
            yield _finding(ERROR, Code.MEMBER_FILE, what, _JOIN)
            continue
        found = stat.S_IMODE(status.st_mode)
        if not (stat.S_ISDIR if path == folder else stat.S_ISREG)(status.st_mode):
            kind = "folder" if path == folder else "regular file"
            yield _finding(ERROR, Code.MEMBER_FILE, f"{path}: must be a {kind}; {_outage(settings)}", _JOIN)
            continue
        if status.st_uid != owner and (mode is not None or status.st_uid != 0):
            what = f"{path}: must belong to {_name(owner)}, not to {_name(status.st_uid)}; {_outage(settings)}"
            yield _finding(ERROR, Code.MEMBER_FILE, what, f"run 'chown {_name(owner)}: {path}'")
        if (mode is not None and found != mode) or found & 0o022:
            wanted = 0o600 if mode is None else mode
            must = "not be writable by other accounts" if mode is None else f"have mode {mode:04o}"
            what = f"{path}: must {must} (mode {found:04o}); {_outage(settings)}"
            yield _finding(ERROR, Code.MEMBER_FILE, what, f"run 'chmod {wanted:04o} {path}'")


def _name(uid: int | None) -> str:
    try:
        return "?" if uid is None else pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _outage(settings: MemberSettings) -> str:
    """Return the consequence for logins if no authority can be asked."""
    return "every login is refused, except by break-glass" if settings.allows_break_glass else _REFUSED


# ---- authorities


def _authorities(context: Context, settings: MemberSettings) -> Iterator[Finding]:
    from pam_totp.system import fleet_member

    state = fleet_member.state_of(settings)
    yield from certificate(context, settings, state.ends)
    if state.problem is not None:
        yield _finding(ERROR, Code.MEMBER_CREDENTIALS, f"{state.problem}; {_outage(settings)}", _JOIN)
        return
    if not state.answers:
        return
    decides = [seen for seen in state.answers if seen.problem is None and seen.store == "ok"]
    worst = WARNING if decides else ERROR
    # A refusal of this host by an authority is an answer, so break-glass does not apply.
    refusal = _REFUSED if any(seen.is_unknown for seen in state.answers) else _outage(settings)
    effect = "logins use the other authorities" if decides else refusal
    for seen in state.answers:
        if seen.problem is None:
            context.facts.append(_fact(seen))
        yield from _authority(seen, settings, worst, effect)
    yield from _clock(decides)


def _fact(seen: Seen) -> Fact:
    value = {"milliseconds": round(1000 * seen.seconds, 1), "ahead": round(seen.ahead), "member": seen.member}
    text = f"authority {seen.authority}: answers in {1000 * seen.seconds:.1f} ms, knows this host as {seen.member}"
    return Fact(f"authority {seen.authority}", value, text)


def _authority(seen: Seen, settings: MemberSettings, worst: Severity, effect: str) -> Iterator[Finding]:
    """Report the problem of one authority. `effect` is the consequence for logins."""
    if seen.is_unknown:
        effect = effect if worst is ERROR else "this authority refuses every login that asks it"
        what = f"{seen.authority} does not accept this host: {seen.problem}; {effect}"
        remedy = f"{_JOIN}; check that all authorities use one database if another authority accepts this host"
        yield _finding(ERROR, Code.MEMBER_REFUSED, what, remedy)  # a refusal ends a login
    elif seen.problem is not None:
        what = f"{seen.authority}: {seen.problem}; {effect}"
        remedy = "check that host, its pam_totp-authority.service, and the network to it"
        yield _finding(worst, Code.AUTHORITY_UNREACHABLE, what, remedy)
    elif seen.store != "ok":
        what = f"{seen.authority}: its database does not keep changes safely: {seen.store}; {effect}"
        yield _finding(worst, Code.AUTHORITY_UNREACHABLE, what, "run 'pam-totp doctor' on that authority")
    elif seen.seconds > settings.patience / 2:
        what = f"{seen.authority} answers in {seen.seconds:.2f} s; "
        what += f"a login asks another authority after {settings.patience:g} s"
        remedy = f"prefer a nearer authority (the first in [member] of {SITE_FILE}), or raise patience there"
        yield _finding(WARNING, Code.AUTHORITY_SLOW, what, remedy)


def _clock(decides: Sequence[Seen]) -> Iterator[Finding]:
    """Compare the clock of this host with the clock of the database. Certificates depend on the clock of this host."""
    if not decides:
        return
    off = min((seen.ahead for seen in decides), key=abs)
    if abs(off) <= CLOCK_OFF:
        return
    amount = f"{abs(off) / DAY:.1f} days" if abs(off) > CLOCK_WRONG else f"{abs(off) / 60:.0f} minutes"
    what = f"the clock of this host is {amount} {'ahead of' if off > 0 else 'behind'} the clock of the database; "
    what += "certificates are not valid at a wrong time"
    remedy = "install chrony, or run 'systemctl enable --now systemd-timesyncd'"
    yield _finding(ERROR if abs(off) > CLOCK_WRONG else WARNING, Code.MEMBER_CLOCK, what, remedy)


def certificate(context: Context, settings: MemberSettings, ends: int | None) -> Iterator[Finding]:
    """Report a certificate of this member that has expired, or that the service should have renewed."""
    if ends is None:
        return
    path, left = settings.certificate, ends - int(time.time())
    context.facts.append(Fact("certificate", {"days": left // DAY}, f"certificate: valid for {left // DAY} days"))
    if left <= 0:
        what = f"{path}: expired {-left // DAY} days ago, or the clock is wrong; {_outage(settings)}"
        yield _finding(ERROR, Code.MEMBER_CERTIFICATE, what, _JOIN)
    elif -(-left // DAY) < LEAST_DAYS:
        what = f"{path}: expires in {left // DAY} days, and the service has not renewed it"
        remedy = "run 'pam-totp join --renew' (the log of the service has the reason of the failed renewal)"
        yield _finding(WARNING, Code.MEMBER_CERTIFICATE, what, remedy)


# ---- the store of this host


def _local(context: Context, settings: MemberSettings) -> Iterator[Finding]:
    """Check break-glass, and report users whose tokens no login uses."""
    from pam_totp.system import fleet_member

    is_there = os.path.isdir(DEFAULT_STORE)
    local = fleet_member.local_of(DEFAULT_STORE) if is_there else fleet_member.Local()
    if local.problem is not None:
        return  # the check of the store reports the problem
    is_used = any(s.member is None and s.secret is None and s.store == DEFAULT_STORE for _, s in context.settings())
    if local.with_tokens and not is_used:
        what = f"{DEFAULT_STORE}: no login of this member uses these users' tokens: {names(local.with_tokens)}"
        remedy = f"enrol them at an authority, then delete their records here, such as {DEFAULT_STORE}/"
        remedy += f"{local.with_tokens[0]}.record"
        yield _finding(WARNING, Code.MEMBER_LOCAL_USERS, what, remedy)
    yield from _break_glass(settings, local.codes)


def _break_glass(settings: MemberSettings, codes: Sequence[Codes]) -> Iterator[Finding]:
    users = [found.user for found in codes]
    if not settings.allows_break_glass:
        if codes:
            what = f"the recovery codes for break-glass are not accepted: {names(users)}"
            remedy = f'set centre_down = "break-glass" in [member] of {SITE_FILE}'
            yield _finding(NOTE, Code.BREAK_GLASS_OFF, what, remedy)
        return
    if not any(found.left for found in codes):
        what = 'centre_down is "break-glass", but no user has a recovery code here'
        yield _finding(WARNING, Code.BREAK_GLASS_MISSING, what, _BREAK_GLASS)
        return
    if few := [found.user for found in codes if found.left <= 1]:
        what = f"break-glass: these users have at most one valid recovery code: {names(few)}"
        yield _finding(WARNING, Code.BREAK_GLASS_FEW, what, _BREAK_GLASS.replace("USER", few[0]))
    begin = time.time() - OLD_CODES * DAY
    if old := [found.user for found in codes if found.changed < begin]:
        what = f"break-glass: the codes of these users are more than a year old: {names(old)}"
        remedy = f"check that the users still have these codes, or {_BREAK_GLASS.replace('USER', old[0])}"
        yield _finding(NOTE, Code.BREAK_GLASS_OLD, what, remedy)
