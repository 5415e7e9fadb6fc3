"""The secret file of version 2, which has two slots.

Rules:
1. A write to one slot cannot damage the other, because both have the same size, a multiple of 4096 bytes.
2. A slot is a header line, a document and padding. An empty slot contains only padding. A slot has one encoding.
3. The header has the version, the sequence number, the length of the document, and the CRC-32 of the rest of the slot.
4. The current slot is the valid slot with the higher sequence number. Its document encodes the record.
5. An update writes the new document to the other slot. A torn write makes that slot invalid; the old record remains.
6. Two slots with the same sequence number must have the same document.
7. A slot has space for the longest document that logins can write for the user.
8. A file that begins with `{` has version 1: it is a document without slots.
"""

from __future__ import annotations

from binascii import crc32

from pam_totp.core.fields import Value
from pam_totp.core.lean import lru_cache
from pam_totp.core.record import MIN_SECRET, TOKEN_TYPES, RecordError, UserRecord
from pam_totp.core.secretfile import MAX_FILE, serialize

BLOCK = 4096  # bytes: the unit of disks and file systems
MAX_SLOT = 2 * MAX_FILE  # bytes
_MAGIC = b"pam_totp 2"
_MAX_DIGITS = 19  # digits of a sequence number
_CRC_DIGITS = 8
MAX_HEADER = len(_MAGIC) + len(" 1234567890123456789 131072 12345678\n")  # bytes
_EMPTY = (0, b"")  # sequence number and document of an empty slot


class Slots(Value):
    """The content of a secret file.

    `document` encodes the record, and is from slot `current`, which has the sequence number `sequence`. `size` is the
    size of each slot in bytes, or 0 for version 1. `other` is the document of the other slot: empty for an empty slot,
    None for a damaged slot.
    """

    document: bytes
    sequence: int = 0
    size: int = 0
    current: int = 0
    other: bytes | None = b""

    def has_room(self, document: bytes) -> bool:
        """Return True if a slot has space for `document` with any sequence number."""
        return len(document) + MAX_HEADER < self.size

    def next(self, document: bytes) -> tuple[int, bytes]:
        """Return the slot that an update writes with `document`: its offset in the file in bytes, and its content."""
        return (1 - self.current) * self.size, encode(self.sequence + 1, document, self.size)

    def after(self, document: bytes) -> Slots:
        """Return the slots after an update with `document`."""
        return self._replace(
            document=document, sequence=self.sequence + 1, current=1 - self.current, other=self.document
        )


def slot_size(record: UserRecord, document: bytes | None = None) -> int:
    """Return the size in bytes of a slot for `record`, with space for the longest record that logins can write.

    `document` is the encoding of `record`, if the caller has it.
    """
    length = len(serialize(record) if document is None else document)
    of_record, of_token = _growth()
    if record.ticket is None and length + of_record + of_token * len(record.tokens) + MAX_HEADER < BLOCK:
        return BLOCK  # for most records: two more encodings would take a third of the time of an import
    # A sealed `document` is longer than the encoding of `record`.
    longest = max(length, length - len(serialize(record)) + len(serialize(record.longest())))
    return -(-(longest + MAX_HEADER + 1) // BLOCK) * BLOCK


@lru_cache(maxsize=1)
def _growth() -> tuple[int, int]:
    """Return upper bounds of the bytes that logins add to a record: to the fields of the user, and to each token."""
    user = UserRecord(user="u", failures_at=0)
    size, longest = len(serialize(user)), len(serialize(user.longest()))
    of_tokens = [0]
    for cls in TOKEN_TYPES.values():
        token = cls(name="t", secret=bytes(MIN_SECRET), created=0, last_used=0, row_needed=True)
        short = user.with_token(token.used_up(0, 1))
        of_tokens.append(len(serialize(short.longest())) - longest - len(serialize(short)) + size)
    return longest - size, max(of_tokens)


def new_file(document: bytes, size: int, sequence: int = 1) -> bytes:
    """Return the content of a new file: a slot of `size` bytes with `document`, and an empty slot."""
    return encode(sequence, document, size) + empty(size)


def encode(sequence: int, document: bytes, size: int) -> bytes:
    """Return a slot of `size` bytes with `document`. Raise RecordError if `document` or `sequence` is too large."""
    if sequence >= 10**_MAX_DIGITS:
        raise RecordError(f"the sequence number must have at most {_MAX_DIGITS} digits")
    slot = _slot(sequence, document, size)
    if len(slot) > size:
        raise RecordError(f"must fit in a slot of {size} bytes")
    return slot


def decode(data: bytes) -> Slots:
    """Return the slots of a file with the content `data`. Raise RecordError if `data` is invalid."""
    if data.startswith(b"{"):
        return Slots(document=data)
    size = len(data) // 2
    if len(data) % (2 * BLOCK) or not 0 < size <= MAX_SLOT:
        raise RecordError(f"must be two slots of equal size, a multiple of {BLOCK} and at most {MAX_SLOT} bytes")
    found = [_decode(data[:size]), _decode(data[size:])]
    numbers = [0 if slot is None else slot[0] for slot in found]
    current = numbers.index(max(numbers))
    newer, older = found[current], found[1 - current]
    if newer is None or newer == _EMPTY:
        raise RecordError("one slot must have a valid document")
    if older is not None and older[0] == newer[0] and older != newer:
        raise RecordError("slots with the same sequence number must have the same document")
    return Slots(document=newer[1], sequence=newer[0], size=size, current=current, other=older and older[1])


def _slot(sequence: int, document: bytes, size: int) -> bytes:
    head = b"%s %d %d " % (_MAGIC, sequence, len(document))
    body = (b"\n" + document).ljust(size - len(head) - _CRC_DIGITS - 1) + b"\n"
    return b"%s%08x%s" % (head, crc32(body, crc32(head)), body)


def empty(size: int) -> bytes:
    """Return an empty slot of `size` bytes."""
    return b"\n".rjust(size)


def _decode(slot: bytes) -> tuple[int, bytes] | None:
    """Return the sequence number and the document of a slot: `_EMPTY` for an empty slot, None for an invalid slot."""
    header, _, rest = slot.partition(b"\n")
    words = header[:MAX_HEADER].split(b" ")
    if len(words) == 5 and words[2].isdigit() and len(words[2]) <= _MAX_DIGITS and words[3].isdigit():
        sequence, document = int(words[2]), rest[: int(words[3])]
        if sequence > 0 and slot == _slot(sequence, document, len(slot)):
            return sequence, document
    return _EMPTY if slot == empty(len(slot)) else None
