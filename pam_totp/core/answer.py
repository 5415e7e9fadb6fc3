"""One answer of a user: one code, codes in a row, or a recovery code.

Rules:
1. An answer is parsed once, into an `Answer`. Later steps use that value instead of the text.
2. An answer is valid UTF-8 of at most 512 bytes. White space, hyphens, dashes and invisible characters are ignored.
3. Codes are one, two or three codes of the same length, in decimal digits of any script (RFC 4226 §7.4: "a sequence").
4. A recovery code is 80 bits in Crockford's base 32. Upper and lower case are equal, O is read as 0, I and L as 1.
5. The codes after a password are the longest suffix of ASCII digits that has a valid length. An answer with a password
   keeps every character and has no recovery code, because a password can end in any character.
6. An answer is in buffers that the caller can wipe, and the codes are numbers: Python cannot overwrite str and bytes.
"""

from __future__ import annotations

from pam_totp.core.fields import Value
from pam_totp.core.lean import TYPE_CHECKING, sha256
from pam_totp.core.oath import MAX_DIGITS, MIN_DIGITS

if TYPE_CHECKING:
    from collections.abc import Iterator, Set
    from typing import Self

MAX_ANSWER = 512  # bytes, as PAM_MAX_RESP_SIZE
MAX_CODES = 3  # in one answer
CODE_LENGTHS = frozenset(range(MIN_DIGITS, MAX_DIGITS + 1))  # digits
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
RECOVERY_BITS = 80
RECOVERY_LENGTH = RECOVERY_BITS // 5  # characters

_MAX_TEXT = MAX_CODES * MAX_DIGITS  # characters that are not ignored; a recovery code is shorter
# Byte -> the same character in a recovery code, or NUL.
_CANONICAL = bytes(
    ord(c) if (c := chr(byte).upper().translate(str.maketrans("OIL", "011"))) in CROCKFORD else 0 for byte in range(128)
) + bytes(128)
_IGNORED = dict.fromkeys(  # ignored characters, in addition to white space
    (
        ord("-"),
        0x00AD,  # soft hyphen
        *range(0x200B, 0x2010),  # zero-width characters, direction marks
        *range(0x2010, 0x2016),  # hyphens and dashes
        *range(0x202A, 0x202F),  # directional embeddings
        *range(0x2060, 0x206A),  # invisible operators, directional isolates
        0x2212,  # minus
        0xFE58,  # small em dash
        0xFE63,  # small hyphen-minus
        0xFEFF,  # byte order mark
        0xFF0D,  # full-width hyphen-minus
    )
)


class Answer(Value):
    """One parsed answer. Parsing reads no record.

    `digits` is the whole answer if that is a number of at most 24 digits, otherwise empty. `typed` is
    the whole answer if a password is expected, otherwise None. With a password, `digits` is the longest suffix of ASCII
    digits.
    `recovery_code` is 16 upper-case characters of `CROCKFORD`, or None.
    """

    digits: memoryview
    recovery_code: memoryview | None = None
    typed: memoryview | None = None

    @classmethod
    def parse(cls, typed: bytes | bytearray) -> Self:
        """Return the answer in `typed`, which has no password. `wipe` overwrites the answer's copy of `typed`."""
        text = _normalised(typed)
        recovery_code = _recovery_code(text)
        if not text.isdigit():
            wipe(text)
            text = bytearray()
        return cls(digits=memoryview(text), recovery_code=recovery_code)

    @classmethod
    def parse_behind_password(cls, typed: bytes | bytearray) -> Self:
        """Return the answer in `typed`, a password followed by codes. The answer is a view of `typed`, not a copy."""
        start = len(typed)
        while start > 0 and chr(typed[start - 1]) in "0123456789":
            start -= 1
        view = memoryview(typed)
        return cls(digits=view[start:], typed=view)

    @property
    def is_well_formed(self) -> bool:
        """Return True if this answer could be correct for some user."""
        # Check each length by itself: 12345678 can be a password and a code of 6 digits. A code of 8 digits would leave
        # no password.
        return self.recovery_code is not None or any(self._shape({length}) is not None for length in CODE_LENGTHS)

    def numbers(self, lengths: Set[int]) -> tuple[int, tuple[int, ...]] | None:
        """Return the length of the codes, and the codes as numbers, if that length is one of `lengths`; otherwise None.

        The length is in digits. Each total number of digits has one meaning, because an answer has 1 to 3 codes of 6 to
        8 digits.
        """
        shape = self._shape(lengths)
        if shape is None:
            return None
        start, length = shape
        return length, tuple(_number(self.digits[i : i + length]) for i in range(start, len(self.digits), length))

    def codes(self, lengths: Set[int]) -> tuple[str, ...] | None:
        """Return the codes of `numbers` as text, which cannot be wiped. A login uses `numbers`."""
        found = self.numbers(lengths)
        return None if found is None else tuple(str(number).zfill(found[0]) for number in found[1])

    def password(self, lengths: Set[int]) -> memoryview:
        """Return the password before codes of `lengths` digits; empty if no password is expected.

        A password has at least one character. The whole answer is the password if codes would leave no password.
        """
        if self.typed is None:
            return memoryview(b"")
        return self.typed[: len(self.typed) - len(self.digits) + self._codes_start(lengths)]

    def wipe(self) -> None:
        """Overwrite the parts of the answer that can be overwritten. The caller must not use the answer afterwards."""
        for part in (self.digits, self.recovery_code):
            if part is not None and not part.readonly:
                wipe(part)

    def _shape(self, lengths: Set[int]) -> tuple[int, int] | None:
        """Return the index in `digits` at which the codes begin, and the length of a code, or None."""
        start = self._codes_start(lengths)
        for count in range(1, MAX_CODES + 1):
            length, rest = divmod(len(self.digits) - start, count)
            if rest == 0 and length in lengths:
                return start, length
        return None

    def _codes_start(self, lengths: Set[int]) -> int:
        """Return the index in `digits` at which the codes begin; `len(digits)` if codes are missing."""
        if self.typed is None:
            return 0
        sizes = (count * length for length in lengths for count in range(1, MAX_CODES + 1))
        start = len(self.digits) - max((size for size in sizes if size <= len(self.digits)), default=0)
        return start if len(self.typed) > len(self.digits) or start else len(self.digits)


def wipe(buffer: bytearray | memoryview, size: int | None = None) -> None:
    """Overwrite the first `size` bytes of `buffer`, by default all. The buffer keeps its length and address."""
    size = len(buffer) if size is None else size
    buffer[:size] = bytes(size)


def recovery_digest(salt: str, code: str | memoryview) -> str:
    """Return the hexadecimal SHA-256 of salt ‖ code. `salt` is hexadecimal.

    A plain hash suffices, because an attacker cannot try 2^80 codes.
    """
    digest = sha256(bytes.fromhex(salt))
    digest.update(code.encode("ascii") if isinstance(code, str) else code)
    return digest.hexdigest()


def _normalised(typed: bytes | bytearray) -> bytearray:
    """Return `typed` without ignored characters and with ASCII digits.

    Return an empty buffer unless `typed` is UTF-8 of at most MAX_ANSWER bytes, and the result ASCII of at most
    _MAX_TEXT characters. Copy `typed` only into buffers that can be wiped, because a user might type a password here.
    """
    if len(typed) <= _MAX_TEXT and typed.isdigit():
        return bytearray(typed)
    text, size = bytearray(_MAX_TEXT), 0
    for character in _characters(typed) if len(typed) <= MAX_ANSWER else ("",):
        if character.isspace() or ord(character or "x") in _IGNORED:
            continue
        plain = str(int(character)) if character.isdecimal() else character
        if size == _MAX_TEXT or not plain or not plain.isascii():
            wipe(text)
            return bytearray()
        text[size] = ord(plain)
        size += 1
    result = text[:size]
    wipe(text)
    return result


def _characters(typed: bytes | bytearray) -> Iterator[str]:
    """Yield the characters of `typed`, one by one. Yield an empty string and stop at a byte that is not UTF-8."""
    view, at = memoryview(typed), 0
    while at < len(typed):
        end = at + 1 + sum(typed[at] >= least for least in (0xC0, 0xE0, 0xF0))  # RFC 3629 §3
        try:
            character = str(view[at:end], "utf-8")
        except UnicodeDecodeError:
            character, end = "", len(typed)
        yield character
        at = end


def _number(digits: memoryview) -> int:
    number = 0
    for digit in digits:
        number = 10 * number + digit - ord("0")
    return number


def _recovery_code(text: bytearray) -> memoryview | None:
    """Return the recovery code in the normalised `text`, or None."""
    if len(text) != RECOVERY_LENGTH:
        return None
    code = text.translate(_CANONICAL)
    if 0 in code:
        wipe(code)
        return None
    return memoryview(code)
