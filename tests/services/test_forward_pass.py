"""Tests of forward_pass: password and code in one answer, through the real libpam."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.oath import hotp
from pam_totp.core.policy import Policy
from pam_totp.operations.authenticate import refusal_delay
from tests.support.pamconf import Login, Result, Style, login, service
from tests.support.site import KEY, ME, MODULE, Site, codes, fob

SALT = "00" * 16
RECOVERY = "0123456789ABCDEF"


@pytest.fixture(autouse=True)
def handing_on(site: Site, way: str) -> None:
    """Write the stack of the service `demo`: one answer for both factors, and a report of the forwarded password."""
    if os.geteuid() != 0 and way == "socket":
        pytest.skip("requires root: the service accepts the module's arguments only from root")
    socket = site.socket if way == "socket" else "none"
    line = f"auth required {MODULE} store={site.store} socket={socket} nodelay forward_pass"
    service(site.confdir, "demo", line, carry_authtok=True)


def test_a_code_after_a_password_is_accepted_and_the_password_passed_on(site: Site) -> None:
    site.enrol()
    done = site.login("correct horse" + codes(0))
    assert (done.result, done.authtok) == (Result.SUCCESS, "correct horse")
    assert [(p.style, p.text) for p in done.prompts] == [(Style.PROMPT_ECHO_OFF, "Password and one-time code: ")]
    again = site.login("correct horse" + codes(0))
    assert (again.result, again.authtok) == (Result.AUTH_ERR, "correct horse"), (
        "the password is forwarded after a refusal too"
    )


def test_codes_in_a_row_after_a_password_resynchronise_a_token(site: Site) -> None:
    site.enrol()
    done = site.login("pa55" + codes(40, 2).replace(" ", ""))
    assert (done.result, done.authtok, site.counter()) == (Result.SUCCESS, "pa55", 42)


def test_only_the_longest_possible_tail_is_read_as_codes(site: Site) -> None:
    site.enrol()
    done = site.login("hunter123456" + codes(0))
    assert (done.result, done.authtok) == (Result.AUTH_ERR, "hunter"), "the last 12 digits are read as two codes"
    assert (site.counter(), site.record().failures) == (0, 1)
    assert site.login("hunter12345" + codes(0)).authtok == "hunter12345", "the last six of 11 digits are read as a code"
    assert site.counter() == 1


def test_lengths_are_those_of_the_tokens_that_are_enabled(site: Site) -> None:
    other = fob(name="other", secret=KEY[::-1], digits=8)
    site.enrol(fob(), other)
    assert site.login("abc99" + codes(0)).authtok == "abc", "the last 8 digits could be a code of the other token"
    assert site.counter() == 0
    site.enrol(fob(), other.switched(False))
    done = site.login("abc99" + codes(0))
    assert (done.result, done.authtok) == (Result.SUCCESS, "abc99")


def test_eight_digits_after_a_password_are_accepted(site: Site) -> None:
    site.enrol(fob(digits=8))
    done = site.login("abc" + hotp(KEY, 0, 8))
    assert (done.result, done.authtok) == (Result.SUCCESS, "abc")


@pytest.mark.parametrize("said", [RECOVERY, "password" + RECOVERY, "password" + RECOVERY[:10]])
def test_recovery_codes_after_a_password_are_refused(site: Site, said: str) -> None:
    digits = recovery_digest(SALT, "1234567890123456")
    site.enrol(fob(digits=8), salt=SALT, recovery=(recovery_digest(SALT, RECOVERY), digits))
    assert site.login(said).result is Result.AUTH_ERR
    assert site.login("password1234567890123456").result is Result.AUTH_ERR, "a recovery code of digits is refused too"
    assert len(site.record().recovery) == 2


@pytest.mark.parametrize(
    "said", ["password", "password12345", "755224x", "p\u0661\u0662\u0663\u0664\u0665\u0666", "x 755-224"]
)
def test_an_answer_without_codes_is_a_password_and_is_not_counted(site: Site, said: str) -> None:
    site.enrol()
    before = site.path().read_bytes()
    done = site.login(said)
    assert (done.result, done.authtok) == (Result.AUTH_ERR, said)
    assert site.path().read_bytes() == before


@pytest.mark.parametrize("said", [codes(0), codes(0, 2).replace(" ", "")])
def test_codes_without_a_password_are_refused_and_not_used_up(site: Site, said: str) -> None:
    site.enrol()
    assert site.login(said).result is Result.AUTH_ERR
    assert site.counter() == 0


def test_a_blank_answer_passes_no_password_on(site: Site) -> None:
    site.enrol()
    done = site.login("")
    assert (done.result, done.authtok) == (Result.AUTH_ERR, None)


def test_bytes_that_are_not_text_are_passed_on_unchanged(site: Site) -> None:
    site.enrol()
    done = site.login(b"p\xff\xfe" + codes(0).encode())
    assert (done.result, done.authtok) == (Result.SUCCESS, os.fsdecode(b"p\xff\xfe"))


@pytest.mark.parametrize("said", ["password123456", "password", "123456", "password" + "1" * 12, "x" * 600])
def test_an_unenrolled_user_sees_what_a_wrong_code_shows(site: Site, said: str) -> None:
    def seen(done: Login) -> Login:
        return replace(done, seconds=0.0)

    unenrolled = site.login(said)
    site.enrol()
    assert seen(unenrolled) == seen(site.login(said))
    assert unenrolled.messages == (), "a message would show that the code was wrong"


def test_a_right_code_with_a_wrong_password_looks_like_a_wrong_code(site: Site) -> None:
    """pam_deny replaces a module that refuses the password. The user must not see the count of refusals."""
    line = f"auth required {MODULE} store={site.store} socket=none forward_pass"
    service(site.confdir, "demo", line, "auth required pam_deny.so")
    seen = set()
    for said in ("wrong" + codes(0), "wrong000000", "wrong" + codes(40, 2).replace(" ", ""), "wrong"):
        site.enrol(refused=2, failures=2, failures_at=int(time.time()))
        done = site.login(said)
        seen.add((done.result, done.prompts, done.messages, done.left))
        assert done.delay >= 1, "the module requests a fail delay from libpam, for right and wrong codes"
        assert done.seconds >= refusal_delay(Policy())
    assert len(seen) == 1


def test_a_code_before_the_password_gives_no_grace(site: Site) -> None:
    """A missing prompt would reveal that a code was right, even if the password with it was wrong."""
    line = f"auth required {MODULE} store={site.store} socket=none nodelay forward_pass grace_period=600"
    service(site.confdir, "demo", line)
    site.enrol()
    for counter in range(2):
        done = login("demo", ME, [f"horse{codes(counter)}"], site.confdir, items={"rhost": "192.0.2.7"})
        assert (done.result, len(done.prompts)) == (Result.SUCCESS, 1)
    assert site.record().grace == ()


def test_a_password_is_not_passed_on_if_the_store_is_unavailable(site: Site) -> None:
    site.enrol()
    site.store.chmod(0o755)
    done = site.login("password" + codes(0))
    assert (done.result, done.authtok) == (Result.AUTHINFO_UNAVAIL, None)


def test_the_next_module_gets_the_password_and_not_the_code(site: Site, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    line = f"auth required {MODULE} store={site.store} socket=none nodelay forward_pass"
    service(site.confdir, "demo", line, f"auth required pam_exec.so expose_authtok quiet /usr/bin/tee {seen}")
    site.enrol()
    assert login("demo", ME, ["tr0ub4dor" + codes(0)], site.confdir).result is Result.SUCCESS
    assert seen.read_bytes().rstrip(b"\0") == b"tr0ub4dor"


@given(
    password=st.binary(min_size=1, max_size=40).filter(lambda p: not p[-1:].isdigit()),
    length=st.sampled_from([6, 7, 8]),
    count=st.integers(1, 3),
    data=st.data(),
)
def test_a_joined_password_and_codes_are_split_again(
    password: bytes, length: int, count: int, data: st.DataObject
) -> None:
    digits = "".join(
        data.draw(st.lists(st.sampled_from("0123456789"), min_size=length * count, max_size=length * count))
    )
    answer = Answer.parse_behind_password(password + digits.encode())
    assert answer.password({length}) == password
    assert "".join(answer.codes({length}) or ()) == digits


@given(answer=st.binary(max_size=60) | st.from_regex(rb"[a-z]{0,3}[0-9]{0,30}", fullmatch=True))
def test_a_split_answer_is_complete_and_its_tail_is_codes_or_empty(answer: bytes) -> None:
    parsed = Answer.parse_behind_password(answer)
    password, codes = bytes(parsed.password({6, 8})), parsed.codes({6, 8})
    assert password + "".join(codes or ()).encode() == answer
    assert bool(password) or not answer
