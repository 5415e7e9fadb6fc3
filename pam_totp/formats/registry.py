"""All file formats. A new format requires a module with a subclass of `Format`, and an instance in `_ALL`."""

from __future__ import annotations

from pam_totp.formats.aegis import Aegis
from pam_totp.formats.andotp import AndOtp
from pam_totp.formats.bitwarden import Bitwarden
from pam_totp.formats.csv_tokens import CsvTokens
from pam_totp.formats.format import Format
from pam_totp.formats.freeotp import FreeOtpPlus
from pam_totp.formats.google_authenticator import GoogleAuthenticator
from pam_totp.formats.migration import Migration
from pam_totp.formats.otpauth import OtpauthUris
from pam_totp.formats.pskc import Pskc
from pam_totp.formats.qr_pictures import QrPictures
from pam_totp.formats.record_json import RecordJson
from pam_totp.formats.twofas import TwoFas
from pam_totp.formats.users_oath import UsersOath

_ALL: tuple[Format, ...] = (
    GoogleAuthenticator(),
    UsersOath(),
    OtpauthUris(),
    Migration(),
    QrPictures(),
    CsvTokens(),
    RecordJson(),
    Pskc(),
    Aegis(),
    AndOtp(),
    FreeOtpPlus(),
    TwoFas(),
    Bitwarden(),
)
FORMATS: dict[str, Format] = {each.name: each for each in _ALL}
EXPORT_FORMATS: dict[str, Format] = {name: each for name, each in FORMATS.items() if each.suffix is not None}


def sniff(data: bytes) -> str | None:
    """Return the name of the only format that `data` looks like, or None."""
    names = [name for name, each in FORMATS.items() if each.sniff(data)]
    return names[0] if len(names) == 1 else None


def encrypted(formats: dict[str, Format]) -> str:
    """Return the names of those `formats` that support encryption, for messages."""
    return ", ".join(name for name, each in formats.items() if each.has_secret)
