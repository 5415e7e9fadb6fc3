"""Rows of CSV files as vendors and spreadsheets write them.

Rules:
- The separator is the comma, semicolon, tab or bar that divides the first row into the most columns. A first line
  `sep=;`, which spreadsheets write, overrides this rule.
- A value excludes the white space and quotation marks around it, and a spreadsheet's marks of text (`="0012"` and
  `'0012`).
- A row is split again if it is one quoted column with separators. A spreadsheet exports pasted text in this form.
- A quoted column may have line ends, as in notes. Such a row is parsed strictly: a column must end right after its
  quotation mark.
- Comments (#) and rows of empty columns are skipped. Empty columns at the end of a row are dropped.
- A heading is a first row that names at least two known columns. The heading sets the meaning of each column, in any
  order. Case and separators in the names are ignored.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pam_totp.formats.parsing import FormatError, first_lines, numbered_lines

MIN_NAMES = 2  # known names in a heading
MAX_ROW = 64 * 1024  # characters: notes may be long
_SEPARATORS = ",;\t|"
_SEPARATOR_LINE = re.compile(r"sep=([,;\t|]?)", re.IGNORECASE)

Row = tuple[int, list[str]]  # line number, columns


@dataclass(frozen=True, slots=True)
class Heading:
    """The meaning of columns by their names: field -> (index, name as written). `unknown` has the other names."""

    columns: Mapping[str, tuple[int, str]]
    unknown: tuple[str, ...]

    def value(self, row: list[str], field: str) -> str:
        """Return the value of `row` in the column of `field`, or an empty string."""
        index = self.columns[field][0] if field in self.columns else len(row)
        return row[index] if index < len(row) else ""

    def understood(self, meanings: Mapping[str, str]) -> str:
        """Return one line with the meaning of each column; `meanings` has the words for the fields."""
        known = ", ".join(f"'{name}' is the {meanings[field]}" for field, (_, name) in self.columns.items())
        unused = ", ".join(f"'{name}'" for name in self.unknown)
        return f"columns: {known}" + (f"; not used: {unused}" if unused else "")


def rows(data: bytes) -> Iterator[Row]:
    """Yield the line number and the columns of each row. Raise FormatError."""
    separator: str | None = None
    for number, line in _joined_lines(data):
        if separator is None:
            separator = _separator(line)
            if _SEPARATOR_LINE.fullmatch(line.strip(" ")):
                continue
        columns = _split(number, line, separator)
        if columns:
            yield number, columns


def _joined_lines(data: bytes) -> Iterator[tuple[int, str]]:
    """Yield each row that is not a comment, as the number of its first line and its text. Raise FormatError."""
    first, marks, length = 0, 0, 0
    lines: list[str] = []  # the lines of the row, joined once: a join for each line would take quadratic time
    for number, line in numbered_lines(data):
        if not lines and line.lstrip().startswith("#"):
            continue
        first = first if lines else number
        lines.append(line)
        marks += line.count('"')
        length += len(line) + 1
        if length > MAX_ROW + 1:
            raise FormatError(first, f"quotation marks must be balanced, within {MAX_ROW} characters")
        if marks % 2 == 0:
            yield first, "\n".join(lines)
            lines.clear()
            marks = length = 0
    if lines:
        raise FormatError(first, "quotation marks must be balanced")


def first_row(data: bytes) -> list[str]:
    """Return the columns of the first row, for `sniff`, or an empty list."""
    lines = first_lines(data, 2)
    if len(lines) == 2 and _SEPARATOR_LINE.fullmatch(lines[0]):
        del lines[0]
    try:
        return _split(1, lines[0], _separator(lines[0])) if lines else []
    except FormatError:
        return []


def heading_of(row: list[str], names: Mapping[str, str]) -> Heading | None:
    """Return the heading in a first row, or None. `names` maps names in lower case, without separators, to fields."""
    columns: dict[str, tuple[int, str]] = {}
    unknown = []
    for index, name in enumerate(row):
        field = names.get("".join(filter(str.isalnum, name.lower())))
        if field is None or field in columns:
            unknown += [name] if name else []
        else:
            columns[field] = index, name
    return Heading(columns, tuple(unknown)) if len(columns) >= MIN_NAMES else None


def _separator(line: str) -> str:
    given = _SEPARATOR_LINE.fullmatch(line.strip(" "))
    if given:
        return given[1] or "\t"
    return max(_SEPARATORS, key=lambda separator: len(_columns(_unwrapped(line), separator) or ()))


def _columns(line: str, separator: str) -> list[str] | None:
    """Return the columns of a row, or None for a row that `csv` refuses."""
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True, strict="\n" in line))
    except csv.Error:
        return None


def _split(number: int, line: str, separator: str) -> list[str]:
    found = _columns(_unwrapped(line), separator)
    if found is None:
        raise FormatError(number, "must be one row of columns")
    columns = [_bare(column) for column in found]
    while columns and not columns[-1]:
        columns.pop()
    return columns


def _unwrapped(line: str) -> str:
    """Return the text of a row that is one quoted column, or the row unchanged."""
    text = line.strip()
    return text[1:-1] if text[:1] == text[-1:] == '"' and text.count('"') == 2 else line


def _bare(column: str) -> str:
    text = column.strip()
    if text[:2] == '="' and text[-1:] == '"':
        text = text[2:-1]
    elif len(text) > 1 and text[0] == text[-1] == "'":
        text = text[1:-1]
    return text.removeprefix("'").strip()
