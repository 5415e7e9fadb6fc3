"""Tests of the seven-segment display: text to segments, segments to text and drawings, and broken segments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from token_sim.device import seven_segment


@given(st.text("0123456789", min_size=1, max_size=8))
def test_the_shown_text_is_read_back(code: str) -> None:
    assert seven_segment.read(seven_segment.light(code)) == code


def test_codes_and_messages_are_read_back_from_their_segments() -> None:
    for text in ("0123456789", "Err 1", "End", "b 98", "------"):
        for part in (text[:8], text[8:]):
            assert seven_segment.read(seven_segment.light(part)) == part.rstrip()


def test_a_code_is_drawn_in_three_lines_and_in_five() -> None:
    assert seven_segment.small(seven_segment.light("755224")) == [
        " _   _   _   _   _",
        "  | |_  |_   _|  _| |_|",
        "  |  _|  _| |_  |_    |",
    ]
    assert seven_segment.large(seven_segment.light("1E")) == [
        "       ━━━",
        "    ┃ ┃",
        "       ━━━",
        "    ┃ ┃",
        "       ━━━",
    ]


@given(st.integers(0, 7), st.integers(0, 6))
def test_a_broken_segment_is_dark_whatever_is_shown(cell: int, segment: int) -> None:
    assert not seven_segment.light("88888888", [cell * 10 + segment])[cell] >> segment & 1
