"""How long the torture lasts, and what it says: a short form of each test within `make test`, about an hour in all by
`make torture`.

`make torture MINUTES=60` sets TORTURE_MINUTES; what is stated for an hour is scaled to it.
"""

from __future__ import annotations

import os

MINUTES = float(os.environ.get("TORTURE_MINUTES", "0"))
LONG = MINUTES > 0


def rounds(short: int, in_an_hour: int) -> int:
    """How often to do something, or for how many seconds."""
    return max(short, round(in_an_hour * MINUTES / 60)) if LONG else short


def figure(text: str) -> None:
    """Say what was tried and what came of it, in one line; `make torture` ends with all of them."""
    print(f"\n{text}", flush=True)
    if path := os.environ.get("TORTURE_FIGURES"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")
