"""Tests of the slots of a secret file: their encoding, torn writes, and their size."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pam_totp.core.record import KEPT_GRACE, Grace, RecordError, TotpToken, UserRecord
from pam_totp.core.secretfile import MAX_FILE, serialize
from pam_totp.core.slots import BLOCK, MAX_HEADER, MAX_SLOT, Slots, decode, encode, new_file, slot_size
from pam_totp.operations import grace
from tests.core.strategies import records
from tests.support.site import fob, phone

OLD, NEW, NEWER = b'{"a": 1}\n', b'{"a": 22}\n', b'{"a": 333}\n'
EMPTY = b" " * (BLOCK - 1) + b"\n"


def written(data: bytes, document: bytes) -> bytes:
    """Return the content of a file with the content `data` after a write of `document`."""
    offset, slot = decode(data).next(document)
    return data[:offset] + slot + data[offset + len(slot) :]


def test_a_file_is_text_that_shows_its_record() -> None:
    """Check each byte of the layout, because other programs read the file."""
    slot = b'pam_totp 2 1 9 cd74e315\n{"a": 1}\n'.ljust(BLOCK - 1) + b"\n"
    assert encode(1, OLD, BLOCK) == slot
    assert new_file(OLD, BLOCK) == slot + EMPTY
    assert decode(slot + EMPTY) == Slots(document=OLD, sequence=1, size=BLOCK, current=0, other=b"")


def test_each_write_goes_to_the_other_slot_with_the_next_number() -> None:
    data = new_file(OLD, BLOCK)
    expected = decode(data)
    for number, document in enumerate([NEW, NEWER, OLD, NEW], 2):
        data, expected = written(data, document), expected.after(document)
        assert decode(data) == expected
        assert (expected.document, expected.sequence, expected.current) == (document, number, (number - 1) % 2)


@pytest.mark.parametrize("writes", [[NEW], [NEW, NEWER], [NEW, NEWER, OLD]])
def test_every_torn_prefix_of_a_write_leaves_the_older_record(writes: list[bytes]) -> None:
    """The writes replace an empty slot, a shorter document and a longer document."""
    data = new_file(OLD, BLOCK)
    for document in writes:
        offset, slot = decode(data).next(document)
        before = decode(data)
        for length in range(BLOCK + 1):
            torn = data[:offset] + slot[:length] + data[offset + length :]
            found = decode(torn)
            if torn == written(data, document):  # the rest of the slot already had these bytes
                assert found == before.after(document)
            else:
                assert (found.document, found.sequence, found.current) == (
                    before.document,
                    before.sequence,
                    before.current,
                )
                assert found.other == before.other or found.other is None
                assert decode(written(torn, document)).document == document, "the next write repairs the slot"
        data = written(data, document)


@given(st.binary(min_size=1, max_size=300), st.integers(0, BLOCK - 1), st.integers(1, 255))
def test_a_slot_with_any_byte_changed_is_not_valid(document: bytes, offset: int, change: int) -> None:
    data = bytearray(written(new_file(OLD, BLOCK), document))
    data[BLOCK + offset] ^= change
    found = decode(bytes(data))
    assert (found.document, found.sequence, found.other) == (OLD, 1, None)


def test_equal_sequence_numbers_are_refused_unless_the_slots_are_equal() -> None:
    with pytest.raises(RecordError, match="same sequence number"):
        decode(encode(7, OLD, BLOCK) + encode(7, NEW, BLOCK))
    assert decode(encode(7, OLD, BLOCK) * 2).current == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        encode(1, OLD, BLOCK),
        new_file(OLD, BLOCK)[:-1],
        new_file(OLD, BLOCK) + b"\n",
        new_file(OLD, BLOCK)[: BLOCK + 100],
        new_file(OLD, MAX_SLOT + BLOCK),
        new_file(OLD, BLOCK) + EMPTY,
    ],
    ids=len,
)
def test_a_file_of_an_invalid_size_is_refused(data: bytes) -> None:
    with pytest.raises(RecordError, match="two slots"):
        decode(data)


@pytest.mark.parametrize(
    "slot",
    [
        EMPTY,
        bytes(BLOCK),
        b"x" * BLOCK,
        encode(0, OLD, BLOCK),
        encode(10**18, OLD, BLOCK).replace(b"1000000000000000000", b"9" * 30),
        encode(3, OLD, BLOCK).replace(b" 2 3 ", b" 2 +3 "),
        encode(3, OLD, BLOCK).replace(b" 2 3 ", b" 1 3 "),
        encode(3, OLD, BLOCK).replace(b" 9 ", b" 4090 "),
        encode(3, OLD, BLOCK).replace(b" 2 3 9", b" 2 3"),
        encode(3, OLD, BLOCK).replace(b"\n", b" ", 1),
        encode(3, OLD, BLOCK)[1:] + b"\n",
        encode(3, OLD, BLOCK).rstrip().ljust(BLOCK),
    ],
    ids=lambda slot: repr(slot[:24]),
)
def test_a_file_without_a_valid_slot_is_refused(slot: bytes) -> None:
    slot = slot[:BLOCK].ljust(BLOCK)
    with pytest.raises(RecordError, match="one slot must have a valid document"):
        decode(slot + slot)
    good = encode(5, NEW, BLOCK)
    for data in (slot + good, good + slot):
        assert decode(data).document == NEW
        assert decode(data).other == (b"" if slot == EMPTY else None)


def test_a_slot_with_a_larger_sequence_number_is_not_written() -> None:
    """A slot with a longer number is invalid, so the older slot would remain current."""
    with pytest.raises(RecordError, match="the sequence number must have at most 19 digits"):
        encode(10**19, OLD, BLOCK)


def test_a_sequence_number_has_at_most_nineteen_digits() -> None:
    assert decode(new_file(OLD, BLOCK, 10**19 - 1)).sequence == 10**19 - 1


@given(st.binary(max_size=3 * BLOCK))
@example(b"{}\n")
def test_arbitrary_bytes_are_refused_or_are_a_file_of_version_1(data: bytes) -> None:
    try:
        found = decode(data)
    except RecordError:
        return
    assert found == Slots(document=data)


def test_a_file_of_version_1_is_one_document() -> None:
    assert decode(OLD) == Slots(document=OLD, sequence=0, size=0, current=0, other=b"")


def test_a_document_that_is_too_long_for_its_slot_is_refused() -> None:
    assert len(encode(1, b"x" * (BLOCK - 28), BLOCK)) == BLOCK
    for length in (BLOCK - 27, BLOCK, 2 * BLOCK):
        with pytest.raises(RecordError, match="must fit in a slot of 4096 bytes"):
            encode(1, b"x" * length, BLOCK)


# ---- sizes


@pytest.mark.parametrize("length", [BLOCK - 49, BLOCK - 48, BLOCK - 47, BLOCK])
def test_a_slot_has_space_for_a_document_with_any_sequence_number(length: int) -> None:
    slots, document = Slots(document=OLD, size=BLOCK), b"x" * length
    assert slots.has_room(document) is (length + MAX_HEADER + 1 <= BLOCK)
    if slots.has_room(document):
        assert len(encode(10**19 - 1, document, BLOCK)) == BLOCK
    assert not Slots(document=OLD).has_room(b""), "a file of version 1 has no slots"


def at_the_limits(record: UserRecord) -> UserRecord:
    """Return the longest result of logins with `record`: with the highest numbers and the longest grace."""
    tokens = tuple(
        token.accepted(2**64 - 1, 1, 2**62 - 1) if token.type == "hotp" else drifted(token) for token in record.tokens
    )
    grown = UserRecord(
        user=record.user,
        tokens=tokens,
        salt=record.salt,
        recovery=record.recovery,
        failures=2**62,
        failures_at=2**62 - 1,
        refused=2**62,
        ticket=record.ticket,
        temporary=record.temporary,
        changes=record.changes,
    )
    for number in range(KEPT_GRACE + 3):
        origin = grace.origin("s" * 32, ":".join(f"{0xF000 + number:x}" for _ in range(8)))
        assert origin is not None
        grown = grace.granted(grown, origin, 2**62 - 1)
    return grown


def drifted(token: object) -> TotpToken:
    assert isinstance(token, TotpToken)
    return TotpToken(**{**vars(token), "drift": -(2**31), "last_step": 2**64 - 1, "last_used": 2**62 - 1})


@given(records())
def test_a_slot_has_space_for_every_later_change_by_logins(record: UserRecord) -> None:
    tokens = tuple(type(t)(**{**vars(t), **START[t.type]}) for t in record.tokens)
    fresh = UserRecord(**{**vars(record), "tokens": tokens, "failures": 0, "refused": 0, "grace": (), "recent": ""})
    grown = at_the_limits(fresh)
    size = slot_size(fresh)
    assert size % BLOCK == 0
    assert size == slot_size(grown) == slot_size(fresh.longest()), "logins do not enlarge the file"
    assert decode(new_file(serialize(grown), size, 10**19 - 1)).document == serialize(grown)


START: dict[str, dict[str, object]] = {
    "hotp": {"counter": 0, "last_used": None},
    "totp": {"last_step": None, "drift": 0, "last_used": None},
}


def test_a_slot_of_an_ordinary_record_is_one_block() -> None:
    assert slot_size(UserRecord(user="alice", tokens=(fob(), phone()))) == BLOCK


def test_a_slot_has_space_for_a_record_of_version_1_with_more_grace() -> None:
    many = tuple(Grace(service="s" * 60, rhost=f"192.0.2.{n}", granted=5) for n in range(64))
    record = UserRecord(user="alice", tokens=(fob(),), grace=many)
    assert decode(new_file(serialize(record), slot_size(record))).document == serialize(record)


def test_the_slots_of_the_longest_record_are_not_too_large() -> None:
    """A record of version 1 can have up to 64 KiB."""
    names = tuple("\N{GRINNING FACE}" * 200 + str(n) for n in range(8))
    tokens = tuple(
        fob(name=name, serial="\N{GRINNING FACE}" * 255, secret=bytes([n]) * 128) for n, name in enumerate(names)
    )
    recovery = tuple(f"{n:064x}" for n in range(100))
    record = UserRecord(user="alice", tokens=tokens, salt="00" * 16, recovery=recovery)
    assert 50_000 < len(serialize(record)) < MAX_FILE
    assert slot_size(record) <= MAX_SLOT - BLOCK
