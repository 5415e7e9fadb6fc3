"""Tests of oath: its codes agree with published vectors, oathtool and pyotp, also at the limits of the arguments."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import random
import subprocess
from collections.abc import Iterator

import pyotp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_totp.core import oath
from tests.core.vectors import table

KEY = b"12345678901234567890"  # RFC 4226, appendix D
LAST = 2**64 - 1
LENGTHS = {"SHA1": 20, "SHA256": 32, "SHA512": 64}  # key length in bytes: RFC 6238, appendix A


# ---- published vectors


@pytest.mark.parametrize("row", table("rfc4226-appendix-d.csv"), ids=lambda row: row["count"])
@pytest.mark.parametrize("digits", [6, 7, 8])
def test_rfc_4226_appendix_d(row: dict[str, str], digits: int) -> None:
    count, number = int(row["count"]), int(row["truncated_decimal"])
    assert number == int(row["truncated_hex"], 16)
    assert hmac.new(KEY, count.to_bytes(8, "big"), "sha1").hexdigest() == row["hmac"], "the CSV file is a correct copy"
    assert oath.hotp(KEY, count) == row["hotp"]
    assert oath.hotp(KEY, count, digits) == str(number)[-digits:].zfill(digits)


@pytest.mark.parametrize("row", table("rfc6238-appendix-b.csv"), ids=lambda row: f"{row['algorithm']}-{row['time']}")
def test_rfc_6238_appendix_b(row: dict[str, str]) -> None:
    key = (b"1234567890" * 7)[: LENGTHS[row["algorithm"]]]
    now, step = int(row["time"]), int(row["step_hex"], 16)
    assert oath.totp_step(now) == step
    assert oath.totp(key, now, 8, row["algorithm"]) == row["totp"]
    assert oath.hotp(key, step, 8, row["algorithm"]) == row["totp"]
    assert oath.totp(key, now, algorithm=row["algorithm"]) == row["totp"][-6:]


@pytest.mark.parametrize("row", table("google-authenticator.csv"), ids=lambda row: row["code"])
def test_the_vectors_of_google_authenticators_tests(row: dict[str, str]) -> None:
    key, moving_factor = base64.b32decode(row["base32"]), int(row["moving_factor"])
    assert oath.hotp(key, moving_factor) == row["code"]
    assert oath.totp(key, 30 * moving_factor) == oath.totp(key, 30 * moving_factor + 29) == row["code"]


# ---- comparison of 10,000 cases (with a fixed seed) with oathtool and pyotp

CASES_A_RUN = 100
RUNS_HOTP, RUNS_TOTP = 40, 60


def _oathtool(*options: str | int, key: bytes) -> list[str]:
    command = ["oathtool", *map(str, options), "-w", str(CASES_A_RUN - 1), key.hex()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()


def _counters(chance: random.Random) -> Iterator[int]:
    """Yield the first counter of each run: 0, then near the limits of 31, 32, 63 and 64 bits, then at random."""
    yield from (0, 2**31 - 50, 2**32 - 50, 2**63 - 50, 2**64 - CASES_A_RUN)
    while True:
        yield chance.randrange(2 ** chance.randint(7, 64) - CASES_A_RUN)


def test_hotp_agrees_with_oathtool_and_pyotp() -> None:
    chance = random.Random("hotp")
    seen = 0
    for run, first in zip(range(RUNS_HOTP), _counters(chance), strict=False):
        digits, key = 6 + run % 3, chance.randbytes(chance.randint(14, 128))
        theirs = _oathtool("-c", first, "-d", digits, key=key)
        other = pyotp.HOTP(base64.b32encode(key).decode(), digits=digits)
        ours = [oath.hotp(key, first + i, digits) for i in range(CASES_A_RUN)]
        assert ours == theirs
        assert ours == [other.at(first + i) for i in range(CASES_A_RUN)]
        seen += len(theirs)
    assert seen == CASES_A_RUN * RUNS_HOTP


def test_totp_agrees_with_oathtool_and_pyotp() -> None:
    chance = random.Random("totp")
    seen = 0
    for run in range(RUNS_TOTP):
        algorithm, digits = ("SHA1", "SHA256", "SHA512")[run % 3], 6 + run // 3 % 3
        key, period = chance.randbytes(chance.randint(14, 160)), chance.choice([1, 10, 30, 60, 97, 120])
        now = chance.choice([0, 59, 2**31 - 1000, 2**32 - 1000, chance.randrange(2**33)])
        theirs = _oathtool(f"--totp={algorithm}", "-d", digits, "-s", f"{period}s", "-N", f"@{now}", key=key)
        other = pyotp.TOTP(
            base64.b32encode(key).decode(), digits=digits, digest=getattr(hashlib, algorithm.lower()), interval=period
        )
        times = [now + i * period for i in range(CASES_A_RUN)]
        ours = [oath.totp(key, t, digits, algorithm, period) for t in times]
        assert ours == theirs
        assert ours == [other.at(datetime.datetime.fromtimestamp(t, datetime.UTC)) for t in times]
        seen += len(theirs)
    assert seen == CASES_A_RUN * RUNS_TOTP


def test_the_two_comparisons_cover_ten_thousand_cases() -> None:
    assert CASES_A_RUN * (RUNS_HOTP + RUNS_TOTP) >= 10_000


# ---- find

keys = st.binary(min_size=1, max_size=140)
algorithms = st.sampled_from(oath.ALGORITHMS)
digits_of = st.integers(6, 8)


def naive_find(
    key: bytes, codes: tuple[str, ...], candidates: Iterator[int] | range, digits: int, algorithm: str
) -> int | None:
    for first in candidates:
        places = range(first, first + len(codes))
        if places[0] < 0 or places[-1] > LAST:
            continue
        if [oath.hotp(key, p, digits, algorithm) for p in places] == list(codes):
            return first
    return None


@given(
    key=keys,
    algorithm=algorithms,
    digits=digits_of,
    start=st.integers(-5, 5) | st.integers(LAST - 30, LAST + 5) | st.integers(0, LAST),
    length=st.integers(-3, 20),
    offset=st.integers(-4, 24),
    count=st.integers(1, 3),
    spoilt=st.sampled_from([None, None, None, 0, 1, 2]),
)
def test_find_agrees_with_a_naive_search(
    *, key: bytes, algorithm: str, digits: int, start: int, length: int, offset: int, count: int, spoilt: int | None
) -> None:
    at = [min(max(start + offset + i, 0), LAST) for i in range(count)]
    codes = [oath.hotp(key, p, digits, algorithm) for p in at]
    if spoilt is not None and spoilt < count:
        codes[spoilt] = str((int(codes[spoilt]) + 1) % 10**digits).zfill(digits)
    within = range(start, start + length)
    found = oath.find(key, tuple(codes), within, digits, algorithm)
    assert found == naive_find(key, tuple(codes), within, digits, algorithm)
    if spoilt is None and count == 1 and at[0] in within:
        assert found is not None
        assert found <= at[0]


def test_find_returns_the_first_of_two_counters_with_the_same_code() -> None:
    codes = [oath.hotp(KEY, c) for c in range(4000)]
    again = next(c for c in range(4000) if codes[c] in codes[:c])
    first = codes.index(codes[again])
    assert oath.find(KEY, (codes[again],), range(4000)) == first
    assert oath.find(KEY, (codes[again],), range(first + 1, 4000)) == again


def test_find_continues_after_a_match_of_the_first_code_alone() -> None:
    codes = [oath.hotp(KEY, c) for c in range(4000)]
    again = next(c for c in range(4000) if codes[c] in codes[:c])
    row = (codes[again], oath.hotp(KEY, again + 1))
    assert oath.find(KEY, row, range(4000)) == again


def test_find_requires_codes_in_order_and_without_gaps() -> None:
    a, b, c = (oath.hotp(KEY, n) for n in range(3))
    assert oath.find(KEY, (a, b, c), range(10)) == 0
    for wrong in [(b, a), (a, c), (a, a), (c, b, a), (a, b, a), (a, b, b)]:
        assert oath.find(KEY, wrong, range(10)) is None


def test_find_checks_the_last_counter_and_stops_there() -> None:
    last, before = oath.hotp(KEY, LAST), oath.hotp(KEY, LAST - 1)
    beyond = range(LAST - 5, LAST + 500)
    assert oath.find(KEY, (last,), beyond) == LAST
    assert oath.find(KEY, (before, last), beyond) == LAST - 1
    assert oath.find(KEY, (last, oath.hotp(KEY, 0)), beyond) is None, "2^64 is not 0"
    assert oath.find(KEY, (last,), range(LAST + 1, LAST + 100)) is None


def test_find_starts_at_zero_even_if_the_range_starts_below() -> None:
    assert oath.find(KEY, ("755224",), range(-1000, 1)) == 0
    assert oath.find(KEY, ("755224",), range(-1000, 0)) is None


@pytest.mark.parametrize(
    ("codes", "within"),
    [
        ((), range(5)),
        (("75522",), range(5)),
        (("7552244",), range(5)),
        (("755224", "28708"), range(5)),
        (("75522a",), range(5)),
        (("+75522",), range(5)),
        (("7_5522",), range(5)),
        ((" 75522",), range(5)),
        (("-55224",), range(5)),
        (("٧٥٥٢٢٤",), range(5)),  # Arabic-Indic: int() accepts them
        (("75522²",), range(5)),  # superscript: str.isdigit accepts it
        (("７５５２２４",), range(5)),  # full width
        (("755224",), range(0, 10, 2)),
        (("755224",), range(10, 0, -1)),
    ],
)
def test_find_accepts_only_the_right_number_of_ascii_digits(codes: tuple[str, ...], within: range) -> None:
    with pytest.raises(ValueError, match="each code must have"):
        oath.find(KEY, codes, within)


@pytest.mark.parametrize("start", [0, 1, 2, 7, 100, 1000, 99_000, 2**32 - 20])
@pytest.mark.parametrize("algorithm", oath.ALGORITHMS)
def test_find_covers_exactly_its_range_by_every_search_method(start: int, algorithm: str) -> None:
    """`find` chooses the search method by the length of the range and by its counters."""
    for length in {1, 2, 3, 40, start // 2 % 600, start // 2 % 600 + 1, start // 2 % 600 + 2} - {0}:
        within = range(start, start + length)
        for at, found in [(start - 1, None), (start, start), (within[-1], within[-1]), (within.stop, None)]:
            for count in (1, 2, 3):
                if at >= 0:
                    row = tuple(oath.hotp(KEY, at + i, 8, algorithm) for i in range(count))
                    assert oath.find(KEY, row, within, 8, algorithm) == found, (within, at)


@pytest.mark.parametrize(("algorithm", "block"), [("SHA1", 64), ("SHA256", 64), ("SHA512", 128)])
@pytest.mark.parametrize("start", [0, 2**40])
def test_find_accepts_keys_shorter_and_longer_than_the_hash_block(algorithm: str, block: int, start: int) -> None:
    """A key longer than the block is hashed first (RFC 2104 §2)."""
    for size in (1, block - 1, block, block + 1, 2 * block + 1):
        key = bytes([size % 251]) * size
        assert (
            oath.find(key, (oath.hotp(key, start + 5, 8, algorithm),), range(start, start + 9), 8, algorithm)
            == start + 5
        )


def test_find_covers_the_end_of_a_very_long_range() -> None:
    for stop in (99_999, 100_000, 100_001, 120_000):
        row = tuple(oath.hotp(KEY, stop - 1 + i, 8) for i in range(2))
        assert oath.find(KEY, row, range(stop), 8) == stop - 1
        assert oath.find(KEY, row, range(stop - 1), 8) is None


# ---- limits


@pytest.mark.parametrize("counter", [-1, 2**64, 2**64 + 1, -(2**64)])
def test_a_counter_outside_of_eight_bytes_is_an_error(counter: int) -> None:
    with pytest.raises(ValueError, match="counter must be"):
        oath.hotp(KEY, counter)


def test_the_last_counter_has_a_code() -> None:
    assert oath.hotp(KEY, LAST) == "094451"  # oathtool -c 18446744073709551615


@pytest.mark.parametrize("digits", [-1, 0, 1, 5, 9, 10, 100])
def test_other_numbers_of_digits_are_an_error(digits: int) -> None:
    with pytest.raises(ValueError, match="digits must be"):
        oath.hotp(KEY, 0, digits)
    with pytest.raises(ValueError, match="digits must be"):
        oath.find(KEY, ("1" * digits,), range(5), digits)


@pytest.mark.parametrize("algorithm", ["", "sha1", "MD5", "SHA-1", "SHA224", "SHA384", "SHA3_256"])
def test_other_algorithms_are_an_error(algorithm: str) -> None:
    with pytest.raises(ValueError, match="algorithm must be one of SHA1, SHA256, SHA512"):
        oath.hotp(KEY, 0, 6, algorithm)
    with pytest.raises(ValueError, match="algorithm must be one of"):
        oath.find(KEY, ("755224",), range(5), 6, algorithm)


@pytest.mark.parametrize(
    ("now", "period", "step"),
    [
        (0, 30, 0),
        (29, 30, 0),
        (30, 30, 1),
        (59, 60, 0),
        (60, 60, 1),
        (2**31, 30, 71582788),
        (7, 1, 7),
        (2**62, 1, 2**62),
    ],
)
def test_steps_begin_at_zero_and_at_every_period(now: int, period: int, step: int) -> None:
    assert oath.totp_step(now, period) == step


@pytest.mark.parametrize(("now", "period"), [(-1, 30), (-(2**31), 30), (0, 0), (59, -30)])
def test_a_time_before_1970_or_a_period_below_a_second_is_an_error(now: int, period: int) -> None:
    with pytest.raises(ValueError, match="time must be"):
        oath.totp_step(now, period)


@given(key=keys, counter=st.integers(0, LAST), algorithm=algorithms)
def test_a_shorter_code_is_the_end_of_a_longer_code(key: bytes, counter: int, algorithm: str) -> None:
    six, seven, eight = (oath.hotp(key, counter, d, algorithm) for d in (6, 7, 8))
    assert eight.endswith(seven) and seven.endswith(six)
    assert [len(six), len(seven), len(eight)] == [6, 7, 8]


def test_leading_zeros_are_kept() -> None:
    codes = [oath.hotp(KEY, c) for c in range(300)]
    assert any(c.startswith("0") for c in codes)
    assert {len(c) for c in codes} == {6}


@pytest.mark.parametrize("algorithm", oath.ALGORITHMS)
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 2), (0, 40), (1, 2), (1, 40), (7, 11), (20, 31), (200, 203)])
def test_both_search_methods_find_exactly_the_codes_in_the_range(algorithm: str, start: int, stop: int) -> None:
    """`find` searches long ranges near zero in blocks, and other ranges counter by counter. Test both ends."""
    key = b"k" * 20
    for counter in range(start + 5 + stop):
        code = oath.hotp(key, counter, 8, algorithm)
        assert oath.find(key, (code,), range(start, stop), 8, algorithm) == (
            counter if start <= counter < stop else None
        )


@pytest.mark.parametrize("within", [range(5), range(3, 14), range(3, 15), range(2, 9), range(-2, 4), range(13, 3)])
@pytest.mark.parametrize("algorithm", oath.ALGORITHMS)
def test_codes_computed_in_advance_change_no_result(within: range, algorithm: str) -> None:
    """`find` computes the codes of a range unless the earlier computation covers the complete range."""
    key = bytes(range(20))
    ahead = oath.Ahead()
    ahead.work_out(key, range(3, 14), 6, algorithm)
    for counter in range(20):
        code = (oath.hotp(key, counter, 6, algorithm),)
        assert oath.find(key, code, within, 6, algorithm, ahead=ahead) == oath.find(key, code, within, 6, algorithm)


def test_codes_are_computed_in_advance_for_one_key_digits_and_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    key = bytes(range(20))
    ahead = oath.Ahead()
    ahead.work_out(key, range(3, 14), 6, "SHA1")
    assert ahead.numbers(key, 3, 4, 6, "SHA1") is not None
    for other in ((key + b"x", 3, 4, 6, "SHA1"), (key, 3, 4, 7, "SHA1"), (key, 3, 4, 6, "SHA256")):
        assert ahead.numbers(*other) is None
    monkeypatch.setattr(oath, "_numbers", lambda *_: pytest.fail("computed again"))
    assert oath.find(key, (oath.hotp(key, 7),), range(3, 14), ahead=ahead) == 7


def test_codes_computed_in_advance_are_wiped() -> None:
    ahead = oath.Ahead()
    ahead.work_out(bytes(20), range(2**64 - 5, 2**64 + 5), 8, "SHA512")
    (_, numbers), *_ = ahead._tables.values()
    assert len(numbers) == 5
    assert any(numbers)
    ahead.wipe()
    assert list(numbers) == [0] * 5
    assert ahead.numbers(bytes(20), 2**64 - 5, 2**64 - 4, 8, "SHA512") is None


def test_no_code_is_computed_in_advance_for_an_empty_range() -> None:
    ahead = oath.Ahead()
    ahead.work_out(KEY, range(oath.MOVING_FACTOR_LIMIT, oath.MOVING_FACTOR_LIMIT + 11), 6, "SHA1")
    assert ahead.numbers(KEY, 0, 1, 6, "SHA1") is None
    assert oath.find(KEY, (oath.hotp(KEY, 0),), range(1), ahead=ahead) == 0
