"""HOTP and TOTP: one-time codes from a key and a moving factor (RFC 4226, RFC 6238).

Rules:
1. The moving factor is an unsigned 64-bit number, big-endian (RFC 4226 §5.2). Any other number is an error.
2. A code is a string of exactly `digits` ASCII digits. Leading zeros are kept.
3. An unsuccessful search examines its whole range, so its duration does not show how close a code was.
4. Time is an argument, in whole Unix seconds. This module reads no clock.
"""

from __future__ import annotations

from pam_totp.core.lean import TYPE_CHECKING, Struct, sha1, sha256, sha512

if TYPE_CHECKING:
    import hashlib
    from collections.abc import Callable, Iterable, Iterator

MOVING_FACTOR_LIMIT = 1 << 64  # RFC 4226 §5.2: the counter has 8 bytes
MIN_DIGITS, MAX_DIGITS = 6, 8  # RFC 4226 §5.3: at least 6, possibly 7 or 8
DEFAULT_PERIOD = 30  # seconds: RFC 6238 §4.1, X

_FEW = 100  # moving factors: up to this number, a search without PBKDF2 is faster
_BLOCKS_LIMIT = 1_100_000  # moving factors in memory at once: 22 MB with SHA-1
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))  # RFC 2104 §2
_WORD = Struct(">I").unpack_from

_HASHES: dict[str, Callable[..., hashlib._Hash]] = {  # RFC 6238 §1.2
    "SHA1": sha1,
    "SHA256": sha256,
    "SHA512": sha512,
}
ALGORITHMS = tuple(_HASHES)


def hotp(key: bytes, counter: int, digits: int = 6, algorithm: str = "SHA1") -> str:
    """Return the HOTP value of `counter` (RFC 4226 §5.3).

    `key` is the raw shared secret, `counter` 0 to 2^64-1, `digits` 6 to 8, `algorithm` one of `ALGORITHMS`. Raise
    ValueError for any other argument.
    """
    _check(digits, algorithm)
    if not 0 <= counter < MOVING_FACTOR_LIMIT:
        raise ValueError("counter must be 0 to 2^64-1")
    (number,) = _numbers_one_by_one(key, counter, counter + 1, 10**digits, algorithm)
    return str(number).zfill(digits)


def totp_step(now: int, period: int = DEFAULT_PERIOD) -> int:
    """Return the time step T of `now` (Unix seconds, 0 or later; RFC 6238 §4.2 with T0 = 0).

    `period` is in seconds, at least 1. Raise ValueError for any other argument.
    """
    if now < 0 or period < 1:
        raise ValueError("time must be 0 or later, and period 1 second or longer")
    return now // period


def totp(key: bytes, now: int, digits: int = 6, algorithm: str = "SHA1", period: int = DEFAULT_PERIOD) -> str:
    """Return the TOTP value at `now` (Unix seconds; RFC 6238 §4). See `hotp` and `totp_step` for the errors."""
    return hotp(key, totp_step(now, period), digits, algorithm)


class Ahead:
    """Codes computed before the answer, which make the search of `find` faster. `wipe` overwrites the codes."""

    def __init__(self) -> None:
        self._tables: dict[tuple[bytes, int, str], tuple[int, memoryview[int]]] = {}

    def work_out(self, key: bytes, within: range, digits: int, algorithm: str) -> None:
        """Compute and keep the codes of the moving factors in `within`."""
        start, stop = max(within.start, 0), min(within.stop, MOVING_FACTOR_LIMIT)
        if start < stop:
            table = memoryview(bytearray(4 * (stop - start))).cast("I")
            for i, number in enumerate(_numbers(key, start, stop, 10**digits, algorithm)):
                table[i] = number
            self._tables[key, digits, algorithm] = start, table

    def numbers(self, key: bytes, start: int, stop: int, digits: int, algorithm: str) -> Iterable[int] | None:
        """Return the codes of start to stop-1 as numbers, or None if a code is missing."""
        found = self._tables.get((key, digits, algorithm))
        if found is None:
            return None
        first, table = found
        if not first <= start < stop <= first + len(table):
            return None
        return table[start - first : stop - first]  # a view, because a copy could not be wiped

    def wipe(self) -> None:
        """Overwrite and remove the codes."""
        for _, table in self._tables.values():
            table.cast("B")[:] = bytes(table.nbytes)
        self._tables.clear()


def find(
    key: bytes,
    codes: tuple[str, ...],
    within: range,
    digits: int = 6,
    algorithm: str = "SHA1",
    *,
    ahead: Ahead | None = None,
) -> int | None:
    """Return the first moving factor in `within` from which the token shows `codes` in a row, or None.

    `codes` are one or more strings of `digits` ASCII digits. `within` holds the candidates for the first code. The step
    of `within` must be 1; candidates outside 0 to 2^64-1 are skipped. RFC 4226 §7.4 and E.4 describe the search. If
    `ahead` has the codes of all candidates, the search for the first code does not compute them again. Raise ValueError
    for other codes, another step, or an argument that `hotp` refuses.
    """
    _check(digits, algorithm)
    if within.step != 1 or not codes or any(len(c) != digits or not _is_digits(c) for c in codes):
        raise ValueError(f"each code must have {digits} ASCII digits, and the range must have step 1")
    return find_numbers(key, tuple(int(c) for c in codes), within, digits, algorithm, ahead=ahead)


def find_numbers(
    key: bytes,
    codes: tuple[int, ...],
    within: range,
    digits: int = 6,
    algorithm: str = "SHA1",
    *,
    ahead: Ahead | None = None,
) -> int | None:
    """Return the result of `find` for codes as numbers, without the checks. Codes as text cannot be wiped."""
    start = max(within.start, 0)
    stop = min(within.stop, MOVING_FACTOR_LIMIT - len(codes) + 1)
    modulus = 10**digits
    numbers = ahead.numbers(key, start, stop, digits, algorithm) if ahead is not None else None
    if numbers is None:
        numbers = _numbers(key, start, stop, modulus, algorithm)
    for factor, number in enumerate(numbers, start):
        if number == codes[0] and codes[1:] == tuple(
            _numbers_one_by_one(key, factor + 1, factor + len(codes), modulus, algorithm)
        ):
            return factor
    return None


def _numbers(key: bytes, start: int, stop: int, modulus: int, algorithm: str) -> Iterator[int]:
    """Yield the codes of moving factors start to stop-1 as numbers, by the faster of two algorithms."""
    if stop - start > _FEW and stop <= min(3 * (stop - start), _BLOCKS_LIMIT):
        return _numbers_in_blocks(key, start, stop, modulus, algorithm)
    return _numbers_one_by_one(key, start, stop, modulus, algorithm)


def _numbers_in_blocks(key: bytes, start: int, stop: int, modulus: int, algorithm: str) -> Iterator[int]:
    """Yield the codes of moving factors start to stop-1, computed by one call of PBKDF2.

    With one iteration, block i of PBKDF2 is HMAC(key, salt ‖ i), where i is a 32-bit number from 1 (RFC 8018 §5.2).
    With four zero bytes as salt, the block is the HMAC of moving factor i (RFC 4226 §5.2). No block is the HMAC of 0.
    """
    from hashlib import pbkdf2_hmac  # imported here: the import loads OpenSSL, which few logins need

    if start == 0:
        yield from _numbers_one_by_one(key, 0, 1, modulus, algorithm)
    size = _HASHES[algorithm]().digest_size
    blocks = pbkdf2_hmac(algorithm, key, bytes(4), 1, (stop - 1) * size)
    for at in range((max(start, 1) - 1) * size, len(blocks), size):
        yield (_WORD(blocks, at + (blocks[at + size - 1] & 0x0F))[0] & 0x7FFFFFFF) % modulus


def _numbers_one_by_one(key: bytes, start: int, stop: int, modulus: int, algorithm: str) -> Iterator[int]:
    """Yield the codes of factors start to stop-1 by HMAC. Compute the two keyed states of HMAC once (RFC 2104 §4)."""
    new = _HASHES[algorithm]
    block = new().block_size
    if len(key) > block:
        key = new(key).digest()
    padded = key.ljust(block, b"\0")
    inner_keyed, outer_keyed = new(padded.translate(_INNER)), new(padded.translate(_OUTER))
    for moving_factor in range(start, stop):
        inner, outer = inner_keyed.copy(), outer_keyed.copy()
        inner.update(moving_factor.to_bytes(8, "big"))
        outer.update(inner.digest())
        yield _truncate(outer.digest()) % modulus


def _truncate(mac: bytes) -> int:
    """Return the dynamic truncation of `mac`: 31 bits at the offset in its last nibble (RFC 4226 §5.3, §5.4)."""
    offset = mac[-1] & 0x0F
    return int.from_bytes(mac[offset : offset + 4], "big") & 0x7FFFFFFF


def _check(digits: int, algorithm: str) -> None:
    if not MIN_DIGITS <= digits <= MAX_DIGITS:
        raise ValueError(f"digits must be {MIN_DIGITS} to {MAX_DIGITS}")
    if algorithm not in _HASHES:
        raise ValueError(f"algorithm must be one of {', '.join(_HASHES)}")


def _is_digits(text: str) -> bool:
    """Return True if `text` is ASCII digits. str.isdigit also accepts Arabic-Indic and superscript digits."""
    return text.isascii() and text.isdigit()
