"""The output of the demo: steps, commands, prompts, a picture of the token, and a table of results at the end.

The output is coloured on a terminal, unless NO_COLOR is set. The picture is ASCII if the output's character set has no
box-drawing characters.
"""

from __future__ import annotations

import os
import sys
import textwrap

from token_sim.device import seven_segment

WIDTH = 76  # columns of the indented text, which fits a terminal of 80 columns
INDENT = "   "
_QR_COLOURS = "\x1b[38;5;231;48;5;16m"  # white on black, from the part of the palette that themes do not change
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(text: str, code: str) -> str:
    """Return the text in the colour of an ANSI code, or unchanged if colour is off."""
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


def can_print(text: str) -> bool:
    """Return True if the character set of the output contains all characters of the text."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def token_picture(code: str, serial: str) -> list[str]:
    """Return the lines of a picture: a key fob with a display and a button."""
    segments = seven_segment.light(code)
    digits = seven_segment.large(segments)
    top, side, bottom = ("╭─╮", "│", "╰─╯")
    button = "(●)"
    if not can_print("".join([*digits, top, side, bottom, button])):
        digits, button = seven_segment.small(segments), "(o)"
        top, side, bottom = ("+-+", "|", "+-+")
    width = max(map(len, digits))
    middle = len(digits) // 2
    body = [f"{line:<{width}}   {button if i == middle else '   '}" for i, line in enumerate(digits)]
    body.append(f"{serial:<{width + 6}}")
    inner = width + 6 + 4
    return [
        f"{top[0]}{top[1] * inner}{top[2]}",
        *(f"{side}  {line}  {side}" for line in body),
        f"{bottom[0]}{bottom[1] * inner}{bottom[2]}",
    ]


class Screen:
    """The printer of numbered steps, which records the result of each step."""

    def __init__(self) -> None:
        self.results: list[tuple[str, bool]] = []
        self._steps = 0

    @property
    def failed(self) -> bool:
        return not all(right for _, right in self.results)

    def title(self, text: str) -> None:
        """Print a heading."""
        print(paint(text, "1"))

    def step(self, text: str) -> None:
        """Print the heading of the next step, with its number."""
        self._steps += 1
        print(f"\n{paint(f'{self._steps}. {text}', '1')}", flush=True)

    def text(self, text: str, code: str = "2") -> None:
        """Print text, wrapped at `WIDTH` columns, in the colour of an ANSI code (default: dimmed)."""
        for line in text.rstrip().splitlines():
            for part in textwrap.wrap(line, WIDTH) or [""]:
                print(f"{INDENT}{paint(part, code)}")

    def command(self, *words: str) -> None:
        """Print a command line."""
        self.text(f"$ {' '.join(words)}", "36")

    def lines(self, lines: list[str]) -> None:
        """Print lines unchanged, such as those of a picture."""
        for line in lines:
            print(f"{INDENT}{line}")

    def qr_code(self, lines: list[str]) -> None:
        """Print a QR code in fixed colours, so that the terminal's theme does not invert it."""
        self.lines([f"{_QR_COLOURS}{line}\x1b[0m" if COLOUR else line for line in lines])

    def result(self, promise: str, happened: str, *, right: bool) -> None:
        """Print the result, and record `promise` for the table. `right` is True if the result was expected."""
        mark = paint("ok", "32") if right else paint("FAILED", "1;31")
        print(f"{INDENT}{happened:<{WIDTH - 8}} {mark}", flush=True)
        self.results.append((promise, right))

    def table(self) -> None:
        """Print each recorded promise, with "yes" if its step had the expected result, else "NO"."""
        print(f"\n{paint('Results', '1')}")
        for promise, right in self.results:
            mark = paint("yes", "32") if right else paint("NO", "1;31")
            print(f"{INDENT}{promise:<{WIDTH - 4}} {mark}")
