"""Plain backups of the app 2FAS. Files of early versions lack the type (totp) and the algorithm (SHA1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pam_totp.formats.app_backup import AppBackup, Entry, encrypted_backup
from pam_totp.formats.format import ParseOptions


class TwoFas(AppBackup):
    """The file (.2fas) of 2FAS's backup without a password."""

    name = "2fas"
    app = "2FAS"
    members = ("services", "schemaVersion")

    def entries(self, document: Any, options: ParseOptions) -> Iterator[Entry]:
        if document.get("servicesEncrypted"):
            raise encrypted_backup()
        for number, service in enumerate(document["services"], 1):
            otp = service.get("otp") or {}
            yield Entry(
                number=number,
                kind=otp.get("tokenType") or "totp",
                secret=service["secret"],
                label=otp.get("account") or otp.get("label") or service.get("name"),
                algorithm=otp.get("algorithm"),
                digits=otp.get("digits"),
                period=otp.get("period"),
                counter=otp.get("counter"),
            )
