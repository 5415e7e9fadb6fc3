"""Test of docs/tokens.md: its commands, run in their order, print the documented output."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from pam_totp.core.oath import totp
from tests.formats.backups import AEGIS, dumped
from tests.formats.reading import written
from tests.support.site import KEY, ME, TREE, Site, fob
from tests.support.terminals import QUESTION

DOCS = TREE / "docs" / "tokens.md"
PEOPLE = {"alice": ME, "bob": "daemon", "Alice": ME.capitalize()}  # users of the document -> accounts of this host


def documented() -> Iterator[tuple[str, list[str]]]:
    """Yield each command after a root prompt `#`, with the lines of its documented output."""
    for block in re.findall(r"```console\n(.*?)```", DOCS.read_text(), re.DOTALL):
        command: str | None = None
        said: list[str] = []
        for line in block.splitlines():
            if line.startswith("# "):
                if command is not None:
                    yield command, said
                command, said = line.removeprefix("# "), []
            else:
                said.append(line)
        assert command is not None
        yield command, said


@pytest.mark.parametrize("document", sorted((TREE / "docs").glob("*.md")), ids=lambda path: str(path.name))
def test_paths_to_the_virtual_environment_are_right_after_a_cd(document: Path) -> None:
    for block in re.findall(r"```\w*\n(.*?)```", document.read_text(), re.DOTALL):
        folder = TREE
        for line in block.splitlines():
            if found := re.match(r"cd ([^/\s]\S*)$", line):  # an absolute path is a folder of the reader's host
                folder = TREE / found[1]
                assert folder.is_dir(), line
            for path in re.findall(r"(?<!\S)((?:\.\./)*)\.venv/bin/", line):
                assert (folder / path).resolve() == TREE, line


def pattern(line: str) -> str:
    """Return a regular expression for the line, in which white space can have any length, and … matches any text."""
    return r"[ \t]+".join(r"[^\r\n]*".join(map(re.escape, word.split("…"))) for word in line.split())


def create_files(folder: Path) -> None:
    """Create the files that the documented commands read."""
    tokens = [fob(name=f"T-100{i}", serial=f"T-100{i}", secret=bytes([i]) * 20) for i in (1, 2)]
    (folder / "box.xml").write_bytes(written("pskc", tokens, password="qwerty"))
    (folder / "password").write_text("qwerty\n")
    row = ";T-2001;MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U;30;Example;C200"
    (folder / "box-7.csv").write_text("".join(f"T-300{n},{bytes([0x30 + n]).hex() * 20}\n" for n in (1, 2, 3)))
    (folder / "seeds.csv").write_text(f"upn;serial number;secret key;time interval;manufacturer;model\n{row}\n")
    usable = AEGIS | {"entries": AEGIS["entries"][:2]}
    (folder / "aegis.json").write_bytes(dumped({"version": 1, "header": {"slots": None, "params": None}, "db": usable}))
    (folder / "serials.csv").write_text(f"serial,user\nT-1001,{ME}\nT-1002,{PEOPLE['bob']}\n")
    home = folder / "home" / ME
    home.mkdir(parents=True)
    made = [
        "--counter-based",
        "--no-confirm",
        "--quiet",
        "--force",
        "--rate-limit=3",
        "--rate-time=30",
        "--window-size=3",
    ]
    subprocess.run(
        ["google-authenticator", *made, "--secret", home / ".google_authenticator"],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    (folder / "users.oath").write_text(f"# fleet\nHOTP {ME} - {KEY.hex()}\nHOTP {PEOPLE['bob']} 1234 {'ab' * 20}\n")
    (folder / "old.oath").write_text(f"HOTP {PEOPLE['Alice']} - {'cd' * 20}\n")


def on_this_host(text: str) -> str:
    """Return a command or a line of the document with accounts of this host."""
    for name, account in PEOPLE.items():
        text = text.replace(name, account)
    return text.replace(f"{ME}.ga", "alice.ga")


def test_the_documented_commands_print_the_documented_output(site: Site, tmp_path: Path) -> None:
    create_files(tmp_path)
    assert shutil.which("cat")
    run, key = 0, b""
    for command, said in documented():
        words = on_this_host(command).replace("/home", str(tmp_path / "home"))
        words = words.replace("/etc/users.oath", str(tmp_path / "users.oath"))
        if words.startswith("pam-totp "):
            name, *rest = words.removeprefix("pam-totp ").split()
            argv = [sys.executable, "-m", "pam_totp.cli", name, "--store", str(site.store), *rest]
            run += 1
        else:
            argv = words.split()
        child = pexpect.spawn(
            argv[0],
            argv[1:],
            cwd=str(tmp_path),
            encoding="utf-8",
            dimensions=(60, 200),
            timeout=60,
            env={"PYTHONPATH": str(TREE), "PATH": "/usr/bin:/bin", "TERM": "xterm"},
        )
        for line in said:
            expected = on_this_host(line)
            if line == "…":
                continue
            if line.startswith(QUESTION):
                child.expect_exact(QUESTION)
                child.sendline(totp(key, int(time.time())))
                continue
            child.expect(pattern(expected))
            if line.startswith("key: "):
                key = base64.b32decode(child.after.removeprefix("key: ").strip().replace(" ", ""))
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0, command
    assert run >= 9


def test_the_documented_packages_of_make_deb_are_those_of_the_makefile() -> None:
    needed = re.search(r"^NEED_DEB = (.*)$", (TREE / "Makefile").read_text(), re.MULTILINE)
    page = (TREE / "docs/installing.md").read_text()
    documented = re.search(r"^sudo apt-get install make (build-essential .*)$", page, re.MULTILINE)
    assert needed is not None
    assert documented is not None
    assert {*documented[1].split(), "python3"} == set(needed[1].split()), "debhelper needs python3 itself"


@pytest.mark.parametrize(
    "path", [TREE / "README.md", *sorted((TREE / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_a_line_of_a_code_block_contains_one_command(path: Path) -> None:
    """A line with two comments shows that an editor has joined the lines of a block."""
    blocks = re.findall(r"^```.*?^```", path.read_text(), re.MULTILINE | re.DOTALL)
    assert [line for block in blocks for line in block.splitlines() if len(re.findall(r"\s# ", line)) > 1] == []


def test_each_template_of_an_issue_begins_with_its_name_and_purpose() -> None:
    templates = sorted((TREE / ".github" / "ISSUE_TEMPLATE").glob("*.md"))
    assert templates
    assert [t.name for t in templates if not re.match(r"---\nname: .+\nabout: .+\n---\n", t.read_text())] == []
