"""Test of "Try it by hand" in README.md: the commands, typed into a shell in order, work as documented."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pexpect
import pytest

from pam_totp.core.settings import NEXT_PROMPT
from tests.support.site import PATIENCE, TREE

PROMPT = "typed> "


def commands() -> Iterator[str]:
    """Yield the commands in the section's code blocks. Join a line that ends in `|` with the next line."""
    section = (TREE / "README.md").read_text().split("## Try it by hand\n")[1].split("\n## ")[0]
    for block in re.findall(r"```\n(.*?)```", section, re.DOTALL):
        joined = re.sub(r"\|\n +", "| ", block)
        yield from (re.sub(r" +#.*", "", line) for line in joined.splitlines() if line)


@pytest.fixture
def shell() -> Iterator[pexpect.spawn[str]]:
    environment = {"PATH": "/usr/bin:/bin", "TERM": "dumb", "LC_ALL": "C.UTF-8", "PS1": PROMPT}
    spawned = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile"],
        cwd=str(TREE),
        env=environment,
        encoding="utf-8",
        timeout=PATIENCE,
        dimensions=(24, 1000),
        echo=False,
    )
    spawned.expect_exact(PROMPT)
    try:
        yield spawned
    finally:
        spawned.sendline("kill %1; wait; rm -r $S; exit")
        spawned.expect(pexpect.EOF)
        spawned.close()


def type_in(shell: pexpect.spawn[str], command: str, answer: str | None = None) -> str:
    """Type `command`, and `answer` at its prompts for a code. Return the output with the exit status."""
    shell.sendline(f"{command}; echo =$?=" if not command.endswith("&") else command)
    if answer is not None:
        shell.expect_exact("One-time code: ")
        shell.sendline(answer)
    if command.endswith("&"):
        shell.expect_exact(PROMPT)
        return str(shell.before)
    output = ""
    while shell.expect([NEXT_PROMPT, r"=(\d+)="]) == 0:  # the module asks once more after a refusal
        output += str(shell.before)
        shell.sendline(answer)
    output, status = output + str(shell.before), shell.match[1]
    shell.expect_exact(PROMPT)
    return f"{output}={status}="


def test_the_commands_to_try_by_hand_work_as_documented(shell: pexpect.spawn[str]) -> None:
    outputs: dict[str, str] = {}
    code = ""
    for command in commands():
        if "rehearse" in command:
            break
        outputs[command] = type_in(shell, command)
        if (found := re.search(r"^(\d{6})\s*$", outputs[command], re.MULTILINE)) is not None:
            code = found[1]
        assert command.endswith("&") or outputs[command].endswith("=0="), (command, outputs[command])
    assert any("accepted: code of fob" in output for output in outputs.values())
    assert "fob" in next(output for command, output in outputs.items() if "pam-totp list" in command)
    assert "success" in type_in(shell, command, code).lower()
    assert "success" not in type_in(shell, command, code).lower(), "a second login with the same code is refused"
