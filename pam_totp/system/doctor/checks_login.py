"""Checks of what a login meets: the order of the stack, sshd's settings, who is not enrolled, changes of ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from pam_totp.system import sshd
from pam_totp.system.doctor.context import Case
from pam_totp.system.enable import trial
from pam_totp.system.enable.changes import read
from pam_totp.system.pamd import analysis
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Finding
from pam_totp.system.pamd.stack import StackError
from pam_totp.system.people import login_to, with_password

_MOST_NAMES = 8  # in one message


def stacks(case: Case) -> Iterator[Finding]:
    """The order of every stack with our line."""
    for service in case.services:
        try:
            if case.machine.service(service) is None:
                text = f"there is no service {service}: no file of that name is in /etc/pam.d"
                yield Finding(ERROR, analysis.CHECK, text, "is the name right? (see 'ls /etc/pam.d')")
                continue
            stack = case.machine.stack(service)
        except StackError as e:
            yield Finding(ERROR, analysis.CHECK, f"{service}: {e}; libpam refuses every login", "see pam.d(5)")
            continue
        mine = [h.rule for h in stack if h.rule.ours]
        alone = service == "sshd" and any(r.action("success") == "done" for r in mine)  # a key comes before
        yield from analysis.findings(service, stack, alone=alone)
        for phase in case.machine.misplaced(service):
            text = f"{service}: our module is named under {phase}, where it does nothing but fail"
            yield Finding(ERROR, analysis.CHECK, text, "remove that line")


def ssh(case: Case) -> Iterator[Finding]:
    """sshd has no way in around PAM, for anybody who might log in."""
    if "sshd" not in case.services or case.machine.instead:
        return  # or not changed yet: `enable` looks again once it is
    try:
        if (wrong := sshd.wrong()) is not None:
            yield Finding(ERROR, "sshd", f"sshd -t: {wrong}", "mend sshd's configuration")
            return
        asked = [(name, "localhost", "127.0.0.1") for name in case.people] + sshd.matches(sshd.files())
        ways: dict[str, list[str]] = {}
        for user, host, address in asked:
            for found in sshd.around_pam(sshd.settings(user, host, address)):
                ways.setdefault(found, []).append(user if address == "127.0.0.1" else f"{user} from {address}")
        for found, whom in ways.items():
            text = f"{found} (for {_names(sorted(set(whom)))}): that way in asks for no code"
            yield Finding(ERROR, "sshd", text, "pam-totp enable sshd, or set AuthenticationMethods yourself")
    except sshd.SshdError as e:
        yield Finding(ERROR, "sshd", str(e), "install openssh-server, or mend its configuration")


def users(case: Case) -> Iterator[Finding]:
    """Who would be locked out by a service, having no token."""
    if os.geteuid() != 0:
        yield Finding(NOTE, "users", "who would be locked out was not looked at", "run this as root")
        return
    for service, found in case.settings():
        if found.nullok or found.secret is not None or found.user is not None:
            continue
        have = case.enrolled(found.store).users if os.path.isdir(found.store) else frozenset()
        may = login_to(service)
        without = [name for name in case.people if name not in have and may(name)]
        remedy = f"pam-totp enroll {without[0] if without else 'USER'}, or nullok on that line for a while"
        if case.user is not None and case.user in without:
            text = f"{service}: {case.user} has no token, and would be locked out"
            yield Finding(ERROR, "users", text, f"pam-totp enroll {case.user}")
        elif without and not any(may(name) for name in have):
            text = f"{service}: nobody has a token; locked out: {_names(without)}"
            yield Finding(ERROR, "users", text, remedy)
        elif without:
            yield Finding(WARNING, "users", f"{service}: locked out, having no token: {_names(without)}", remedy)
        yield from _no_password(service, may, case)


def changes(case: Case) -> Iterator[Finding]:
    """What `enable` has recorded is what is there."""
    try:
        records = [(s, state, trial.load(s, state)) for s, state in trial.records()]
    except trial.TrialError as e:
        yield Finding(WARNING, "changes", str(e), "see the man page, FILES")
        return
    for service, state, record in records:
        if state != trial.KEPT and not trial.watched(service):
            text = f"{service}: a change on trial was not taken back"
            yield Finding(ERROR, "changes", text, f"pam-totp disable {service}, or confirm it with 'enable --keep'")
        elif state == trial.KEPT and record is not None:
            for change in record.changes:
                if (read(change.path) or "").find(change.ours) < 0:
                    text = f"{change.path} no longer has what 'enable {service}' put there; no code is asked for"
                    yield Finding(ERROR, "changes", text, f"pam-totp disable {service}, then enable it again")


def _no_password(service: str, may: Callable[[str], bool], case: Case) -> Iterator[Finding]:
    """Who has a token and a key, but no password that PAM could ask for."""
    if service != "sshd" or case.first_by_key or not case.machine.instead:
        return
    by_password = with_password()
    without = [name for name in case.people if name not in by_password and may(name)]
    if without:
        text = f"sshd: locked out, having no password, which PAM asks for before the code: {_names(without)}"
        yield Finding(WARNING, "users", text, "passwd, or enable sshd with --first-factor key")


def _names(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
