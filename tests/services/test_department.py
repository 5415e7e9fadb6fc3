"""Test of docs/department.md: its commands, run by root and the desk member, print the documented output."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.cli.test_docs import pattern
from tests.services.namespace import Machine
from tests.services.test_desk import (
    SITE,
    desk,  # noqa: F401  a fixture
)
from tests.support.site import TREE, fob, phone

PAGE = (TREE / "docs/department.md").read_text()
SEEDS = "".join(f"T-300{n},{bytes([0x30 + n]).hex() * 20}\n" for n in (1, 2, 3))
HOME = "/root"
PEOPLE = ("dan", "erin")


def documented() -> Iterator[tuple[str, str, list[str]]]:
    """Yield the prompt and each command of the page's consoles, with the lines of its output."""
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL):
        said: list[str] = []
        found: tuple[str, str] | None = None
        for line in block.splitlines():
            if line[:2] in ("# ", "$ "):
                if found is not None:
                    yield *found, said
                found, said = (line[0], line[2:]), []
            else:
                said.append(line)
        assert found is not None
        yield *found, said


def test_the_site_file_and_the_sudo_rule_are_those_of_the_tests() -> None:
    assert SITE in PAGE
    assert "%helpdesk ALL=(root) /usr/bin/pam-totp desk, /usr/bin/pam-totp desk *\n" in PAGE


@pytest.mark.usefixtures("desk")
def test_the_documented_commands_print_the_documented_output(machine: Machine) -> None:
    passwd = machine.path("/etc/passwd").read_text()
    machine.write(
        "/etc/passwd", passwd + "".join(f"{name}:x:5500{i}:5500{i}::/:/bin/sh\n" for i, name in enumerate(PEOPLE))
    )
    machine.path("/var/lib/pam_totp/carol.record").unlink()
    machine.enrol("dan", phone(), failures=7, failures_at=1_700_000_000)
    machine.enrol("erin", fob(serial="T-4001", secret=b"another key 20 bytes"))
    machine.write(f"{HOME}/staff.txt", "alice\nbob\n")
    machine.write(f"{HOME}/box-7.csv", SEEDS)
    count = 0
    for prompt, command, said in documented():
        words = [f"{HOME}/{word}" if word.endswith((".txt", ".csv")) else word for word in command.split()]
        count += 1
        talk = machine.talk(*words, user="root" if prompt == "#" else "carol")
        for line in said:
            if line == "…":
                continue
            question, _, answer = line.partition(": ")
            if question.startswith("One-time code"):
                talk.asks(f"{question}: ").says(answer)
            elif line.startswith("desk> "):
                talk.asks("desk> ").says(line.removeprefix("desk> "))
            else:
                talk.terminal.expect(pattern(line.replace("tickets.txt", f"{HOME}/tickets.txt")).encode())
        status, rest = talk.ends()
        assert status == 0, (command, rest)
        if "invite carol" in command:  # carol enrols, and then enters the codes of the page
            machine.enrol("carol", fob())
    assert count > 15
