"""The list of all checks of `pam-totp doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pam_totp.system.doctor import checks_login, checks_machine
from pam_totp.system.doctor.context import Context
from pam_totp.system.pamd.findings import Finding, Severity

Check = Callable[[Context], Iterator[Finding]]

CHECKS: Sequence[Check] = (
    checks_machine.module,
    checks_machine.helper,
    checks_machine.sockets,
    checks_machine.store,
    checks_machine.site,
    checks_machine.clock,
    checks_login.stacks,
    checks_login.ssh,
    checks_login.users,
    checks_login.changes,
)
_BY_SEVERITY = list(Severity)  # errors first


def examine(context: Context) -> list[Finding]:
    """Return the findings of all checks, without duplicates, errors first."""
    findings = dict.fromkeys(finding for check in CHECKS for finding in check(context))
    return sorted(findings, key=lambda f: _BY_SEVERITY.index(f.severity))
