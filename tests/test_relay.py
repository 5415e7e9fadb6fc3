"""Tests of the relay's arguments, hello and dialogue: relayed messages, and faults that deny the login."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import as_root
from tests.support import pamconf
from tests.support.pamconf import Result, Session, Shown, Style, login
from tests.support.relay_kit import AS_ROOT, RELAY, ROOT, Log, Service, Setup, brisk, in_turn, play, told

pytestmark = [pytest.mark.bare, pytest.mark.usefixtures("log")]


# ---- module arguments


@pytest.mark.parametrize(
    "argument",
    ["socket=", "socket=run/socket", "socket=NONE", f"socket=/{'x' * 107}", "helper=", "helper=helper.py"],
)
def test_a_malformed_argument_denies_and_is_named_in_the_log(setup: Setup, log: Log, argument: str) -> None:
    with setup.service(play(b"r0")) as service:
        done = setup.login(service.argument, argument, service.argument)
        assert done.result == Result.SERVICE_ERR
        assert log() == [f"denied: malformed argument {argument}"]
        assert service.logins == 0


def test_the_longest_socket_path_that_fits_is_used(setup: Setup, tmp_path: Path) -> None:
    path = tmp_path / ("s" * (106 - len(str(tmp_path))))
    assert len(str(path)) == 107
    with setup.service(play(b"r0"), path) as service:
        assert setup.login(service.argument).result == Result.SUCCESS


def test_with_socket_none_a_helper_is_started(setup: Setup) -> None:
    helper = setup.helper("channel.send(b'r0')")
    assert setup.login("socket=none", f"helper={helper}").result == Result.SUCCESS


@pytest.mark.parametrize("order", [1, -1])
def test_with_secret_a_helper_is_started_though_a_service_listens(setup: Setup, order: int) -> None:
    helper = setup.helper("channel.send(b'r0')")
    with setup.service(play(b"r7")) as service:
        arguments = [service.argument, "secret=${HOME}/.totp"][::order]
        assert setup.login(*arguments, f"helper={helper}").result == Result.SUCCESS
        assert service.logins == 0


def test_of_two_socket_arguments_the_last_applies(setup: Setup) -> None:
    with setup.service(play(b"r0")) as service:
        assert setup.login("socket=/nonexistent/socket", service.argument).result == Result.SUCCESS


def test_a_refusal_requests_a_delay_of_two_seconds(setup: Setup) -> None:
    with setup.service(play(b"r7")) as service:
        assert 1 <= setup.login(service.argument).delay <= 3  # libpam randomises the delay by ±50 %


def test_a_denial_by_the_relay_itself_requests_the_delay_too(setup: Setup) -> None:
    assert setup.login("socket=").delay >= 1


@pytest.mark.parametrize("result", [b"r0", b"r25"])
def test_success_and_ignore_request_no_delay(setup: Setup, result: bytes) -> None:
    with setup.service(play(result)) as service:
        assert setup.login(service.argument).delay == 0


def test_the_delay_of_a_login_that_a_later_module_refuses_is_the_same(setup: Setup) -> None:
    """A missing delay would reveal a right code before the password check (`forward_pass`)."""
    with setup.service(play(b"r0")) as service:
        for arguments, least in ((service.argument, 1), (f"{service.argument} nodelay", 0)):
            pamconf.service(setup.folder, "demo", f"auth required {RELAY} {arguments}", "auth required pam_deny.so")
            done = pamconf.login("demo", "alice", [], setup.folder)
            assert done.result is Result.AUTH_ERR
            assert done.delay >= least
        assert done.delay == 0, "nodelay also suppresses this delay"


@pytest.mark.parametrize("arguments", [("nodelay",), ("socket=", "nodelay")])
def test_nodelay_suppresses_the_delay_after_any_other_error(setup: Setup, arguments: tuple[str, ...]) -> None:
    with setup.service(play(b"r7")) as service:
        done = setup.login(service.argument, *arguments)
        assert done.result in (Result.AUTH_ERR, Result.SERVICE_ERR)
        assert done.delay == 0


def test_nodelay_applies_only_as_an_exact_word(setup: Setup) -> None:
    with setup.service(play(b"r7")) as service:
        assert setup.login(service.argument, "nodelay=1").delay >= 1


# ---- hello


def hello(service: Service) -> list[bytes]:
    message = service.heard[0]
    assert message[:1] == b"H"
    return message[1:].split(b"\0")


def test_hello_has_the_items_and_every_argument_in_order(setup: Setup) -> None:
    items = {"rhost": "192.0.2.7", "ruser": "bob", "tty": "/dev/pts/3"}
    with setup.service(play(b"r0")) as service:
        name = setup.stack("nodelay", service.argument, "[prompt=Type your code: ]", "debug", "arg=x", "user=eve")
        login(name, "alice", [], setup.folder, items=items, flags=0x8001)
        assert hello(service) == [
            b"version=1",
            b"service=" + name.encode(),
            b"user=alice",
            b"rhost=192.0.2.7",
            b"ruser=bob",
            b"tty=/dev/pts/3",
            b"flags=32769",
            b"arg=nodelay",
            b"arg=" + service.argument.encode(),
            b"arg=prompt=Type your code: ",
            b"arg=debug",
            b"arg=arg=x",
            b"arg=user=eve",
        ]


def test_hello_omits_absent_items(setup: Setup) -> None:
    with setup.service(play(b"r0")) as service:
        setup.login(service.argument)
        assert [line.split(b"=")[0] for line in hello(service)] == [b"version", b"service", b"user", b"flags", b"arg"]


@pytest.mark.parametrize("user", ["", "a=b", "alice\nrhost=x", "zoë", "../root", "\b\n\r\x7fINCORRECT", "%s%n"])
def test_hello_contains_any_name_unchanged(setup: Setup, user: str) -> None:
    with setup.service(play(b"r0")) as service:
        setup.login(service.argument, user=user)
        assert b"user=" + os.fsencode(user) in hello(service)


def test_a_host_without_a_user_name_is_prompted_for_it(setup: Setup) -> None:
    with setup.service(play(b"r0")) as service:
        done = setup.login(service.argument, user=None, answers=["carol"])
        assert [shown.style for shown in done.prompts] == [Style.PROMPT_ECHO_ON]
        assert b"user=carol" in hello(service)


def test_a_missing_user_name_is_a_conversation_error(setup: Setup, log: Log) -> None:
    with setup.service(play(b"r0")) as service:
        assert setup.login(service.argument, user=None).result == Result.CONV_ERR
        assert log()[-1] == "denied: libpam gave no user name"
        assert service.logins == 0


@pytest.mark.parametrize("last", ["", " debug"])
@pytest.mark.parametrize(("over", "result"), [(-1, Result.SUCCESS), (0, Result.SUCCESS), (1, Result.SERVICE_ERR)])
def test_hello_is_4096_bytes_at_most_and_never_cut(
    setup: Setup, log: Log, over: int, result: Result, last: str
) -> None:
    with setup.service(play(b"r0")) as service:
        name = setup.stack(service.argument, "nodelay", last)
        login(name, "", [], setup.folder)
        user = "u" * (4096 + over - len(service.heard[0]))
        assert login(name, user, [], setup.folder).result == result
        if result == Result.SUCCESS:
            assert len(service.heard[0]) == 4096 + over
        else:
            assert service.logins == 1
            assert log() == ["denied: user, items and module arguments must be at most 4096 bytes together"]


# ---- results


@pytest.mark.parametrize("result", ["SUCCESS", "SERVICE_ERR", "AUTH_ERR", "AUTHINFO_UNAVAIL", "CONV_ERR"])
def test_a_known_result_is_returned_and_not_logged(setup: Setup, log: Log, result: str) -> None:
    with setup.service(play(b"r%d" % Result[result])) as service:
        assert setup.login(service.argument).result == Result[result]
        assert log() == []


def test_after_ignore_libpam_continues_with_the_next_module(setup: Setup, log: Log) -> None:
    with setup.service(play(b"r25")) as service:
        relay = f"auth [ignore=1 default=die] {RELAY} {service.argument}"
        pamconf.service(setup.folder, "x", relay, "auth requisite pam_deny.so", "auth required pam_permit.so")
        assert login("x", "alice", [], setup.folder).result == Result.SUCCESS
        assert log() == []


def test_only_the_exact_spellings_of_known_results_are_results(setup: Setup) -> None:
    known = [0, 3, 7, 9, 19, 25]
    spellings = [b"%d" % n for n in (*range(-1, 35), 256, 2**32, 2**64) if n not in known]
    spellings += [
        form % n for n in known for form in (b"0%d", b"%d ", b" %d", b"+%d", b"-%d", b"%d\n", b"%d\0", b"0x%x")
    ]
    spellings += [b"", b"\0", b"00", b"o", b"0r0", "٠".encode(), b"7.0"]
    with setup.service(in_turn(*(play(b"r" + spelling) for spelling in spellings))) as service:
        name = setup.stack(service.argument, "nodelay")
        got = {spelling: login(name, "alice", [], setup.folder).result for spelling in spellings}
    assert set(got.values()) == {Result.AUTHINFO_UNAVAIL}, got


# ---- prompts, messages, PAM_AUTHTOK


def test_prompts_are_passed_to_the_user_and_answers_to_the_service(setup: Setup) -> None:
    with setup.service(play(b"pCode: ", b"PName: ", b"p", b"r0")) as service:
        done = setup.login(service.argument, answers=["123456", b"\xff\x01", ""])
        assert done.prompts == (
            Shown(Style.PROMPT_ECHO_OFF, "Code: "),
            Shown(Style.PROMPT_ECHO_ON, "Name: "),
            Shown(Style.PROMPT_ECHO_OFF, ""),
        )
        assert service.heard[1:] == [b"A123456", b"A\xff\x01", b"A"]
        assert done.result == Result.SUCCESS


def test_information_and_errors_are_passed_to_the_user(setup: Setup) -> None:
    with setup.service(play(b"iready", b"eno", b"i", b"r7")) as service:
        assert setup.login(service.argument).messages == (
            Shown(Style.TEXT_INFO, "ready"),
            Shown(Style.ERROR_MSG, "no"),
            Shown(Style.TEXT_INFO, ""),
        )


def test_a_text_is_not_a_format_string_and_may_fill_the_packet(setup: Setup) -> None:
    text = "%s%n%1000d zoë".ljust(4094)
    assert len(text.encode()) == 4095
    with setup.service(play(b"p" + text.encode(), b"i" + text.encode(), b"r0")) as service:
        done = setup.login(service.argument, answers=["1"])
        assert [shown.text for shown in done.prompts + done.messages] == [text, text]


def test_a_failed_conversation_is_sent_as_no_answer(setup: Setup) -> None:
    with setup.service(play(b"pCode: ", b"r19")) as service:
        assert setup.login(service.argument, answers=[None]).result == Result.CONV_ERR
        assert service.heard[1:] == [b"N"]


def test_a_null_response_is_sent_as_no_answer(setup: Setup) -> None:
    class Silent(Session):
        def _answer(self, shown: Shown) -> bytes | None:
            return None

    with setup.service(play(b"pCode: ", b"r7")) as service:
        with Silent(setup.stack(service.argument), "alice", [], setup.folder) as session:
            assert session.authenticate().result == Result.AUTH_ERR
        assert service.heard[1:] == [b"N"]


def test_the_response_of_a_failed_conversation_is_ignored(setup: Setup) -> None:
    class Failing(Session):
        def _converse(self, *message: Any) -> int:
            super()._converse(*message)
            return Result.CONV_ERR

    with setup.service(play(b"pCode: ", b"r7")) as service:
        with Failing(setup.stack(service.argument), "alice", ["123456"], setup.folder) as session:
            assert session.authenticate().result == Result.AUTH_ERR
        assert service.heard[1:] == [b"N"]


def test_an_answer_over_512_bytes_is_sent_as_blank(setup: Setup) -> None:
    with setup.service(play(b"pCode: ", b"pCode: ", b"r7")) as service:
        setup.login(service.argument, answers=["1" * 512, "1" * 513])
        assert service.heard[1:] == [b"A" + b"1" * 512, b"A"]


@pytest.mark.parametrize(
    ("authtok", "heard"),
    [("secret", b"Asecret"), (None, b"N"), ("", b"A"), ("1" * 512, b"A" + b"1" * 512), ("1" * 513, b"A")],
)
def test_the_authtok_is_read_without_a_prompt(setup: Setup, authtok: str | None, heard: bytes) -> None:
    with setup.service(play(b"g", b"r0")) as service:
        items = {} if authtok is None else {"authtok": authtok}
        done = setup.login(service.argument, items=items, carry_authtok=True)
        assert (done.result, done.prompts) == (Result.SUCCESS, ())
        assert service.heard[1:] == [heard]


def test_the_authtok_is_set_for_later_modules(setup: Setup) -> None:
    with setup.service(play(b"sfirst", b"spassword", b"g", b"r0")) as service:
        done = setup.login(service.argument, items={"authtok": "old"}, carry_authtok=True)
        assert done.authtok == "password"
        assert service.heard[1:] == [b"Apassword"]


def test_a_helper_uses_the_same_protocol_as_a_service(setup: Setup) -> None:
    helper = setup.helper("""
channel.send(b"pCode: ")
answer = channel.recv(600)
channel.send(b"g")
tell((hello, answer, channel.recv(600)))
channel.send(b"spassword")
channel.send(b"r0")
""")
    done = setup.login("socket=none", f"helper={helper}", answers=["123456"], carry_authtok=True)
    said, answer, authtok = told(done)
    assert said.startswith(b"Hversion=1\0service=")
    assert (answer, authtok, done.authtok, done.result) == (b"A123456", b"N", "password", Result.SUCCESS)


def test_a_second_login_in_one_process_works_and_sets_credentials(setup: Setup) -> None:
    with (
        setup.service(in_turn(play(b"pCode: ", b"r7"), play(b"pCode: ", b"r0"))) as service,
        Session(setup.stack(service.argument), "alice", ["000000", "123456"], setup.folder) as session,
    ):
        assert [session.authenticate().result, session.authenticate().result] == [Result.AUTH_ERR, Result.SUCCESS]
        assert session.setcred() == Result.SUCCESS


# ---- a service that is full

FULL = "denied: the service is full"
HELPER_ANSWERS = 'channel.send(b"pCode: ")\ntell((hello, channel.recv(600)))\nchannel.send(b"r0")\n'


@as_root
def test_if_the_service_is_full_root_starts_a_helper(setup: Setup, log: Log) -> None:
    with setup.service(play(b"f")) as service:
        done = setup.login(service.argument, f"helper={setup.helper(HELPER_ANSWERS)}", answers=["123456"])
        hello, answer = told(done)
        assert (done.result, hello, answer) == (Result.SUCCESS, service.heard[0], b"A123456")
    assert log() == []


@pytest.mark.skipif(AS_ROOT, reason="root starts a helper")
def test_if_the_service_is_full_other_hosts_are_denied(setup: Setup, log: Log) -> None:
    with setup.service(play(b"f")) as service:
        done = setup.login(service.argument, f"helper={setup.helper(HELPER_ANSWERS)}", answers=["123456"])
        assert (done.result, done.prompts) == (Result.AUTHINFO_UNAVAIL, ())
    assert FULL in log()[0]


def test_a_helper_cannot_be_full(setup: Setup, log: Log) -> None:
    helper = setup.helper("channel.send(b'f')")
    done = setup.login("socket=none", f"helper={helper}")
    assert done.result == Result.AUTHINFO_UNAVAIL
    assert FULL in log()[0]


@pytest.mark.parametrize("message", [b"f", b"full", b"fr0"])
def test_a_service_is_full_only_before_it_asks_and_in_one_spelling(setup: Setup, log: Log, message: bytes) -> None:
    before = (b"pCode: ",) if message == b"f" else ()
    with setup.service(play(*before, message, b"r0")) as service:
        assert setup.login(service.argument, answers=["123456"]).result == Result.AUTHINFO_UNAVAIL
    assert NOT_IN_PROTOCOL in log()[0]


# ---- every unexpected event denies the login


NOT_IN_PROTOCOL = "denied: the service sent a message outside the protocol"
FAULTS = {
    "an empty packet": (b"", "denied: the service closed the connection"),
    "4097 bytes": (b"i" + b"x" * 4096, "denied: the service sent a message above the size limit"),
    "60000 bytes": (b"p" + b"x" * 60000, "denied: the service sent a message above the size limit"),
    "a NUL in a prompt": (b"pCode\0: ", NOT_IN_PROTOCOL),
    "a NUL in a prompt with echo": (b"PCode: \0", NOT_IN_PROTOCOL),
    "a NUL in an information message": (b"i\0", NOT_IN_PROTOCOL),
    "a NUL in an error message": (b"ea\0b", NOT_IN_PROTOCOL),
    "a NUL in an authtok": (b"sa\0", NOT_IN_PROTOCOL),
    "a NUL after the result": (b"r0\0", NOT_IN_PROTOCOL),
    "an empty authtok": (b"s", NOT_IN_PROTOCOL),
    "a request for the authtok with a text": (b"gPassword: ", NOT_IN_PROTOCOL),
    "an unknown type": (b"x", NOT_IN_PROTOCOL),
    "the type NUL": (b"\0", NOT_IN_PROTOCOL),
    "a hello": (b"Hversion=1", NOT_IN_PROTOCOL),
    "an answer": (b"A123456", NOT_IN_PROTOCOL),
    "no answer": (b"N", NOT_IN_PROTOCOL),
    "a result in capitals": (b"R0", NOT_IN_PROTOCOL),
    "two messages in one packet": (b"r0r0", NOT_IN_PROTOCOL),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("before", [(), (b"pCode: ",)], ids=["at once", "after an answer"])
def test_a_malformed_message_denies_and_logs_one_line_without_the_answer(
    setup: Setup, log: Log, fault: str, before: tuple[bytes, ...]
) -> None:
    message, line = FAULTS[fault]
    with setup.service(play(*before, message, b"r0")) as service:
        done = setup.login(service.argument, answers=["271828"])
        assert done.result == Result.AUTHINFO_UNAVAIL
        assert done.messages == ()
        assert log() == [line]


@pytest.mark.parametrize("before", [(), (b"pCode: ",), (b"ihello",)])
def test_a_service_that_hangs_up_before_the_result_denies(setup: Setup, log: Log, before: tuple[bytes, ...]) -> None:
    with setup.service(play(*before, hang_up=True)) as service:
        assert setup.login(service.argument, answers=["271828"]).result == Result.AUTHINFO_UNAVAIL
        assert log() == ["denied: the service closed the connection"]


def test_a_service_that_hangs_up_while_the_user_types_denies(setup: Setup, log: Log) -> None:
    prompted, gone = threading.Event(), threading.Event()

    def script(channel: socket.socket, heard: list[bytes]) -> None:
        channel.recv(8192)
        channel.send(b"pCode: ")
        assert prompted.wait(20)
        channel.close()
        gone.set()

    def answer(_: Shown) -> str:
        prompted.set()
        assert gone.wait(20)
        return "271828"

    with setup.service(script) as service:
        assert setup.login(service.argument, answers=[answer]).result == Result.AUTHINFO_UNAVAIL
    assert log() == ["denied: the service did not receive the answer"]


def test_a_service_that_hangs_up_at_once_denies_at_every_point(setup: Setup, log: Log) -> None:
    with setup.service(lambda channel, heard: None) as service:
        name = setup.stack(service.argument, "nodelay")
        assert {login(name, "alice", [], setup.folder).result for _ in range(50)} == {Result.AUTHINFO_UNAVAIL}
    assert len(log()) == 50
    assert set(log()) <= {
        "denied: the service closed the connection",
        "denied: the service did not receive the login",
    }


@pytest.mark.parametrize(("messages", "result"), [(63, Result.SUCCESS), (64, Result.AUTHINFO_UNAVAIL)])
def test_a_service_may_send_64_messages_in_a_login(setup: Setup, log: Log, messages: int, result: Result) -> None:
    with setup.service(play(*[b"imore"] * messages, b"r0")) as service:
        assert setup.login(service.argument).result == result
    assert log() == (
        [] if result == Result.SUCCESS else ["denied: the service sent too many messages without a decision"]
    )


def test_messages_after_a_result_are_ignored(setup: Setup) -> None:
    with setup.service(play(b"r7", b"r0", hang_up=True)) as service:
        assert setup.login(service.argument).result == Result.AUTH_ERR


def decision(messages: list[bytes]) -> int:
    """Return the result that the protocol defines for `messages`."""
    for message in messages[:64]:
        kind, text = message[:1], message[1:]
        if kind == b"r" and text in (b"0", b"3", b"7", b"9", b"19", b"25"):
            return int(text)
        known = kind in (b"p", b"P", b"i", b"e") or (kind == b"g" and not text) or (kind == b"s" and text)
        if not known or b"\0" in text or len(message) > 4096:
            break
    return Result.AUTHINFO_UNAVAIL


TEXTS = st.one_of(
    st.binary(max_size=3), st.sampled_from([b"0", b"3", b"7", b"9", b"19", b"25", b"x" * 4095, b"x" * 4096])
)
MESSAGES = st.builds(lambda kind, text: kind + text, st.sampled_from([b"p", b"i", b"g", b"s", b"r", b"x", b""]), TEXTS)


def test_any_bytes_of_a_service_give_the_result_of_the_protocol(setup: Setup) -> None:
    with setup.service(play()) as service:
        stack = setup.stack(service.argument, "nodelay")

        @settings(max_examples=300, deadline=None, database=None)
        @given(st.lists(MESSAGES, max_size=5))
        def check(messages: list[bytes]) -> None:
            service.script = play(*messages, hang_up=True)
            result = login(stack, "alice", lambda shown: "1", setup.folder).result
            expected = decision(messages)
            assert result == (Result.PERM_DENIED if expected == Result.IGNORE else expected)

        check()


# ---- time limits


@pytest.mark.parametrize("before", [(), (b"pCode: ",)], ids=["after the hello", "after an answer"])
def test_a_silent_service_denies_after_the_limit(setup: Setup, log: Log, before: tuple[bytes, ...]) -> None:
    with setup.service(play(*before)) as service:
        done = setup.login(service.argument, relay=brisk(), answers=["1"])
    assert done.result == Result.AUTHINFO_UNAVAIL
    assert 0.29 <= done.seconds < 9
    assert log() == ["denied: the service sent no message in time"]


def test_a_silent_helper_denies_after_the_limit(setup: Setup, log: Log) -> None:
    helper = setup.helper("channel.send(b'ihere'); channel.recv(1)")
    done = setup.login("socket=none", f"helper={helper}", relay=brisk())
    assert (done.result, len(done.messages)) == (Result.AUTHINFO_UNAVAIL, 1)
    assert 0.29 <= done.seconds < 9
    assert log() == ["denied: the service sent no message in time"]


def test_the_time_limit_applies_to_each_service_turn_not_to_the_user(setup: Setup) -> None:
    def answer(shown: Shown) -> str:
        begun = time.monotonic()
        while time.monotonic() < begun + 0.2:  # two pauses exceed the time limit of a turn
            time.sleep(0.01)
        return "1"

    with setup.service(play(b"p", b"p", b"p", b"r0")) as service:
        done = setup.login(service.argument, relay=brisk(), answers=answer)
    assert done.result == Result.SUCCESS
    assert done.seconds > 0.6


def test_if_the_services_queue_remains_full_a_helper_is_started(setup: Setup) -> None:
    path = setup.folder / "socket"
    helper = setup.helper("channel.send(b'r0')")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener, full(listener, path):
        done = setup.login(f"socket={path}", f"helper={helper}", relay=brisk())
    assert done.result == Result.SUCCESS
    assert 0.09 <= done.seconds < 9


def full(listener: socket.socket, path: Path) -> socket.socket:
    """Listen on `path`, and return a client connection that fills the listener's queue."""
    listener.bind(str(path))
    listener.listen(0)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    client.connect(str(path))
    return client


def test_by_default_a_turn_has_ten_seconds_and_a_connection_a_second(setup: Setup) -> None:
    """Run all cases in parallel, because each case waits until a real time limit."""
    silent = setup.helper("channel.recv(1)", setup.folder / "silent.py")
    ready = setup.helper("channel.send(b'r0')", setup.folder / "ready.py")
    queue = setup.folder / "queue"
    seconds: dict[str, float] = {}

    def timed(name: str, *arguments: object) -> None:
        seconds[name] = setup.login(*arguments, "nodelay").seconds

    with (
        setup.service(play()) as service,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        full(listener, queue),
    ):
        threads = [
            threading.Thread(target=timed, args=("service", service.argument)),
            threading.Thread(target=timed, args=("helper", "socket=none", f"helper={silent}")),
            threading.Thread(target=timed, args=("queue", f"socket={queue}", f"helper={ready}")),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert 9.99 <= seconds["service"] < 19
    assert 9.99 <= seconds["helper"] < 19
    assert 0.99 <= seconds["queue"] < 9


# ---- the library


def test_only_the_functions_that_libpam_calls_are_exported() -> None:
    symbols = subprocess.run(["nm", "-D", "--defined-only", RELAY], check=True, capture_output=True, text=True).stdout
    assert sorted(line.split()[-1] for line in symbols.splitlines()) == ["pam_sm_authenticate", "pam_sm_setcred"]


def test_the_module_has_no_writable_static_data(tmp_path: Path) -> None:
    target = tmp_path / "relay.o"
    command: list[str | Path] = ["cc", "-std=c11", "-c", "-fno-pic", '-DINTERPRETER=""', '-DHELPER=""', "-o", target]
    subprocess.run([*command, ROOT / "pam_totp" / "pam" / "relay.c"], check=True)
    symbols = subprocess.run(["nm", target], check=True, capture_output=True, text=True).stdout
    assert re.findall(r" [bBcCdDgGsS] (\S+)", symbols) == []
