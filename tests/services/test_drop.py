"""Test of the helper: it imports its modules before it drops privileges, and reads records after the drop."""

from __future__ import annotations

import re

import pytest

from tests.services.namespace import STORE, Machine
from tests.support.site import codes


@pytest.mark.bare
@pytest.mark.parametrize("argument", ["", "[secret=~/.pam_totp.json]"])
def test_imports_precede_the_privilege_drop_and_records_follow_it(machine: Machine, argument: str) -> None:
    machine.stack("demo", machine.module_line(argument))
    machine.write("/etc/pam_totp.toml", "[policy]\nlook_ahead = 3\n")
    machine.enrol("alice")
    strace = ("strace", "-f", "-o", "/run/trace", "-e", "trace=openat,setresuid,execve")
    machine.run(*strace, "pamtester", "demo", "alice", "authenticate", stdin=f"{codes(0)}\n")
    calls = machine.path("/run/trace").read_text().splitlines()
    host = calls[0].split()[0]
    calls = [line for line in calls if line.split()[0] != host]  # of the helper and, with secret=, its child
    assert any('execve("/usr/bin/python3"' in line for line in calls)
    drop = next(i for i, line in enumerate(calls) if "setresuid" in line and "setresuid(0, 0, 0)" not in line)
    before, after = calls[:drop], calls[drop:]
    assert not [line for line in before if STORE in line or "/home/" in line or "pam_totp.toml" in line]
    assert [line for line in after if "pam_totp.toml" in line]
    assert not [line for line in after if re.search(r"\.pyc?\"|\.so\"", line)]
