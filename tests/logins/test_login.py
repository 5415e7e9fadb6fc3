"""Tests of logins through the real libpam and the real module, by service and by helper."""

from __future__ import annotations

import re
import time

import pytest

from pam_totp.core.oath import totp
from pam_totp.operations.authenticate import REFUSED
from tests.support.pamconf import Result, Style, login, service
from tests.support.site import KEY, ME, MODULE, Site, codes, fob, phone


def test_a_code_is_accepted_once(site: Site, way: str) -> None:
    site.enrol()
    first = site.login(codes(0))
    assert first.result is Result.SUCCESS
    assert [(p.style, p.text) for p in first.prompts] == [(Style.PROMPT_ECHO_OFF, "One-time code: ")]
    again = site.login(codes(0))
    assert again.result is Result.AUTH_ERR
    assert [m.text for m in again.messages] == [REFUSED]
    assert site.record().failures == 0, "a replay is not counted"
    assert site.gets_in(codes(1))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " ",
        "75522",
        "7552244",
        "75522x",
        "x",
        "755224x",
        "75522²",
        "7_55224",
        "+755224",
        "7.55224",
        b"\xff\xfe",
        b"\x08\n\r\x7fINCORRECT",
        "7" * 600,
        "755224" * 4,
    ],
)
def test_an_answer_without_a_code_is_refused_and_changes_no_record(site: Site, way: str, answer: str | bytes) -> None:
    site.enrol()
    before = site.path().read_bytes()
    assert not site.gets_in(answer)
    assert site.path().read_bytes() == before
    assert site.gets_in(codes(0))


@pytest.mark.parametrize("typed", ["755224 ", "\t755 224", "755-224", "755\u2013224", "٧٥٥٢٢٤", "７５５２２４"])
def test_separators_and_the_digits_of_any_script_are_read(site: Site, way: str, typed: str) -> None:
    site.enrol()
    assert site.gets_in(typed)
    assert site.counter() == 1


def test_a_wrong_code_is_counted_and_moves_no_counter(site: Site, way: str) -> None:
    site.enrol(fob(7))
    for wrong in range(1, 4):
        assert not site.gets_in("000000")
        assert (site.record().failures, site.counter()) == (wrong, 7)
    assert site.gets_in(codes(7))


def test_a_token_40_presses_ahead_is_resynchronised_by_one_answer(site: Site, way: str) -> None:
    site.enrol()
    assert not site.gets_in(codes(40))
    assert site.gets_in(codes(40, 2))
    assert site.counter() == 42
    assert site.gets_in(codes(42)), "the next code is accepted"
    assert not site.gets_in(codes(41, 2)), "a used code is refused, also among codes in a row"


def test_after_5_failures_two_codes_are_required_and_after_20_three(site: Site, way: str) -> None:
    site.enrol(failures=5, failures_at=int(time.time()))
    assert not site.gets_in(codes(0)), "one code is not enough"
    assert not site.gets_in("000000"), "a wrong code is refused"
    assert site.gets_in(codes(0, 2))
    assert site.record().failures == 5, "a login by codes in a row leaves the count unchanged"
    assert not site.gets_in(codes(2)), "two codes are still required"
    site.enrol(failures=20, failures_at=int(time.time()))
    assert not site.gets_in(codes(0)), "one code is not enough"
    assert not site.gets_in(codes(0, 2)), "two codes are not enough"
    assert site.gets_in(codes(0, 3))


def test_a_success_shows_the_user_how_many_answers_were_refused(site: Site, way: str) -> None:
    site.enrol()
    site.login("000000")
    site.login("111111")
    done = site.login(codes(0))
    assert [(m.style, m.text) for m in done.messages] == [
        (Style.TEXT_INFO, "2 answers were refused since the last login")
    ]
    assert site.login(codes(1)).messages == ()


def test_a_time_token_is_accepted_once_a_step(site: Site, way: str) -> None:
    token = phone(period=86_400)  # no step ends during the test, except at midnight UTC
    site.enrol(token)
    code = totp(token.secret, int(time.time()), period=token.period)
    assert site.gets_in(code)
    assert not site.gets_in(code)


def test_each_of_several_tokens_is_checked(site: Site, way: str) -> None:
    site.enrol(fob(), fob(name="spare", secret=KEY * 2, digits=8), fob(name="off", secret=KEY * 3, enabled=False))
    assert site.gets_in(codes(0, key=KEY * 2, digits=8))
    assert site.gets_in(codes(0))
    assert not site.gets_in(codes(0, key=KEY * 3)), "the code of a disabled token is refused"


def test_a_token_40_presses_ahead_is_resynchronised_by_two_answers(site: Site, way: str) -> None:
    """A key fob that types its code and Return answers each prompt with one code."""
    site.enrol()
    done = site.login(codes(40), codes(41))
    assert (done.result, done.messages) == (Result.SUCCESS, ())
    assert [(p.style, p.text) for p in done.prompts] == [
        (Style.PROMPT_ECHO_OFF, "One-time code: "),
        (Style.PROMPT_ECHO_OFF, "Not accepted. Next code: "),
    ]
    assert (site.counter(), site.record().failures) == (42, 0)
    assert site.gets_in(codes(42)), "the next code is accepted"


def test_no_answer_is_kept_beyond_its_dialogue(site: Site, way: str) -> None:
    site.enrol()
    assert not site.gets_in(codes(40))
    assert not site.gets_in(codes(41))
    assert site.record().failures == 2


def test_the_dialogue_asks_for_a_third_code_after_20_failures(site: Site, way: str) -> None:
    site.enrol(failures=20, failures_at=int(time.time()))
    done = site.login(codes(40), codes(41), codes(42), codes(43))
    assert (done.result, len(done.prompts), done.left) == (Result.SUCCESS, 3, 1)


def test_a_missing_answer_to_the_second_prompt_is_a_refusal(site: Site, way: str) -> None:
    site.enrol()
    done = site.login("000000", None)
    assert (done.result, len(done.prompts), [m.text for m in done.messages]) == (Result.AUTH_ERR, 2, [REFUSED])
    if way == "socket":
        assert [line.partition("auth): ")[2] for line in site.log.lines()] == [
            f"refused user={ME} reason=wrong",
            f"refused user={ME} reason=no-answer",
        ]


def test_the_same_answer_twice_is_counted_once(site: Site, way: str) -> None:
    """A client that sends one password at every prompt would otherwise cause two failures in a login."""
    site.enrol()
    done = site.login("000000", "000-000")
    assert (done.result, len(done.prompts)) == (Result.AUTH_ERR, 2)
    assert (site.record().failures, site.record().refused) == (1, 2)


def test_there_is_one_prompt_with_no_second_prompt(site: Site, obeyed_way: str) -> None:
    site.enrol()
    site.configure("once", "no_second_prompt", way=obeyed_way)
    assert len(site.login("000000", "000001", service="once").prompts) == 1


def test_an_unenrolled_user_sees_the_same_prompts_and_refusal(site: Site, way: str) -> None:
    done = site.login("123456", "234567")
    assert (done.result, len(done.prompts), [m.text for m in done.messages]) == (Result.AUTH_ERR, 2, [REFUSED])
    assert [p for p in site.store.iterdir() if not p.name.startswith(".")] == [], (
        "a refused login of an unenrolled user creates no file"
    )


def test_nullok_passes_only_unenrolled_users(site: Site, obeyed_way: str) -> None:
    # pam_permit accepts every user that pam_totp ignores.
    site.configure("lenient", "nullok", obeyed_way, "auth required pam_permit.so")
    done = site.login(service="lenient")
    assert (done.result, done.prompts) == (Result.SUCCESS, ())
    site.enrol(fob(enabled=False))
    assert site.login("123456", service="lenient").result is Result.AUTH_ERR, "a user with a disabled token is enrolled"
    site.path().write_text("{}")
    assert site.login("123456", service="lenient").result is Result.AUTHINFO_UNAVAIL


def test_a_prompt_without_an_answer_is_a_conversation_error(site: Site, way: str) -> None:
    site.enrol()
    assert site.login(None).result is Result.CONV_ERR
    assert site.gets_in(codes(0))


def test_prompt_and_echo_follow_the_settings(site: Site, way: str) -> None:
    site.enrol()
    site.configure("custom", "echo [prompt=Code of your fob: ]", way=way)
    shown = site.login(codes(0), service="custom").prompts
    assert [(p.style, p.text) for p in shown] == [(Style.PROMPT_ECHO_ON, "Code of your fob: ")]


def test_look_ahead_follows_the_setting(site: Site, obeyed_way: str) -> None:
    site.enrol()
    site.configure("strict", "look_ahead=0", way=obeyed_way)
    assert site.login(codes(1), service="strict").result is Result.AUTH_ERR
    assert site.login(codes(0), service="strict").result is Result.SUCCESS


def test_an_account_locked_by_lock_after_is_refused_until_unlocked(site: Site, obeyed_way: str) -> None:
    site.enrol()
    site.configure("locking", "lock_after=2", way=obeyed_way)
    for answer in ("000000", "111111"):
        site.login(answer, service="locking")
    for answer in (codes(0), codes(0, 2), codes(0, 3)):
        assert site.login(answer, service="locking").result is Result.AUTH_ERR
    assert site.command("unlock", site.record().user).returncode == 0
    assert site.login(codes(0), service="locking").result is Result.SUCCESS


@pytest.mark.parametrize(
    "argument",
    [
        "frobnicate",
        "look_ahead=101",
        "look_ahead=",
        "look_ahead=-1",
        "window=1_0",
        "nullok=1",
        "echo echo",
        "try_first_pass use_first_pass",
        "second_prompt no_second_prompt",
        "lock_after=x",
        "prompt=",
        "resync_steps=2881",
        "look_ahead",
    ],
)
def test_an_invalid_argument_denies_and_is_logged(site: Site, obeyed_way: str, argument: str) -> None:
    site.enrol()
    site.configure("bad", argument, way=obeyed_way)
    done = site.login(codes(0), service="bad")
    assert (done.result, done.prompts) == (Result.SERVICE_ERR, ())
    assert site.counter() == 0
    if obeyed_way == "socket":
        assert site.log.has("pam_totp(bad:auth): error", "problem=", re.split("[ =]", argument)[0])


def test_use_first_pass_never_asks_and_try_first_pass_asks_if_refused(site: Site, obeyed_way: str) -> None:
    site.enrol()
    where = site.socket if obeyed_way == "socket" else "none"
    for name in ("use_first_pass", "try_first_pass"):
        line = f"auth required {MODULE} store={site.store} socket={where} nodelay second_prompt {name}"
        service(site.confdir, name, line, carry_authtok=True)

    def enter(name: str, authtok: str | None, *answers: str) -> tuple[Result, int]:
        items = {} if authtok is None else {"authtok": authtok}
        done = login(name, ME, answers, site.confdir, items=items)
        return done.result, len(done.prompts)

    assert enter("use_first_pass", codes(0)) == (Result.SUCCESS, 0)
    assert enter("use_first_pass", "password") == (Result.AUTH_ERR, 0)
    assert enter("use_first_pass", None) == (Result.AUTH_ERR, 0)
    assert enter("try_first_pass", codes(1)) == (Result.SUCCESS, 0)
    assert enter("try_first_pass", "password", codes(2)) == (Result.SUCCESS, 1)
    assert enter("try_first_pass", None, codes(3)) == (Result.SUCCESS, 1)
    assert enter("try_first_pass", "password", "password") == (Result.AUTH_ERR, 2)
    assert site.record().failures == 0, "a password is not counted as a wrong code"
