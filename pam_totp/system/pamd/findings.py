"""What a check found: how bad it is, what it is, and what helps. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ERROR = "error"  # somebody is locked out, or gets in without a code
WARNING = "warning"  # somebody may be, or the second factor is weaker than it looks
NOTE = "note"  # as it may be meant to be


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of `check`: one line that says `what`, one that says what to do (`remedy`)."""

    severity: str
    check: str
    what: str
    remedy: str


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Those that must be mended."""
    return [f for f in findings if f.severity == ERROR]
