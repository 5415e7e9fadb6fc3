"""Tests of every parser with arbitrary bytes: a parser returns tokens, or raises an error of one line."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.formats.samples import SAMPLES, check

NAMES = sorted(SAMPLES)
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PIECES = [
    b"\n",
    b" ",
    b"\t",
    b",",
    b'"',
    b"-",
    b"\0",
    b"\xff",
    b"9" * 30,
    b"%00",
    b"&",
    b"<",
    b"<!DOCTYPE a>",
    b"]]>",
    b"_",
]


@st.composite
def spoiled(draw: st.DrawFn, name: str) -> bytes:
    """Return a valid file with one to four changes: a part is removed, duplicated or replaced, or a bit is flipped."""
    data = bytearray(draw(st.sampled_from(SAMPLES[name])))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        match draw(st.integers(0, 3)):
            case 0:
                del data[start:end]
            case 1:
                data[start:start] = data[start:end]
            case 2:
                data[start:end] = draw(st.sampled_from(PIECES))
            case _ if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
@MANY
@given(data=st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(name: str, data: bytes) -> None:
    check(name, data)


@pytest.mark.parametrize("name", NAMES)
@MANY
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(name: str, data: st.DataObject) -> None:
    check(name, data.draw(spoiled(name)))


@pytest.mark.parametrize("name", NAMES)
def test_every_prefix_of_a_file_is_read_or_refused(name: str) -> None:
    for sample in SAMPLES[name]:
        for end in range(0, len(sample), max(1, len(sample) // 200)):
            check(name, sample[:end])
        check(name, sample)
