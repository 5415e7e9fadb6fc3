"""Backups of the app FreeOTP+ as JSON.

A key is a list of signed bytes, or base32 in `secret_base32`. The counter is that of the last code: the app writes the
counter plus one into an otpauth URI.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pam_totp.formats.app_backup import AppBackup, Entry
from pam_totp.formats.format import ParseOptions


class FreeOtpPlus(AppBackup):
    """The file of FreeOTP+'s export as JSON."""

    name = "freeotp"
    app = "FreeOTP+"
    members = ("tokens", "tokenOrder")

    def entries(self, document: Any, options: ParseOptions) -> Iterator[Entry]:
        for number, entry in enumerate(document["tokens"], 1):
            yield Entry(
                number=number,
                kind=entry["type"],
                secret=_secret(entry.get("secret"), entry.get("secret_base32")),
                label=entry.get("label"),
                algorithm=entry.get("algo"),
                digits=entry.get("digits"),
                period=entry.get("period"),
                counter=entry.get("counter"),
                counter_used=True,
            )


def _secret(octets: Any, base32: Any) -> Any:
    """Return the key from its list of signed bytes, or the key in base32."""
    if not isinstance(octets, list):
        return base32
    if not all(type(octet) is int and -128 <= octet <= 255 for octet in octets):
        raise TypeError
    return bytes(octet & 0xFF for octet in octets)
