"""Tests of the recipes in docs/module.md, with the real sshd and the PAM modules that the recipes name."""

from __future__ import annotations

import re

import pytest

from tests.services.namespace import Machine, Sshd
from tests.support.etc import PASSWORD
from tests.support.site import TREE, codes

CODE = "One-time code: "
DOCUMENT = (TREE / "docs" / "module.md").read_text()


def recipe(machine: Machine, heading: str, way: str) -> None:
    """Install the files that docs/module.md shows under `heading`, with the path of this relay and without delays.

    `way` is `spawn` for a helper, or `socket` for the service.
    """
    text = DOCUMENT.split(f"### {heading}\n", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]
    lines = [line.strip() for line in re.findall(r"^    (auth .*)$", text, re.MULTILINE)]
    assert lines, heading
    for i, line in enumerate(lines):
        found = re.fullmatch(r"auth\s+(\S+)\s+pam_totp\.so\s*(.*)", line)
        if found is not None:
            lines[i] = machine.module_line(found[2], found[1], way)
        elif "pam_unix.so" in line and "nodelay" not in line:
            lines[i] += " nodelay"
    machine.stack("sshd", *lines)
    for path, content in re.findall(r"^`(/etc/[^`]+)`:\n\n((?:    .*\n)+)", text, re.MULTILINE):
        machine.write(path, re.sub(r"^    ", "", content, flags=re.MULTILINE))


@pytest.fixture(autouse=True)
def enrolled(machine: Machine) -> None:
    machine.enrol("alice")


def test_networks_without_a_code(machine: Machine, sshd: Sshd, way_there: str) -> None:
    recipe(machine, "No code from some networks", way_there)
    assert sshd.ssh(source="127.0.0.2").asks("Password: ").says(PASSWORD).ends()[0] == 0
    talk = sshd.ssh("alice", "NumberOfPasswordPrompts=1", source="127.0.0.2").asks("Password: ").says("wrong")
    assert talk.ends()[0] == 255
    talk = sshd.ssh().asks("Password: ").says(PASSWORD).asks(CODE).fails("")
    assert talk.asks("Password: ").says(PASSWORD).asks(CODE).says(codes(0)).ends()[0] == 0


def test_groups_without_a_code(machine: Machine, sshd: Sshd, way_there: str) -> None:
    recipe(machine, "No code for some groups", way_there)
    group = machine.path("/etc/group")
    before = group.read_text()
    machine.write("/etc/group", before + "no-code:x:54010:bob\n")
    try:
        assert sshd.ssh("bob").asks("Password: ").says(PASSWORD).ends()[0] == 0
        talk = sshd.ssh("bob", "NumberOfPasswordPrompts=1").asks("Password: ").says("wrong")
        assert talk.ends()[0] == 255
        assert sshd.ssh("alice").asks("Password: ").says(PASSWORD).asks(CODE).says(codes(0)).ends()[0] == 0
    finally:
        machine.write("/etc/group", before)


def test_password_then_code(machine: Machine, sshd: Sshd, way_there: str) -> None:
    recipe(machine, "Password, then code", way_there)
    assert sshd.ssh().asks("Password: ").says(PASSWORD).asks(CODE).says(codes(0)).ends()[0] == 0


def test_password_and_code_in_one_answer(machine: Machine, sshd: Sshd, way_there: str) -> None:
    recipe(machine, "Password and code in one answer", way_there)
    talk = sshd.ssh("alice", "NumberOfPasswordPrompts=1", port=sshd.PASSWORD)
    assert talk.asks("password: ").says("wrong" + codes(0)).ends()[0] == 255
    talk = sshd.ssh(port=sshd.PASSWORD).asks("password: ").says(PASSWORD + codes(1))
    assert talk.ends()[0] == 0


def test_every_argument_is_documented() -> None:
    from pam_totp.core.settings import _FLAGS, _VALUES

    for name in (*_VALUES, *_FLAGS):
        assert re.search(rf"^\| `{name}[`=]", DOCUMENT, re.MULTILINE), name
