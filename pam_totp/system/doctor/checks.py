"""The list of all checks of `pam-totp doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from pam_totp.system.doctor import (
    checks_authority,
    checks_login,
    checks_machine,
    checks_member,
    checks_people,
    checks_portal,
    checks_radius,
    checks_seal,
)
from pam_totp.system.doctor.context import Context
from pam_totp.system.pamd.findings import Finding, Severity

Check = Callable[[Context], Iterator[Finding]]

CHECKS: Mapping[str, Check] = {  # by their name in the output of the command
    "module": checks_machine.module,
    "helper": checks_machine.helper,
    "sockets": checks_machine.sockets,
    "stores": checks_machine.store,
    "seal": checks_seal.seal,
    "site file": checks_machine.site,
    "clock": checks_machine.clock,
    "stacks": checks_login.stacks,
    "sshd": checks_login.ssh,
    "users": checks_people.users,
    "changes of 'enable'": checks_login.changes,
    "member": checks_member.member,
    "radius": checks_radius.radius,
    "authority": checks_authority.authority,
    "portal": checks_portal.portal,
}
_BY_SEVERITY = list(Severity)  # errors first


def examine(context: Context) -> list[Finding]:
    """Return the findings of all checks, without duplicates, errors first."""
    findings = dict.fromkeys(finding for check in CHECKS.values() for finding in check(context))
    return sorted(findings, key=lambda f: _BY_SEVERITY.index(f.severity))
