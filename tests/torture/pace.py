"""Duration and figures of the torture tests: a short form in `make test`, and about an hour in `make torture`.

`make torture MINUTES=60` sets TORTURE_MINUTES. The number of rounds is scaled to it.
"""

from __future__ import annotations

import os

MINUTES = float(os.environ.get("TORTURE_MINUTES", "0"))
LONG = MINUTES > 0


def rounds(short: int, in_an_hour: int) -> int:
    """Return `short` in the short form; in the long form `in_an_hour`, scaled to its duration, but at least `short`."""
    return max(short, round(in_an_hour * MINUTES / 60)) if LONG else short


def figure(text: str) -> None:
    """Print the number of attempts and their result. `make torture` repeats all these lines at its end."""
    print(f"\n{text}", flush=True)
    if path := os.environ.get("TORTURE_FIGURES"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")
