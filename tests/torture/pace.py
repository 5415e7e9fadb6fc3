"""Duration and figures of the torture tests: a short form within `make test`, about an hour by `make torture`.

`make torture MINUTES=60` sets TORTURE_MINUTES. Numbers for an hour are scaled to it.
"""

from __future__ import annotations

import os

MINUTES = float(os.environ.get("TORTURE_MINUTES", "0"))
LONG = MINUTES > 0


def rounds(short: int, in_an_hour: int) -> int:
    """Return the number of rounds or seconds, scaled to the duration of the run."""
    return max(short, round(in_an_hour * MINUTES / 60)) if LONG else short


def figure(text: str) -> None:
    """Print a line with the attempts and their result. `make torture` repeats all such lines at the end."""
    print(f"\n{text}", flush=True)
    if path := os.environ.get("TORTURE_FIGURES"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")
