"""Tests of the findings about the order of modules in a stack. The real libpam confirms each finding."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pam_totp.system.pamd.analysis import check_order
from pam_totp.system.pamd.findings import ERROR, WARNING, Code, Finding, Severity
from pam_totp.system.pamd.stack import flatten
from tests.support.pamconf import login

COMMON = "auth [success=1 default=ignore] pam_unix.so nullok\nauth requisite pam_deny.so\nauth required pam_permit.so\n"
GOOD = f"{COMMON}auth required pam_totp.so\n"


def examine(text: str) -> list[Finding]:
    return list(check_order("x", flatten("x", {"x": text}.get)))


def severities(text: str) -> dict[Code, Severity]:
    return {f.code: f.severity for f in examine(text)}


def libpam_result(folder: Path, text: str, password: str, code: str) -> str:
    """Return the real libpam's result if pam_unix.so returns `password` and pam_totp.so returns `code`."""
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
        "auth [success=done new_authtok_reqd=done default=die] pam_permit.so\n",  # a stack without pam_totp.so
    ],
)
def test_a_correct_stack_has_no_findings(text: str) -> None:
    assert examine(text) == []


@pytest.mark.parametrize(
    ("control", "result"),
    [
        ("optional", "auth_err"),
        ("sufficient", "auth_err"),
        ("[success=ok default=ignore]", "auth_err"),
        ("[success=ok authinfo_unavail=ignore default=bad]", "authinfo_unavail"),
        ("[success=ok ignore=ignore conv_err=ignore default=die]", "conv_err"),
        ("[success=ok module_unknown=ignore default=die]", "module_unknown"),
    ],
)
def test_a_control_that_accepts_a_refusal_is_an_error(tmp_path: Path, control: str, result: str) -> None:
    text = f"{COMMON}auth {control} pam_totp.so\n"
    (finding,) = (f for f in examine(text) if f.code is Code.REFUSAL_ACCEPTED)
    assert finding.severity is ERROR
    assert f"({result})" in finding.what, "the finding names the result that is accepted"
    assert libpam_result(tmp_path, text, "success", result) == "success", (
        "the real libpam ends the stack with success too"
    )
    assert libpam_result(tmp_path, GOOD, "success", result) != "success"


def test_a_jump_over_pam_totp_is_an_error(tmp_path: Path) -> None:
    text = COMMON.replace("success=1", "success=2").replace(
        "auth required pam_permit", "auth required pam_totp.so\nauth required pam_permit"
    )
    assert severities(text)[Code.LOGIN_WITHOUT_CODE] is ERROR
    assert libpam_result(tmp_path, text, "success", "auth_err") == "success"


def test_a_sufficient_password_is_an_error(tmp_path: Path) -> None:
    text = "auth sufficient pam_unix.so\nauth required pam_totp.so\n"
    assert severities(text)[Code.LOGIN_WITHOUT_CODE] is ERROR
    assert libpam_result(tmp_path, text, "success", "auth_err") == "success"


def test_a_sufficient_fingerprint_is_a_warning_as_it_may_be_intended() -> None:
    (finding,) = (f for f in examine(f"auth sufficient pam_fprintd.so\n{GOOD}") if "pam_fprintd.so" in f.what)
    assert (finding.severity, finding.code) == (WARNING, Code.LOGIN_WITHOUT_CODE)


def test_a_code_that_is_enough_without_the_password_is_an_error(tmp_path: Path) -> None:
    text = f"auth sufficient pam_totp.so\n{COMMON}"
    assert severities(text)[Code.LOGIN_WITHOUT_PASSWORD] is ERROR
    assert libpam_result(tmp_path, text, "auth_err", "success") == "success"


def test_a_first_factor_that_is_not_requisite_is_a_warning(tmp_path: Path) -> None:
    text = "auth required pam_unix.so\nauth required pam_totp.so\n"
    assert severities(text) == {Code.CODE_AFTER_WRONG_PASSWORD: WARNING}
    assert libpam_result(tmp_path, text, "auth_err", "success") == "auth_err", "the stack still refuses the login"


@pytest.mark.parametrize(
    ("text", "severity", "code"),
    [
        (f"{COMMON}auth required pam_totp.so forward_pass\n", ERROR, Code.FORWARDED_PASSWORD_UNCHECKED),
        (f"auth requisite pam_totp.so forward_pass\n{COMMON}", WARNING, Code.PASSWORD_ASKED_TWICE),
    ],
)
def test_forward_pass_needs_a_later_module_that_uses_the_password(text: str, severity: Severity, code: Code) -> None:
    assert severities(text)[code] is severity


def test_forward_pass_before_a_module_that_uses_the_password_is_correct() -> None:
    taking = COMMON.replace("nullok", "nullok use_first_pass")
    assert examine(f"auth required pam_totp.so forward_pass\n{taking}") == []


def test_forward_pass_that_ends_the_stack_before_the_password_is_a_warning() -> None:
    """The time of a refusal in a stack with this order reveals that the code was wrong."""
    taking = COMMON.replace("nullok", "nullok use_first_pass")
    for control in ("requisite", "[success=ok default=die]"):
        text = f"auth {control} pam_totp.so forward_pass\n{taking}"
        assert severities(text) == {Code.FORWARD_PASS_ENDS_STACK: WARNING}


def test_a_stack_that_no_user_can_pass_is_an_error() -> None:
    assert Code.LOGIN_IMPOSSIBLE in severities("auth requisite pam_deny.so\nauth required pam_totp.so\n")
