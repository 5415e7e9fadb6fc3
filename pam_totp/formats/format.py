"""The protocol of a file format: parse, write and sniff.

Rules:
- `parse` reads a whole file or raises FormatError. A line of an unknown form is an error.
- A format with one token per line parses its lines again at each iteration, so that memory holds one token at a time.
- `write` never drops a property silently: `lost_fields` names the properties that a format loses. `unwritable` gives
  the reason why a format cannot represent a token.
- `sniff` is strict: a file that fits no format, or two, is imported only if the user names the format. The command
  shows the recognised format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pam_totp.core.record import Token, UserRecord
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import FormatError, as_utf8

# A function of the caller, which returns the key (hexadecimal or base32) or the password of an encrypted file.
AskSecret = Callable[[Literal["key", "password"]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ParseOptions:
    """The arguments of a parser in addition to the file. `now` is in Unix seconds."""

    now: int
    ask_secret: AskSecret | None = None


@dataclass(frozen=True, slots=True)
class ParsedFile:
    """The tokens of a file. `tokens` may be iterated more than once, and each iteration may raise FormatError.

    `max_tokens` is an upper bound, for a progress bar. `record` is the file's record if the format holds whole records.
    `understood` has lines to show before the import, with the meaning of each column of a heading. `unit` is the unit
    of `ImportedToken.line`.
    """

    tokens: Iterable[ImportedToken]
    max_tokens: int
    record: UserRecord | None = None
    understood: tuple[str, ...] = ()
    unit: str = "line"


class TokensByLine(Iterable[ImportedToken]):
    """The tokens of `data`, parsed by `parse` at each iteration."""

    def __init__(self, data: bytes, parse: Callable[[bytes], Iterator[ImportedToken]]) -> None:
        self._data, self._parse = data, parse

    def __iter__(self) -> Iterator[ImportedToken]:
        return self._parse(self._data)


def parsed_by_line(
    data: bytes, parse: Callable[[bytes], Iterator[ImportedToken]], understood: tuple[str, ...] = ()
) -> ParsedFile:
    """Return the tokens of a file with at most one token per line. `parse` gets the data in UTF-8."""
    text = as_utf8(data)
    ends = text.count(b"\n") or text.count(b"\r")
    return ParsedFile(TokensByLine(text, parse), ends + 1, understood=understood)


def parsed_at_once(tokens: list[ImportedToken]) -> ParsedFile:
    """Return the tokens of a file that was parsed as a whole."""
    return ParsedFile(tokens, len(tokens))


class Format(Protocol):
    """One file format. `registry` has an instance of each subclass, which overrides the defaults here."""

    name: str
    """The format's name on the command line."""
    package: str | None = None
    """The Python package that the format needs beyond the standard library."""

    # For import.
    names_users: bool = True
    """True if a file may name the user of a token. Otherwise --user or --homes is required."""
    labels_name_users: bool = False
    """True if labels name the users. Other people, such as the author of a QR code, may have written these labels."""
    user_selects_tokens: bool = False
    """True if --user selects the tokens of that user. Otherwise --user assigns all tokens to that user."""
    several_files: bool = False
    """True if one export may consist of several files."""
    has_secret: bool = False
    """True if a file may be encrypted with a key or a password."""
    is_slow: bool = False
    """True if parsing a file of 1 MiB takes a second or more, so that a command shows a progress bar."""

    # For export.
    suffix: str | None = None
    """The suffix of an exported file's name, or None for a format that is for import only."""
    lost_fields: frozenset[str] = frozenset()
    """The fields of a token that an export in this format loses."""
    holds_one_token: bool = False
    holds_whole_record: bool = False
    all_users: Literal["file", "folder"] | None = None
    """The output for all users: a file with all tokens, or a folder with a file for each user. None: unsupported."""

    def load(self) -> None:
        """Import all modules that the format needs, before the process drops the privileges to read them.

        Raise ImportError if `package` is not installed.
        """
        return

    def sniff(self, data: bytes) -> bool:
        """Return True if the beginning of `data` looks like this format."""
        ...

    def decode(self, data: bytes) -> bytes:
        """Return the text of one file. The caller joins the texts of several files by line ends, and parses the result.

        Raise FormatError.
        """
        return data

    def parse(self, data: bytes, options: ParseOptions) -> ParsedFile:
        """Return the tokens of a file. Raise FormatError, here or when the tokens are iterated."""
        ...

    def unwritable(self, token: Token) -> str | None:
        """Return the reason why the format cannot represent `token`, or None."""
        return None

    def write(self, record: UserRecord, tokens: Sequence[Token], password: str | None = None) -> bytes:
        """Return the content of a file with `tokens` of `record`. The caller excludes tokens that are `unwritable`.

        Encrypt the content if `password` is given. Raise FormatError for a user name that the format cannot represent.
        """
        raise FormatError(None, f"{self.name}: export is unsupported")
