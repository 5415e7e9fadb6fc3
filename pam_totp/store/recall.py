"""The records that this process read or wrote last, by the bytes of their files: none is parsed over and over.

The law: the file is read every time, and what it says is what counts; the same bytes are the same record, as a record
never changes and `parse` depends on nothing else.
"""

from __future__ import annotations

from pam_totp.core.record import UserRecord
from pam_totp.core.secretfile import parse

MOST = 256  # records, most of them of about 2 KB
LONGEST = 8 * 1024  # bytes of a file: a record of that length takes twice as much, and all of them a few megabytes

_records: dict[bytes, UserRecord] = {}  # threads share it: every step below is one operation of a dict


def parsed(data: bytes) -> UserRecord:
    """The record that `data` says. Raises RecordError."""
    record = _records.get(data)
    if record is None:
        record = parse(data)
        _remember(data, record)
    return record


def instead(old: bytes, new: bytes, record: UserRecord) -> None:
    """`new`, which is how `record` is written, has taken the place of `old`."""
    _records.pop(old, None)
    _remember(new, record)


def _remember(data: bytes, record: UserRecord) -> None:
    if len(data) > LONGEST:
        return
    if len(_records) >= MOST:
        _records.clear()
    _records[data] = record
