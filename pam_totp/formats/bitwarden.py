"""Plain exports of Bitwarden, Vaultwarden and Bitwarden Authenticator as JSON.

Only `login.totp` of an item is read: an otpauth URI, `steam://` and a key, or a key in base32. Items without it, and
passwords, are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pam_totp.formats.app_backup import AppBackup, Entry, encrypted_backup
from pam_totp.formats.format import ParseOptions
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.otpauth import imported

_OTPAUTH, _STEAM = "otpauth://", "steam://"


class Bitwarden(AppBackup):
    """The file of Bitwarden's export as JSON without a password."""

    name = "bitwarden"
    app = "Bitwarden"
    members = ("encrypted",)

    def entries(self, document: Any, options: ParseOptions) -> Iterator[Entry | ImportedToken]:
        if document["encrypted"]:
            raise encrypted_backup()
        for number, item in enumerate(document["items"], 1):
            login = item.get("login") or {}
            text, label = login.get("totp"), login.get("username") or item.get("name")
            if not text:
                continue
            if text.lower().startswith(_OTPAUTH):
                token = imported(text.strip(), number)
                yield replace(token, user=label) if token.user is None and isinstance(label, str) else token
            else:
                kind = "steam" if text.lower().startswith(_STEAM) else "totp"
                yield Entry(number=number, kind=kind, secret=text, label=label)
