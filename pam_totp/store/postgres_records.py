"""The parts of a record that the database needs: its name, and the serial numbers of its tokens."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from pam_totp.core.record import UserRecord
from pam_totp.core.serials import serial_key


def serials(record: UserRecord | None) -> dict[str, str]:
    """Return the serial numbers of the tokens by their keys (`serial_key`), which the database compares."""
    tokens = () if record is None else record.tokens
    return {serial_key(token.serial): token.serial for token in tokens if token.serial is not None}


def user_name(name: str) -> str:
    """Return the user name that `file.file_name` encodes as `name`."""
    return unquote_to_bytes(name).decode("utf-8", "surrogateescape")
