"""What a person may answer: one code, codes in a row, or a recovery code.

The law:
- a code is ASCII digits; spaces and hyphens between digits do not count, anywhere else they make it malformed;
- one answer holds one, two or three codes of one length (RFC 4226 §7.4 asks for "a sequence" to resynchronise);
- a recovery code is 80 bits in Crockford's base 32: case and hyphens are forgiven, O is 0, I and L are 1;
- behind a password (forward_pass) the codes are the longest all-digit tail that could be some, and nothing else is.
"""

from __future__ import annotations

import hashlib

MAX_ANSWER = 512  # bytes, as PAM_MAX_RESP_SIZE
MAX_IN_A_ROW = 3
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
RECOVERY_BITS = 80
RECOVERY_LENGTH = RECOVERY_BITS // 5

_LOOKALIKES = str.maketrans("OIL", "011")


def codes(answer: bytes, lengths: set[int]) -> tuple[str, ...] | None:
    """The codes in `answer`, each of one of `lengths` digits; None where there are none.

    Lengths are 6 … 8 and counts 1 … 3, so that no number of digits can be read in two ways.
    """
    if not answer[:1].isdigit() or not answer[-1:].isdigit() or len(answer) > MAX_ANSWER:  # bytes: ASCII digits only
        return None
    digits = answer.replace(b" ", b"").replace(b"-", b"")
    if not digits.isdigit():
        return None
    for count in range(1, MAX_IN_A_ROW + 1):
        length, rest = divmod(len(digits), count)
        if rest == 0 and length in lengths:
            text = digits.decode("ascii")
            return tuple(text[i : i + length] for i in range(0, len(text), length))
    return None


def behind_password(answer: bytes, lengths: set[int]) -> tuple[bytes, bytes]:
    """Split `answer` into a password and the one code, or codes in a row, behind it, each of one of `lengths` digits.

    The codes are blank where no tail could be any. A password is never blank: digits alone are all password.
    """
    digits = len(answer) - len(answer.rstrip(b"0123456789"))
    sizes = (count * length for length in lengths for count in range(1, MAX_IN_A_ROW + 1))
    end = len(answer) - max((size for size in sizes if size <= digits), default=0)
    return (answer[:end], answer[end:]) if end else (answer, b"")


def recovery_code(answer: bytes) -> str | None:
    """The recovery code in `answer`, in its one spelling; None where it does not look like one."""
    if not RECOVERY_LENGTH <= len(answer) <= MAX_ANSWER or not answer.isascii():
        return None
    code = answer.decode("ascii").replace("-", "").replace(" ", "").upper().translate(_LOOKALIKES)
    return code if len(code) == RECOVERY_LENGTH and not code.strip(CROCKFORD) else None


def recovery_digest(salt: str, code: str) -> str:
    """Hex SHA-256 of salt ‖ code. `salt` is hex; a plain hash will do, as 80 random bits cannot be searched."""
    return hashlib.sha256(bytes.fromhex(salt) + code.encode("ascii")).hexdigest()
