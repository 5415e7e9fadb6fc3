"""Tests of the audit log: each decision is one line, and its values cannot forge a field or another line."""

from __future__ import annotations

import json
import re
import socket
import syslog
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_totp.operations import audit_log

PLAIN = re.compile(r"[A-Za-z0-9._@%+:/-]+")


def test_a_line_names_the_decision_and_the_user() -> None:
    said = audit_log.line("sshd", "refused", user="alice", reason="replayed", token="fob", rhost="192.0.2.7")
    assert said == "pam_totp(sshd:auth): refused user=alice reason=replayed token=fob rhost=192.0.2.7"


def test_a_value_of_none_is_omitted_but_zero_and_empty_text_are_written() -> None:
    assert audit_log.line("sudo", "accepted", user="a", token=None, left=0, tty="") == (
        'pam_totp(sudo:auth): accepted user=a left=0 tty=""'
    )


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("alice", "alice"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("/dev/pts/0", "/dev/pts/0"),
        ("a b", '"a b"'),
        ("a=b", '"a\\u003db"'),
        ("", '""'),
        ('"', '"\\""'),
        ("\\", '"\\\\"'),
        ("a\nb", '"a\\nb"'),
        ("a\x1b[2Jb", '"a\\u001b[2Jb"'),
        ("a\x7fb", '"a\\u007fb"'),
        ("ünï", '"\\u00fcn\\u00ef"'),
        ("\udcff", '"\\udcff"'),
        ("\u202e", '"\\u202e"'),
        ("alice\n", '"alice\\n"'),
    ],
)
def test_a_value_that_is_not_a_plain_word_is_quoted(text: str, escaped: str) -> None:
    assert audit_log.escaped(text) == escaped


def test_a_value_that_is_too_long_is_cut_and_marked() -> None:
    whole = "x" * audit_log.MAX_FIELD
    assert audit_log.escaped(whole) == whole
    assert audit_log.escaped(whole + "x") == f'"{whole}\\u2026"'
    assert len(audit_log.escaped("\n" * 10_000)) < 7 * (audit_log.MAX_FIELD + 1) + 2


FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|[^\s"=]+)')


@given(st.text(), st.text(), st.text())
def test_no_name_forges_a_line_or_a_field(service: str, user: str, token: str) -> None:
    said = audit_log.line(service, "refused", user=user, token=token)
    assert said.isascii()
    assert said.isprintable()
    head, _, fields = said.partition(":auth): refused ")
    found = FIELD.findall(fields)
    assert " ".join(f"{k}={v}" for k, v in found) == fields
    read = {k: json.loads(v) if v.startswith('"') else v for k, v in found}
    assert read == {"user": user, "token": token}
    shown = head.removeprefix("pam_totp(")
    assert (json.loads(shown) if shown.startswith('"') else shown) == service


@pytest.mark.parametrize(
    ("verb", "priority"),
    [
        ("accepted", syslog.LOG_INFO),
        ("ignored", syslog.LOG_INFO),
        ("refused", syslog.LOG_NOTICE),
        ("error", syslog.LOG_ERR),
    ],
)
def test_every_verb_has_its_priority(verb: str, priority: int) -> None:
    written: list[tuple[int, str]] = []
    audit_log.write(lambda *entry: written.append(entry), "sshd", verb, user="alice")
    assert written == [(priority, f"pam_totp(sshd:auth): {verb} user=alice")]


def test_an_unknown_verb_is_an_error() -> None:
    with pytest.raises(KeyError):
        audit_log.write(lambda *_: None, "sshd", "perhaps", user="alice")


def test_the_system_log_gets_the_line_under_authpriv(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, str]] = []
    monkeypatch.setattr(syslog, "syslog", lambda priority, text: written.append((priority, text)))
    audit_log.to_syslog(syslog.LOG_NOTICE, "100% of it")
    assert written == [(syslog.LOG_AUTHPRIV | syslog.LOG_NOTICE, "100% of it")]


def test_a_service_in_a_terminal_writes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    audit_log.to_stderr(syslog.LOG_NOTICE, "a line")
    assert capsys.readouterr() == ("", "a line\n")


@given(text=st.text(max_size=20) | st.from_regex(PLAIN) | st.text(alphabet="aZ09._@%+:/- \n=é٣", max_size=20))
def test_only_plain_words_are_not_quoted(text: str) -> None:
    assert (audit_log.escaped(text) == text) == (PLAIN.fullmatch(text) is not None)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_log_daemon_with_either_kind_of_socket_is_found(
    tmp_path: Path, kind: socket.SocketKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "DEVICE", str(tmp_path / "log"))
    with socket.socket(socket.AF_UNIX, kind) as daemon:
        daemon.bind(str(tmp_path / "log"))
        if kind == socket.SOCK_STREAM:
            daemon.listen()
        assert audit_log.fault() is None
    fault = audit_log.fault()
    assert fault is not None and fault.strerror == "Connection refused"
