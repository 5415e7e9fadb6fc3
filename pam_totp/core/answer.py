"""One answer of a user: one code, codes in a row, or a recovery code.

Rules:
1. An answer is parsed once, into an `Answer`. Later steps use that value and never the text.
2. An answer is valid UTF-8 of at most 512 bytes. White space, hyphens, dashes and invisible characters are ignored.
3. Codes are at most 24 decimal digits, in any script: one, two or three codes of one length (RFC 4226 §7.4 asks for
   "a sequence" of codes to resynchronise).
4. A recovery code is 80 bits in Crockford's base 32. Upper and lower case are equal, O is read as 0, I and L as 1.
5. After a password, the codes are the longest suffix of ASCII digits that has a valid length. A password may end in any
   character, so an answer with a password keeps every character and has no recovery code.
"""

from __future__ import annotations

from pam_totp.core.fields import Value
from pam_totp.core.lean import TYPE_CHECKING, sha256
from pam_totp.core.oath import MAX_DIGITS, MIN_DIGITS

if TYPE_CHECKING:
    from collections.abc import Set
    from typing import Self

MAX_ANSWER = 512  # bytes, as PAM_MAX_RESP_SIZE
MAX_CODES = 3  # in one answer
CODE_LENGTHS = frozenset(range(MIN_DIGITS, MAX_DIGITS + 1))  # digits
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
RECOVERY_BITS = 80
RECOVERY_LENGTH = RECOVERY_BITS // 5  # characters

_SIMILAR = str.maketrans("OIL", "011")
_IGNORED = dict.fromkeys(  # characters that are ignored besides white space
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

    `digits` is the whole answer if that is a number of at most 24 digits, otherwise empty. If a password is expected,
    `digits` is the longest suffix of ASCII digits, and `prefix` is the part before it; otherwise `prefix` is None.
    `recovery_code` is 16 upper-case characters of `CROCKFORD`, or None.
    """

    digits: str
    recovery_code: str | None = None
    prefix: bytes | None = None

    @classmethod
    def parse(cls, typed: bytes | bytearray) -> Self:
        """Return the answer in `typed`, in which no password is expected."""
        text = _normalised(typed)
        is_number = text.isdecimal() and len(text) <= MAX_CODES * MAX_DIGITS
        return cls(digits=text if is_number else "", recovery_code=_recovery_code(text))

    @classmethod
    def parse_behind_password(cls, typed: bytes | bytearray) -> Self:
        """Return the answer in `typed`, a password followed by codes."""
        prefix = bytes(typed.rstrip(b"0123456789"))
        return cls(digits=typed[len(prefix) :].decode("ascii"), prefix=prefix)

    @property
    def is_well_formed(self) -> bool:
        """Return True if this answer could be correct for some user."""
        # One length at a time: 12345678 can be a password and a code of 6 digits, but not a password and a code of 8.
        return self.recovery_code is not None or any(self.codes({length}) is not None for length in CODE_LENGTHS)

    def codes(self, lengths: Set[int]) -> tuple[str, ...] | None:
        """Return the codes if their length, in digits, is one of `lengths`; otherwise None.

        An answer has 1 to 3 codes of 6 to 8 digits, so each total number of digits has one meaning.
        """
        digits = self.digits[self._codes_start(lengths) :]
        for count in range(1, MAX_CODES + 1):
            length, rest = divmod(len(digits), count)
            if rest == 0 and length in lengths:
                return tuple(digits[i : i + length] for i in range(0, len(digits), length))
        return None

    def password(self, lengths: Set[int]) -> bytes:
        """Return the password before codes of `lengths` digits; empty if no password is expected.

        A password has at least one character. If codes would leave no password, the whole answer is the password.
        """
        return b"" if self.prefix is None else self.prefix + self.digits[: self._codes_start(lengths)].encode("ascii")

    def _codes_start(self, lengths: Set[int]) -> int:
        """Return the index in `digits` at which the codes begin; `len(digits)` if there are no codes."""
        if self.prefix is None:
            return 0
        sizes = (count * length for length in lengths for count in range(1, MAX_CODES + 1))
        start = len(self.digits) - max((size for size in sizes if size <= len(self.digits)), default=0)
        return start if self.prefix or start else len(self.digits)


def recovery_digest(salt: str, code: str) -> str:
    """Return the hexadecimal SHA-256 of salt ‖ code. `salt` is hexadecimal.

    A plain hash suffices, because 80 random bits cannot be searched.
    """
    return sha256(bytes.fromhex(salt) + code.encode("ascii")).hexdigest()


def _normalised(typed: bytes | bytearray) -> str:
    """Return `typed` without ignored characters and with ASCII digits; empty if it is too long or not UTF-8."""
    if len(typed) > MAX_ANSWER:
        return ""
    try:
        text = typed.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    text = "".join(text.split()).translate(_IGNORED)
    return text if text.isascii() else "".join(str(int(c)) if c.isdecimal() else c for c in text)


def _recovery_code(text: str) -> str | None:
    """Return the normalised `text` in the spelling of recovery codes; None if it is not a recovery code."""
    if len(text) != RECOVERY_LENGTH or not text.isascii():
        return None
    code = text.upper().translate(_SIMILAR)
    return None if code.strip(CROCKFORD) else code
