"""One answer of a user: one code, codes in a row, or a recovery code.

Rules:
1. An answer is parsed once, into an `Answer`. Later steps use that value and never the text.
2. An answer is valid UTF-8 of at most 512 bytes. White space, hyphens, dashes and invisible characters are ignored.
3. Codes are at most 24 decimal digits, in any script: one, two or three codes of one length (RFC 4226 §7.4 asks for
   "a sequence" of codes to resynchronise).
4. A recovery code is 80 bits in Crockford's base 32. Upper and lower case are equal, O is read as 0, I and L as 1.
5. After a password, the codes are the longest run of ASCII digits at the end that can be codes. Every character counts
   there, and recovery codes are not accepted, because a password may end in any character.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set
from typing import Self

from pam_totp.core.fields import Value
from pam_totp.core.oath import MAX_DIGITS, MIN_DIGITS

MAX_ANSWER = 512  # bytes, as PAM_MAX_RESP_SIZE
MAX_CODES = 3  # in one answer
CODE_LENGTHS = frozenset(range(MIN_DIGITS, MAX_DIGITS + 1))  # digits
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
RECOVERY_BITS = 80
RECOVERY_LENGTH = RECOVERY_BITS // 5  # characters

_SIMILAR = str.maketrans("OIL", "011")
_IGNORED = dict.fromkeys(  # in addition to white space
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
    """One parsed answer. Its content does not depend on the user.

    `digits` are ASCII digits: the whole answer or, if a password is expected, the digits at its end. They are empty if
    there are no codes. `recovery_code` is in its canonical spelling. `prefix` is the part before the digits if a
    password is expected, else None.
    """

    digits: str
    recovery_code: str | None = None
    prefix: bytes | None = None

    @classmethod
    def parse(cls, typed: bytes) -> Self:
        """Return `typed` as an answer."""
        text = _normalised(typed)
        is_number = text.isdecimal() and len(text) <= MAX_CODES * MAX_DIGITS
        return cls(digits=text if is_number else "", recovery_code=_recovery_code(text))

    @classmethod
    def parse_behind_password(cls, typed: bytes) -> Self:
        """Return `typed`, a password followed by codes, as an answer."""
        prefix = typed.rstrip(b"0123456789")
        return cls(digits=typed[len(prefix) :].decode("ascii"), prefix=prefix)

    @property
    def is_well_formed(self) -> bool:
        """Return True if this answer could be correct for some user."""
        # Each length is tried alone: digits after a password can be codes of one length and not of another.
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
        """Return the part before the codes of `lengths` digits; empty unless a password is expected.

        A password has at least one character: digits that could all be codes are a password without codes.
        """
        return b"" if self.prefix is None else self.prefix + self.digits[: self._codes_start(lengths)].encode("ascii")

    def _codes_start(self, lengths: Set[int]) -> int:
        """Return the index in `digits` at which the codes begin; the end of `digits` if there are none."""
        if self.prefix is None:
            return 0
        sizes = (count * length for length in lengths for count in range(1, MAX_CODES + 1))
        start = len(self.digits) - max((size for size in sizes if size <= len(self.digits)), default=0)
        return start if self.prefix or start else len(self.digits)


def recovery_digest(salt: str, code: str) -> str:
    """Return the hexadecimal SHA-256 of salt ‖ code. `salt` is hexadecimal.

    A plain hash suffices, because 80 random bits cannot be searched.
    """
    return hashlib.sha256(bytes.fromhex(salt) + code.encode("ascii")).hexdigest()


def _normalised(typed: bytes) -> str:
    """Return `typed` without ignored characters and with ASCII digits; empty if it cannot be an answer."""
    if len(typed) > MAX_ANSWER:
        return ""
    try:
        text = typed.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    text = "".join(text.split()).translate(_IGNORED)
    return text if text.isascii() else "".join(str(int(c)) if c.isdecimal() else c for c in text)


def _recovery_code(text: str) -> str | None:
    """Return the recovery code in the normalised `text`; None if there is none."""
    if len(text) != RECOVERY_LENGTH or not text.isascii():
        return None
    code = text.upper().translate(_SIMILAR)
    return None if code.strip(CROCKFORD) else code
