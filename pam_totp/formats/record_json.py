"""The whole record as JSON, in the format of the secret file. Every field is kept."""

from __future__ import annotations

from collections.abc import Sequence

from pam_totp.core.record import HotpToken, RecordError, Token, TotpToken, UserRecord
from pam_totp.core.secretfile import parse, serialize
from pam_totp.formats.app_backup import has_members
from pam_totp.formats.format import Format, ParsedFile, ParseOptions
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import FormatError, as_utf8


class RecordJson(Format):
    """The file of `pam-totp export --format json`."""

    name = "json"
    suffix = "json"
    all_users = "folder"
    holds_whole_record = True

    def sniff(self, data: bytes) -> bool:
        return has_members(data, b"{", "user", "tokens", "recovery", "failures")

    def parse(self, data: bytes, options: ParseOptions) -> ParsedFile:
        try:
            record = parse(as_utf8(data).replace(b"\r\n", b"\n"))
        except RecordError as e:
            raise FormatError(None, str(e)) from None
        tokens = [_imported(number, token, record.user) for number, token in enumerate(record.tokens, 1)]
        return ParsedFile(tokens, len(tokens), record)

    def write(self, record: UserRecord, tokens: Sequence[Token], password: str | None = None) -> bytes:
        return serialize(record)


def _imported(number: int, token: Token, user: str) -> ImportedToken:
    """Return a token of the record of `user`. `number` is the number of the token in the record."""
    assert isinstance(token, HotpToken | TotpToken)
    fields = {name: getattr(token, name) for name in token._fields}
    return ImportedToken(line=number, type=token.type, user=user, **fields)
