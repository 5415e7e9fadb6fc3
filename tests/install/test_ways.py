"""Tests of the analysis that finds the ways through a stack without a code.

The real libpam confirms the results of the analysis for random stacks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from pam_totp.system.pamd.analysis import check_order, totp_modules
from pam_totp.system.pamd.conditions import Account, result_for
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding, errors
from pam_totp.system.pamd.modules import CONSTANT_RESULTS
from pam_totp.system.pamd.stack import flatten, parse
from pam_totp.system.pamd.ways import Need, bypasses
from tests.install.test_dispatch import ACTIONS, NAMED
from tests.support.pamconf import login
from tests.torture.pace import rounds

STACKS = rounds(100, 3000)
RESULTS = ("success", "auth_err", "ignore", "authinfo_unavail")  # the random controls contain only these results
LINE = "auth required pam_totp.so\n"
CIS = """\
auth    required                        pam_faillock.so preauth deny=5 unlock_time=60
auth    [success=1 default=ignore]      pam_unix.so nullok
auth    [default=die]                   pam_faillock.so authfail deny=5 unlock_time=60
auth    sufficient                      pam_faillock.so authsucc deny=5 unlock_time=60
auth    requisite                       pam_deny.so
auth    required                        pam_permit.so
"""
PASSWORD = "auth requisite pam_unix.so nodelay\n"
NETWORKS = "auth [success=1 default=ignore] pam_access.so accessfile=/etc/security/access-no-code.conf noaudit\n"
GROUPS = "auth [success=1 default=ignore] pam_succeed_if.so quiet user ingroup no-code\n"
LOCAL_OR_NOT = "auth [success=ok default=1] pam_localuser.so\nauth sufficient pam_unix.so\nauth sufficient pam_sss.so\n"
ALICE, BOB = Account("alice", 1000, 1000, frozenset({"alice"})), Account("bob", 1001, 1001, frozenset({"no-code"}))
ROOT = Account("root", 0, 0, frozenset({"root"}))


def examine(text: str, *accounts: Account, **others: str) -> list[Finding]:
    return list(check_order("x", flatten("x", {"x": text, **others}.get), accounts=accounts))


def found(text: str, *accounts: Account, **others: str) -> list[tuple[str, str]]:
    return [(f.severity, f.code) for f in examine(text, *accounts, **others)]


@dataclass(frozen=True)
class Stack:
    """The controls and modules of a stack. The lines from `start` to `end` are in a file that the stack includes."""

    lines: tuple[tuple[str, str], ...]
    start: int
    end: int
    include: str  # include or substack

    def texts(self, folder: Path, module_of: Callable[[int, str], str]) -> tuple[str, str]:
        """Return the texts of the stack and of the included file, with `module_of(index, module)` for each module."""
        texts = [f"auth {control} {module_of(i, module)}\n" for i, (control, module) in enumerate(self.lines)]
        include = f"auth {self.include} {folder}/inner\n" if self.start < self.end else ""
        return "".join(texts[: self.start]) + include + "".join(texts[self.end :]), "".join(
            texts[self.start : self.end]
        )


def any_stack(chance: random.Random) -> Stack:
    """Return a random stack: pam_totp.so, a condition, and modules of other kinds."""
    others = ["pam_unix.so", "pam_faillock.so", "pam_x.so", "pam_rootok.so", "pam_u2f.so"]
    modules = ["pam_totp.so", "pam_access.so", *chance.sample(others, k=2)]
    if chance.random() < 0.5:
        modules.append(chance.choice(["pam_permit.so", "pam_deny.so"]))
    chance.shuffle(modules)
    start, end = sorted(chance.choices(range(len(modules) + 1), k=2))
    lines = tuple((any_control(chance), module) for module in modules)
    return Stack(lines, start, end, chance.choice(["include", "substack"]))


def any_control(chance: random.Random) -> str:
    if chance.random() < 0.6:
        return chance.choice(["required", "requisite", "sufficient", "optional", "[success=1 default=ignore]"])
    named = " ".join(f"{result}={chance.choice(ACTIONS)}" for result in chance.sample(RESULTS, chance.choice((0, 2))))
    return f"[{named} default={chance.choice(ACTIONS)}]"


@dataclass(frozen=True)
class End:
    """A login: the results of the conditions, the result of libpam, and True if the login required a second factor."""

    conditions: tuple[str | None, ...]
    result: str
    needs_factor: bool


def real_ends(folder: Path, stack: Stack) -> Iterator[End]:
    """Yield the logins for all results of the modules. pam_rootok.so accepts no user of these tests."""
    modules = [module for _, module in stack.lines]
    free = [i for i, module in enumerate(modules) if module not in (*CONSTANT_RESULTS, "pam_totp.so")]
    # auth_err and authinfo_unavail have the same action under each keyword control, such as `required`
    every = [RESULTS if stack.lines[i][0].startswith("[") else RESULTS[:3] for i in free]
    possible = (r[1:] if modules[i] == "pam_rootok.so" else r for i, r in zip(free, every, strict=True))
    for chosen in product(*possible):
        results = dict(zip(free, chosen, strict=True))

        def real(index: int, module: str, results: Mapping[int, str] = results) -> str:
            if module == "pam_totp.so":
                return "pam_echo.so asked"
            return f"pam_debug.so auth={results[index]}" if index in results else module

        for name, text in zip(("real", "inner"), stack.texts(folder, real), strict=True):
            (folder / name).write_text(text)
        done = login("real", "root", [], folder)
        asked = any(shown.text == "asked" for shown in done.messages)
        by_module = {modules[i]: result for i, result in results.items()}
        conditions = tuple(by_module.get(module) for module in ("pam_access.so", "pam_rootok.so"))
        yield End(conditions, done.result.name.lower(), asked or by_module.get("pam_u2f.so") == "success")


def test_the_real_libpam_has_the_same_ways_without_a_code(tmp_path: Path) -> None:
    """A way is unconditional if it exists for every result of the condition with which a login can succeed."""
    chance = random.Random(173)  # the first 100 stacks of this seed have 21 unconditional and 10 conditional ways
    needs = []
    for _ in range(STACKS):
        random_stack = any_stack(chance)
        ends = list(real_ends(tmp_path, random_stack))
        viable = {end.conditions for end in ends if end.result == "success"}
        is_open = {end.conditions for end in ends if end.result == "success" and not end.needs_factor}
        expected = set() if not is_open else {Need.NOTHING if is_open == viable else Need.CONDITION}
        text, inner = random_stack.texts(tmp_path, lambda _, module: module)
        stack = flatten("x", {"x": text, f"{tmp_path}/inner": inner}.get)
        computed = {b.need for b in bypasses(stack, totp_modules(stack))} - {Need.FACTOR}
        assert computed == expected, f"{text}---\n{inner}"
        needs += [*expected]
    assert needs.count(Need.NOTHING) > STACKS / 8
    assert needs.count(Need.CONDITION) > STACKS / 40
    assert len(needs) < STACKS * 7 / 8, "some stacks always require a code"


@pytest.mark.parametrize(("module", "results"), sorted(CONSTANT_RESULTS.items()))
def test_the_real_libpam_gets_the_constant_results(tmp_path: Path, module: str, results: tuple[str, ...]) -> None:
    (tmp_path / "x").write_text(f"auth [success=ok ignore=die default=die] {module}\n")
    real = login("x", "root", [], tmp_path).result.name.lower()
    # libpam turns an ignored result that is the only result into "perm_denied"
    assert real in results or (real == "perm_denied" and results == ("ignore",)), real


# ---- a right password that skips the line


@pytest.mark.parametrize(
    ("text", "module"),
    [
        (f"{CIS}{LINE}", "pam_faillock.so (x:4)"),
        (f"{PASSWORD}auth sufficient pam_permit.so\n{LINE}", "pam_permit.so (x:2)"),
        (f"{PASSWORD}auth sufficient pam_cap.so\n{LINE}", "pam_cap.so (x:2)"),
        (f"{PASSWORD}auth sufficient pam_echo.so text\n{LINE}", "pam_echo.so (x:2)"),
        (f"{PASSWORD}auth [default=done] pam_unknown_to_all.so\n{LINE}", "pam_unknown_to_all.so (x:2)"),
        (f"{PASSWORD}auth [cred_err=1 default=ignore] pam_x.so\n{LINE}auth required pam_permit.so\n", "pam_x.so (x:2)"),
        (f"auth sufficient pam_unix.so\n{LINE}", "pam_unix.so (x:1)"),
        (f"{LOCAL_OR_NOT}{LINE}", "pam_unix.so (x:2)"),
    ],
)
def test_a_right_password_without_a_code_is_an_error(text: str, module: str) -> None:
    [first, *_] = errors(examine(text))
    assert first.code is Code.LOGIN_WITHOUT_CODE
    assert module in first.what


@pytest.mark.parametrize("module", ["pam_rootok.so", "pam_u2f.so", "pam_fprintd.so"])
@pytest.mark.parametrize(
    "text",
    [
        f"auth [default=ignore] MODULE\nauth sufficient pam_unix.so\n{LINE}",
        f"{PASSWORD}auth [default=1] MODULE\n{LINE}auth required pam_permit.so\n",
    ],
)
def test_a_module_whose_results_all_have_one_action_hides_no_way(module: str, text: str) -> None:
    assert (ERROR, Code.LOGIN_WITHOUT_CODE) in found(text.replace("MODULE", module))


def test_a_password_whose_results_are_all_ignored_is_an_error() -> None:
    assert (ERROR, Code.LOGIN_WITHOUT_PASSWORD) in found(f"auth [default=ignore] pam_unix.so\n{LINE}")


FAILLOCK = "auth required pam_faillock.so preauth\n", "auth [default=die] pam_faillock.so authfail\n"


@pytest.mark.parametrize(
    ("text", "severity", "code"),
    [
        # a home service, a hardware key or a code, each by a jump: the code alone is sufficient
        (
            f"{FAILLOCK[0]}-auth [success=1 default=ignore] pam_systemd_home.so\n"
            "auth [success=ok default=ignore] pam_unix.so try_first_pass nullok\n"
            "auth [success=2 default=ignore] pam_u2f.so \\\nnouserok cue\n\n"
            f"auth\t [success=1 default=ignore] pam_totp.so \\\nnullok\n{FAILLOCK[1]}auth optional pam_permit.so\n",
            ERROR,
            Code.LOGIN_WITHOUT_PASSWORD,
        ),
        # after a sufficient password, in the file that all services include
        (
            "auth sufficient pam_unix.so nullok\n"
            "auth [user_unknown=ignore success=done] pam_totp.so\nauth required pam_deny.so\n",
            ERROR,
            Code.LOGIN_WITHOUT_CODE,
        ),
        # the last line of a file that jumps to its end: Ctrl-C at the prompt is ignored
        (
            "auth [success=1 default=ignore] pam_unix.so\nauth requisite pam_deny.so\nauth required pam_permit.so\n"
            "auth [success=1 default=ignore] pam_totp.so\nauth optional pam_cap.so\n",
            ERROR,
            Code.REFUSAL_ACCEPTED,
        ),
        # a control without a jump before a line that denies
        ("auth required pam_totp.so\nauth requisite pam_deny.so\n", ERROR, Code.LOGIN_IMPOSSIBLE),
    ],
)
def test_stacks_that_users_reported_are_errors(text: str, severity: str, code: Code) -> None:
    assert (severity, code) in found(text)


def test_a_line_in_a_substack_that_a_reset_forgives_is_an_error() -> None:
    inner = "auth requisite pam_x.so\nauth required pam_totp.so\n"
    text = f"{PASSWORD}auth substack inner\nauth [default=reset] pam_y.so\nauth required pam_permit.so\n"
    assert (ERROR, Code.LOGIN_WITHOUT_CODE) in found(text, inner=inner)


@pytest.mark.parametrize("module", ["pam_env.so", "pam_faildelay.so", "pam_limits.so", "pam_deny.so"])
def test_a_sufficient_module_that_never_succeeds_is_no_bypass(module: str) -> None:
    assert found(f"{PASSWORD}auth sufficient {module}\n{LINE}") == []


def test_a_refusal_that_is_accepted_is_found_beside_a_jump_over_the_line() -> None:
    text = f"{PASSWORD}{NETWORKS}auth optional pam_totp.so\nauth required pam_permit.so\n"
    assert (ERROR, Code.REFUSAL_ACCEPTED) in found(text)


@pytest.mark.parametrize("factor", ["pam_fprintd.so", "pam_u2f.so", "pam_google_authenticator.so"])
def test_another_factor_in_place_of_the_code_is_a_warning(factor: str) -> None:
    assert found(f"{PASSWORD}auth sufficient {factor}\n{LINE}")[0] == (WARNING, Code.LOGIN_WITHOUT_CODE)


def test_a_program_in_place_of_the_code_is_a_warning() -> None:
    text = f"{PASSWORD}auth [success=1 default=ignore] pam_exec.so /usr/local/bin/in-the-office\n{LINE}"
    assert found(text + "auth required pam_permit.so\n") == [(WARNING, Code.LOGIN_WITHOUT_CODE)]


# ---- conditions


@pytest.mark.parametrize("condition", [NETWORKS, GROUPS])
def test_the_recipes_of_the_manual_are_notes(condition: str) -> None:
    assert found(f"{PASSWORD}{condition}{LINE}") == [(NOTE, Code.CODE_EXEMPTION)]


def test_the_login_screen_of_fedora_has_only_one_finding_its_exemption() -> None:
    """pam_selinux_permit is another name of pam_sepermit: the exempt users come from a file that only root writes."""
    inner = "auth sufficient pam_unix.so nullok\nauth required pam_deny.so\n"
    text = "auth [success=done ignore=ignore default=bad] pam_selinux_permit.so\nauth substack inner\n"
    found = [(f.severity, f.code) for f in examine(text + LINE, inner=inner)]
    assert (WARNING, Code.CODE_EXEMPTION) in found
    assert ERROR not in [severity for severity, _ in found]


def test_exempted_users_are_named() -> None:
    [finding] = examine(f"{PASSWORD}{GROUPS}{LINE}", ALICE, BOB)
    assert finding.what == (
        "x: pam_succeed_if.so (x:2) jumps over pam_totp.so (x:3) after success "
        "(condition: quiet user ingroup no-code): these users log in without a code: bob"
    )


def test_a_condition_that_exempts_every_user_is_an_error() -> None:
    regular = "auth [success=1 default=ignore] pam_succeed_if.so uid >= 1000\n"
    [finding] = errors(examine(f"{PASSWORD}{regular}{LINE}", ALICE, BOB, ROOT))
    assert finding.code is Code.LOGIN_WITHOUT_CODE
    assert finding.what.startswith("x: no user is asked for a code: ")
    assert finding.what.endswith("for alice, bob")


def test_a_condition_without_password_and_code_is_a_warning() -> None:
    assert found(f"auth sufficient pam_wheel.so trust\n{PASSWORD}{LINE}") == [(WARNING, Code.CODE_EXEMPTION)]


@pytest.mark.parametrize(
    ("line", "result"),
    [
        ("pam_succeed_if.so user = alice", "success"),
        ("pam_succeed_if.so quiet uid < 1000", "auth_err"),
        ("pam_succeed_if.so user notingroup no-code uid ge 1000", "success"),
        ("pam_succeed_if.so user in bob:alice service = sshd", "success"),
        ("pam_succeed_if.so user =~ al* shell !~ */false", "success"),
        ("pam_succeed_if.so rhost = 192.0.2.7", None),
        ("pam_succeed_if.so uid = 1000 rhost = 192.0.2.7", None),
        ("pam_succeed_if.so use_uid user = alice", None),
        ("pam_localuser.so", "success"),
        ("pam_localuser.so file=/etc/other", None),
        ("pam_usertype.so isregular", "success"),
        ("pam_usertype.so issystem", "perm_denied"),
        ("pam_rootok.so", "auth_err"),
        ("pam_access.so", None),
    ],
)
def test_conditions_on_an_account_are_decided(line: str, result: str | None) -> None:
    assert result_for(parse(f"auth required {line}")[0], ALICE, "sshd") == result


# ---- two codes


def test_the_line_twice_on_one_way_is_a_warning() -> None:
    assert found(f"{PASSWORD}{LINE}{LINE}") == [(WARNING, Code.MODULE_TWICE)]


def test_one_line_for_each_of_two_ways_has_no_finding() -> None:
    either = "auth [success=2 default=ignore] pam_succeed_if.so user ingroup fobs\n"
    lines = f"{LINE}auth [default=1] pam_permit.so\n{LINE}"
    assert Code.MODULE_TWICE not in [code for _, code in found(f"{PASSWORD}{either}{lines}")]


@pytest.mark.parametrize("peer", ["pam_google_authenticator.so nullok", "pam_oath.so usersfile=/etc/users.oath"])
def test_a_code_of_another_module_beside_the_line_is_a_warning(peer: str) -> None:
    assert found(f"{PASSWORD}auth required {peer}\n{LINE}") == [(WARNING, Code.OTHER_CODE_MODULE)]


def test_named_results_of_random_controls_exist() -> None:
    assert set(RESULTS) <= set(NAMED)
