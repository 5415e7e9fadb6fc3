"""Plain backups of the app andOTP: a JSON list of entries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pam_totp.formats.app_backup import AppBackup, Entry
from pam_totp.formats.format import ParseOptions


class AndOtp(AppBackup):
    """The file of andOTP's plain backup."""

    name = "andotp"
    app = "andOTP"
    opening = b"["
    members = ("secret", "label")

    def entries(self, document: Any, options: ParseOptions) -> Iterator[Entry]:
        if not isinstance(document, list):
            raise TypeError
        for number, entry in enumerate(document, 1):
            yield Entry(
                number=number,
                kind=entry["type"],
                secret=entry["secret"],
                label=entry["label"],
                algorithm=entry.get("algorithm"),
                digits=entry.get("digits"),
                period=entry.get("period"),
                counter=entry.get("counter"),
            )
