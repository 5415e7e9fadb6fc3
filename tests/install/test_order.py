"""The order of a stack: what is found wrong, checked against what the real libpam then does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pam_totp.system.pamd.analysis import findings
from pam_totp.system.pamd.findings import ERROR, WARNING
from pam_totp.system.pamd.stack import flat
from tests.pamconf import login

COMMON = "auth [success=1 default=ignore] pam_unix.so nullok\nauth requisite pam_deny.so\nauth required pam_permit.so\n"
GOOD = f"{COMMON}auth required pam_totp.so\n"


def found(text: str) -> list[tuple[str, str]]:
    return [(f.severity, f.what) for f in findings("x", flat("x", {"x": text}.get))]


def real(folder: Path, text: str, password: str, code: str) -> str:
    """What the real libpam says when the password's module and ours return these results."""
    text = re.sub(r"pam_unix\.so[^\n]*", f"pam_debug.so auth={password}", text)
    text = re.sub(r"pam_totp\.so[^\n]*", f"pam_debug.so auth={code}", text)
    text = re.sub(r"pam_(rootok|fprintd|cap)\.so", "pam_debug.so auth=auth_err", text)
    (folder / "x").write_text(text)
    return login("x", "root", [], folder).result.name.lower()


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"auth sufficient pam_rootok.so\n{GOOD}",
        "auth requisite pam_unix.so\nauth required pam_totp.so\n",
        f"{GOOD}auth optional pam_cap.so\n",
        "auth [success=done new_authtok_reqd=done default=die] pam_permit.so\n",  # has no line of ours
    ],
)
def test_a_stack_in_order_has_no_findings(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize(
    ("ours", "result"),
    [
        ("optional", "auth_err"),
        ("sufficient", "auth_err"),
        ("[success=ok default=ignore]", "auth_err"),
        ("[success=ok authinfo_unavail=ignore default=bad]", "authinfo_unavail"),
        ("[success=ok ignore=ignore conv_err=ignore default=die]", "conv_err"),
        ("[success=ok module_unknown=ignore default=die]", "module_unknown"),
    ],
)
def test_a_control_under_which_a_refusal_lets_in_is_an_error(tmp_path: Path, ours: str, result: str) -> None:
    text = f"{COMMON}auth {ours} pam_totp.so\n"
    assert [s for s, what in found(text) if result in what] == [ERROR]
    assert real(tmp_path, text, "success", result) == "success", "the real libpam lets in too"
    assert real(tmp_path, GOOD, "success", result) != "success"


def test_a_jump_over_our_line_is_an_error(tmp_path: Path) -> None:
    text = COMMON.replace("success=1", "success=2").replace(
        "auth required pam_permit", "auth required pam_totp.so\nauth required pam_permit"
    )
    assert (ERROR, "jumps over") in [(s, "jumps over") for s, what in found(text) if "jumps over" in what]
    assert real(tmp_path, text, "success", "auth_err") == "success"


def test_a_sufficient_password_is_an_error(tmp_path: Path) -> None:
    text = "auth sufficient pam_unix.so\nauth required pam_totp.so\n"
    assert any(s == ERROR and "ends the stack" in what for s, what in found(text))
    assert real(tmp_path, text, "success", "auth_err") == "success"


def test_a_sufficient_finger_is_a_warning_as_it_may_be_meant() -> None:
    severities = [s for s, what in found(f"auth sufficient pam_fprintd.so\n{GOOD}") if "pam_fprintd.so" in what]
    assert severities == [WARNING]


def test_a_code_that_is_enough_without_the_password_is_an_error(tmp_path: Path) -> None:
    text = f"auth sufficient pam_totp.so\n{COMMON}"
    assert any(s == ERROR and "a code alone" in what for s, what in found(text))
    assert real(tmp_path, text, "auth_err", "success") == "success"


def test_a_first_factor_that_is_not_requisite_is_a_warning(tmp_path: Path) -> None:
    text = "auth required pam_unix.so\nauth required pam_totp.so\n"
    assert [s for s, what in found(text) if "asked for a code all the same" in what] == [WARNING]
    assert real(tmp_path, text, "auth_err", "success") == "auth_err", "it still refuses"


@pytest.mark.parametrize(
    ("text", "severity", "says"),
    [
        (f"{COMMON}auth required pam_totp.so forward_pass\n", ERROR, "no module behind it checks"),
        (f"auth requisite pam_totp.so forward_pass\n{COMMON}", WARNING, "asks for the password again"),
    ],
)
def test_forward_pass_wants_a_password_behind_it_that_takes_it(text: str, severity: str, says: str) -> None:
    assert [s for s, what in found(text) if says in what] == [severity]


def test_forward_pass_before_a_password_that_takes_it_is_in_order() -> None:
    taking = COMMON.replace("nullok", "nullok use_first_pass")
    assert found(f"auth requisite pam_totp.so forward_pass\n{taking}") == []


def test_a_stack_that_nobody_can_pass_is_an_error() -> None:
    assert any(
        "nobody can get in" in what for _, what in found("auth requisite pam_deny.so\nauth required pam_totp.so\n")
    )
