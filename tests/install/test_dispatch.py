"""What libpam makes of a stack: our walk of it against the real libpam's, for stacks made at random."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pam_totp.system.pamd.stack import RESULTS, StackError, flat, rules
from pam_totp.system.pamd.verdicts import results_of, verdict, way
from tests.pamconf import login

STACKS = 1200
NAMED = ("success", "auth_err", "ignore", "authinfo_unavail", "user_unknown", "perm_denied", "new_authtok_reqd")
ACTIONS = ("ok", "done", "bad", "die", "ignore", "reset", "1", "2", "3")


def reader(folder: Path):  # type: ignore[no-untyped-def]
    return lambda name: (folder / name).read_text() if (folder / name).exists() else None


def any_control(chance: random.Random) -> str:
    if chance.random() < 0.45:
        return chance.choice(["required", "requisite", "sufficient", "optional"])
    named = [f"{r}={chance.choice(ACTIONS)}" for r in chance.sample(NAMED, chance.randint(1, 3))]
    if chance.random() < 0.7:
        named.append(f"default={chance.choice(ACTIONS)}")
    return f"[{' '.join(named)}]"


def any_lines(chance: random.Random, folder: Path, depth: int = 0) -> list[str]:
    """A stack of modules that return what they are told to, with includes up to two deep."""
    lines = []
    for _ in range(chance.randint(1, 4)):
        if depth < 2 and chance.random() < 0.25:
            included = folder / f"included-{chance.randrange(10**9)}"
            included.write_text("\n".join(any_lines(chance, folder, depth + 1)) + "\n")
            # by absolute path: Linux-PAM 1.5 looks for others in /etc/pam.d, even under pam_start_confdir
            lines.append(f"{chance.choice(['@include', 'auth include', 'auth substack'])} {included}")
        else:
            lines.append(f"auth {any_control(chance)} pam_debug.so auth={chance.choice(NAMED)}")
    return lines


def test_any_stack_ends_as_the_real_libpam_says(tmp_path: Path) -> None:
    read = reader(tmp_path)
    chance = random.Random(4226)
    ends = set()
    for number in range(STACKS):
        name = f"service-{number}"
        (tmp_path / name).write_text("\n".join(any_lines(chance, tmp_path)) + "\n")
        stack = flat(name, read)
        ours = verdict(stack, lambda at, stack=stack: stack[at].rule.arguments[0].removeprefix("auth="))
        real = RESULTS[login(name, "root", [], tmp_path).result]
        assert ours == real, (tmp_path / name).read_text()
        ends.add(ours)
    assert {"success", "auth_err", "perm_denied", "ignore"} <= ends, "a test that meets only one end shows nothing"


def test_a_way_that_is_found_is_one_that_the_real_libpam_goes(tmp_path: Path) -> None:
    read = reader(tmp_path)
    chance = random.Random(6238)
    found_some = 0
    for number in range(150):
        lines = [f"auth {any_control(chance)} pam_debug.so" for _ in range(chance.randint(2, 5))]
        (tmp_path / "guess").write_text("\n".join(lines) + "\n")
        stack = flat("guess", read)
        found = way(stack, lambda at, stack=stack: results_of(stack[at]), lambda _, end: end == "success")
        if found is None:
            continue
        found_some += 1
        for taken in found:
            lines[taken.at] += f" auth={taken.result}"
        (tmp_path / f"way-{number}").write_text("\n".join(lines) + "\n")
        assert login(f"way-{number}", "root", [], tmp_path).result == 0, lines
    assert found_some > 50


def test_lines_are_read_as_libpam_reads_them() -> None:
    text = (
        "# a comment\n"
        "auth  required \\\n"
        "      pam_env.so  # what follows is none\n"
        "-session optional pam_systemd.so\n"
        "AUTH [success=1  default=ignore] pam_unix.so [prompt=One [code\\]: ] echo\n"
        "@include common-account\n"
    )
    found = rules(text)
    assert [(r.first, r.last, r.phase, r.control, r.module) for r in found[:3]] == [
        (1, 2, "auth", "required", "pam_env.so"),
        (3, 3, "session", "optional", "pam_systemd.so"),
        (4, 4, "auth", "[success=1  default=ignore]", "pam_unix.so"),
    ]
    assert found[2].arguments == ("prompt=One [code]: ", "echo")
    assert (found[2].action("success"), found[2].action("auth_err")) == (1, "ignore")
    assert (found[3].includes, found[3].target) == (True, "common-account")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("auth\n", "x:1: names no module"),
        ("\nautt required pam_unix.so\n", "x:2: no phase is called autt"),
        ("auth require pam_unix.so\n", "x:1: no control is called require"),
        ("auth [success=often] pam_unix.so\n", "success=often"),
        ("@include\n", "x:1: includes nothing"),
        ("@include nowhere\n", "nowhere: is not there"),
        ("@include x\n", "includes itself"),
    ],
)
def test_what_libpam_would_refuse_is_an_error_that_names_the_place(text: str, says: str) -> None:
    with pytest.raises(StackError, match=says.replace("[", r"\[")):
        flat("x", {"x": text}.get)
