"""The field for one-time codes in the entries of password managers.

The field has an otpauth URI, `steam://` and a key, or a key in base32. An entry with an empty field has no token.
"""

from __future__ import annotations

from dataclasses import replace

from pam_totp.formats.app_backup import Entry
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.otpauth import imported

_OTPAUTH, _STEAM = "otpauth://", "steam://"


def token_of_field(text: str, number: int, user: str | None) -> ImportedToken:
    """Return the token of an entry, or a token with the reason why the entry is unusable.

    `number` is the number of the entry or line. `user` is the user if the URI names no user.
    """
    text = text.strip()
    if text.lower().startswith(_OTPAUTH):
        token = imported(text, number)
        return replace(token, user=user) if token.user is None else token
    kind = "steam" if text.lower().startswith(_STEAM) else "totp"
    return Entry(number=number, kind=kind, secret=text, label=user).imported()
