"""What the demo prints: steps, commands, prompts, a picture of the token, and a table of results at the end.

Colour is used on a terminal, unless NO_COLOR is set. The token is drawn in ASCII where the character set has no
box-drawing characters.
"""

from __future__ import annotations

import os
import sys
import textwrap

from token_sim.device import seven_segment

WIDTH = 76  # columns of the indented text; with the indent it fits a terminal of 80
INDENT = "   "
_BLACK_ON_WHITE = "\x1b[38;5;231;48;5;16m"  # the QR code is light on dark, whatever the terminal's theme
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def paint(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


def can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def token_picture(code: str, serial: str) -> list[str]:
    """A key fob with a seven-segment display, and the button that was pressed."""
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
    """Prints the steps in order, and remembers which results were right."""

    def __init__(self) -> None:
        self.results: list[tuple[str, bool]] = []
        self._steps = 0

    @property
    def failed(self) -> bool:
        return not all(right for _, right in self.results)

    def title(self, text: str) -> None:
        print(paint(text, "1"))

    def step(self, text: str) -> None:
        self._steps += 1
        print(f"\n{paint(f'{self._steps}. {text}', '1')}", flush=True)

    def text(self, text: str, code: str = "2") -> None:
        """Print text, dimmed, wrapped to the terminal."""
        for line in text.rstrip().splitlines():
            for part in textwrap.wrap(line, WIDTH) or [""]:
                print(f"{INDENT}{paint(part, code)}")

    def command(self, *words: str) -> None:
        self.text(f"$ {' '.join(words)}", "36")

    def lines(self, lines: list[str]) -> None:
        """Print lines as they are: a picture."""
        for line in lines:
            print(f"{INDENT}{line}")

    def qr_code(self, lines: list[str]) -> None:
        self.lines([f"{_BLACK_ON_WHITE}{line}\x1b[0m" if COLOUR else line for line in lines])

    def result(self, promise: str, happened: str, *, right: bool) -> None:
        """Record whether `promise` was kept, and print what happened."""
        mark = paint("ok", "32") if right else paint("FAILED", "1;31")
        print(f"{INDENT}{happened:<{WIDTH - 8}} {mark}", flush=True)
        self.results.append((promise, right))

    def table(self) -> None:
        print(f"\n{paint('What was shown', '1')}")
        for promise, right in self.results:
            mark = paint("yes", "32") if right else paint("NO", "1;31")
            print(f"{INDENT}{promise:<{WIDTH - 4}} {mark}")
