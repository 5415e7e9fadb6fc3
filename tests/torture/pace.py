"""Duration and results of the torture tests: `make test` runs a short form, and `make torture` runs for about an hour.

`make torture MINUTES=60` sets TORTURE_MINUTES. The number of rounds is proportional to this duration.
"""

from __future__ import annotations

import os

MINUTES = float(os.environ.get("TORTURE_MINUTES", "0"))
LONG = MINUTES > 0


def rounds(short: int, in_an_hour: int) -> int:
    """Return the number of rounds: `short` in the short form; else `in_an_hour` scaled to MINUTES, at least `short`."""
    return max(short, round(in_an_hour * MINUTES / 60)) if LONG else short


def report(text: str) -> None:
    """Print the line `text` with the results of a test. `make torture` repeats this line in its summary."""
    print(f"\n{text}", flush=True)
    if path := os.environ.get("TORTURE_RESULTS"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")
