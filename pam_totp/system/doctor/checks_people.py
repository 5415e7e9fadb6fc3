"""Checks that name users: those who are locked out, and those who log in without a code.

Rules:
- A check considers only accounts that can log in to the service now.
- A finding about the user of a rehearsal is an error: that login would fail.
- On a member of a fleet, no check asks for the enrolled users, because only the authorities may list them.
"""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches

from pam_totp.core.settings import DEFAULT_STORE, Settings, is_database
from pam_totp.pam.names import is_member
from pam_totp.system import sshd, sudo
from pam_totp.system.doctor.context import Context
from pam_totp.system.home_enrolled import HomeEnrolled, find_home_enrolled
from pam_totp.system.machine import SHARED
from pam_totp.system.pamd import analysis
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding, names
from pam_totp.system.pamd.programs import NEVER_ASK
from pam_totp.system.pamd.stack import StackError
from pam_totp.system.people import SUDO_SERVICES, accounts_with_password, has_ssh_key, login_check

CHECK = "users"
_MAX_ASKED = 200  # users: on larger hosts, `doctor` checks only sudo's settings for all users
OWN_FILE = "~/.pam_totp.json"
_HOME = ("~/", "${HOME}/")
# Modules that mount or unlock a home folder during a login: the folder is missing before that login.
_MOUNTS = frozenset(f"pam_{name}.so" for name in ("mount", "ecryptfs", "fscrypt", "systemd_home", "zfs_key", "encfs"))
_ROOT_BY_KEY = ("without-password", "prohibit-password", "forced-commands-only")


def users(context: Context) -> Iterator[Finding]:
    """Find the users whom a service would lock out, and the users who can log in without a code."""
    if os.geteuid() != 0:
        what = "the check for users without a token requires root"
        yield Finding(NOTE, CHECK, Code.USERS_NOT_CHECKED, what, "run this command as root")
        return
    for service, line in context.settings():
        if line.user is not None or service in NEVER_ASK or SHARED.fullmatch(service):
            continue
        can_log_in = login_check(service)
        people = list(context.people)
        if service == "sshd":
            with suppress(sshd.SshdError):  # another check reports this error
                yield from _ssh(context, line, [name for name in people if can_log_in(name)])
                if "root" in people and _is_root_refused(context):
                    people.remove("root")
        if line.member is not None:
            yield from _at_authorities(context, service, line)
            continue
        owner_of = _owner_of(context, service)
        yield from _other_owner(service, [name for name in people if owner_of(name) != name and can_log_in(name)])
        yield from _without_token(context, service, line, _Logins(people, can_log_in, owner_of))
        if line.origins.get("enroll") == "argument" and line.enroll != "off" and not line.takes_tickets(service):
            what = f"{service}: enroll={line.enroll} has no effect with {line.first_pass or 'polkit'}"
            yield Finding(
                WARNING, CHECK, Code.ENROLL_WITHOUT_EFFECT, what, f"remove enroll={line.enroll} from the line"
            )
        if _is_open(line) and line.secret is not None and line.secret.startswith(_HOME):
            yield _homes(context, service, line.secret, [name for name in people if can_log_in(name)])
    for store in context.stores():
        yield from _strays(context, store)


# ---- tokens


@dataclass(frozen=True, slots=True)
class _Logins:
    """The users of the host (`people`), and two functions for the logins to a service.

    `can_log_in` returns True if a user can log in. `owner_of` returns the user whose token the service then asks for.
    """

    people: Sequence[str]
    can_log_in: Callable[[str], bool]
    owner_of: Callable[[str], str]


def _owner_of(context: Context, service: str) -> Callable[[str], str]:
    """Return a function that returns the user whose token a service asks for, when a user logs in."""

    def owner(name: str) -> str:
        rules = sudo.rules(name)
        return name if rules.asks_other is None else rules.other

    is_sudo = service in SUDO_SERVICES
    if is_sudo and (len(context.people) <= _MAX_ASKED or sudo.rules("root").asks_other is not None):
        return owner
    return lambda name: name


def _other_owner(service: str, asked: Sequence[str]) -> Iterator[Finding]:
    """Report the users whom sudo asks for another user's password and code."""
    by_owner: dict[str, list[str]] = {}
    for name in asked:
        by_owner.setdefault(sudo.rules(name).other, []).append(name)
    for owner, users in sorted(by_owner.items()):
        what = f"{service} asks for the password and the code of {owner}, not of {names(users)} (see sudoers(5): "
        what += "rootpw, runaspw, targetpw)"
        remedy = f"remove that setting, or enrol {owner} with a token that all these users can use"
        yield Finding(WARNING, CHECK, Code.SUDO_ASKS_OTHER_USER, what, remedy)


def _without_token(context: Context, service: str, line: Settings, logins: _Logins) -> Iterator[Finding]:
    """Report the users who lack a token: `nullok` lets them in, otherwise they are locked out."""
    owners = {name: logins.owner_of(name) for name in logins.people}
    homes = None if line.secret is None else find_home_enrolled(line.secret, sorted(set(owners.values())))
    enrolled = _in_store(context, line) if homes is None else homes.users | homes.problems.keys()
    if enrolled is None:
        return  # the check of the store reports the reason
    if homes is not None:
        yield from _unusable_files(context, service, homes, [o for n, o in owners.items() if logins.can_log_in(n)])
    known = frozenset(context.people)
    without = [n for n, owner in owners.items() if owner not in enrolled and owner in known and logins.can_log_in(n)]
    yield from _tokens_elsewhere(context, service, line, sorted({owners[name] for name in without}))
    able = enrolled
    if line.takes_tickets(service) and line.secret is None:
        able = enrolled | context.enrolled(line.store).invited  # users with a ticket enrol at their next login
        without = [name for name in without if owners[name] not in able]
    passes = _passes(line)
    if passing := [name for name in without if passes(name)]:
        yield _without_code(context, service, passing, owners[passing[0]])
    locked_out = [name for name in without if not passes(name)]
    command = "invite" if line.takes_tickets(service) else "enroll"
    remedy = f"run 'pam-totp {command} {owners[locked_out[0]] if locked_out else 'USER'}'"
    remedy += ", and do the same for each other user" if len(locked_out) > 1 else ""
    meanwhile = "" if line.enroll != "off" else ", or add nullok until all users are enrolled"
    if context.user is not None and context.user in [*locked_out, *(owners[name] for name in locked_out)]:
        what = f"{service}: {context.user} has no token, and would be locked out"
        remedy = f"run 'pam-totp {command} {context.user}'"
        yield Finding(ERROR, CHECK, Code.USER_WITHOUT_TOKEN, what, remedy)
    elif locked_out and not any(owners[name] in able and logins.can_log_in(name) for name in logins.people):
        tokens = "a token or a ticket" if line.takes_tickets(service) else "a token"
        what = f"{service}: no user has {tokens}; these users are locked out: {names(locked_out)}"
        remedy += meanwhile
        yield Finding(ERROR, CHECK, Code.NO_USER_WITH_TOKEN, what, remedy)
    elif locked_out:
        what = f"{service}: these users have no token and are locked out: {names(locked_out)}"
        remedy += meanwhile
        yield Finding(WARNING, CHECK, Code.USERS_WITHOUT_TOKEN, what, remedy)


def _at_authorities(context: Context, service: str, line: Settings) -> Iterator[Finding]:
    """Report that users were not checked, because the users of a member are enrolled at its authorities."""
    what = f"{service}: this host cannot find locked-out users, because only the authorities know the enrolled users"
    yield Finding(NOTE, CHECK, Code.ENROLMENT_UNKNOWN, what, "run 'pam-totp list' on an authority")
    if not _is_open(line):
        return
    is_alone = service != "sshd" or any(not _needs_other_method(context, name) for name in context.people)
    if is_alone and analysis.accepts_without_token(context.machine.stack(service), any_first_factor=False):
        what = f"{service}: nullok requires no factor of users that lack a token, if the authorities permit it"
        yield Finding(ERROR, CHECK, Code.USERS_WITHOUT_CODE, what, "remove nullok from the line")
        return
    what = f"{service}: nullok requires no code of users that lack a token, if the authorities permit it"
    remedy = f"see [service.{service}] of the authorities' site files, and remove nullok when all users are enrolled"
    yield Finding(WARNING, CHECK, Code.USERS_WITHOUT_CODE, what, remedy)


def _without_code(context: Context, service: str, passing: Sequence[str], first: str) -> Finding:
    """Return the finding about the users whom nullok exempts. `first` is the owner of the first missing token."""
    stack = context.machine.stack(service)
    enroll = f"run 'pam-totp enroll {first}'"
    if not analysis.accepts_without_token(stack):
        what = f"{service}: these users are locked out in spite of nullok, because the stack requires the success of "
        what += f"another module: {names(passing)}"
        remedy = f"{enroll}, or, if sshd requires a key, add 'auth required pam_permit.so' after the pam_totp.so line"
        severity = ERROR if context.user in passing else WARNING
        return Finding(severity, CHECK, Code.USERS_WITHOUT_TOKEN, what, remedy)
    unchecked = [name for name in passing if service != "sshd" or not _needs_other_method(context, name)]
    if unchecked and analysis.accepts_without_token(stack, any_first_factor=False):
        what = f"{service}: nullok lets these users in without any factor: {names(unchecked)}"
        return Finding(ERROR, CHECK, Code.USERS_WITHOUT_CODE, what, f"remove nullok, and {enroll}")
    what = f"{service}: nullok lets these users in without a code: {names(passing)}"
    remedy = f"{enroll}, and remove nullok when all users are enrolled"
    return Finding(WARNING, CHECK, Code.USERS_WITHOUT_CODE, what, remedy)


def _passes(line: Settings) -> Callable[[str], bool]:
    """Return a function that returns True for a user whom the line lets pass without a token."""
    is_open, group = _is_open(line), line.nullok_group
    return lambda name: is_open and (group is None or is_member(name, group))


def _is_open(line: Settings) -> bool:
    """Return True if the line lets users without a token pass now."""
    return line.nullok_at(int(time.time()))


def _in_store(context: Context, line: Settings) -> frozenset[str] | None:
    """Return the users with a token or an unreadable record, or None if the store cannot be read."""
    if not is_database(line.store) and not os.path.isdir(line.store):
        return frozenset()
    found = context.enrolled(line.store)
    return found.users | found.unreadable if found.is_complete else None


def _unusable_files(context: Context, service: str, homes: HomeEnrolled, asked: Iterable[str]) -> Iterator[Finding]:
    """Report the users whose secret file (`secret=`) a login would refuse."""
    affected = [name for name in dict.fromkeys(asked) if name in homes.problems]
    if affected:
        first = context.user if context.user in affected else affected[0]
        described = [f"{name} ({homes.problems[name].what})" for name in affected]
        what = f"{service}: these users are locked out, because a login refuses their file: {names(described)}"
        severity = ERROR if context.user in affected or not homes.users else WARNING
        yield Finding(severity, CHECK, Code.HOME_FILE_UNUSABLE, what, homes.problems[first].remedy)


def _tokens_elsewhere(context: Context, service: str, line: Settings, without: Sequence[str]) -> Iterator[Finding]:
    """Report the users whose tokens are only in a store that this line does not use."""
    if line.secret is None:
        found = find_home_enrolled(OWN_FILE, filter(_has_own_file, without))
        there, place = found.users | found.problems.keys(), f"their file {OWN_FILE}"
        remedy = "enrol them as root, or move their tokens ('pam-totp export --format json' and 'import json')"
    else:
        in_store = context.enrolled(DEFAULT_STORE).users if os.path.isdir(DEFAULT_STORE) else frozenset()
        there, place = in_store & frozenset(without), DEFAULT_STORE
        remedy = f"let them run 'pam-totp enroll' themselves, or remove secret={line.secret} from the line"
    if there:
        what = f"{service}: these users have tokens only in {place}, which this service does not read: "
        what += names(sorted(there))
        yield Finding(WARNING, CHECK, Code.TOKENS_ELSEWHERE, what, remedy)


def _has_own_file(name: str) -> bool:
    with suppress(KeyError):
        return os.path.lexists(OWN_FILE.replace("~", pwd.getpwnam(name).pw_dir, 1))
    return False


def _strays(context: Context, store: str) -> Iterator[Finding]:
    """Report the records whose users have no account."""
    strays = context.enrolled(store).strays if os.path.isdir(store) else ()
    if not strays:
        return
    spelt = {name.casefold(): name for name in context.people}
    described = []
    for stray in strays:
        close = spelt.get(stray.casefold()) or spelt.get(stray.casefold().partition("@")[0])
        close = close or next(iter(get_close_matches(stray, context.people, n=1)), None)
        described.append(stray if close is None else f"{stray} (account: {close})")
    what = f"{store}: these records have no account: {names(described)}"
    remedy = f"run 'pam-totp remove {strays[0]}', or enrol the user under the account's name"
    yield Finding(WARNING, CHECK, Code.RECORDS_WITHOUT_ACCOUNT, what, remedy)


def _homes(context: Context, service: str, template: str, people: Sequence[str]) -> Finding:
    """Return the finding about `nullok` with a file in the home folder: an unmounted home has no such file."""
    missing = [name for name in people if _is_home_missing(name)]
    mounting = _modules(context, service) & _MOUNTS
    what = f"{service}: nullok with secret={template} lets a user in without a code while the home is unmounted"
    if mounting:
        what += f"; {' and '.join(sorted(mounting))} mounts the home only during the login"
    if missing:
        what += f" (homes missing now: {names(missing)})"
    remedy = "remove nullok, or keep the tokens in the store of the host (remove secret=)"
    return Finding(ERROR if mounting else WARNING, CHECK, Code.NULLOK_WITHOUT_HOME, what, remedy)


def _is_home_missing(name: str) -> bool:
    """Return True if the home folder does not exist, or is empty like a mount point."""
    try:
        return not os.listdir(pwd.getpwnam(name).pw_dir)
    except FileNotFoundError:
        return True
    except (KeyError, OSError):
        return False


def _modules(context: Context, service: str) -> set[str]:
    """Return the modules of a service in the phases auth and session."""
    found: set[str] = set()
    for phase in ("auth", "session"):
        try:
            found |= {h.rule.module for h in context.machine.stack(service, phase) if not h.is_head}
        except StackError:
            continue
    return found


# ---- sshd


def _ssh(context: Context, line: Settings, people: Sequence[str]) -> Iterator[Finding]:
    """Yield the findings about sshd's settings for the users `people`."""
    yield from _root_by_key(context, people)
    yield from _without_key(context, people)
    yield from _without_password(context, people)
    yield from _password_as_code(context, line, people)


def _is_root_refused(context: Context) -> bool:
    """Return True if sshd refuses root's code: it accepts root by a key alone, and a code is required as well."""
    settings = context.sshd("root")
    return settings.get("permitrootlogin") in _ROOT_BY_KEY and _needs_pam(context, settings)


def _root_by_key(context: Context, people: Sequence[str]) -> Iterator[Finding]:
    if "root" not in people or not _is_root_refused(context):
        return
    value = context.sshd("root")["permitrootlogin"].replace("without-password", "prohibit-password")
    what = f"sshd: root is locked out: PermitRootLogin {value} refuses every code of root"
    remedy = "log in as another user and use sudo, or set 'PermitRootLogin yes' (root then needs a code too)"
    severity = ERROR if context.user == "root" or list(people) == ["root"] else WARNING
    yield Finding(severity, CHECK, Code.ROOT_REFUSED_BY_SSHD, what, remedy)


def _without_key(context: Context, people: Sequence[str]) -> Iterator[Finding]:
    """Report the users without a key, if sshd requires a key before the code."""
    without = [name for name in people if _needs_key(context, name) and not has_ssh_key(name, context.sshd(name))]
    if context.user in without:
        what = f"sshd: {context.user} has no key, and would be locked out"
        remedy = "add a key to the user's authorized_keys, or run enable with --first-factor password"
        yield Finding(ERROR, CHECK, Code.USER_WITHOUT_KEY, what, remedy)
    elif without:
        what = f"sshd: these users have no key and are locked out: {names(without)}"
        remedy = "add a key to each user's authorized_keys, or run enable with --first-factor password"
        yield Finding(WARNING, CHECK, Code.USERS_WITHOUT_KEY, what, remedy)


def _without_password(context: Context, people: Sequence[str]) -> Iterator[Finding]:
    """Report the users without a password, if PAM will ask for a password."""
    if context.first != "password" or not context.machine.replacements:
        return
    with_password = accounts_with_password()
    without = [name for name in people if name not in with_password]
    if without:
        what = f"sshd: PAM asks for a password before the code; these users have no password: {names(without)}"
        remedy = "set a password with passwd, or enable sshd with --first-factor key"
        yield Finding(WARNING, CHECK, Code.USERS_WITHOUT_PASSWORD, what, remedy)


def _password_as_code(context: Context, line: Settings, people: Sequence[str]) -> Iterator[Finding]:
    """Report the users whose password sshd sends as the answer to the module's prompt."""
    if context.machine.replacements or line.first_pass == "forward_pass":
        return
    affected = [name for name in people if sshd.sends_password(context.sshd(name))]
    if locked_out := [name for name in affected if sshd.requires_password(context.sshd(name))]:
        what = "sshd: AuthenticationMethods requires the method password, which sends the password as the code: these "
        what += f"users are locked out: {names(locked_out)}"
        remedy = "remove password from AuthenticationMethods (in keyboard-interactive, PAM asks for the password too)"
        yield Finding(ERROR, CHECK, Code.PASSWORD_AS_CODE, what, remedy)
    affected = [name for name in affected if name not in locked_out]
    if affected:
        what = "sshd: PasswordAuthentication sends the password as the code: such logins are refused, and a password "
        what += f"of digits counts as a wrong code ({names(affected)})"
        remedy = "set 'PasswordAuthentication no' and 'KbdInteractiveAuthentication yes'"
        yield Finding(WARNING, CHECK, Code.PASSWORD_AS_CODE, what, remedy)


def _needs_pam(context: Context, settings: sshd.Settings) -> bool:
    return bool(context.machine.replacements) or sshd.requires_pam(settings)


def _needs_key(context: Context, name: str) -> bool:
    return context.first == "key" if context.machine.replacements else sshd.requires_key(context.sshd(name))


def _needs_other_method(context: Context, name: str) -> bool:
    """Return True if every login of a user requires a key, or another method that does not ask PAM."""
    if context.machine.replacements:
        return context.first == "key"
    return sshd.requires_other_method(context.sshd(name))
