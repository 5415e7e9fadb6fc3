"""JSON backups of phone apps: the shared part of their formats.

Rules:
- A format is a subclass of `AppBackup`. The subclass names the JSON members that identify its files, and
  returns an `Entry` or an `ImportedToken` for each entry.
- An entry that cannot be used, such as a Steam token, becomes a token with the reason (`unsupported`).
- Entries are numbered from 1. A message names an entry by its number, and never shows a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from pam_totp.core.oath import ALGORITHMS, DEFAULT_PERIOD, MAX_DIGITS, MIN_DIGITS, MOVING_FACTOR_LIMIT
from pam_totp.formats.format import Format, ParsedFile, ParseOptions
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.otpauth import account
from pam_totp.formats.parsing import FormatError, algorithm_of, as_utf8, key_of, period_of, whole_number

JsonObject = dict[str, Any]
_Value = str | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a backup, with the values of the file. None means a missing value.

    `secret` is base32, or the key itself. `counter_used` is True if `counter` belongs to the last code.
    """

    number: int
    kind: _Value
    secret: str | bytes | None = field(repr=False)
    label: _Value = None
    algorithm: _Value = None
    digits: _Value = None
    period: _Value = None
    counter: _Value = None
    counter_used: bool = False

    def imported(self) -> ImportedToken:
        """Return the token of the entry, or a token with the reason why the entry is unusable."""
        kind = str(self.kind).lower()
        user = account(self.label) if isinstance(self.label, str) else None
        try:
            return self._token(kind, user)
        except FormatError as e:
            kind = "hotp" if kind == "hotp" else "totp"
            return ImportedToken(line=self.number, type=kind, user=user, unsupported=str(e))

    def _token(self, kind: str, user: str | None) -> ImportedToken:
        for each in fields(self):
            if type(getattr(self, each.name)) not in (str, int, bytes, bool, type(None)):
                raise FormatError(None, f"{each.name}: must be text or a whole number")
        if kind not in ("totp", "hotp"):
            raise FormatError(None, "unsupported type: must be totp or hotp")
        algorithm = algorithm_of(_text(self.algorithm, "SHA1"))
        if algorithm is None:
            raise FormatError(None, f"algorithm: must be {', '.join(ALGORITHMS)}")
        counter = whole_number(_text(self.counter, 0), None, "counter", high=MOVING_FACTOR_LIMIT - 1)
        secret = self.secret
        return ImportedToken(
            line=self.number,
            type=kind,
            user=user,
            secret=secret if isinstance(secret, bytes) else key_of(secret or "", None, "secret", "base32"),
            algorithm=algorithm,
            digits=whole_number(_text(self.digits, MIN_DIGITS), None, "digits", low=MIN_DIGITS, high=MAX_DIGITS),
            counter=counter + self.counter_used if kind == "hotp" else 0,
            period=period_of(_text(self.period, DEFAULT_PERIOD), None, "period") if kind == "totp" else DEFAULT_PERIOD,
        )


class AppBackup(Format):
    """A JSON backup of one app."""

    labels_name_users = True
    app: str
    """The app's name in messages."""
    opening: bytes = b"{"
    """The first character of the file."""
    members: tuple[str, ...]
    """The names of the JSON members that together distinguish such a file from files of other formats."""

    def sniff(self, data: bytes) -> bool:
        return has_members(data, self.opening, *self.members)

    def decode(self, data: bytes) -> bytes:
        return as_utf8(data)

    def parse(self, data: bytes, options: ParseOptions) -> ParsedFile:
        document = json_document(data)
        try:
            tokens = [each.imported() if isinstance(each, Entry) else each for each in self.entries(document, options)]
        except (AttributeError, KeyError, TypeError):  # the document has another structure
            raise FormatError(None, f"must be a backup of {self.app}") from None
        return ParsedFile(tokens, len(tokens), unit="entry")

    def entries(self, document: Any, options: ParseOptions) -> Iterable[Entry | ImportedToken]:
        """Return the entries of `document`. Raise FormatError, AttributeError, KeyError or TypeError."""
        raise NotImplementedError


def json_document(data: bytes) -> Any:
    """Return the document of the JSON file `data`. Raise FormatError."""
    try:
        return json.loads(as_utf8(data))
    except json.JSONDecodeError as e:
        raise FormatError(e.lineno, "must be JSON") from None
    except (ValueError, RecursionError):  # not UTF-8, a number of more than 4300 digits, or nested too deeply
        raise FormatError(None, "must be JSON in UTF-8, of moderate depth, with numbers of up to 4300 digits") from None


def has_members(data: bytes, opening: bytes, *names: str) -> bool:
    """Return True if the JSON file `data` starts with `opening` and has JSON members with all `names`, at any depth."""
    try:
        text = as_utf8(data)
    except FormatError:
        return False
    if not text.lstrip().startswith(opening):
        return False
    return all(re.search(rb'"%s"\s*:' % name.encode(), text) for name in names)


def encrypted_backup() -> FormatError:
    """Return the error for an encrypted backup that only the app can read."""
    return FormatError(None, "the backup cannot be read: it is encrypted (export it from the app without a password)")


def _text(value: _Value, default: str | int) -> str:
    return str(default) if value is None or value == "" else str(value)
