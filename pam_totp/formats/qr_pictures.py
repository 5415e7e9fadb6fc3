"""Pictures of QR codes with otpauth URIs, or of an export of the Google Authenticator app."""

from __future__ import annotations

from pam_totp.formats.format import Format, ParsedFile, ParseOptions
from pam_totp.formats.migration import Migration
from pam_totp.formats.otpauth import OtpauthUris
from pam_totp.formats.picture import is_picture, read_picture


class QrPictures(Format):
    """PNG, JPEG or WebP pictures. One picture may have several QR codes."""

    name = "qr"
    labels_name_users = True
    several_files = True

    def sniff(self, data: bytes) -> bool:
        return is_picture(data)

    def decode(self, data: bytes) -> bytes:
        return read_picture(data)

    def parse(self, data: bytes, options: ParseOptions) -> ParsedFile:
        """Return the tokens in the text of the QR codes."""
        content: Format = Migration() if Migration().sniff(data) else OtpauthUris()
        return content.parse(data, options)
