"""Tables and JSON on standard output, also for a hundred thousand users.

Rules:
- Memory use is independent of the length of the output.
- A table or a JSON document can have any length.
- In a table, control characters and characters that the output cannot encode are printed as escapes.
- A table fits the width of a terminal: long cells continue on further lines. In a file or pipe, a row is one line.
"""

from __future__ import annotations

import itertools
import json
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from pam_totp.cli import terminal

BLOCK = 1000  # rows that are printed together, with the same widths of columns
GAP = "  "  # between two columns
LEAST_WIDTH = 4  # characters: the minimum width of a column on a narrow terminal


class Table:
    """A table and remarks on its rows, printed in blocks: the rows of a block, then its remarks.

    A column is as wide as its widest cell so far, so the first blocks of a long table may be narrower than the rest.
    Use a table in a `with` statement, which prints the last block unless an exception is raised.
    """

    def __init__(self, heads: Sequence[str]) -> None:
        self.rows = 0
        self._widths = [0] * len(heads)
        self._heads = heads
        self._block: list[Sequence[str]] = [heads]
        self._remarks: list[str] = []

    def add(self, row: Sequence[str]) -> None:
        """Add a row."""
        if len(self._block) >= BLOCK:
            self.flush()
        self.rows += 1
        self._block.append([shown(cell) for cell in row])

    def remark(self, text: str) -> None:
        """Add a remark, which is printed below the block of the last row."""
        self._remarks.append(shown(text))
        if len(self._remarks) >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Print the rows and the remarks added since the last block."""
        for row in self._block:
            self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, row, strict=True)]
        size = terminal.size()
        widths = self._widths if size is None else fitted(self._widths, self._longest_words(), size.columns)
        for row in self._block:
            for line in _lines_of(row, widths):
                print(terminal.styled(line, "heading") if row is self._heads else line)
        for line in self._remarks:
            print(line)
        self._block, self._remarks = [], []

    def _longest_words(self) -> list[int]:
        """Return the length of the longest word in each column of the block."""
        columns = zip(*self._block, strict=True)
        return [max(len(word) for cell in column for word in cell.split() or [""]) for column in columns]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if kind is None and self.rows:
            self.flush()


def fitted(widths: Sequence[int], words: Sequence[int], columns: int) -> list[int]:
    """Return the widths of a table's columns so that a line has at most `columns` characters.

    `words` has the length of the longest word in each column. The widest column becomes narrower first. Words are split
    only if the table would otherwise be too wide. Each column gets at least LEAST_WIDTH, so a table with many columns
    may be too wide.
    """
    fitting = list(widths)
    excess = sum(fitting) + len(GAP) * (len(fitting) - 1) - columns
    for least in (words, [LEAST_WIDTH] * len(fitting)):
        while excess > 0:
            spare = [i for i, width in enumerate(fitting) if width > max(least[i], LEAST_WIDTH)]
            if not spare:
                break
            fitting[max(spare, key=fitting.__getitem__)] -= 1
            excess -= 1
    return fitting


def _lines_of(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a row: more than one if a cell is longer than its column."""
    if all(len(cell) <= width for cell, width in zip(row, widths, strict=True)):
        parts = [[cell] for cell in row]
    else:
        parts = [textwrap.wrap(cell, width, break_on_hyphens=False) for cell, width in zip(row, widths, strict=True)]
    for cells in itertools.zip_longest(*parts, fillvalue=""):
        yield GAP.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def shown(text: str) -> str:
    """Return the text with escapes in place of the characters that cannot be printed."""
    if text.isascii() and text.isprintable():
        return text
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    encoding = sys.stdout.encoding or "ascii"
    return safe.encode(encoding, "backslashreplace").decode(encoding)


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a short table."""
    with Table(heads) as table:
        for row in rows:
            table.add(row)


def json_text(data: object) -> str:
    return f"{json.dumps(data, indent=1)}\n"


def print_json(data: object) -> None:
    print(json_text(data), end="")


def print_json_stream(data: Iterator[object] | Mapping[str, object]) -> None:
    """Print a JSON document. Each iterator becomes a list with one item per line; memory holds one item at a time."""
    sys.stdout.writelines(_list(data) if isinstance(data, Iterator) else _object(data))
    print()


def _object(members: Mapping[str, object]) -> Iterator[str]:
    before = "{"
    for name, value in members.items():
        yield f"{before}\n {json.dumps(name)}: "
        yield from _list(value, "\n ") if isinstance(value, Iterator) else [json.dumps(value)]
        before = ","
    yield "\n}"


def _list(items: Iterator[object], end: str = "\n") -> Iterator[str]:
    """Yield the JSON text of a list. `end` is a line feed and the indentation of the closing bracket."""
    before = "["
    for item in items:
        yield f"{before}{end} {json.dumps(item)}"
        before = ","
    yield f"{end}]" if before == "," else "[]"


def count(number: int, what: str) -> str:
    """Return the number and the noun, in the plural unless the number is 1: `1 token`, `2 tokens`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def format_time(seconds: int | None) -> str:
    """Return Unix seconds as a time in UTC, to the minute, or "never" for None."""
    if seconds is None:
        return "never"
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
    except (OverflowError, OSError, ValueError):  # a time outside the calendar, from a wrong clock
        return f"at {seconds}"
