"""Fixtures of the real services. A summary line counts the tests by result after a long run."""

from __future__ import annotations

import pytest

from tests.services.conftest import _machine, _sshd, machine, sshd
from tests.torture.pace import LONG, report

__all__ = ["_machine", "_sshd", "machine", "sshd"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if LONG:
        ends = ("passed", "failed", "error", "skipped")
        counted = {end: len(terminalreporter.getreports(end)) for end in ends}
        report("tests: " + ", ".join(f"{number} {end}" for end, number in counted.items() if number or end == "passed"))
