"""What may keep people out, or let them in without a code: a table of checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pam_totp.system.doctor import checks_login, checks_machine
from pam_totp.system.doctor.context import Case
from pam_totp.system.pamd.findings import Finding

Check = Callable[[Case], Iterator[Finding]]

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
_WORST_FIRST = ("error", "warning", "note")


def examine(case: Case) -> list[Finding]:
    """All findings, the worst first."""
    found = dict.fromkeys(finding for check in CHECKS for finding in check(case))
    return sorted(found, key=lambda f: _WORST_FIRST.index(f.severity))
