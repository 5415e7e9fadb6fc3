"""Functions that parse and write files of a given format, as import and export do."""

from __future__ import annotations

from collections.abc import Sequence

from pam_totp.core.record import Token, UserRecord
from pam_totp.formats.format import AskSecret, ParseOptions
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.registry import FORMATS

NOW = 1_700_000_010  # 2023-11-14


def parsed(name: str, data: bytes, *, now: int = NOW, ask_secret: AskSecret | None = None) -> list[ImportedToken]:
    """Return the tokens of a file of the format `name`. Raise FormatError for invalid `data`."""
    return list(FORMATS[name].parse(data, ParseOptions(now=now, ask_secret=ask_secret)).tokens)


def written(name: str, tokens: Sequence[Token], *, user: str = "alice", password: str | None = None) -> bytes:
    """Return the content of a file of the format `name` with the `tokens` of `user`."""
    chosen = FORMATS[name]
    record = UserRecord(user=user, tokens=tuple(tokens) if chosen.holds_whole_record else ())
    return chosen.write(record, tokens, password)
