"""Tests of the answers that a user may type: codes, codes in a row and recovery codes."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Set
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_totp.core.answer import CODE_LENGTHS, CROCKFORD, Answer, recovery_digest
from tests.core.conftest import TIMES

SSHD_FAKE = b"\b\n\r\177INCORRECT"  # sshd sends this text as the password of a user that sshd denies

# The ignored characters, except white space: a copy of the list, independent of `core.answer`.
IGNORED = "-\u00ad\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d\ufeff"
IGNORED += "\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e"
IGNORED += "\u2060\u2061\u2062\u2063\u2064\u2065\u2066\u2067\u2068\u2069"


def codes_in(answer: bytes, lengths: Set[int] = CODE_LENGTHS) -> tuple[str, ...] | None:
    return Answer.parse(answer).codes(lengths)


def recovery_code(answer: bytes) -> str | None:
    code = Answer.parse(answer).recovery_code
    return None if code is None else bytes(code).decode()


def behind_password(answer: bytes, lengths: Set[int]) -> tuple[bytes, tuple[str, ...] | None]:
    parsed = Answer.parse_behind_password(answer)
    return bytes(parsed.password(lengths)), parsed.codes(lengths)


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
        (b" 123456 ", ("123456",)),
        (b"-123456-", ("123456",)),
        (b"\n123456\r\n", ("123456",)),
        (b"123\t456", ("123456",)),
        ("123\u00a0456".encode(), ("123456",)),  # a no-break space, as in web pages
        ("123\u2013456".encode(), ("123456",)),  # an en dash
        ("\u2066123\u202f456\u2069".encode(), ("123456",)),  # bidirectional text with isolate characters
        ("\ufeff123456".encode(), ("123456",)),
        ("١٢٣٤٥٦".encode(), ("123456",)),  # Arabic-Indic
        ("１２３ ４５６".encode(), ("123456",)),  # full width
        ("१२३-456".encode(), ("123456",)),
    ],
)
def test_codes_are_decimal_digits_and_ignored_characters(answer: bytes, read: tuple[str, ...]) -> None:
    assert codes_in(answer) == read


@pytest.mark.parametrize("digits", range(1, 40))
def test_the_number_of_digits_determines_the_codes(digits: int) -> None:
    numbers = {6: (6, 1), 7: (7, 1), 8: (8, 1), 12: (6, 2), 14: (7, 2), 16: (8, 2), 18: (6, 3), 21: (7, 3), 24: (8, 3)}
    text = "1234567890" * 4
    read = codes_in(text[:digits].encode())
    if digits not in numbers:
        assert read is None
        return
    length, count = numbers[digits]
    assert read is not None
    assert "".join(read) == text[:digits]
    assert [len(c) for c in read] == [length] * count
    assert codes_in(text[:digits].encode(), CODE_LENGTHS - {length}) is None, "no token has codes of this length"
    assert codes_in(text[:digits].encode(), {length}) == read
    assert codes_in(text[:digits].encode(), set()) is None


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b" ",
        b"-",
        SSHD_FAKE,
        b"+123456",
        b"123456\b",
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
        "12345²".encode(),
        "12345Ⅵ".encode(),
        "123456\u3164".encode(),  # a letter that looks like a space
        "123456\u2016".encode(),  # the first character after the Unicode dashes
        "123456\u180e".encode(),
        "123456".encode("utf-16-le"),
        b"\xff\xfe",
        b"123456\x80",
        b"\xed\xa0\x80123456",  # an encoded surrogate, which is not valid UTF-8
        b"\xc0\xad123456",  # a hyphen in overlong UTF-8
        b"1" * 600,
        b"1" + b" " * 507 + b"23456",  # 513 bytes
        b"password123456",
        b"123456password",
    ],
)
def test_other_text_has_no_codes(answer: bytes) -> None:
    assert codes_in(answer) is None


def test_four_codes_of_six_digits_are_not_codes_in_a_row() -> None:
    """24 digits are three codes of eight digits if the user has a token with codes of eight digits."""
    assert codes_in(b"123456 654321 123456 654321", {6, 7}) is None
    assert codes_in(b"123456 654321 123456 654321", {6, 8}) == ("12345665", "43211234", "56654321")


@pytest.mark.parametrize("character", IGNORED, ids=ascii)
def test_an_ignored_character_is_ignored_at_every_position(character: str) -> None:
    assert codes_in(f"{character}123{character}{character}456{character}".encode()) == ("123456",)


def samples() -> set[str]:
    """Return the characters that UTF-8 can encode: all with PAM_TOTP_EXAMPLES, otherwise a selection.

    From U+10000 on, the selection contains one in a hundred of the caseless letters (mostly ideographs), and of the
    private and unassigned characters. The selection contains all invisible characters, even the reserved
    U+E0000 to U+E0FFF.
    """
    many = [] if TIMES else [n for n in range(0x10000, sys.maxunicode + 1) if category(chr(n)) in ("Lo", "Co", "Cn")]
    left_out = {n for n in many if n % 100 and not 0xE0000 <= n < 0xE1000}
    surrogates = range(0xD800, 0xE000)
    return {chr(n) for n in range(sys.maxunicode + 1) if n not in left_out and n not in surrogates}


def test_only_white_space_and_the_listed_characters_are_ignored() -> None:
    ignored = set()
    for character in samples():
        read = codes_in(f"123456{character}".encode())
        if read == ("123456",):
            ignored.add(character)
        elif character.isdecimal():
            assert read == (f"123456{int(character)}",)
        else:
            assert read is None
    assert ignored == set(IGNORED) | {chr(n) for n in range(sys.maxunicode + 1) if chr(n).isspace()}


digit_runs = st.lists(st.text("0123456789", min_size=6, max_size=8), min_size=1, max_size=4)
fillers = st.text(" \t\u00a0\u200b\u2014" + IGNORED, max_size=3)


@given(digit_runs, st.data())
def test_ignored_characters_never_change_the_codes_and_others_always_do(runs: list[str], data: st.DataObject) -> None:
    digits = "".join(runs)
    filled = "".join(data.draw(fillers) + d for d in digits) + data.draw(fillers)
    read = codes_in(digits.encode())
    assert codes_in(filled.encode()) == read
    for spoilt in ("x" + filled, filled + "_", filled + "\0", filled + "\b"):
        assert codes_in(spoilt.encode()) is None
    if read is not None:
        assert "".join(read) == digits
        assert len({len(c) for c in read}) == 1
        assert len(read[0]) in CODE_LENGTHS
        assert len(read) in (1, 2, 3)


@given(st.binary(max_size=40) | st.text("0123456789 -\n\0٣", max_size=30).map(str.encode), st.sets(st.integers(6, 8)))
def test_the_codes_are_the_digits_of_the_answer(answer: bytes, lengths: set[int]) -> None:
    read = codes_in(answer, lengths)
    if read is not None:
        digits = [c for c in answer.decode() if c.isdecimal()]
        assert "".join(read) == "".join(str(int(c)) for c in digits)
        assert "".join(read).isascii()
        assert {len(c) for c in read} <= lengths


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(b"123456", True), (b"0123-4567-89AB-CDEF", True), (b"12345", False), (b"password", False), (b"", False)],
)
def test_an_answer_is_well_formed_if_it_can_be_right_for_some_user(answer: bytes, expected: bool) -> None:
    assert Answer.parse(answer).is_well_formed is expected
    behind = Answer.parse_behind_password(b"x" + answer)
    assert behind.is_well_formed is (answer == b"123456"), "a recovery code is not well-formed after a password"


def test_spellings_of_one_answer_are_equal_and_the_repr_hides_them() -> None:
    assert Answer.parse(b"123 456") == Answer.parse(b"123456")
    assert Answer.parse(b"0123-4567-89ab-cdef") == Answer.parse(b"O123456789ABCDEF")
    assert Answer.parse(b"123456") != Answer.parse(b"123457")
    assert Answer.parse(b"123456") != Answer.parse_behind_password(b"123456")
    assert repr(Answer.parse_behind_password(b"secret123456")) == "<Answer>"


# ---- a password and codes in one answer


@pytest.mark.parametrize(
    ("answer", "lengths", "password", "tail"),
    [
        (b"secret123456", {6}, b"secret", ("123456",)),
        (b"secret123456654321", {6}, b"secret", ("123456", "654321")),
        (b"secret1123456", {6}, b"secret1", ("123456",)),
        (b"secret12345678", {6, 8}, b"secret", ("12345678",)),
        (b"secret1234567", {6, 8}, b"secret1", ("234567",)),
        (b"secret" + b"1" * 30, {6, 8}, b"secret111111", ("11111111",) * 3),
        (b"secret12345", {6}, b"secret12345", None),
        (b"secret", {6}, b"secret", None),
        (b"secret123456 ", {6}, b"secret123456 ", None),
        (b"secret123 456", {6}, b"secret123 456", None),
        ("secret\u200b123456".encode(), {6}, "secret\u200b".encode(), ("123456",)),
        ("secret123\u2013456".encode(), {6}, "secret123\u2013456".encode(), None),
        (b"secret0123456789ABCDEF", {6}, b"secret0123456789ABCDEF", None),
        (b"secret123456", set(), b"secret123456", None),
        (b"123456", {6}, b"123456", None),  # an answer of codes alone is the password
        (b"123456123456", {6}, b"123456123456", None),
        (b"0123456", {6}, b"0", ("123456",)),
        (b"", {6}, b"", None),
        (b"\xff\xfe123456", {6}, b"\xff\xfe", ("123456",)),
        ("sécret٣123456".encode(), {6}, "sécret٣".encode(), ("123456",)),
        ("sécret١٢٣٤٥٦".encode(), {6}, "sécret١٢٣٤٥٦".encode(), None),
    ],
)
def test_codes_after_a_password_are_the_longest_possible_tail(
    answer: bytes, lengths: set[int], password: bytes, tail: tuple[str, ...] | None
) -> None:
    assert behind_password(answer, lengths) == (password, tail)
    assert Answer.parse_behind_password(answer).recovery_code is None


def test_an_answer_of_codes_alone_has_no_password() -> None:
    assert not Answer.parse(b"123456").password({6})
    assert not Answer.parse(b"secret123456").password({6})


@given(st.binary(max_size=20), st.text("0123456789", max_size=30), st.sets(st.integers(6, 8)))
def test_an_answer_is_split_without_loss(password: bytes, digits: str, lengths: set[int]) -> None:
    first, tail = behind_password(password + digits.encode(), lengths)
    assert first + "".join(tail or ()).encode() == password + digits.encode()
    assert first or tail is None


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
        b"0123\t4567\t89AB\tCDEF",
        b" 0123456789ABCDEF\n",
        "0123\u20144567\u201489AB\u2014CDEF".encode(),
        "０１２３4567٨٩ABCDEF".encode(),  # full-width and Arabic-Indic digits
    ],
)
def test_case_separators_and_lookalikes_in_a_recovery_code_are_accepted(answer: bytes) -> None:
    assert recovery_code(answer) == CODE


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        SSHD_FAKE,
        b"0123456789ABCDE",
        b"0123456789ABCDEF0",
        b"0123456789ABCDEU",  # the alphabet has no U
        b"0123456789ABCDE!",
        b"!123456789ABCDEF",
        b"01234567!9ABCDEF",
        b"0123456789ABCDE\0",
        b"0123_4567_89AB_CDEF",
        b"0123456789ABCDEF\xff",
        "0123456789ABCDEÉ".encode(),
        "0123456789ＡＢＣＤＥＦ".encode(),  # full-width letters
        "0123456789ABCDEſ".encode(),  # a long s, which str.upper turns into S
        b"0123456789ABCDEF" + b"-" * 500,  # 516 bytes
        b"0" * 600,
    ],
)
def test_other_text_is_not_a_recovery_code(answer: bytes) -> None:
    assert recovery_code(answer) is None


@given(st.text(CROCKFORD, min_size=16, max_size=16), st.data())
def test_every_spelling_of_a_recovery_code_is_the_same_code(code: str, data: st.DataObject) -> None:
    spellings = {"0": "0oO", "1": "1iIlL"}
    typed = "".join(data.draw(st.sampled_from(spellings.get(c, c + c.lower()))) for c in code)
    hyphens = data.draw(st.sets(st.integers(0, 16)))
    typed = "".join(("-" if i in hyphens else "") + c for i, c in enumerate(typed))
    assert recovery_code(typed.encode()) == code


@given(st.binary(max_size=40))
def test_a_recovery_code_from_any_input_has_80_bits_and_one_spelling(answer: bytes) -> None:
    code = recovery_code(answer)
    assert code is None or (len(code) == 16 and set(code) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ"))


def test_the_alphabet_is_crockfords() -> None:
    assert len(set(CROCKFORD)) == 32
    assert not set("ILOU") & set(CROCKFORD)
    assert 16 * 5 == 80


def test_the_digest_is_sha_256_of_the_salt_bytes_and_the_code() -> None:
    salt = "000102030405060708090a0b0c0d0e0f"
    expected = hashlib.sha256(bytes(range(16)) + b"0123456789ABCDEF").hexdigest()
    assert recovery_digest(salt, CODE) == expected
    assert recovery_digest("11" * 16, CODE) != expected
    assert recovery_digest(salt, CODE[::-1]) != expected


@pytest.mark.parametrize("prefix", [b"", b"p"])
@pytest.mark.parametrize("count", range(60))
def test_an_answer_with_codes_for_some_user_is_well_formed(count: int, prefix: bytes) -> None:
    """Only a well-formed answer contains codes, because `decide` writes a record only for a well-formed answer."""
    answer = Answer.parse_behind_password(prefix + b"1" * count)
    subsets = [set(lengths) for n in (1, 2, 3) for lengths in itertools.combinations(sorted(CODE_LENGTHS), n)]
    assert answer.is_well_formed == any(answer.codes(lengths) is not None for lengths in subsets)
