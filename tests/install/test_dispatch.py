"""Tests of the computed result of a stack, which must equal the real libpam's result for random stacks."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from pam_totp.system.pamd.stack import RESULTS, Handler, StackError, flatten, parse
from pam_totp.system.pamd.verdicts import find_path, possible_results, verdict
from tests.support.pamconf import login
from tests.torture.pace import rounds

STACKS = rounds(400, 12_000)
NAMED = ("success", "auth_err", "ignore", "authinfo_unavail", "user_unknown", "perm_denied", "new_authtok_reqd")
ACTIONS = ("ok", "done", "bad", "die", "ignore", "reset", "1", "2", "3")


def reader(folder: Path) -> Callable[[str], str | None]:
    return lambda name: (folder / name).read_text() if (folder / name).exists() else None


def any_control(chance: random.Random) -> str:
    if chance.random() < 0.45:
        return chance.choice(["required", "requisite", "sufficient", "optional"])
    named = [f"{r}={chance.choice(ACTIONS)}" for r in chance.sample(NAMED, chance.randint(1, 3))]
    named += [f"default={chance.choice(ACTIONS)}" for _ in range(chance.choice((0, 1, 1, 1, 2)))]
    chance.shuffle(named)
    return f"[{' '.join(named)}]"


def any_text(chance: random.Random, folder: Path, depth: int = 0) -> str:
    """Return the text of a random stack. Some lines continue on the next line, which can be a comment or empty."""
    *lines, last = any_lines(chance, folder, depth)
    between = ("\n", "\n", "\n", "\n", " # \\\n", " \\\n", "\\\n# a comment\n", " \\ \n\n  # \\\n", "\n \\\n\t\n")
    return "".join(line + chance.choice(between) for line in lines) + f"{last}\n"


def any_lines(chance: random.Random, folder: Path, depth: int = 0) -> list[str]:
    """Return random lines of a stack. Each module returns a fixed result, and includes are at most two levels deep."""
    lines = []
    for _ in range(chance.randint(1, 4)):
        if depth < 2 and chance.random() < 0.25:
            included = folder / f"included-{chance.randrange(10**9)}"
            included.write_text(any_text(chance, folder, depth + 1))
            # an absolute path, because Linux-PAM 1.5 looks up relative paths in /etc/pam.d
            lines.append(f"{chance.choice(['@include', 'auth include', 'auth substack'])} {included}")
        else:
            lines.append(f"auth {any_control(chance)} pam_debug.so auth={chance.choice(NAMED)}")
    return lines


def fixed_result(stack: Sequence[Handler], index: int) -> str:
    return stack[index].rule.arguments[0].removeprefix("auth=")


def results_of(stack: Sequence[Handler], index: int) -> tuple[str, ...]:
    return possible_results(stack[index])


def test_the_verdict_of_any_stack_is_that_of_the_real_libpam(tmp_path: Path) -> None:
    read = reader(tmp_path)
    chance = random.Random(4226)
    ends = set()
    for number in range(STACKS):
        name = f"service-{number}"
        (tmp_path / name).write_text(any_text(chance, tmp_path))
        stack = flatten(name, read)
        computed = verdict(stack, partial(fixed_result, stack))
        real = RESULTS[login(name, "root", [], tmp_path).result]
        assert computed == real, (tmp_path / name).read_text()
        ends.add(computed)
    assert {"success", "auth_err", "perm_denied", "ignore"} <= ends, "the random stacks end with every common result"


def test_the_real_libpam_follows_each_path_that_is_found(tmp_path: Path) -> None:
    read = reader(tmp_path)
    chance = random.Random(6238)
    paths = 0
    for number in range(150):
        lines = [f"auth {any_control(chance)} pam_debug.so" for _ in range(chance.randint(2, 5))]
        (tmp_path / "guess").write_text("\n".join(lines) + "\n")
        stack = flatten("guess", read)
        path = find_path(stack, partial(results_of, stack), lambda _, end: end == "success")
        if path is None:
            continue
        paths += 1
        for move in path:
            lines[move.index] += f" auth={move.result}"
        (tmp_path / f"way-{number}").write_text("\n".join(lines) + "\n")
        assert login(f"way-{number}", "root", [], tmp_path).result == 0, lines
    assert paths > 50


def test_lines_are_read_as_libpam_reads_them() -> None:
    text = (
        "# a comment\n"
        "auth  required \\\n"
        "      pam_env.so  # another comment\n"
        "-session optional pam_systemd.so\n"
        "AUTH [success=1  default=ignore] pam_unix.so [prompt=One [code\\]: ] echo\n"
        "@include common-account\n"
        "auth required pam_permit.so \\\n"
        "\n"
        "  # a comment \\\n"
        "auth required pam_totp.so\n"
        "\\\n"
        "auth required pam_env.so\n"
    )
    rules = parse(text)
    assert [(r.first, r.last, r.phase, r.control, r.module) for r in rules[:3]] == [
        (1, 2, "auth", "required", "pam_env.so"),
        (3, 3, "session", "optional", "pam_systemd.so"),
        (4, 4, "auth", "[success=1  default=ignore]", "pam_unix.so"),
    ]
    assert rules[2].arguments == ("prompt=One [code]: ", "echo")
    assert (rules[2].action("success"), rules[2].action("auth_err")) == (1, "ignore")
    assert (rules[3].is_include, rules[3].target) == (True, "common-account")
    assert [(r.first, r.last, r.module) for r in rules[4:]] == [(6, 9, "pam_permit.so"), (10, 11, "pam_env.so")]
    assert rules[4].arguments == ("auth", "required", "pam_totp.so")


def test_the_first_of_several_defaults_in_a_control_applies() -> None:
    [rule] = parse("auth [default=ignore success=ok default=die success=done] pam_totp.so\n")
    assert (rule.action("auth_err"), rule.action("success")) == ("ignore", "done")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("auth\n", "x:1: the line must name a module"),
        ("\nautt required pam_unix.so\n", "x:2: unknown phase autt"),
        ("auth require pam_unix.so\n", "x:1: unknown control require"),
        ("auth [success=often] pam_unix.so\n", "success=often"),
        ("auth [success=4294967297 default=die] pam_unix.so\n", "success=4294967297"),
        (f"auth [success={'9' * 5000} default=die] pam_unix.so\n", "a number must have at most 6 digits"),
        ("auth required pam_unix.so \\\n# a comment\n", "x:1: the file ends in a line that continues"),
        ("auth required pam_unix.so\r\n", "x:1: the line contains a carriage return"),
        ("# a comment\r\nauth required pam_unix.so\n\r\n", "x:3: the line contains a carriage return"),
        ("@include\n", "x:1: @include must name a file"),
        ("@include nowhere\n", "nowhere: not found"),
        ("@include x\n", "x: includes must be at most 32 files deep"),
    ],
)
def test_text_that_libpam_would_refuse_is_an_error_with_its_line(text: str, says: str) -> None:
    with pytest.raises(StackError, match=says.replace("[", r"\[")):
        flatten("x", {"x": text}.get)
