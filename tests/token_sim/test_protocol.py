"""Tests of the protocol: input in arbitrary chunks, replies, errors, echo, typing, and secrecy of the seed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.token_sim.tokens import SEED, token
from token_sim.device.chip import Event
from token_sim.device.faults import Fault
from token_sim.device.token import Device
from token_sim.wire.protocol import ERRORS, Session


def ask(session: Session, request: str) -> list[str]:
    session.receive(request.encode() + b"\r")
    return session.take_output().decode().split("\r\n")[:-1]


def output_after(device: Device, session: Session, ms: int) -> bytes:
    device.elapse(ms)
    for event in device.take_events():
        session.notify(event)
    return session.take_output()


REQUESTS = st.sampled_from(
    [
        b"*IDN?",
        b"press 50",
        b"PRESS",
        b"DISP?",
        b"BATT?",
        b"HELP",
        b"ECHO ON",
        b"echo off",
        b"*TST?",
        b"SYST:ERR?",
        b"*RST",
    ]
)
ENDS = st.sampled_from([b"\r", b"\n", b"\r\n"])
LINES = st.one_of(st.binary(max_size=300), REQUESTS)
INPUT = st.lists(st.tuples(LINES, ENDS).map(b"".join), max_size=12).map(b"".join)


@given(data=INPUT, cuts=st.lists(st.integers(0, 2000), max_size=20))
def test_the_chunks_of_input_change_no_output(data: bytes, cuts: list[int]) -> None:
    whole, pieces = Session(token()), Session(token())
    whole.receive(data)
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    out = b""
    for start, stop in pairwise(edges):
        pieces.receive(data[start:stop])
        out += pieces.take_output()
    assert out == whole.take_output()


@given(data=INPUT)
def test_after_any_input_the_next_line_is_answered(data: bytes) -> None:
    session = Session(token())
    session.receive(data + b"\r\n")
    session.take_output()
    session.receive(b"ECHO OFF\r\n")
    session.take_output()
    assert ask(session, "BATT?") == ["level=100", "state=OK", "OK"]


@given(data=INPUT)
def test_every_reply_has_exactly_one_ok_or_err(data: bytes) -> None:
    session = Session(token())
    session.receive(data + b"\n")
    lines = session.take_output().decode("latin-1").split("\r\n")
    ends = [line for line in lines if line == "OK" or line.startswith("ERR ")]
    assert len(ends) == len(session.take_requests())


@pytest.mark.parametrize("end", [b"\r", b"\n", b"\r\n"])
def test_cr_lf_and_both_end_a_line(end: bytes) -> None:
    session = Session(token())
    session.receive(b"DISP?" + end + b"DISP?" + end)
    assert session.take_output() == b"text=\r\nOK\r\n" * 2


def test_every_verb_has_a_reply_and_help() -> None:
    session = Session(token())
    identity = ask(session, "*IDN?")
    assert identity[:3] == ["maker=token_sim", "model=generic", "serial=SMGN00000001"] and identity[-1] == "OK"
    assert ask(session, "*TST?") == ["selftest=pass", "state=asleep", "OK"]
    assert ask(session, "ECHO OFF") == ["OK"]
    assert ask(session, "SYST:ERR?") == ["error=0 NONE", "OK"]
    helped = ask(session, "HELP")
    for verb in ("*IDN?", "*RST", "*TST?", "SYST:ERR?", "PRESS", "DISP?", "BATT?", "HELP", "ECHO"):
        assert any(line.startswith(f"{verb}=") for line in helped)
    assert ask(session, "*RST") == ["OK"]


def test_a_press_is_answered_before_its_code_is_sent() -> None:
    device = token()
    session = Session(device)
    assert ask(session, "PRESS") == ["OK"]
    assert ask(session, "PRESS") == ["ERR 5 BUSY"]
    assert output_after(device, session, 1000) == b"+OTP 755224\r\n"
    assert ask(session, "DISP?") == ["text=755224", "OK"]
    assert output_after(device, session, 60_000) == b"+DISP OFF\r\n"


def test_every_refusal_has_a_number_and_is_reported_once() -> None:
    device = token()
    session = Session(device)
    for request, name in (
        ("NONSENSE", "UNKNOWN"),
        ("PRESS soon", "ARGUMENT"),
        ("PRESS 0", "ARGUMENT"),
        ("PRESS 99999", "ARGUMENT"),
        ("PRESS ١٢", "NOT-TEXT"),
        ("DISP? 1", "ARGUMENT"),
        ("ECHO MAYBE", "ARGUMENT"),
        ("X" * 129, "TOO-LONG"),
        ("DISP?\x00", "NOT-TEXT"),
    ):
        assert ask(session, request) == [f"ERR {ERRORS[name]} {name}"]
        assert ask(session, "SYST:ERR?") == [f"error={ERRORS[name]} {name}", "OK"]
    assert ask(session, "X" * 128) == ["ERR 1 UNKNOWN"]
    device.inject(Fault.DEAD_BATTERY)
    assert ask(session, "PRESS") == ["ERR 6 DEAD"]
    assert ask(session, "BATT?") == ["level=0", "state=DEAD", "OK"]


def test_a_wiped_token_refuses_a_press_as_blank() -> None:
    device = token()
    device.inject(Fault.TAMPER)
    assert ask(Session(device), "PRESS") == ["ERR 7 BLANK"]


def test_echo_handles_backspace() -> None:
    session = Session(token())
    session.receive(b"ECHO ON\r")
    session.take_output()
    session.receive(b"DISQ\x7fP?\r")
    assert session.take_output() == b"DISQ\b \bP?\r\ntext=\r\nOK\r\n"


def test_replies_are_held_until_the_typing_ends() -> None:
    session = Session(token())
    for char in "755":
        session.notify(Event(0, "TYPE", char))
    session.receive(b"DISP?\r")
    for char in "224\r":
        session.notify(Event(0, "TYPE", char))
    assert session.take_output() == b"755224\rtext=\r\nOK\r\n"


def test_a_reset_drops_partial_lines_and_settings() -> None:
    session = Session(token())
    session.receive(b"ECHO ON\rhalf a li")
    session.reset()
    session.receive(b"DISP?\r")
    assert session.take_output() == b"text=\r\nOK\r\n"


VERBS = ["*IDN?", "*RST", "*TST?", "SYST:ERR?", "PRESS", "DISP?", "BATT?", "HELP", "ECHO ON"]


@given(st.lists(st.one_of(st.sampled_from(VERBS), st.text(max_size=140)), max_size=30), st.integers(0, 12_000))
def test_no_request_reads_the_seed_of_a_sealed_token(requests: list[str], ms: int) -> None:
    device = token()
    session = Session(device)
    out = b""
    for request in requests:
        session.receive(request.encode() + b"\n")
        out += output_after(device, session, ms)
    for form in (SEED, SEED.hex().encode(), SEED.hex().upper().encode(), b"GEZDGNBVGY3TQOJQ"):
        assert form not in out
