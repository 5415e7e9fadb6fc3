"""Tests of the audit log: its format is that of docs/log.md, and no name can forge a line or a field."""

from __future__ import annotations

import json
import os
import re
import syslog

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_totp.core.verify import Outcome
from pam_totp.operations import audit_log
from tests.support.site import TREE, Site, codes

DOCUMENT = (TREE / "docs" / "log.md").read_text()
_FIELD = re.compile(r' ([a-z_]+)=([A-Za-z0-9._@%+:/-]+|"(?:[^"\\]|\\.)*")')

FORGERIES = [
    "alice\npam_totp(sshd:auth): accepted user=alice by=code",
    "alice auth): accepted user=root",
    "alice reason=none",
    'alice" reason="none',
    'alice\\" reason=none',
    "alice\r\x1b[2K\x7f\x9b\u2028",
    "alice=bob",
    "%s%n%n",
    "",
    " ",
    "\udcff\udcfe",
    "\N{FULLWIDTH QUOTATION MARK} by=code",
]


def fields(line: str) -> tuple[str, str, dict[str, str]]:
    """Parse `line` by the rules of docs/log.md. Return service, verb and fields."""
    head = re.match(r'pam_totp\(([A-Za-z0-9._@%+:/-]+|"(?:[^"\\]|\\.)*"):auth\): ([a-z]+)', line)
    assert head is not None, line
    found = {}
    at = head.end()
    while at < len(line):
        field = _FIELD.match(line, at)
        assert field is not None, line[at:]
        name, value = field.groups()
        assert name not in found, line
        found[name] = json.loads(value) if value.startswith('"') else value
        at = field.end()
    return head[1], head[2], found


@pytest.mark.parametrize("hostile", FORGERIES)
@pytest.mark.parametrize("place", ["user", "rhost", "token"])
def test_no_name_can_forge_a_line_or_a_field(hostile: str, place: str) -> None:
    said = {"user": "alice", "reason": "wrong", "token": "fob", "rhost": "192.0.2.7"} | {place: hostile}
    line = audit_log.line("sshd", "refused", **said)
    assert line.isascii()
    assert line.isprintable()
    assert fields(line) == ("sshd", "refused", said)
    assert [line.count(f"{name}=") for name in ("user", "reason", "by")] == [1, 1, 0], "even grep finds no forged field"
    assert (line.count("pam_totp("), line.count("):"), line.count("auth): accepted")) == (1, 1, 0)


@given(service=st.text(max_size=50), user=st.text(max_size=255), rhost=st.text(max_size=255))
def test_a_written_line_can_be_parsed_back(service: str, user: str, rhost: str) -> None:
    line = audit_log.line(service, "refused", user=user, reason="wrong", rhost=rhost)
    assert line.isascii()
    assert line.isprintable()
    shown, verb, found = fields(line)
    assert (verb, found) == ("refused", {"user": user, "reason": "wrong", "rhost": rhost})
    assert (json.loads(shown) if shown.startswith('"') else shown) == service


def test_a_long_name_does_not_displace_the_other_fields() -> None:
    line = audit_log.line("sshd", "refused", user="\N{SNOWMAN}" * 4000, reason="wrong", rhost="\n" * 4000)
    assert len(line) < 4000
    assert fields(line)[2]["reason"] == "wrong"
    assert fields(line)[2]["user"] == "\N{SNOWMAN}" * 255 + "…"


def test_the_documented_line_is_the_written_line() -> None:
    example = audit_log.line("sshd", "refused", user="alice", reason="replayed", token="fob", rhost="192.0.2.7")
    assert example in DOCUMENT


def test_every_verb_and_reason_is_documented() -> None:
    for verb in audit_log._PRIORITIES:
        assert f"| `{verb}` |" in DOCUMENT
    for outcome in Outcome:
        assert f"`{outcome.value}`" in DOCUMENT


def test_priorities_are_those_of_the_document() -> None:
    names = {"info": syslog.LOG_INFO, "notice": syslog.LOG_NOTICE, "err": syslog.LOG_ERR, "debug": syslog.LOG_DEBUG}
    for verb, priority in re.findall(r"^\| `(\w+)` \| (\w+) \|", DOCUMENT, re.MULTILINE):
        heard: list[int] = []

        def sink(number: int, _: str, heard: list[int] = heard) -> None:
            heard.append(number)

        audit_log.write(sink, "sshd", verb)
        assert heard == [names[priority]]


def test_a_login_writes_one_line_without_the_code(site: Site) -> None:
    """The log omits a remote address from an ordinary account, because this account can give any address."""
    believed = os.geteuid() == 0
    site.start()
    site.configure("demo", "", "socket")
    site.configure("once", "no_second_prompt", "socket")
    site.enrol()
    site.login(codes(0), items={"rhost": "192.0.2.7"})
    site.login(codes(0), items={"rhost": "x reason=none"}, service="once")
    accepted, refused = site.log.lines()
    assert fields(accepted)[1] == "accepted"
    assert fields(accepted)[2].items() >= {"by": "code", "token": "fob"}.items()
    assert fields(accepted)[2].get("rhost") == ("192.0.2.7" if believed else None)
    assert fields(refused)[2]["reason"] == "replayed"
    assert fields(refused)[2].get("rhost") == ("x reason=none" if believed else None)
    assert codes(0) not in accepted + refused


def test_debug_logs_the_effective_settings(site: Site) -> None:
    site.config.write_text("[policy]\ndebug = true\nlook_ahead = 3\nnullok = true\n")
    site.start()
    site.configure("demo", "", "socket")
    site.login()
    verb, found = fields(site.log.lines()[0])[1:]
    assert verb == "debug"
    assert found.items() >= {"look_ahead": "3", "nullok": "yes", "store": str(site.store)}.items()
