"""A progress bar on the terminal, for what takes over a second."""

from __future__ import annotations

import sys
import time

WIDTH = 30  # characters
PATIENCE = 1.0  # seconds without a bar


class Bar:
    """`title [####    ] done/total` on standard error; nothing where that is no terminal.

    It is drawn from the start where it is known to take `long`.
    """

    def __init__(self, title: str, *, long: bool = False) -> None:
        self._title = title
        self._from = time.monotonic() + (0 if long else PATIENCE)
        self._shown = False

    def show(self, done: int, total: int) -> None:
        """Draw it anew; the last time with `done` equal to `total`, which ends the line."""
        if not sys.stderr.isatty() or not (self._shown or time.monotonic() >= self._from):
            return
        self._shown = done < total
        bar = "#" * (WIDTH * done // max(total, 1))
        end = "" if done < total else "\n"
        print(f"\r{self._title} [{bar:{WIDTH}}] {done}/{total}", end=end, file=sys.stderr, flush=True)

    def leave(self) -> None:
        """Go on in a new line: something else is to be said."""
        if self._shown:
            print(file=sys.stderr)
        self._shown = False
