"""Tests of logins through the real sshd, by the real ssh."""

from __future__ import annotations

import syslog
import time
from functools import partial

import pytest

from pam_totp.core.answer import recovery_digest
from pam_totp.core.record import HotpToken
from pam_totp.core.settings import NEXT_PROMPT
from pam_totp.operations.authenticate import REFUSED
from tests.services.namespace import Machine, Sshd
from tests.services.terminal import Talk
from tests.support.etc import PASSWORD
from tests.support.site import codes, fob

CODE = "One-time code: "
FIRST = "auth requisite pam_unix.so nodelay"
NON_TEXT = b"\xff\xfe\xc3"


def counter(machine: Machine, user: str = "alice") -> int:
    token = machine.record(user).tokens[0]
    assert isinstance(token, HotpToken)
    return token.counter


def is_in(talk: Talk, user: str = "alice") -> bool:
    """Wait until ssh ends. Return True if `user` was logged in."""
    status, shown = talk.ends()
    assert (status == 0) == (f"in as {user}" in shown), (status, shown)
    if status != 0:
        assert "Permission denied" in shown, shown
    return status == 0


def refused(sshd: Sshd, user: str, *answers: str | bytes, port: int = Sshd.KEYBOARD) -> str:
    """Give each of `answers` at both prompts of an attempt of one connection. Check the refusals. Return the output."""
    shown = ""
    talk = sshd.ssh(user, f"NumberOfPasswordPrompts={len(answers)}", port=port)
    for answer in answers:
        shown += talk.asks(CODE).before
        shown += talk.fails(answer).before
    status, last = talk.ends()
    assert status == 255, last
    assert "Permission denied" in last
    return shown + last


def test_password_then_code(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", FIRST, machine.module_line(way=way_there))
    machine.enrol("alice")
    assert is_in(sshd.ssh().asks("Password: ").says(PASSWORD).asks(CODE).says(codes(0)))
    assert counter(machine) == 1
    line = machine.log.wait_for("pam_totp(sshd:auth): accepted user=alice")
    assert "by=code token=fob created=0 next=1 ahead=0 rhost=127.0.0.1" in line


def test_a_wrong_password_gets_no_code_prompt_and_a_right_one_no_login(
    machine: Machine, sshd: Sshd, way_there: str
) -> None:
    machine.stack("sshd", FIRST, machine.module_line(way=way_there))
    machine.enrol("alice")
    talk = sshd.ssh().asks("Password: ").says("wrong").asks("Password: ")
    assert CODE not in talk.before
    talk.says(PASSWORD).asks(CODE).fails("000000").asks("Password: ").says(PASSWORD).asks(CODE).fails("")
    assert not is_in(talk)
    assert machine.record("alice").failures == 1


def test_public_key_then_code(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", machine.module_line(way=way_there))
    machine.enrol("alice")
    assert is_in(sshd.ssh(port=sshd.KEY_THEN_KEYBOARD).asks(CODE).says(codes(0)))
    refused(sshd, "alice", codes(0), port=sshd.KEY_THEN_KEYBOARD)


def test_without_a_public_key_there_is_no_prompt(machine: Machine, sshd: Sshd) -> None:
    machine.stack("sshd", machine.module_line())
    machine.enrol("alice")
    status, shown = sshd.ssh("alice", "PubkeyAuthentication=no", port=sshd.KEY_THEN_KEYBOARD).ends()
    assert status == 255
    assert CODE not in shown


@pytest.mark.parametrize(
    ("said", "gets_in"),
    [
        (PASSWORD + codes(0), True),
        (PASSWORD + codes(2000, 2).replace(" ", ""), False),
        (PASSWORD + codes(40, 2).replace(" ", ""), True),
        ("wrong" + codes(0), False),
        (PASSWORD + "000000", False),
        (PASSWORD, False),
        (codes(0), False),
    ],
)
def test_password_and_code_in_one_answer_over_password_authentication(
    machine: Machine, sshd: Sshd, way_there: str, said: str, gets_in: bool
) -> None:
    machine.stack(
        "sshd", machine.module_line("forward_pass", way=way_there), "auth required pam_unix.so use_first_pass nodelay"
    )
    machine.enrol("alice")
    talk = sshd.ssh("alice", "NumberOfPasswordPrompts=1", port=sshd.PASSWORD)
    assert is_in(talk.asks("password: ").says(said)) is gets_in


def test_ssh_shows_nothing_of_a_code_before_the_password_is_right(machine: Machine, sshd: Sshd, way_there: str) -> None:
    """The output is equal for right and wrong codes, and omits refusals and their count."""
    unix = "auth required pam_unix.so use_first_pass nodelay"
    machine.stack("sshd", machine.module_line("forward_pass", way=way_there), unix)
    seen = set()
    for said in ("wrong" + codes(0), "wrong000000", "wrong", PASSWORD + "000000"):
        machine.enrol("alice", refused=2)
        talk = sshd.ssh("alice", "NumberOfPasswordPrompts=2")
        first = talk.asks("Password and one-time code: ").says(said).asks("Password and one-time code: ").before
        seen.add((first, talk.says(said).ends()))
    assert len(seen) == 1, seen
    machine.log.wait_for("accepted user=alice by=code", "refused_before=2")
    machine.enrol("alice", refused=2)
    shown = sshd.ssh().asks("Password and one-time code: ").says(PASSWORD + codes(0)).ends()
    assert shown[0] == 0
    assert "refused since" not in shown[1], "only the log has the count of refused answers"


@pytest.mark.parametrize(
    ("answers", "failures"),
    [
        pytest.param(["000000", "", "7" * 600], 1, id="wrong, blank, 600 characters"),
        pytest.param([NON_TEXT + b"755224", b"755224" + NON_TEXT, "755224x"], 0, id="longer than a code"),
    ],
)
def test_wrong_answers_are_refused_and_a_right_code_is_still_accepted(
    machine: Machine, sshd: Sshd, way_there: str, answers: list[str | bytes], failures: int
) -> None:
    machine.stack("sshd", machine.module_line(way=way_there))
    machine.enrol("alice")
    assert refused(sshd, "alice", *answers).count(REFUSED) == len(answers)
    assert (machine.record("alice").failures, counter(machine)) == (failures, 0)
    assert is_in(sshd.ssh().asks(CODE).says(codes(0)))


def test_a_code_is_accepted_once(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", machine.module_line(way=way_there))
    machine.enrol("alice")
    assert is_in(sshd.ssh().asks(CODE).says(codes(0)))
    refused(sshd, "alice", codes(0))
    machine.log.wait_for("refused user=alice reason=replayed token=fob")
    assert machine.record("alice").failures == 0


def test_ctrl_c_at_the_prompt_leaves_no_failure_and_no_lock(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", machine.module_line(way=way_there))
    machine.enrol("alice")
    before = machine.path("/var/lib/pam_totp/alice.record").read_bytes()
    assert sshd.ssh().asks(CODE).interrupts()[0] != 0
    line = machine.log.wait_for("pam_totp(sshd:auth): refused user=alice reason=no-answer rhost=127.0.0.1")
    assert line.startswith(f"<{syslog.LOG_AUTHPRIV | syslog.LOG_INFO}>"), line
    assert not [line for line in machine.log.module_lines() if "error" in line]
    assert machine.path("/var/lib/pam_totp/alice.record").read_bytes() == before
    assert is_in(sshd.ssh().asks(CODE).says(codes(0))), "the next login acquires the lock"


def test_a_connection_dropped_at_the_prompt_leaves_no_failure_and_no_lock(
    machine: Machine, sshd: Sshd, way_there: str
) -> None:
    machine.stack("sshd", machine.module_line(way=way_there))
    machine.enrol("alice")
    open_prompts = [sshd.ssh().asks(CODE) for _ in range(3)]
    for talk in open_prompts:
        talk.hangs_up()
    assert is_in(sshd.ssh().asks(CODE).says(codes(0))), "dropped connections do not block a login"
    machine.log.wait_for("pam_totp(sshd:auth): refused user=alice reason=no-answer rhost=127.0.0.1")
    assert (machine.record("alice").failures, counter(machine)) == (0, 1)


def test_an_unknown_user_sees_what_a_wrong_code_shows(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", machine.module_line(way=way_there))
    machine.enrol("alice")
    known, unenrolled, unknown = (refused(sshd, user, "000000", "x") for user in ("alice", "bob", "mallory"))
    assert unenrolled.replace("bob@", "alice@") == known
    assert unknown.replace("mallory@", "alice@") == known
    machine.log.wait_for("refused user=mallory reason=not-enrolled")
    assert sorted(f.name for f in machine.path("/var/lib/pam_totp").iterdir() if f.name.endswith(".record")) == [
        "alice.record"
    ]


def test_root_is_refused_and_nothing_is_counted(machine: Machine, sshd: Sshd, way_there: str) -> None:
    """sshd with `PermitRootLogin no` replaces root's answer with \\b\\n\\r\\177INCORRECT."""
    machine.stack("sshd", machine.module_line(way=way_there))
    machine.enrol("root")
    before = machine.path("/var/lib/pam_totp/root.record").read_bytes()
    refused(sshd, "root", codes(0))
    machine.log.wait_for("refused user=root reason=malformed")
    assert machine.path("/var/lib/pam_totp/root.record").read_bytes() == before


def test_a_token_is_resynchronised_by_two_codes_in_one_answer(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", machine.module_line(way=way_there))
    machine.enrol("alice")
    talk = sshd.ssh().asks(CODE).fails(codes(40))
    assert REFUSED in talk.before, "the refusal asks for two codes in a row"
    talk.asks(CODE)
    assert is_in(talk.says(codes(40, 2)))
    assert is_in(sshd.ssh().asks(CODE).says(codes(42)))


def test_a_fob_out_of_step_is_resynchronised_by_two_answers(machine: Machine, sshd: Sshd, way_there: str) -> None:
    """A key fob that types its code and the Return key answers each prompt with one code."""
    machine.stack("sshd", machine.module_line(way=way_there))
    machine.enrol("alice")
    assert is_in(sshd.ssh().asks(CODE).says(codes(40)).asks(NEXT_PROMPT).says(codes(41)))
    assert (counter(machine), machine.record("alice").failures) == (42, 0)


def test_five_failures_require_two_codes_in_every_process(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", machine.module_line(way=way_there))
    machine.enrol("alice")
    refused(sshd, "alice", "000000", "000001", "000002")
    refused(sshd, "alice", "000000", "000001")
    assert machine.record("alice").failures == 5
    refused(sshd, "alice", codes(0))
    machine.log.wait_for("reason=codes-in-a-row-needed token=fob")
    assert is_in(sshd.ssh().asks(CODE).says(codes(0, 2)))


@pytest.mark.parametrize("arguments", ["", "no_second_prompt"])
def test_sshd_logs_its_own_line_about_a_wrong_code(
    machine: Machine, sshd: Sshd, way_there: str, arguments: str
) -> None:
    """sshd omits the log line for programs such as fail2ban if a module shows a text after the last answer."""
    machine.stack("sshd", machine.module_line(arguments, way=way_there))
    machine.enrol("alice")
    talk = sshd.ssh("alice", "NumberOfPasswordPrompts=1").asks(CODE)
    if arguments:
        talk.says("000000")
    else:
        assert REFUSED in talk.fails("000000").before, "the module shows the refusal with the second prompt"
    status, shown = talk.ends()
    assert (status, REFUSED in shown) == (255, False)
    machine.log.wait_for("sshd", "error: PAM: Authentication failure for alice from 127.0.0.1")


def test_a_locked_account_looks_like_a_wrong_code_until_a_recovery_code(
    machine: Machine, sshd: Sshd, way_there: str
) -> None:
    machine.stack("sshd", machine.module_line("lock_after=2", way=way_there))
    salt, recovery = "00" * 16, "0123456789ABCDEF"
    machine.enrol("alice", salt=salt, recovery=(recovery_digest(salt, recovery),))
    wrong = refused(sshd, "alice", "000000", "000001")
    locked = refused(sshd, "alice", codes(0), codes(1))
    machine.log.wait_for("reason=locked")
    assert locked == wrong
    assert is_in(sshd.ssh().asks(CODE).says("0123-4567-89ab-cdef"))
    assert machine.record("alice").recovery == ()
    assert is_in(sshd.ssh().asks(CODE).says(codes(0)))


def test_a_success_shows_the_user_how_many_answers_were_refused(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", machine.module_line(way=way_there))
    machine.enrol("alice")
    refused(sshd, "alice", "000000", "x", "000001")
    status, shown = sshd.ssh("alice", "RequestTTY=force").asks(CODE).says(codes(0)).ends()
    assert status == 0
    assert shown.count("4 answers were refused since the last login") == 1, shown
    status, shown = sshd.ssh("alice", "RequestTTY=force").asks(CODE).says(codes(1)).ends()
    assert (status, "refused" in shown) == (0, False)


def test_before_a_shell_sshd_repeats_the_notice_as_the_text_of_any_module(machine: Machine, sshd: Sshd) -> None:
    machine.stack("sshd", machine.module_line(), "auth optional pam_echo.so text of another module")
    machine.enrol("alice", refused=2)
    talk = sshd.ssh(is_interactive=True).asks(CODE).says(codes(0)).says("exit 0")
    status, shown = talk.ends()
    assert status == 0
    notices = shown.count("2 answers were refused since the last login")
    assert notices == shown.count("text of another module"), shown
    assert notices >= 1


def test_nullok_accepts_only_unenrolled_users(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", FIRST, machine.module_line("nullok", way=way_there))
    machine.enrol("alice")
    assert is_in(sshd.ssh("bob").asks("Password: ").says(PASSWORD), "bob")
    machine.log.wait_for("ignored user=bob reason=not-enrolled")
    talk = sshd.ssh("alice").asks("Password: ").says(PASSWORD).asks(CODE).says(codes(0))
    assert is_in(talk)


def test_nullok_denies_if_the_store_is_unavailable(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", FIRST, machine.module_line("nullok", way=way_there))
    store = machine.path("/var/lib/pam_totp")
    store.chmod(0o755)
    try:
        talk = sshd.ssh("bob", "NumberOfPasswordPrompts=1").asks("Password: ").says(PASSWORD)
        assert not is_in(talk, "bob")
    finally:
        store.chmod(0o700)
    machine.log.wait_for("pam_totp(sshd:auth): error", "mode must be 0700")


@pytest.mark.parametrize(("argument", "visible"), [("", False), ("echo", True)])
def test_echo_shows_the_typed_code(machine: Machine, sshd: Sshd, way_there: str, argument: str, visible: bool) -> None:
    machine.stack("sshd", machine.module_line(argument, way=way_there))
    machine.enrol("alice")
    status, shown = sshd.ssh("alice", echo=True).asks(CODE).says(codes(0)).ends()
    assert (status, codes(0) in shown) == (0, visible)


def test_the_site_chooses_the_prompt(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", machine.module_line("[prompt=Code of your Schlüsselbund, please: ]", way=way_there))
    machine.enrol("alice")
    assert is_in(sshd.ssh().asks("(alice@127.0.0.1) Code of your Schlüsselbund, please: ").says(codes(0)))


def test_try_first_pass_prompts_only_if_the_first_answer_is_not_a_code(
    machine: Machine, sshd: Sshd, way_there: str
) -> None:
    machine.stack("sshd", "auth optional pam_unix.so nodelay", machine.module_line("try_first_pass", way=way_there))
    machine.enrol("alice")
    assert is_in(sshd.ssh().asks("Password: ").says(codes(0)))
    assert is_in(sshd.ssh().asks("Password: ").says(PASSWORD).asks(CODE).says(codes(1)))


def test_use_first_pass_never_prompts(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", "auth optional pam_unix.so nodelay", machine.module_line("use_first_pass", way=way_there))
    machine.enrol("alice")
    assert is_in(sshd.ssh().asks("Password: ").says(codes(0)))
    talk = sshd.ssh().asks("Password: ").says(PASSWORD).asks("Password: ")
    assert CODE not in talk.before
    assert is_in(talk.says(codes(1)))


def test_grace_is_for_the_address_that_sshd_saw(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", machine.module_line("grace_period=600", way=way_there))
    machine.enrol("alice")
    log_in = partial(sshd.ssh, port=sshd.KEY_THEN_KEYBOARD)
    assert is_in(log_in(source="192.0.2.7").asks(CODE).says(codes(0)))
    assert is_in(log_in(source="192.0.2.7")), "during grace, sshd shows no prompt"
    machine.log.wait_for("accepted user=alice by=grace rhost=192.0.2.7")
    assert is_in(log_in(source="192.0.2.8").asks(CODE).says(codes(1)))
    assert [g.rhost for g in machine.record("alice").grace] == ["192.0.2.7", "192.0.2.8"]
    for counter in (2, 3):
        assert is_in(log_in().asks(CODE).says(codes(counter))), "a login from loopback has no grace"


SITE_FILE = "[policy]\nlook_ahead = 2\n[service.sshd]\nprompt = 'Site code: '\ngrace_period = 600\n"


def test_the_site_file_applies_and_an_argument_overrides_it(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.write("/etc/pam_totp.toml", SITE_FILE)
    machine.stack("sshd", machine.module_line(way=way_there))
    machine.enrol("alice")
    talk = sshd.ssh(source="192.0.2.7").asks("Site code: ").fails(codes(3)).asks("Site code: ")
    assert is_in(talk.says(codes(2)))
    assert is_in(sshd.ssh(source="192.0.2.7")), "grace_period of the site file applies, so there is no prompt"
    machine.stack("sshd", machine.module_line("look_ahead=10 grace_period=0 [prompt=My code: ]", way=way_there))
    assert is_in(sshd.ssh().asks("My code: ").says(codes(9)))


@pytest.mark.parametrize(
    ("text", "mode"), [("[polcy]\n", 0o644), (SITE_FILE, 0o666), ("[policy]\nwindow = true\n", 0o644)]
)
def test_an_invalid_site_file_denies(machine: Machine, sshd: Sshd, way_there: str, text: str, mode: int) -> None:
    machine.write("/etc/pam_totp.toml", text, mode)
    machine.stack("sshd", machine.module_line("nullok", way=way_there))
    machine.enrol("alice")
    assert not is_in(sshd.ssh())
    machine.log.wait_for("pam_totp(sshd:auth): error user=alice", "/etc/pam_totp.toml")


def test_a_hostile_user_name_forges_no_log_line(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", machine.module_line(way=way_there))
    refused(sshd, "x accepted: user=root by=code", "000000")
    line = machine.log.wait_for("reason=not-enrolled")
    assert (line.count("user="), line.count("by=")) == (1, 0)


def test_of_twenty_sessions_with_one_code_one_is_accepted(machine: Machine, sshd: Sshd, way_there: str) -> None:
    machine.stack("sshd", machine.module_line(way=way_there))
    machine.enrol("alice", fob(last_used=int(time.time())))
    talks = [sshd.ssh("alice", "NumberOfPasswordPrompts=1") for _ in range(20)]
    for talk in talks:
        talk.asks(CODE)
    for talk in talks:
        talk.says(codes(0))
    assert sum(is_in(talk) for talk in talks) == 1
