"""What a person may type: codes, codes in a row, recovery codes, and nothing else."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_totp.core.answer import CROCKFORD, behind_password, codes, recovery_code, recovery_digest

ALL = {6, 7, 8}
SSHD_FAKE = b"\b\n\r\177INCORRECT"  # what sshd answers for a user who may not log in

# ---- codes


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        (b"123456", ("123456",)),
        (b"1234567", ("1234567",)),
        (b"12345678", ("12345678",)),
        (b"123456654321", ("123456", "654321")),
        (b"12345677654321", ("1234567", "7654321")),
        (b"1234567887654321", ("12345678", "87654321")),
        (b"111111222222333333", ("111111", "222222", "333333")),
        (b"111111122222223333333", ("1111111", "2222222", "3333333")),
        (b"111111112222222233333333", ("11111111", "22222222", "33333333")),
        (b"000000", ("000000",)),
        (b"123 456", ("123456",)),
        (b"123-456", ("123456",)),
        (b"1-2-3 4 5 6", ("123456",)),
        (b"123456 654321", ("123456", "654321")),
        (b"123456 - 654321", ("123456", "654321")),
        (b"123 456  654--321", ("123456", "654321")),
        (b"1" + b" " * 506 + b"23456", ("123456",)),  # 512 bytes
    ],
)
def test_codes_of_one_token_are_read_with_spaces_and_hyphens_between_digits(
    answer: bytes, read: tuple[str, ...]
) -> None:
    assert codes(answer, ALL) == read


@pytest.mark.parametrize("digits", range(1, 40))
def test_the_number_of_digits_says_which_codes_they_are(digits: int) -> None:
    numbers = {6: (6, 1), 7: (7, 1), 8: (8, 1), 12: (6, 2), 14: (7, 2), 16: (8, 2), 18: (6, 3), 21: (7, 3), 24: (8, 3)}
    text = "1234567890" * 4
    read = codes(text[:digits].encode(), ALL)
    if digits not in numbers:
        assert read is None
        return
    length, count = numbers[digits]
    assert read is not None
    assert "".join(read) == text[:digits]
    assert [len(c) for c in read] == [length] * count
    assert codes(text[:digits].encode(), ALL - {length}) is None, "only lengths of the user's tokens count"
    assert codes(text[:digits].encode(), {length}) == read
    assert codes(text[:digits].encode(), set()) is None


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b" ",
        b"-",
        SSHD_FAKE,
        b" 123456",
        b"123456 ",
        b"-123456",
        b"123456-",
        b"+123456",
        b"123456\n",
        b"123456\r\n",
        b"\n123456",
        b"123\t456",
        b"123_456",
        b"1_2_3_4_5_6",
        b"123.456",
        b"123,456",
        b"123456\0",
        b"\x00123456",
        b"123\x00456",
        b"123456;654321",
        b"12345a",
        b"0x1234",
        b"1e1000",
        b"12345l",
        "١٢٣٤٥٦".encode(),  # Arabic-Indic
        "１２３４５６".encode(),  # full width
        "12345²".encode(),
        "123\u00a0456".encode(),  # a space that is not ours
        "123\u2013456".encode(),  # nor is this hyphen
        "123456".encode("utf-16-le"),
        b"\xff\xfe",
        b"123456\x80",
        b"1" * 600,
        b"1" + b" " * 507 + b"23456",  # 513 bytes
        b"password123456",
        b"123456password",
    ],
)
def test_anything_else_holds_no_codes(answer: bytes) -> None:
    assert codes(answer, ALL) is None


def test_four_codes_of_six_digits_are_not_a_row() -> None:
    """24 digits are three codes of eight, where somebody has such a token."""
    assert codes(b"123456 654321 123456 654321", {6, 7}) is None
    assert codes(b"123456 654321 123456 654321", {6, 8}) == ("12345665", "43211234", "56654321")


digit_runs = st.lists(st.text("0123456789", min_size=6, max_size=8), min_size=1, max_size=4)
fillers = st.text(" -", max_size=3)


@given(digit_runs, st.data())
def test_fillers_between_digits_change_nothing_and_outside_of_them_everything(
    runs: list[str], data: st.DataObject
) -> None:
    digits = "".join(runs)
    filled = digits[0] + "".join(data.draw(fillers) + d for d in digits[1:])
    read = codes(digits.encode(), ALL)
    assert codes(filled.encode(), ALL) == read
    for spoilt in (" " + filled, filled + "-", filled + "\n", filled + "\0"):
        assert codes(spoilt.encode(), ALL) is None
    if read is not None:
        assert "".join(read) == digits
        assert len({len(c) for c in read}) == 1
        assert len(read[0]) in ALL
        assert len(read) in (1, 2, 3)


@given(st.binary(max_size=40) | st.text("0123456789 -\n\0٣", max_size=30).map(str.encode), st.sets(st.integers(6, 8)))
def test_what_is_read_is_ascii_digits_of_the_answer(answer: bytes, lengths: set[int]) -> None:
    read = codes(answer, lengths)
    if read is not None:
        assert "".join(read).encode() == bytes(b for b in answer if b in b"0123456789")
        assert set(answer) <= set(b"0123456789 -")
        assert {len(c) for c in read} <= lengths


# ---- a password and codes in one answer


@pytest.mark.parametrize(
    ("answer", "lengths", "password", "tail"),
    [
        (b"secret123456", {6}, b"secret", b"123456"),
        (b"secret123456654321", {6}, b"secret", b"123456654321"),
        (b"secret1123456", {6}, b"secret1", b"123456"),
        (b"secret12345678", {6, 8}, b"secret", b"12345678"),
        (b"secret1234567", {6, 8}, b"secret1", b"234567"),
        (b"secret" + b"1" * 30, {6, 8}, b"secret111111", b"1" * 24),
        (b"secret12345", {6}, b"secret12345", b""),
        (b"secret", {6}, b"secret", b""),
        (b"secret123456 ", {6}, b"secret123456 ", b""),
        (b"secret123 456", {6}, b"secret123 456", b""),
        (b"secret123456", set(), b"secret123456", b""),
        (b"123456", {6}, b"123456", b""),  # digits alone are all password
        (b"0123456", {6}, b"0", b"123456"),
        (b"", {6}, b"", b""),
        ("sécret٣123456".encode(), {6}, "sécret٣".encode(), b"123456"),
    ],
)
def test_codes_behind_a_password_are_the_longest_tail_of_digits_that_could_be_some(
    answer: bytes, lengths: set[int], password: bytes, tail: bytes
) -> None:
    assert behind_password(answer, lengths) == (password, tail)


@given(st.binary(max_size=20), st.text("0123456789", max_size=30), st.sets(st.integers(6, 8)))
def test_an_answer_is_cut_in_two_and_nothing_is_lost(password: bytes, digits: str, lengths: set[int]) -> None:
    first, tail = behind_password(password + digits.encode(), lengths)
    assert first + tail == password + digits.encode()
    assert first or not tail
    assert tail == b"" or codes(tail, lengths) is not None


# ---- recovery codes

CODE = "0123456789ABCDEF"


@pytest.mark.parametrize(
    "answer",
    [
        b"0123456789ABCDEF",
        b"0123-4567-89AB-CDEF",
        b"0123-4567-89ab-cdef",
        b"0123456789abcdef",
        b"oi23456789abcdef",
        b"OI23456789ABCDEF",
        b"OL23456789ABCDEF",
        b"ol23-4567-89ab-cdef",
        b"0123 4567 89AB CDEF",
    ],
)
def test_case_and_hyphens_of_a_recovery_code_are_forgiven_and_lookalikes_read(answer: bytes) -> None:
    assert recovery_code(answer) == CODE


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        SSHD_FAKE,
        b"0123456789ABCDE",
        b"0123456789ABCDEF0",
        b"0123456789ABCDEU",  # no U, lest codes say something
        b"0123456789ABCDE!",
        b"!123456789ABCDEF",
        b"01234567!9ABCDEF",
        b"0123456789ABCDE\0",
        b"0123456789ABCDEF\n",
        b"0123_4567_89AB_CDEF",
        b"0123\t4567\t89AB\tCDEF",
        "0123456789ABCDEÉ".encode(),
        "０１２３４５６７８９ABCDEF".encode(),
        "0123456789ABCDEſ".encode(),  # upper() makes an S of it
        b"0123456789ABCDEF" + b"-" * 500,  # 516 bytes
        b"0" * 600,
    ],
)
def test_what_does_not_look_like_a_recovery_code_is_none(answer: bytes) -> None:
    assert recovery_code(answer) is None


@given(st.text(CROCKFORD, min_size=16, max_size=16), st.data())
def test_every_spelling_of_a_recovery_code_is_one_code(code: str, data: st.DataObject) -> None:
    spellings = {"0": "0oO", "1": "1iIlL"}
    typed = "".join(data.draw(st.sampled_from(spellings.get(c, c + c.lower()))) for c in code)
    hyphens = data.draw(st.sets(st.integers(0, 16)))
    typed = "".join(("-" if i in hyphens else "") + c for i, c in enumerate(typed))
    assert recovery_code(typed.encode()) == code


@given(st.binary(max_size=40))
def test_whatever_is_typed_a_recovery_code_has_80_bits_in_one_spelling(answer: bytes) -> None:
    code = recovery_code(answer)
    assert code is None or (len(code) == 16 and set(code) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ"))


def test_the_alphabet_is_crockfords() -> None:
    assert len(set(CROCKFORD)) == 32
    assert not set("ILOU") & set(CROCKFORD)
    assert 16 * 5 == 80


def test_the_digest_is_sha_256_of_the_salts_bytes_and_the_code() -> None:
    salt = "000102030405060708090a0b0c0d0e0f"
    expected = hashlib.sha256(bytes(range(16)) + b"0123456789ABCDEF").hexdigest()
    assert recovery_digest(salt, CODE) == expected
    assert recovery_digest("11" * 16, CODE) != expected
    assert recovery_digest(salt, CODE[::-1]) != expected
