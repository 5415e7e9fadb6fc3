"""Tests of pam_sm_authenticate for PAM hosts that load modules in Python, without the service."""

from __future__ import annotations

import os
from typing import Any

import pytest

from pam_totp.core.settings import Site as SiteFile
from pam_totp.operations.authenticate import REFUSED
from pam_totp.operations.dialogue import Dialogue
from pam_totp.pam import login, module
from pam_totp.pam.login import Host
from pam_totp.pam.module import pam_sm_authenticate, pam_sm_setcred
from pam_totp.pam.protocol import Hello
from tests.support.pamconf import Result
from tests.support.site import ME, UNPRIVILEGED_UID, Site, codes, phone


class Handle:
    """A PAM handle like pam_python's, with a scripted user."""

    PAM_PROMPT_ECHO_OFF, PAM_PROMPT_ECHO_ON, PAM_ERROR_MSG, PAM_TEXT_INFO = 1, 2, 3, 4
    service, rhost, ruser, tty = "demo", None, None, None

    class Message:
        def __init__(self, msg_style: int, msg: str) -> None:
            self.msg_style, self.msg = msg_style, msg

    class Response:
        def __init__(self, resp: str | None) -> None:
            self.resp = resp

    def __init__(self, *answers: str | None, authtok: str | None = None) -> None:
        self.answers, self.authtok = list(answers), authtok
        self.shown: list[tuple[int, str]] = []

    def get_user(self, prompt: str | None) -> str:
        return ME

    def conversation(self, message: Message) -> Response:
        self.shown.append((message.msg_style, message.msg))
        return self.Response(self.answers.pop(0) if message.msg_style < 3 and self.answers else None)


def authenticate(site: Site, handle: Handle, *arguments: str, log: Any = None) -> int:
    host = Host(site=SiteFile.NONE, log=log or (lambda *_: None))
    return pam_sm_authenticate(handle, 0, [f"store={site.store}", *arguments], host)


def test_a_code_is_accepted_once(site: Site) -> None:
    site.enrol()
    assert authenticate(site, Handle(codes(0))) == Result.SUCCESS
    assert authenticate(site, Handle(codes(0))) == Result.AUTH_ERR
    assert pam_sm_setcred(Handle(), 0, []) == Result.SUCCESS


def test_the_user_sees_the_same_prompts_and_texts_as_through_the_relay(site: Site) -> None:
    site.enrol()
    handle = Handle("000000", codes(40))
    assert authenticate(site, handle, "echo") == Result.AUTH_ERR
    assert handle.shown == [(2, "One-time code: "), (2, "Not accepted. Next code: "), (3, REFUSED)]
    handle = Handle(codes(40), codes(41))
    assert authenticate(site, handle) == Result.SUCCESS
    assert handle.shown[-1] == (4, "2 answers were refused since the last login")


def test_the_answer_of_an_earlier_module_is_used_and_passed_on(site: Site) -> None:
    site.enrol()
    assert authenticate(site, Handle(authtok=codes(0)), "use_first_pass") == Result.SUCCESS
    handle = Handle(f"pässword{codes(1)}")
    assert authenticate(site, handle, "forward_pass") == Result.SUCCESS
    assert handle.authtok == "pässword"


def test_a_host_that_is_not_root_must_ask_for_a_second_prompt(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.enrol()

    def begin_as_user(hello: Hello, host: Host) -> Dialogue:
        monkeypatch.undo()  # the store belongs to the account that runs the test
        return login.begin(hello, host)

    for arguments, prompts in (((), 1), (("second_prompt",), 2)):
        monkeypatch.setattr(module, "begin", begin_as_user)
        monkeypatch.setattr(os, "geteuid", lambda: UNPRIVILEGED_UID)
        handle = Handle("000000", "000000")
        assert authenticate(site, handle, *arguments) == Result.AUTH_ERR
        assert len(handle.shown) == prompts + 1


def test_a_missing_answer_and_invalid_settings_have_their_own_results(site: Site) -> None:
    site.enrol(phone())
    lines: list[str] = []
    assert authenticate(site, Handle(None)) == Result.CONV_ERR
    assert authenticate(site, Handle(), "nonsense", log=lambda _, line: lines.append(line)) == Result.SERVICE_ERR
    assert lines == [f"""pam_totp(demo:auth): error user={ME} problem="unknown argument 'nonsense'\""""]
    site.path().write_text("{}")
    assert authenticate(site, Handle(codes(0))) == Result.AUTHINFO_UNAVAIL


def test_a_defect_denies(site: Site) -> None:
    site.enrol()
    handle = Handle(codes(0))
    handle.conversation = None  # type: ignore[assignment, method-assign]
    lines: list[str] = []
    assert authenticate(site, handle, log=lambda _, line: lines.append(line)) == Result.AUTHINFO_UNAVAIL
    assert "TypeError at " in lines[0]
