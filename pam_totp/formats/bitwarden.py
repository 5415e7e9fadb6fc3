"""Plain exports of Bitwarden, Vaultwarden and Bitwarden Authenticator as JSON.

The parser reads only `login.totp` of each item (`totp_field`), and ignores items that lack this value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pam_totp.formats.app_backup import AppBackup, encrypted_backup
from pam_totp.formats.format import ParseOptions
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.totp_field import token_of_field


class Bitwarden(AppBackup):
    """The file of Bitwarden's export as JSON without a password."""

    name = "bitwarden"
    app = "Bitwarden"
    members = ("encrypted",)

    def entries(self, document: Any, options: ParseOptions) -> Iterator[ImportedToken]:
        if document["encrypted"]:
            raise encrypted_backup()
        for number, item in enumerate(document["items"], 1):
            login = item.get("login") or {}
            text, label = login.get("totp"), login.get("username") or item.get("name")
            if text:
                yield token_of_field(text, number, label if isinstance(label, str) else None)
