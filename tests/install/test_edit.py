"""Tests of the pam_totp.so line in a service file: its position, and its removal."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from pam_totp.system.enable.changes import Change
from pam_totp.system.enable.plan import EnablingError, plan
from pam_totp.system.machine import Machine
from pam_totp.system.pamd import analysis, ways
from pam_totp.system.pamd.edit import has_all, insert, new_lines, remove
from pam_totp.system.pamd.stack import Handler, StackError, flatten, parse
from pam_totp.system.pamd.verdicts import Move, find_path, possible_results
from pam_totp.system.pamd.ways import Need
from tests.install.test_dispatch import any_control
from tests.support.etc import STACKS

ADDED = new_lines("x", "password", [])


def put(text: str, others: dict[str, str] | None = None) -> str:
    return insert(text, "x", ADDED, {**STACKS, **(others or {})}.get)


def machine(folder: Path, **stacks: str) -> Machine:
    (folder / "etc/pam.d").mkdir(parents=True)
    for name, text in {**STACKS, **stacks}.items():
        (folder / "etc/pam.d" / name.replace("_", "-")).write_text(text)
    return Machine(str(folder))


@pytest.mark.parametrize("service", ["sudo", "sudo-i", "su", "sshd"])
def test_the_line_follows_the_first_factor_and_other_lines_are_unchanged(service: str) -> None:
    before = STACKS[service]
    after = insert(before, service, ADDED, STACKS.get)
    assert after.replace(ADDED, "") == before
    assert after.index("@include common-auth") < after.index(ADDED) < after.index("common-account")
    assert remove(after, ADDED) == before


def test_with_a_key_the_line_comes_first_and_no_password_is_asked_for() -> None:
    after = insert(STACKS["sshd"], "sshd", new_lines("sshd", "key", []), STACKS.get, "key")
    assert after.index("pam_totp.so") < after.index("common-auth")
    stack = flatten("sshd", {**STACKS, "sshd": after}.get)
    longer = find_path(
        stack,
        lambda i: ("success",) if stack[i].rule.is_pam_totp else possible_results(stack[i]),
        lambda path, _: len(path) > 1,
    )
    assert longer is None, "after an accepted code, no other module runs"


def test_with_a_key_or_a_password_each_login_runs_one_code_line() -> None:
    added = new_lines("sshd", "key-or-password", ["nullok"])
    after = insert(STACKS["sshd"], "sshd", added, STACKS.get, "key-or-password")
    assert remove(after, added) == STACKS["sshd"]
    assert has_all(after, added)
    assert not has_all(after.replace("auth required pam_totp.so nullok\n", ""), added)
    stack = flatten("sshd", {**STACKS, "sshd": after}.get)
    [key, password] = analysis.totp_modules(stack)
    assert key < min(analysis.password_modules(stack)) < password
    for met, results in ((key, ("success",)), (password, ("system_err", "auth_err", "module_unknown"))):
        for result in results:

            def answers(index: int, result: str = result) -> Sequence[str]:
                return (result,) if stack[index].rule.module == "pam_exec.so" else possible_results(stack[index])

            def other(path: Sequence[Move], verdict: str, met: int = met) -> bool:
                return verdict == "success" and [m.index for m in path if m.index in (key, password)] != [met]

            assert find_path(stack, answers, other) is None
    assert list(analysis.check_order("sshd", stack, code_only=True)) == []


def test_edited_blocks_are_not_removed() -> None:
    added = new_lines("sshd", "key-or-password", [])
    after = insert(STACKS["sshd"], "sshd", added, STACKS.get, "key-or-password")
    with pytest.raises(StackError, match="were changed"):
        remove(after.replace("auth required pam_totp.so\n", "auth required pam_totp.so nullok\n"), added)


def test_a_jump_is_never_split() -> None:
    text = (
        "auth [success=2 default=ignore] pam_unix.so\nauth [success=1 default=ignore] pam_sss.so\n"
        "auth requisite pam_deny.so\nauth required pam_permit.so\n"
    )
    assert put(text).splitlines()[3].startswith("# added by"), "the line is at the target of the jump"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("auth sufficient pam_unix.so\nauth required pam_deny.so\n", "pam_unix.so .* returns success"),
        ("auth required pam_permit.so\n", "has no password module"),
        ("auth requisite pam_unix.so\nauth optional pam_totp.so\n", "already names pam_totp.so"),
        ("auth requisite pam_unix.so\n@include gone\n", "gone: not found"),
        ("auth [success=3 default=ignore] pam_unix.so\nauth requisite pam_deny.so\n", "a jump would skip the line"),
    ],
)
def test_insert_raises_an_error_if_no_position_is_safe(text: str, why: str) -> None:
    with pytest.raises(StackError, match=why):
        put(text)


def test_the_line_is_never_inserted_into_a_continued_line() -> None:
    first = "auth requisite pam_unix.so \\\n# nullok\n\nauth required pam_env.so\n"
    rest = "account required pam_permit.so\n"
    added = new_lines("x", "password", [])
    assert insert(first + rest, "x", added, lambda name: None) == first + added + rest


def test_a_sufficient_password_in_a_substack_ends_only_the_substack() -> None:
    others = {"password-auth": "auth sufficient pam_unix.so\nauth required pam_deny.so\n"}
    assert put("auth substack password-auth\n", others).endswith(ADDED)


def test_in_random_stacks_no_login_bypasses_an_inserted_line() -> None:
    """Every path to success runs the inserted line, and a refusal by pam_totp.so never leads to success."""
    chance = random.Random(7)
    done = 0
    for _ in range(400):
        text = "".join(
            f"auth {any_control(chance)} {chance.choice(['pam_unix.so', 'pam_sss.so', 'pam_env.so', 'pam_deny.so'])}\n"
            for _ in range(chance.randint(1, 5))
        )
        try:
            after = put(text)
        except StackError:
            continue
        done += 1
        stack = flatten("x", {"x": after}.get)
        totp = analysis.totp_modules(stack)

        def refuse(index: int, stack: Sequence[Handler] = stack, totp: Sequence[int] = totp) -> tuple[str, ...]:
            return ("auth_err",) if index in totp else possible_results(stack[index])

        def is_in(path: Sequence[Move], end: str, totp: Sequence[int] = totp) -> bool:
            return end == "success" and path[-1].index >= totp[0]

        path = find_path(stack, refuse, is_in)
        assert path is None or not any(move.index in totp for move in path), after
        assert all(b.need is not Need.NOTHING for b in ways.bypasses(stack, totp)), after
        assert remove(after, ADDED) == text
    assert done > 30


def test_later_edits_are_kept() -> None:
    after = put(STACKS["sudo"])
    edited = (
        "# site policy\n"
        + after.replace("pam_limits.so", "pam_limits.so conf=/etc/x")
        + "session optional pam_umask.so\n"
    )
    assert remove(edited, ADDED) == edited.replace(ADDED, "")


@pytest.mark.parametrize("edit", [("auth required", "auth optional"), (ADDED, ADDED + ADDED), (ADDED, "")])
def test_lines_that_were_edited_since_are_not_removed(edit: tuple[str, str]) -> None:
    with pytest.raises(StackError, match="were changed"):
        remove(put(STACKS["sudo"]).replace(*edit), ADDED)


def test_the_file_contains_the_arguments_unchanged() -> None:
    words = ["prompt=Code [6 digits]: ", "nullok", "store=/srv/x"]
    text = insert(STACKS["sudo"], "sudo", new_lines("sudo", "password", words), STACKS.get)
    (rule,) = (r for r in parse(text) if r.is_pam_totp)
    assert list(rule.arguments) == words


# ---- plans


def names(changes: tuple[Change, ...]) -> list[str]:
    return [Path(c.path).name for c in changes]


def test_sudo_covers_sudo_i_and_su_covers_su_l_once(tmp_path: Path) -> None:
    here = machine(tmp_path)
    assert names(plan(here, "sudo", "password", [])) == ["sudo", "sudo-i"]
    assert names(plan(here, "su", "password", [])) == ["su"], "su-l is unchanged, because it includes su"


def test_su_l_is_changed_separately_if_it_does_not_include_su(tmp_path: Path) -> None:
    assert names(plan(machine(tmp_path, su_l=STACKS["su"]), "su", "password", [])) == ["su", "su-l"]


@pytest.mark.parametrize(
    ("service", "arguments", "why"),
    [
        ("common-auth", [], "enable each of them instead"),
        ("other", [], "enable each of them instead"),
        ("../../etc/shadow", [], "a service name must consist of"),
        ("gdm", [], "not found"),
        ("sudo", ["look_ahead=1000"], r"look_ahead: .* \(see pam_totp\(8\)\)"),
        ("sudo", ["forward_pass"], "no later module checks"),
    ],
)
def test_a_plan_with_an_error_is_refused_with_the_reason(
    tmp_path: Path, service: str, arguments: list[str], why: str
) -> None:
    with pytest.raises(EnablingError, match=why):
        plan(machine(tmp_path), service, "password", arguments)


CIS = """\
auth    required                        pam_faillock.so preauth deny=5 unlock_time=60
auth    [success=1 default=ignore]      pam_unix.so nullok
auth    [default=die]                   pam_faillock.so authfail deny=5 unlock_time=60
auth    sufficient                      pam_faillock.so authsucc deny=5 unlock_time=60
auth    requisite                       pam_deny.so
auth    required                        pam_permit.so
"""


def test_a_stack_that_ends_before_the_line_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(EnablingError) as error:
        plan(machine(tmp_path, common_auth=CIS), "sudo", "password", [])
    assert "no code is required when pam_faillock.so (common-auth:4) (sufficient) returns success" in str(error.value)
    assert "(replace '@include common-auth' in sudo by 'auth substack common-auth')" in str(error.value)


def test_a_substack_gives_no_bypass_of_the_line(tmp_path: Path) -> None:
    text = STACKS["sudo"].replace("@include common-auth", "auth substack common-auth")
    change = plan(machine(tmp_path, common_auth=CIS, sudo=text, sudo_i=text), "sudo", "password", [])[0]
    stack = flatten("sudo", {**STACKS, "common-auth": CIS, "sudo": change.after}.get)
    assert ways.bypasses(stack, analysis.totp_modules(stack)) == []


def test_a_cis_stack_in_the_file_itself_gets_the_line_after_the_jump() -> None:
    after = put(CIS)
    assert after.index("authfail") < after.index("pam_totp.so") < after.index("authsucc")
