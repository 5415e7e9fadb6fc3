"""Tests of the token's memory: contents, corrupt pages, torn writes, and wiping."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.token_sim.tokens import SEED, image
from token_sim.device import memory

BITS = st.integers(0, len(image()) * 8 - 1)


def flipped(data: bytes, bit: int) -> bytes:
    whole = bytearray(data)
    whole[bit // 8] ^= 1 << bit % 8
    return bytes(whole)


@given(
    kind=st.sampled_from(["hotp", "totp"]),
    algorithm=st.sampled_from(["SHA1", "SHA256", "SHA512"]),
    digits=st.integers(6, 8),
    period=st.integers(1, 65535),
    key=st.binary(min_size=14, max_size=64),
    counter=st.integers(0, 2**64 - 1),
)
def test_loading_a_built_image_returns_its_contents(**fields: Any) -> None:
    counter = fields.pop("counter")
    slot = memory.Slot(**fields)
    contents = memory.load(memory.build("SMGN00000001", (slot, None), (counter, 7)))
    assert (contents.slots, contents.counters, contents.repaired_slots) == ((slot, None), (counter, 7), ())


@given(bit=BITS, counter=st.integers(1, 2**63))
def test_a_flipped_bit_is_detected_or_skips_at_most_one_code(bit: int, counter: int) -> None:
    start = image(counter=counter - 1)
    offset, page = memory.counter_write(start, 0, counter)
    written = start[:offset] + page + start[offset + len(page) :]
    try:
        contents = memory.load(flipped(written, bit))
    except memory.Corrupt:
        return
    assert contents.slots[0] is not None and contents.slots[0].key == SEED
    assert contents.repaired_slots == (0,)
    assert counter <= contents.counters[0] <= counter + 1  # a lower counter would repeat a shown code


@given(st.lists(st.booleans(), max_size=12))
def test_torn_writes_never_decrease_the_counter(torn: list[bool]) -> None:
    data, shown = image(), -1
    for tear in torn:
        counter = memory.load(data).counters[0]
        assert counter > shown
        offset, page = memory.counter_write(data, 0, counter + 1)
        page = page[:5] + b"\xff" * (len(page) - 5) if tear else page
        data = data[:offset] + page + data[offset + len(page) :]
        if not tear:
            shown = counter
    assert memory.load(data).counters[0] > shown


def test_a_wiped_memory_keeps_only_the_serial_number() -> None:
    wiped = memory.wiped(image(counter=77))
    contents = memory.load(wiped)
    assert (contents.serial, contents.is_zeroised, contents.slots, contents.counters) == (
        "SMGN00000001",
        True,
        (None,),
        (0,),
    )
    assert SEED not in wiped


def test_no_repr_shows_a_key() -> None:
    slot = memory.Slot(kind="hotp", key=SEED)
    for shown in (repr(slot), repr(memory.load(image()))):
        assert SEED.hex() not in shown and SEED.decode() not in shown


@pytest.mark.parametrize(
    "wrong",
    [
        {"digits": 5},
        {"digits": 9},
        {"kind": "ocra"},
        {"algorithm": "MD5"},
        {"period": 0},
        {"key": b"short"},
        {"limit": -1},
    ],
)
def test_invalid_slots_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^[a-z0-9]"):
        image(**wrong)
