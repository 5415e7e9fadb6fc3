"""The record itself, as the secret file holds it: the one format in which nothing is lost."""

from __future__ import annotations

from pam_totp.core.record import HotpToken, RecordError, TotpToken, UserRecord
from pam_totp.core.secretfile import parse as parse_record
from pam_totp.formats.imported_token import FormatError, Found


def parse(data: bytes, now: int) -> list[Found]:
    """The tokens of the record. Raises FormatError."""
    record = whole_record(data)
    return [_found(i, token, record.user) for i, token in enumerate(record.tokens, 1)]


def whole_record(data: bytes) -> UserRecord:
    """The record. Raises FormatError."""
    try:
        return parse_record(data)
    except RecordError as e:
        raise FormatError(None, str(e)) from None


def _found(place: int, token: object, user: str) -> Found:
    assert isinstance(token, HotpToken | TotpToken)
    fields = {name: getattr(token, name) for name in token._fields}
    return Found(line=place, kind=token.type, user=user, **fields)
