"""Checks of an authority of a fleet: its settings, keys and certificates, the other authorities, and the members.

Rules:
- The account of the service reads the files and asks the other authorities (`system.fleet_authority`).
- Other authorities show their CA and their clock. Only a member detects an authority with another database, because
  this authority refuses the member.
- The checks of the database itself are those of the store.
- Only a check that needs `system.fleet_authority` imports it, because its imports take longer than all other checks.
"""

from __future__ import annotations

import os
import pwd
import stat
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pam_totp.core.settings import SITE_FILE, AuthoritySettings
from pam_totp.system.doctor.context import ACCOUNT, Context, Fact
from pam_totp.system.extras import how_to_get
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding, Severity, names

if TYPE_CHECKING:
    from pam_totp.system.fleet_authority import Answer, Members, State

CHECK = "authority"
DAY = 86_400  # seconds
LEAST_DAYS = 60  # an administrator renews the certificate of an authority
LEAST_CA_DAYS = 365  # with a new CA, every member joins again
MOST_APART = 1.0  # seconds between the clocks of two authorities
_JOIN_SECONDS = 3600  # the time in which a join line is valid
_ALL = "all"  # the group of all users
_UNIT = "pam_totp-authority.service"
_RELOAD = f"run 'systemctl reload {_UNIT}'"


def authority(context: Context) -> Iterator[Finding]:
    """Check a host whose site file has [authority]. Other hosts have no findings."""
    site = context.site()
    settings = site.authority
    if settings is None:
        return
    import importlib.util

    from pam_totp.system import fleet_authority

    if not settings.addresses:
        what = f"the authority does not start: authority.addresses is missing in {SITE_FILE}"
        remedy = "list the HOST:PORT of every authority there, as members connect to them"
        yield _finding(ERROR, Code.AUTHORITY_WITHOUT_ADDRESSES, what, remedy)
    if importlib.util.find_spec("aiohttp") is None:
        what = "the authority does not start: aiohttp is missing"
        yield _finding(ERROR, Code.AUTHORITY_LIBRARY, what, how_to_get("aiohttp"))
    if os.geteuid() != 0:
        what = "the checks of the authority's files, and of the members, require root"
        yield _finding(NOTE, Code.MEMBERS_NOT_KNOWN, what, "run this command as root")
    else:
        files = list(_files(settings))
        yield from files
        if not any(finding.severity == ERROR for finding in files):
            yield from _state(context, settings)
    if site.database is None:
        what = f"the authority does not start: url is missing in [store] of {SITE_FILE}"
        remedy = f'set url = "postgresql://..." in [store] of {SITE_FILE} (see pam_totp.toml(5))'
        yield _finding(ERROR, Code.AUTHORITY_WITHOUT_DATABASE, what, remedy)
    elif os.geteuid() == 0:
        yield from _members(context, fleet_authority.members_of(site.database.url))


def _finding(severity: Severity, code: Code, what: str, remedy: str) -> Finding:
    return Finding(severity, CHECK, code, what, remedy)


# ---- files


def _files(settings: AuthoritySettings) -> Iterator[Finding]:
    """Check that the files exist, and that only root can change them, and only the service can read the keys."""
    init = "run 'pam-totp authority init'"
    secrets = (settings.key, settings.ca_key)
    paths = (settings.certificate, settings.ca, *secrets)
    for path in dict.fromkeys((*(os.path.dirname(path) for path in paths), *paths)):
        is_folder = path not in paths
        try:
            status = os.stat(path)
        except FileNotFoundError:
            if path == settings.ca_key:
                what = f"members must join at another authority: {path} not found"
                remedy = "copy this file from a backup, unless another authority has it"
                yield _finding(NOTE, Code.AUTHORITY_WITHOUT_CA_KEY, what, remedy)
            elif not is_folder:
                yield _finding(ERROR, Code.AUTHORITY_FILE, f"the authority does not start: {path} not found", init)
            continue
        except OSError as e:
            yield _finding(ERROR, Code.AUTHORITY_FILE, f"{path}: {(e.strerror or str(e)).lower()}", init)
            continue
        yield from _rights(path, status, is_folder=is_folder, is_secret=path in secrets)


def _rights(path: str, status: os.stat_result, *, is_folder: bool, is_secret: bool) -> Iterator[Finding]:
    mode = stat.S_IMODE(status.st_mode)
    group = ACCOUNT if _has_account() else "root"
    wanted = "0750" if is_folder else "0640" if is_secret else "0644"
    remedy = f"run 'chown root:{group} {path}' and 'chmod {wanted} {path}'"
    if is_secret and mode & 0o007:
        what = f"{path}: every account of this host can read this key (mode {mode:04o})"
        yield _finding(ERROR, Code.AUTHORITY_FILE, what, f"{remedy}, then replace the key")
    elif mode & 0o022:
        what = f"{path}: must not be writable by accounts other than root (mode {mode:04o})"
        yield _finding(ERROR, Code.AUTHORITY_FILE, what, remedy)
    elif status.st_uid not in (0, _uid()):
        what = f"{path}: must belong to root"
        yield _finding(ERROR, Code.AUTHORITY_FILE, what, remedy)


def _uid() -> int:
    return pwd.getpwnam(ACCOUNT).pw_uid if _has_account() else os.geteuid()


def _has_account() -> bool:
    try:
        pwd.getpwnam(ACCOUNT)
    except KeyError:
        return False
    return True


# ---- certificates and addresses


def _state(context: Context, settings: AuthoritySettings) -> Iterator[Finding]:
    from pam_totp.system import fleet_authority

    state = fleet_authority.state_of(settings, ACCOUNT)
    for path in state.unreadable:
        what = f"{path}: the account {ACCOUNT} cannot read this file"
        wanted = "0640" if path in (settings.key, settings.ca_key) else "0644"
        remedy = f"run 'chown root:{ACCOUNT} {path}', 'chmod {wanted} {path}' and 'chmod a+x {os.path.dirname(path)}'"
        yield _finding(ERROR, Code.AUTHORITY_FILE, what, remedy)
    if state.unreadable:
        return
    anew = f"move {settings.certificate} away, run 'pam-totp authority init', then {_RELOAD}"
    if state.problem is not None:
        what = f"the authority does not start: {state.problem}"
        yield _finding(ERROR, Code.AUTHORITY_CERTIFICATE, what, anew)
        return
    yield from _certificates(context, settings, state, anew)
    yield from _running(settings, state)
    yield from _others(state)


def _certificates(context: Context, settings: AuthoritySettings, state: State, anew: str) -> Iterator[Finding]:
    now = int(time.time())
    new_ca = f"move {settings.ca} and {settings.ca_key} away, run 'pam-totp authority init', copy both to the other "
    new_ca += "authorities, and let every member join again"
    for path, ends, least, code, remedy in (
        (settings.certificate, state.ends, LEAST_DAYS, Code.AUTHORITY_CERTIFICATE, anew),
        (settings.ca, state.ca_ends, LEAST_CA_DAYS, Code.AUTHORITY_CA, new_ca),
    ):
        if ends is None:
            continue
        days = (ends - now) // DAY
        context.facts.append(Fact(path, {"days": days}, f"{path}: valid for {days} days"))
        if ends <= now:
            yield _finding(
                ERROR, code, f"{path}: expired {(now - ends) // DAY} days ago, or the clock is wrong", remedy
            )
        elif days < least:
            yield _finding(WARNING, code, f"{path}: expires in {days} days", remedy)
    if state.ca_problem is not None:
        remedy = "copy both files from the same authority"
        yield _finding(
            ERROR, Code.AUTHORITY_CA, f"no member can join or renew its certificate here: {state.ca_problem}", remedy
        )
    if state.ends is not None and state.ends <= now:
        return  # reported above
    for address, reason in state.misfits:
        what = f"{settings.certificate}: members that connect to {address} reject this certificate: {reason}"
        yield _finding(ERROR, Code.AUTHORITY_CERTIFICATE, what, anew)


def _running(settings: AuthoritySettings, state: State) -> Iterator[Finding]:
    """Check that an authority answers on each address of `listen`, with the certificate in the file."""
    for address, answer in zip(settings.listen, state.listening, strict=True):
        if answer.problem is not None:
            what = f"no authority answers on {address} of this host: {answer.problem}"
            remedy = f"run 'systemctl enable --now {_UNIT}', or see the reason with 'systemctl status {_UNIT}'"
            yield _finding(ERROR, Code.AUTHORITY_NOT_RUNNING, what, remedy)
        elif answer.certificate != state.certificate:
            what = f"the authority on {address} uses another certificate than {settings.certificate}"
            yield _finding(WARNING, Code.AUTHORITY_NOT_RELOADED, what, _RELOAD)


def _others(state: State) -> Iterator[Finding]:
    """Check that each address of the fleet answers, and that the clocks agree."""
    for answer in state.others:
        if answer.problem is not None:
            what = f"{answer.address} in authority.addresses: {answer.problem}"
            remedy = "check that host, its service, and the network to it; members ask the other authorities"
            yield _finding(WARNING, Code.AUTHORITY_UNREACHABLE, what, remedy)
        elif (apart := _apart(answer)) != 0.0:
            what = f"the clock of {answer.address} is at least {abs(apart):.0f} s "
            what += f"{'behind' if apart > 0 else 'ahead of'} that of this host"
            remedy = "install chrony on both hosts, or run 'systemctl enable --now systemd-timesyncd'"
            yield _finding(WARNING, Code.AUTHORITY_CLOCK, what, remedy)


def _apart(answer: Answer) -> float:
    """Return the least number of seconds by which this host is ahead of another host (negative if behind).

    Return 0 if the clocks differ by less than MOST_APART.

    The other host sent its time in whole seconds, rounded down, at a moment between the request and the answer.
    """
    if answer.date is None:
        return 0.0
    most = answer.now - answer.date
    least = most - 1 - answer.seconds
    return least if least > MOST_APART else most if most < -MOST_APART else 0.0


# ---- members


def _members(context: Context, found: Members) -> Iterator[Finding]:
    if found.problem is not None:
        what = f"the members cannot be read from the database: {found.problem}"
        yield _finding(WARNING, Code.MEMBERS_NOT_KNOWN, what, "check the database, then run the command again")
        return
    active = [member for member in found.members if member.revoked is None]
    joined = [member for member in active if member.joined is not None]
    counts = {"joined": len(joined), "added": len(active) - len(joined), "revoked": len(found.members) - len(active)}
    text = ", ".join(f"{number} {state}" for state, number in counts.items())
    context.facts.append(Fact("members", counts, f"members: {text}"))
    late = [m.name for m in active if m.joined is None and m.added < time.time() - _JOIN_SECONDS]
    if late:
        what = f"these members have not joined, and their join lines have expired: {names(late)}"
        remedy = f"run 'pam-totp member add {late[0]}' again, or 'pam-totp member revoke {late[0]}'"
        yield _finding(NOTE, Code.MEMBERS_NOT_JOINED, what, remedy)
    mute = [m.name for m in joined if not any(found.may.get(group) for group in m.groups)]
    if mute:
        group = next(m.groups[0] for m in joined if m.name == mute[0])
        what = f"every login at these members is refused, because they may ask about no user: {names(mute)}"
        yield _finding(WARNING, Code.MEMBERS_WITHOUT_USERS, what, f"run 'pam-totp member groups {group} --allow all'")
    yield from _groups(found, {group for member in active for group in member.groups})


def _groups(found: Members, of_members: set[str]) -> Iterator[Finding]:
    """Report permissions for empty groups, and unused groups."""
    permitted = {users for group in found.may for users in found.may[group]}
    for group, allowed in sorted(found.may.items()):
        for users in sorted(set(allowed) - found.users.keys() - {_ALL}):
            what = f"members of {group} may ask about the users of {users}, but that group has no user"
            remedy = f"run 'pam-totp member groups {users} --put USER', or 'pam-totp member groups {group} "
            yield _finding(WARNING, Code.GROUP_NOT_FOUND, what, f"{remedy}--deny {users}'")
    unused = _unused("no member is in these groups", sorted(found.may.keys() - of_members))
    yield from unused
    yield from _unused("no member may ask about the users of these groups", sorted(found.users.keys() - permitted))


def _unused(what: str, groups: Sequence[str]) -> Iterator[Finding]:
    if groups:
        remedy = "check the spelling of the groups with 'pam-totp member groups', and withdraw unused permissions "
        remedy += f"({groups[0]})"
        yield _finding(NOTE, Code.GROUP_UNUSED, f"{what}: {names(groups)}", remedy)
