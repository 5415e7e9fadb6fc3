"""A progress bar on the terminal, for what takes over a second."""

from __future__ import annotations

import sys
import time

WIDTH = 30  # characters
PATIENCE = 1.0  # seconds without a bar


class Bar:
    """`title [####    ] done/total` on standard error; nothing where that is no terminal."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._shown = False

    def show(self, done: int, total: int) -> None:
        """Draw it anew; the last time with `done` equal to `total`, which ends the line."""
        if not sys.stderr.isatty() or not (self._shown or time.monotonic() - self._started >= PATIENCE):
            return
        self._shown = done < total
        bar = "#" * (WIDTH * done // max(total, 1))
        end = "" if done < total else "\n"
        print(f"\r{self._title} [{bar:{WIDTH}}] {done}/{total}", end=end, file=sys.stderr, flush=True)
