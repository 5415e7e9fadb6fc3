"""Tests of a rehearsal through the real libpam: the checks that a stack must pass before it is installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import pytest

from pam_totp.system import rehearsal
from pam_totp.system.libpam import ERROR_MSG, PROMPT_ECHO_OFF, LibpamError, Login
from pam_totp.system.rehearsal import RehearsalError, attempt, in_child, private_copy, prove
from tests.install.test_edit import machine
from tests.support.pamconf import service
from tests.support.site import ME, MODULE, Site, codes

ACCOUNT = "account required pam_permit.so"


class Person:
    """A user with prepared answers. `transcript` lists the styles and texts of all prompts and messages."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self.transcript: list[tuple[int, str]] = []

    def __call__(self, style: int, text: str) -> bytes | None:
        self.transcript.append((style, text))
        if style != PROMPT_ECHO_OFF:
            return None
        return self._answers.pop(0).encode() if self._answers else None


class Proves(Protocol):
    def __call__(self, control: str, person: Person, *before: str, name: str = "demo") -> list[str]: ...


@pytest.fixture
def proves(site: Site) -> Proves:
    """Return a function that rehearses a stack of the lines `before` and a pam_totp.so line with `control`."""
    site.enrol()

    def run(control: str, person: Person, *before: str, name: str = "demo") -> list[str]:
        shown: list[str] = []
        line = f"auth {control} {MODULE} store={site.store} socket=none nodelay"
        service(site.confdir, name, *before, line, "auth optional pam_permit.so", ACCOUNT)
        prove(name, ME, person, str(site.confdir), shown.append)
        return shown

    return run


def test_a_correct_stack_accepts_a_code_once_and_no_other_answer(proves: Proves, site: Site) -> None:
    person = Person(codes(0))
    shown = proves("required", person)
    assert [text.partition(":")[0] for text in shown[:4]] == [
        f"{ME} logged in",
        "the same code again",
        "a blank code",
        "no answer",
    ]
    assert [text for style, text in person.transcript if style == PROMPT_ECHO_OFF] == ["One-time code: "], (
        "the user is prompted once"
    )
    assert site.counter() == 1
    assert site.record().failures == 0, "a rehearsal does not change the failures"


@pytest.mark.parametrize(("name", "tells"), [("demo", True), ("sudo", False), ("sudo-i", False)])
def test_only_services_that_report_refusals_send_the_announcement(proves: Proves, name: str, tells: bool) -> None:
    shown = proves("required", Person(codes(0)), name=name)
    assert shown[3] == "no answer: refused, as required"
    assert shown[4:] == [f"(the next login of {ME} will report refused answers: they are from this rehearsal)"] * tells


@pytest.mark.parametrize(
    ("control", "why"),
    [
        ("optional", "with the same code again"),
        ("[success=ok auth_err=die conv_err=ignore default=bad]", "with no answer"),
    ],
)
def test_a_stack_that_accepts_a_refusal_is_found_by_logging_in(proves: Proves, control: str, why: str) -> None:
    with pytest.raises(RehearsalError, match=why):
        proves(control, Person(codes(0)))


def test_a_stack_without_a_prompt_is_refused(proves: Proves) -> None:
    with pytest.raises(RehearsalError, match="without a prompt"):
        proves("required", Person(), "auth sufficient pam_permit.so")


def test_three_failed_attempts_end_the_rehearsal(proves: Proves) -> None:
    person = Person(*["000000"] * 6, codes(0))
    with pytest.raises(
        RehearsalError,
        match=rf"{ME} could not log in to demo: auth_err \(check the password and the code, and by 'pam-totp list",
    ):
        proves("required", person)
    assert any(style == ERROR_MSG for style, _ in person.transcript), "the rehearsal shows the module's message"


def test_a_refusal_in_the_account_phase_is_a_failed_login(site: Site) -> None:
    service(site.confdir, "demo", "auth required pam_permit.so", "account required pam_deny.so")
    outcome = attempt("demo", ME, Person(), str(site.confdir))
    assert (outcome.is_success, str(outcome)) == (False, "success, account auth_err")


def test_the_private_folder_is_self_contained(tmp_path: Path) -> None:
    """Includes are absolute paths: Linux-PAM 1.5 looks up relative paths in /etc/pam.d, even with pam_start_confdir."""
    here = machine(tmp_path, su_l="auth include su\n")
    with private_copy(here, "su-l") as folder:
        assert sorted(os.listdir(folder)) == ["common-account", "common-auth", "common-session", "other", "su", "su-l"]
        lines = [line for name in os.listdir(folder) for line in open(f"{folder}/{name}") if "include" in line]  # noqa: SIM115
        assert lines
        assert all(f"{folder}/" in line for line in lines)
        assert os.stat(folder).st_mode & 0o777 == 0o700
    assert not os.path.exists(folder)


def test_an_exception_in_the_dialogue_is_raised(site: Site) -> None:
    def breaks(style: int, text: str) -> bytes | None:
        raise KeyboardInterrupt

    site.configure("demo")
    with Login("demo", ME, breaks, folder=str(site.confdir)) as login, pytest.raises(KeyboardInterrupt):
        login.authenticate()


def test_libpam_refuses_a_service_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(LibpamError, match="cannot start a login"):
        Login("nothing", ME, Person(), folder=str(tmp_path / "nowhere"))


def test_a_child_that_dies_fails_the_rehearsal() -> None:
    def fail() -> None:
        int("secret")

    with pytest.raises(RehearsalError, match="crashed"):
        in_child("sshd", lambda: os.kill(os.getpid(), 9))
    with pytest.raises(RehearsalError, match="the rehearsal failed: ValueError"):
        in_child("sshd", fail)
    in_child("sshd", lambda: None)
    assert rehearsal.TRIES == 3
