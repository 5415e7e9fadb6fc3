"""Printing what may be about a hundred thousand users, piece by piece.

The law: nothing that was printed is kept; what is printed is one table, or one JSON document, however long it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

BLOCK = 1000  # rows that are looked at together for the widths of their columns


class Table:
    """A table and the remarks about its rows, in blocks: the rows of one, then what is to be said about them.

    A column is as wide as its widest cell so far. So what fits into one block is a table as any other, and of a long
    one only the first blocks may be narrower than the rest. Used in a `with`, at whose good end the last block is
    printed.
    """

    def __init__(self, heads: Sequence[str]) -> None:
        self.rows = 0
        self._widths = [0] * len(heads)
        self._block: list[Sequence[str]] = [heads]
        self._remarks: list[str] = []

    def add(self, row: Sequence[str]) -> None:
        """One more row."""
        if len(self._block) >= BLOCK:
            self.flush()
        self.rows += 1
        self._block.append(row)

    def remark(self, text: str) -> None:
        """A line of its own below the block of the row that was added last."""
        self._remarks.append(text)
        if len(self._remarks) >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Print what has come together."""
        for row in self._block:
            self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, row, strict=True)]
        for row in self._block:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, self._widths, strict=True)).rstrip())
        for line in self._remarks:
            print(line)
        self._block, self._remarks = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if kind is None and self.rows:
            self.flush()


def print_json_pieces(data: Iterator[object] | Mapping[str, object]) -> None:
    """A JSON document like that of `print_json`, but what is an iterator becomes a list with an item a line."""
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
    """`end` is what ends a line at this depth: a line feed and the indentation."""
    before = "["
    for item in items:
        yield f"{before}{end} {json.dumps(item)}"
        before = ","
    yield f"{end}]" if before == "," else "[]"
