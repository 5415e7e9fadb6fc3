"""HOTP and TOTP: one-time codes from a key and a moving factor (RFC 4226, RFC 6238).

The law:
- the moving factor is an unsigned 64-bit number, big-endian (RFC 4226 §5.2); outside of that is an error;
- a code is a string of exactly `digits` ASCII digits, leading zeros kept;
- a search that finds nothing has looked at its whole range, so its time tells nothing about a near miss;
- time is an argument, in whole Unix seconds; nothing here reads a clock.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Iterator

MOVING_FACTOR_LIMIT = 1 << 64  # RFC 4226 §5.2: an 8-byte counter
MIN_DIGITS, MAX_DIGITS = 6, 8  # RFC 4226 §5.3: at least 6, and possibly 7 and 8
DEFAULT_PERIOD = 30  # seconds: RFC 6238 §4.1, X

_FEW = 100  # moving factors: for no more than that, PBKDF2 is not worth its beginning
_BLOCKS_LIMIT = 1_100_000  # moving factors: what a search may hold at once, 22 MB with SHA-1
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))  # RFC 2104 §2
_WORD = struct.Struct(">I").unpack_from

_HASHES: dict[str, Callable[..., hashlib._Hash]] = {  # RFC 6238 §1.2
    "SHA1": hashlib.sha1,
    "SHA256": hashlib.sha256,
    "SHA512": hashlib.sha512,
}
ALGORITHMS = tuple(_HASHES)


def hotp(key: bytes, counter: int, digits: int = 6, algorithm: str = "SHA1") -> str:
    """Return the HOTP value of `counter` (RFC 4226 §5.3).

    `key` is the raw shared secret, `counter` 0 … 2^64−1, `digits` 6–8, `algorithm` one of `ALGORITHMS`.
    Raises ValueError for anything else.
    """
    _check(digits, algorithm)
    if not 0 <= counter < MOVING_FACTOR_LIMIT:
        raise ValueError("counter outside 0 … 2^64-1")
    mac = hmac.digest(key, counter.to_bytes(8, "big"), algorithm)
    return str(_truncate(mac) % 10**digits).zfill(digits)


def totp_step(now: int, period: int = DEFAULT_PERIOD) -> int:
    """Return the time step T that `now` (Unix seconds, 0 or later) falls into (RFC 6238 §4.2, T0 = 0)."""
    if now < 0 or period < 1:
        raise ValueError("time before 1970, or a period below one second")
    return now // period


def totp(key: bytes, now: int, digits: int = 6, algorithm: str = "SHA1", period: int = DEFAULT_PERIOD) -> str:
    """Return the TOTP value at `now` (Unix seconds; RFC 6238 §4)."""
    return hotp(key, totp_step(now, period), digits, algorithm)


def find(key: bytes, codes: tuple[str, ...], within: range, digits: int = 6, algorithm: str = "SHA1") -> int | None:
    """Return the first moving factor in `within` at which `codes` stand in a row, or None.

    `codes` are one or more strings of `digits` ASCII digits. `within` holds the candidates for the *first* of
    them; its step must be 1, and it is cut to 0 … 2^64−1 (RFC 4226 §7.4 and E.4 describe the search).
    """
    _check(digits, algorithm)
    if within.step != 1 or not codes or any(len(c) != digits or not _is_digits(c) for c in codes):
        raise ValueError("find takes codes of the given digits and a range of step 1")
    start = max(within.start, 0)
    stop = min(within.stop, MOVING_FACTOR_LIMIT - len(codes) + 1)
    first, following = int(codes[0]), range(1, len(codes))
    for moving_factor, number in enumerate(_numbers(key, start, stop, 10**digits, algorithm), start):
        if number == first and all(hotp(key, moving_factor + i, digits, algorithm) == codes[i] for i in following):
            return moving_factor
    return None


def _numbers(key: bytes, start: int, stop: int, modulus: int, algorithm: str) -> Iterator[int]:
    """The codes of start … stop−1 as numbers, by whichever of two ways computes less."""
    if stop - start > _FEW and stop <= min(3 * (stop - start), _BLOCKS_LIMIT):
        return _numbers_in_blocks(key, start, stop, modulus, algorithm)
    return _numbers_one_by_one(key, start, stop, modulus, algorithm)


def _numbers_in_blocks(key: bytes, start: int, stop: int, modulus: int, algorithm: str) -> Iterator[int]:
    """All in one call of C. With one iteration, block i of PBKDF2 is HMAC(key, salt ‖ i), where i is a 32-bit number
    from 1 (RFC 8018 §5.2): with four zero bytes for salt, that is the HMAC of moving factor i (RFC 4226 §5.2)."""
    if start == 0:
        yield from _numbers_one_by_one(key, 0, 1, modulus, algorithm)
    size = _HASHES[algorithm]().digest_size
    blocks = hashlib.pbkdf2_hmac(algorithm, key, bytes(4), 1, (stop - 1) * size)
    for at in range((max(start, 1) - 1) * size, len(blocks), size):
        yield (_WORD(blocks, at + (blocks[at + size - 1] & 0x0F))[0] & 0x7FFFFFFF) % modulus


def _numbers_one_by_one(key: bytes, start: int, stop: int, modulus: int, algorithm: str) -> Iterator[int]:
    """HMAC (RFC 2104 §4) with both keyed states computed once."""
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
    """Dynamic truncation: 31 bits from where the last nibble points (RFC 4226 §5.3, §5.4)."""
    offset = mac[-1] & 0x0F
    return int.from_bytes(mac[offset : offset + 4], "big") & 0x7FFFFFFF


def _check(digits: int, algorithm: str) -> None:
    if not MIN_DIGITS <= digits <= MAX_DIGITS:
        raise ValueError(f"digits outside {MIN_DIGITS} … {MAX_DIGITS}")
    if algorithm not in _HASHES:
        raise ValueError(f"algorithm is none of {', '.join(_HASHES)}")


def _is_digits(text: str) -> bool:
    """ASCII digits only: str.isdigit alone takes Arabic-Indic and superscript digits too."""
    return text.isascii() and text.isdigit()
