"""Conversions of a seven-segment display: text to lit segments, and lit segments to text or drawings.

Rules:
- The functions of this module are pure.
- The command line, the terminal interface and the tests draw displays only with this module.

     a
   f   b      bit 0 is a … bit 6 is g
     g
   e   c
     d
"""

from __future__ import annotations

from collections.abc import Iterable

CELLS = 8
SEGMENTS = "abcdefg"
ALL = (1 << len(SEGMENTS)) - 1
UNREADABLE = "?"

_LIT = {
    " ": "", "-": "g", "0": "abcdef", "1": "bc", "2": "abged", "3": "abgcd", "4": "fgbc", "5": "afgcd",
    "6": "afgedc", "7": "abc", "8": "abcdefg", "9": "abcdfg", "E": "afged", "r": "eg", "n": "egc",
    "d": "bcdeg", "b": "cdefg",
}  # fmt: skip
_MASKS = {char: sum(1 << SEGMENTS.index(segment) for segment in lit) for char, lit in _LIT.items()}
_READ = {mask: char for char, mask in _MASKS.items()}


def light(text: str, dark_segments: Iterable[int] = ()) -> tuple[int, ...]:
    """Return the lit segments of each cell for `text`, flush left, without `dark_segments` (cell × 10 + segment)."""
    masks = [_MASKS.get(char, _MASKS["-"]) for char in text[:CELLS].ljust(CELLS)]
    for number in dark_segments:
        cell, segment = divmod(number, 10)
        masks[cell] &= ~(1 << segment)
    return tuple(masks)


def read(masks: tuple[int, ...]) -> str:
    """Return the text that `masks` show, with a question mark for segments that form no character."""
    return "".join(_READ.get(mask, UNREADABLE) for mask in masks).rstrip()


def small(masks: tuple[int, ...]) -> list[str]:
    """Return a drawing of the cells in three lines of ASCII."""
    return _draw(masks, (" a ", "fgb", "edc"), dict(zip(SEGMENTS, "_||_||_", strict=True)))


def large(masks: tuple[int, ...]) -> list[str]:
    """Return a drawing of the cells in five lines of heavy box-drawing characters."""
    strokes = dict(zip(SEGMENTS, "━┃┃━┃┃━", strict=True))
    return _draw(masks, (" aaa ", "f   b", " ggg ", "e   c", " ddd "), strokes)


def _draw(masks: tuple[int, ...], shape: tuple[str, ...], strokes: dict[str, str]) -> list[str]:
    def cell(mask: int, row: str) -> str:
        return "".join(strokes[s] if s in strokes and mask >> SEGMENTS.index(s) & 1 else " " for s in row)

    return [" ".join(cell(mask, row) for mask in masks).rstrip() for row in shape]
