"""Our line in a service file: where it goes, where it does not, and how it comes out again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pam_totp.system.enable.changes import Change
from pam_totp.system.enable.plan import EnablingError, plan
from pam_totp.system.machine import Machine
from pam_totp.system.pamd import analysis
from pam_totp.system.pamd.edit import inserted, lines, removed
from pam_totp.system.pamd.stack import StackError, flat, rules
from pam_totp.system.pamd.verdicts import results_of, way
from tests.install.machine import STACKS
from tests.install.test_dispatch import any_control

OURS = lines("x", "password", [])


def put(text: str, others: dict[str, str] | None = None) -> str:
    return inserted(text, "x", OURS, {**STACKS, **(others or {})}.get)


def machine(folder: Path, **stacks: str) -> Machine:
    (folder / "etc/pam.d").mkdir(parents=True)
    for name, text in {**STACKS, **stacks}.items():
        (folder / "etc/pam.d" / name.replace("_", "-")).write_text(text)
    return Machine(str(folder))


@pytest.mark.parametrize("service", ["sudo", "sudo-i", "su", "sshd"])
def test_it_goes_behind_the_first_factor_and_nothing_else_moves(service: str) -> None:
    before = STACKS[service]
    after = inserted(before, service, OURS, STACKS.get)
    assert after.replace(OURS, "") == before
    assert after.index("@include common-auth") < after.index(OURS) < after.index("common-account")
    assert removed(after, OURS) == before


def test_with_a_key_first_it_goes_in_front_and_the_password_is_not_asked_for() -> None:
    after = inserted(STACKS["sshd"], "sshd", lines("sshd", "key", []), STACKS.get, "key")
    assert after.index("pam_totp.so") < after.index("common-auth")
    stack = flat("sshd", {**STACKS, "sshd": after}.get)
    asked = way(
        stack,
        lambda at: ("success",) if stack[at].rule.ours else results_of(stack[at]),
        lambda taken, _: len(taken) > 1,
    )
    assert asked is None, "after a good code nothing more is asked"


def test_a_jump_is_never_split() -> None:
    text = (
        "auth [success=2 default=ignore] pam_unix.so\nauth [success=1 default=ignore] pam_sss.so\n"
        "auth requisite pam_deny.so\nauth required pam_permit.so\n"
    )
    assert put(text).splitlines()[3].startswith("# put here"), "at the landing, behind pam_deny"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("auth sufficient pam_unix.so\nauth required pam_deny.so\n", "pam_unix.so .* returns success"),
        ("auth required pam_permit.so\n", "asks for no password"),
        ("auth requisite pam_unix.so\nauth optional pam_totp.so\n", "names pam_totp.so already"),
        ("auth requisite pam_unix.so\n@include gone\n", "gone: is not there"),
        ("auth [success=3 default=ignore] pam_unix.so\nauth requisite pam_deny.so\n", "a jump leads over it"),
    ],
)
def test_where_there_is_no_good_place_there_is_no_edit(text: str, why: str) -> None:
    with pytest.raises(StackError, match=why):
        put(text)


def test_a_sufficient_password_in_a_substack_ends_only_the_substack() -> None:
    others = {"password-auth": "auth sufficient pam_unix.so\nauth required pam_deny.so\n"}
    assert put("auth substack password-auth\n", others).endswith(OURS)


def test_whatever_the_stack_nobody_gets_in_around_a_line_that_was_put_in() -> None:
    """Over stacks made at random: no way to success leads around our line, and no refusal of ours is one."""
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
        stack = flat("x", {"x": after}.get)
        mine = analysis.ours(stack)

        def refused(at: int, stack=stack, mine=mine):  # type: ignore[no-untyped-def]
            return ("auth_err",) if at in mine else results_of(stack[at])

        through = way(stack, refused, lambda taken, end, mine=mine: end == "success" and taken[-1].at >= mine[0])
        assert through is None or not any(t.at in mine for t in through), after
        around = [at for at, _ in analysis.bypasses(stack, mine)]
        assert not {stack[at].rule.module for at in around} & analysis.PASSWORDS, after
        assert removed(after, OURS) == text
    assert done > 30


def test_what_others_have_written_since_stays() -> None:
    after = put(STACKS["sudo"])
    edited = (
        "# site policy\n"
        + after.replace("pam_limits.so", "pam_limits.so conf=/etc/x")
        + "session optional pam_umask.so\n"
    )
    assert removed(edited, OURS) == edited.replace(OURS, "")


@pytest.mark.parametrize("edit", [("auth required", "auth optional"), (OURS, OURS + OURS), (OURS, "")])
def test_lines_of_ours_that_were_edited_are_not_guessed_at(edit: tuple[str, str]) -> None:
    with pytest.raises(StackError, match="have been changed"):
        removed(put(STACKS["sudo"]).replace(*edit), OURS)


def test_arguments_survive_the_way_through_the_file() -> None:
    words = ["prompt=Code [6 digits]: ", "nullok", "store=/srv/x"]
    found = [r for r in rules(inserted(STACKS["sudo"], "sudo", lines("sudo", "password", words), STACKS.get)) if r.ours]
    assert list(found[0].arguments) == words


# ---- plans


def names(changes: tuple[Change, ...]) -> list[str]:
    return [Path(c.path).name for c in changes]


def test_sudo_covers_sudo_i_and_su_covers_su_l_once(tmp_path: Path) -> None:
    here = machine(tmp_path)
    assert names(plan(here, "sudo", "password", [])) == ["sudo", "sudo-i"]
    assert names(plan(here, "su", "password", [])) == ["su"], "su-l includes su, and would ask twice"


def test_su_l_is_changed_itself_where_it_stands_on_its_own(tmp_path: Path) -> None:
    assert names(plan(machine(tmp_path, su_l=STACKS["su"]), "su", "password", [])) == ["su", "su-l"]


@pytest.mark.parametrize(
    ("service", "arguments", "why"),
    [
        ("common-auth", [], "enable the services one by one"),
        ("other", [], "enable the services one by one"),
        ("../../etc/shadow", [], "no name of a service"),
        ("gdm", [], "is not there"),
        ("sudo", ["look_ahead=1000"], r"look_ahead: .* \(see pam_totp\(8\)\)"),
        ("sudo", ["forward_pass"], "no module behind it checks"),
    ],
)
def test_what_would_not_be_in_order_is_refused_with_the_reason(
    tmp_path: Path, service: str, arguments: list[str], why: str
) -> None:
    with pytest.raises(EnablingError, match=why):
        plan(machine(tmp_path), service, "password", arguments)
