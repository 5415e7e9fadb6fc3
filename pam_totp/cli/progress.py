"""A progress bar on the terminal, for work that takes more than a second."""

from __future__ import annotations

import sys
import time

WIDTH = 30  # characters
DELAY = 1.0  # seconds before the bar appears


class Bar:
    """A bar `title [####    ] done/total` on standard error, if standard error is a terminal.

    The bar appears after DELAY, or immediately if `long` is set.
    """

    def __init__(self, title: str, *, long: bool = False) -> None:
        self._title = title
        self._start = time.monotonic() + (0 if long else DELAY)
        self._is_drawn = False

    def show(self, done: int, total: int) -> None:
        """Draw the bar again, and end its line if `done` equals `total`."""
        if not sys.stderr.isatty() or not (self._is_drawn or time.monotonic() >= self._start):
            return
        self._is_drawn = done < total
        bar = "#" * (WIDTH * done // max(total, 1))
        end = "" if done < total else "\n"
        print(f"\r{self._title} [{bar:{WIDTH}}] {done}/{total}", end=end, file=sys.stderr, flush=True)

    def end_line(self) -> None:
        """End the line of the bar before other output."""
        if self._is_drawn:
            print(file=sys.stderr)
        self._is_drawn = False
