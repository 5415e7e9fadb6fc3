"""Tests of the messages between members and authorities."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pam_totp.core.answer import MAX_ANSWER
from pam_totp.member import wire
from pam_totp.member.wire import JoinLine, Question, Verdict, WireError

ID, PIN = "0123456789abcdef" * 2, "ab" * 32
QUESTION = Question(id=ID, user="alice", service="sshd", rhost="192.0.2.7", tty="ssh", answer="123456")
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
MESSAGES: list[wire.Message] = [
    QUESTION,
    QUESTION._replace(first="", second="é\x01", rhost=None, tty=None),
    Verdict(verdict="accepted", by="recovery", messages=("recovery code used, 7 left",)),
    Verdict(verdict="refused", again=True),
    wire.Begin(user="alice", service="sshd", rhost=None),
    wire.BeginVerdict(verdict="ask"),
    wire.BeginVerdict(verdict="pass", by="grace"),
    wire.Authority(ca=PEM),
    wire.Join(token=ID, csr=PEM),
    wire.Joined(name="web1.example.org", certificate=PEM, ca=PEM, authorities=("otp1.example.org:8443", "[::1]:1")),
    wire.Renew(csr=PEM),
    wire.Renewed(certificate=PEM),
    wire.Health(time=1_800_000_000, version="1.0", member="web1", certificate_days=-3, store="ok"),
    wire.Failure(error="the store is out of reach"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_message_comes_back_from_json_unchanged(message: wire.Message) -> None:
    assert type(message).from_json(message.to_json()) == message


def test_the_longest_question_fits_into_a_body() -> None:
    answer, name = "\x01" * MAX_ANSWER, "\x01" * wire.MAX_NAME
    longest = QUESTION._replace(
        user=name, service=name, rhost=name, tty=name, answer=answer, first=answer, second=answer
    )
    assert Question.from_json(longest.to_json()) == longest


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_a_missing_or_unknown_key_is_refused(message: wire.Message) -> None:
    document = json.loads(message.to_json())
    for key in document:
        with pytest.raises(WireError):
            type(message).from_json(json.dumps({k: v for k, v in document.items() if k != key}).encode())
    with pytest.raises(WireError, match="the keys must be"):
        type(message).from_json(json.dumps(document | {"x": 1}).encode())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("v", 2),
        ("v", True),
        ("v", "1"),
        ("id", ID[:-1]),
        ("id", ID.upper()),
        ("id", 5),
        ("user", ""),
        ("user", "a\0"),
        ("user", "\ud800"),
        ("user", "é" * 129),
        ("user", None),
        ("service", ["sshd"]),
        ("rhost", 1),
        ("answer", None),
        ("answer", 123456),
        ("answer", "é" * 257),
        ("first", False),
        ("second", "5551234"),
    ],
)
def test_a_value_outside_its_limits_is_refused(key: str, value: Any) -> None:
    document = json.loads(QUESTION.to_json()) | {key: value}
    with pytest.raises(WireError) as error:
        Question.from_json(json.dumps(document).encode())
    assert "5551234" not in str(error.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b'{"v":1',
        b"[" * 8000,
        b'{"verdict":"ask","verdict":"ask","by":null}',
        b'{"verdict":NaN,"by":null}',
        b" " * wire.MAX_BODY + b"{}",
        b'{"verdict":"pass","by":null}',
        b'{"verdict":"ask","by":"grace"}',
    ],
)
def test_a_body_that_is_no_such_message_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        wire.BeginVerdict.from_json(body)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)
)
def test_any_body_is_a_message_or_a_wire_error(body: bytes) -> None:
    try:
        assert Verdict.from_json(body).to_json()
    except WireError as e:
        assert str(e).isascii()


def test_a_certificate_is_ascii() -> None:
    with pytest.raises(WireError):
        wire.Renewed(certificate=f"é{PEM}")


def test_a_verdict_cannot_contradict_itself() -> None:
    contradictions: list[dict[str, Any]] = [
        {"verdict": "accepted"},
        {"verdict": "refused", "by": "code"},
        {"verdict": "accepted", "by": "code", "again": True},
    ]
    for fields in contradictions:
        with pytest.raises(WireError):
            Verdict(**fields)


@pytest.mark.parametrize("text", ["\x1b]0;title\x07", "a\nb", "\x9b2J", "a\u202eb", "\0"])
def test_a_text_for_people_has_no_control_characters(text: str) -> None:
    """An authority could otherwise send escape sequences to the terminal of every user, and of root."""
    made: tuple[tuple[Any, dict[str, Any]], ...] = (
        (Verdict, {"verdict": "accepted", "by": "code", "messages": ("ok", text)}),
        (wire.Failure, {"error": text}),
        (wire.Health, {"time": 1, "version": "1", "member": "web1", "certificate_days": 1, "store": text}),
        (wire.Health, {"time": 1, "version": text, "member": "web1", "certificate_days": 1, "store": "ok"}),
    )
    for cls, fields in made:
        with pytest.raises(WireError):
            cls(**fields)


def test_every_part_of_a_question_changes_its_digest() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"id": "f" * 32},
        {"service": "sudo"},
        {"user": "bob"},
        {"answer": "123457"},
        {"answer": ""},
        {"first": ""},
        {"first": "1"},
        {"first": "", "second": ""},
        {"first": "", "second": "1"},
        {"user": "alice123456", "answer": ""},
        {"service": "", "user": "sshdalice"} | {"service": "s"},
    ]
    digests = {QUESTION._replace(**change).digest(member) for change in changes for member in ("web1", "web2")}
    assert len(digests) == 2 * len(changes)
    assert {len(digest) for digest in digests} == {32}


def test_the_place_of_a_login_is_no_part_of_the_digest() -> None:
    assert QUESTION._replace(rhost=None, tty=None).digest("web1") == QUESTION.digest("web1")


def test_a_question_yields_the_questions_before_it() -> None:
    third = QUESTION._replace(first="1", second="2", answer="3")
    second = third.before()
    assert second is not None
    assert (second.first, second.second, second.answer) == ("1", None, "2")
    first = second.before()
    assert first == QUESTION._replace(answer="1")
    assert first is not None
    assert first.before() is None


def test_a_join_line_comes_back_unchanged() -> None:
    line = JoinLine(authorities=("otp1.example.org:8443", "[2001:db8::1]:8443"), pin=PIN, token=ID)
    text = line.to_text()
    assert text == f"pam_totp-join:1:otp1.example.org:8443,[2001:db8::1]:8443:{PIN}:{ID}"
    assert JoinLine.from_text(f" {text}\n") == line


@pytest.mark.parametrize(
    "text",
    [
        "",
        "join",
        "pam_totp-join",
        "pam_totp-join:2:a:1:" + PIN + ":" + ID,
        f"pam_totp-join:1::{PIN}:{ID}",
        f"pam_totp-join:1:host:{PIN}:{ID}",
        f"pam_totp-join:1:host:0:{PIN}:{ID}",
        f"pam_totp-join:1:host:65536:{PIN}:{ID}",
        f"pam_totp-join:1:ho st:1:{PIN}:{ID}",
        f"pam_totp-join:1:host:1,:{PIN}:{ID}",
        f"pam_totp-join:1:host:1:{PIN[1:]}:{ID}",
        f"pam_totp-join:1:host:1:{PIN}:{ID[1:]}",
        f"pam_totp-join:1:host:1:{PIN}:{ID.upper()}",
    ],
)
def test_a_damaged_join_line_is_refused(text: str) -> None:
    with pytest.raises(WireError) as error:
        JoinLine.from_text(text)
    assert ID not in str(error.value)


def test_an_address_is_split_into_host_and_port() -> None:
    assert wire.split_address("otp1.example.org:8443") == ("otp1.example.org", 8443)
    assert wire.split_address("[::1]:8443") == ("::1", 8443)
    for bad in ("", "host", "host:", ":1", "::1:1", "[host]:1", "a:0", "a:99999", "a:١", "a b:1"):
        with pytest.raises(WireError):
            wire.split_address(bad)


def test_a_name_of_a_member_is_a_host_name() -> None:
    assert [name for name in ("web1", "web-1.example.org", "a" * 64) if wire.host_name(name)] == []
    bad: list[object] = ["", "A", "a..b", "-a", "a-", "a_b", "a/b", "a" * 65, "a\n", 5, None]
    assert [name for name in bad if wire.host_name(name) is None] == []


def test_a_name_that_cannot_be_sent_is_replaced_by_no_name() -> None:
    assert wire.askable("alice") == "alice"
    assert {wire.askable(name) for name in ("", "a\0", "\udc80", "a" * 257)} == {wire.UNASKABLE}
    assert QUESTION._replace(user=wire.UNASKABLE).digest("web1")


def test_no_message_shows_a_field() -> None:
    assert repr(QUESTION) == "<Question>"
